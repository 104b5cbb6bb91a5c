"""Memory that runs out: shrunk together with nothing changed, or told what would have fitted."""

import subprocess
import sys
import textwrap
import weakref

import pytest
import torch
import torch.nn.functional as F

from deepres.batch_sizes import BatchSizes
from deepres.exit_status import ExitStatus, RunError
from deepres.memory import measure_activation_peak
from deepres.models import build_resnet
from deepres.out_of_memory import (
    UntilOutOfMemory,
    is_out_of_memory,
    out_of_memory,
    shrink_until_it_fits,
)
from tests.processes import PLAIN, QUICKSTART, ROOT, SMALL, environment, free_port, run, torchrun

CPU = torch.device("cpu")
SCRIPT = """
    import torch
    from deepres.batch_sizes import BatchSizes
    from deepres.distributed import start_process_group, stop_process_group, this_process
    from deepres.memory import measure_activation_peak
    from deepres.models import build_resnet
    from deepres.out_of_memory import shrink_until_it_fits

    process = this_process("cpu")
    if process.world_size > 1:
        start_process_group(process)
    net = build_resnet(11)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    torch.manual_seed(3)
    generator = torch.get_rng_state()

    def attempt(size):
        images = torch.zeros(size, 3, 8, 8)
        measure_activation_peak(net, net, images, torch.zeros(size, dtype=torch.int64))

    def ask_for_too_much(unit, inputs):
        if len(inputs[0]) > 64:
            torch.empty(2**48, dtype=torch.uint8)  # more than there are addresses

    if process.rank == process.world_size - 1:  # rank 0 of two has memory enough, and must follow the other
        net.units[1].register_forward_pre_hook(ask_for_too_much)
    sizes = BatchSizes(512 * process.world_size, 512, 1, process.world_size)
    found, _ = shrink_until_it_fits(sizes, attempt, process.device)
    same = all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    same = same and torch.equal(generator, torch.get_rng_state()) and all(p.grad is None for p in net.parameters())
    print("RANK", process.rank, found.micro_size, found.accumulation, found.global_size, same, flush=True)
    stop_process_group()
"""


@pytest.mark.multi_process
@pytest.mark.parametrize("num_processes", [1, 2])
def test_the_micro_batch_is_halved_in_all_processes_until_it_fits_and_nothing_else_changes(num_processes):
    """The allocator really refuses, in the middle of the last process's pass."""
    started = []
    port = str(free_port())
    for rank in range(num_processes):
        variables = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_processes)}
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "MKL_NUM_THREADS": "1"}
        command = [sys.executable, "-c", textwrap.dedent(SCRIPT)]
        started.append(
            subprocess.Popen(
                command,
                env=environment(**variables),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    found = []
    told = [process.communicate(timeout=200) for process in started]
    assert [process.returncode for process in started] == [0] * num_processes, [error for _, error in told]
    for output, _ in told:
        _, _, micro, accumulation, total, same = output.split("RANK")[1].join(["RANK", ""]).split()[:6]
        found.append((int(micro), int(accumulation), int(total)))
        assert same == "True"
    assert len(set(found)) == 1
    micro, accumulation, total = found[0]
    assert (micro, accumulation) == (64, 8)
    assert total == 512 * num_processes


TRAIN = """
    import resource, sys
    from deepres.train import main

    used = int(open("/proc/self/statm").read().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (used + 700 * 2**20,) * 2)
    sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.multi_process
def test_a_run_whose_first_micro_batch_does_not_fit_says_what_would(tmp_path):
    settings = [
        "data.name=synthetic",
        "data.num_images=4096",
        "train.global_batch_size=4096",
        "recompute.segments=none",
    ]
    done = run(
        sys.executable, "-c", textwrap.dedent(TRAIN), "--config", ROOT / "configs" / "quickstart.yaml",
        "data.image_size=32", f"train.run_dir={tmp_path}/run", *settings, MALLOC_ARENA_MAX="1", MKL_NUM_THREADS="1",
    )  # fmt: skip
    assert done.returncode == ExitStatus.OUT_OF_MEMORY, done.stderr
    assert done.stderr == (
        "error: out of memory before the first step with a micro batch of 4096: train.micro_batch_size=2048 "
        "train.accumulation=2 may fit, and trains the same global batch of 4096\n"
    )


ONE_RUNS_OUT = """
    import os, sys
    import torch
    from deepres import train
    from deepres.engines import Engine

    train._FIRST_SPEAKS_S = 1.0
    run_pass, num_passes = Engine._pass, 0

    def ask_for_too_much(self, images, labels, *, is_last):
        global num_passes
        num_passes += 1
        if num_passes == 3:
            torch.empty(2**48, dtype=torch.uint8)  # more than there are addresses
        return run_pass(self, images, labels, is_last=is_last)

    def ask_for_too_much_in_evaluation(self, images):
        torch.empty(2**48, dtype=torch.uint8)

    if os.environ["RANK"] == "1" and os.environ["WHERE"] == "step":
        Engine._pass = ask_for_too_much
    elif os.environ["RANK"] == "1":
        Engine.predict = ask_for_too_much_in_evaluation
    status = train.main(sys.argv[1:])
    os._exit(status)
"""


@pytest.mark.multi_process
@pytest.mark.parametrize(
    ("where", "message"),
    [
        (
            "step",
            "train.micro_batch_size=2 train.accumulation=2 may fit, and trains the same global batch of 8",
        ),
        (
            "evaluation",
            "error: out of memory in the evaluation, with 4 images at once: lower train.eval_batch_size",
        ),
    ],
)
def test_the_one_process_that_runs_out_of_memory_says_so_whichever_it_is(
    tmp_path, monkeypatch, where, message
):
    monkeypatch.setenv("WHERE", where)
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(ONE_RUNS_OUT), encoding="utf-8")
    run_dir = tmp_path / "run"
    done = torchrun(script, "--config", QUICKSTART, *SMALL, *PLAIN, f"train.run_dir={run_dir}")
    assert done.returncode != 0
    assert done.stderr.count(message) == 1
    # What was trained before an evaluation is saved.
    assert [path.name for path in run_dir.glob("checkpoints/step-*")] == ["step-00000008"] * (where != "step")


def attempt_up_to(most):
    tried = []

    def attempt(size):
        tried.append(size)
        if size > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return f"{size} images"

    return attempt, tried


def test_what_fits_is_left_as_it_is():
    attempt, tried = attempt_up_to(64)
    sizes = BatchSizes(128, 64, 2, 1)
    assert shrink_until_it_fits(sizes, attempt, CPU) == (sizes, "64 images")
    assert tried == [64]


def test_halving_keeps_the_global_batch():
    attempt, tried = attempt_up_to(10)
    found = shrink_until_it_fits(BatchSizes(128, 64, 2, 1), attempt, CPU)
    assert found == (BatchSizes(128, 8, 16, 1), "8 images")
    assert tried == [64, 32, 16, 8]


def test_an_odd_micro_batch_shrinks_to_the_next_that_divides_the_global_batch():
    attempt, tried = attempt_up_to(5)
    found = shrink_until_it_fits(BatchSizes(75, 25, 3, 1), attempt, CPU)
    assert found == (BatchSizes(75, 5, 15, 1), "5 images")
    assert tried == [25, 5]


def test_where_nothing_fits_the_run_ends_with_a_status_of_its_own():
    attempt, tried = attempt_up_to(0)
    with pytest.raises(RunError, match="not even a micro batch of 1 fits") as error:
        shrink_until_it_fits(BatchSizes(12, 12, 1, 1), attempt, CPU)
    assert tried == [12, 6, 3, 1]
    assert error.value.exit_status is ExitStatus.OUT_OF_MEMORY


def test_other_errors_are_not_swallowed():
    def attempt(_):
        raise RuntimeError("expected a tensor")

    with pytest.raises(RuntimeError, match="expected a tensor"):
        shrink_until_it_fits(BatchSizes(8, 8, 1, 1), attempt, CPU)


def test_a_failed_allocation_is_known_whatever_it_is_called():
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"))
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**50)
    assert is_out_of_memory(error.value)
    for message in (
        "FIND was unable to find an engine to execute this computation",
        "CUDA error: out of memory",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ):
        assert is_out_of_memory(RuntimeError(message))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_what_a_block_held_that_ran_out_of_memory_is_free_behind_it():
    held = []

    def fail(kind):
        activations = torch.zeros(2)
        held.append(weakref.ref(activations))
        raise kind("shape mismatch")

    with UntilOutOfMemory() as attempt:
        fail(MemoryError)
    assert attempt.ran_out
    assert held[0]() is None
    with UntilOutOfMemory() as attempt:
        pass
    assert not attempt.ran_out
    with pytest.raises(RuntimeError, match="shape mismatch"), UntilOutOfMemory():
        fail(RuntimeError)


@pytest.mark.parametrize(
    ("peak", "free", "fitting", "accumulation"),
    [(6400, None, 32, 2), (6400, 1700, 16, 4), (6400, 100, 1, 64), (6400, 10**9, 32, 2)],
)
def test_a_step_out_of_memory_tells_what_would_have_fitted(peak, free, fitting, accumulation):
    error = out_of_memory("in step 7", BatchSizes(64, 64, 1, 1), peak, free)
    assert error.exit_status is ExitStatus.OUT_OF_MEMORY
    text = f"out of memory in step 7 with a micro batch of 64: train.micro_batch_size={fitting} train.accumulation={accumulation}"  # noqa: E501
    assert str(error).startswith(text)


@pytest.mark.parametrize("free", [None, 50])
def test_where_no_smaller_micro_batch_would_fit_another_plan_is_advised(free):
    micro_size = 1 if free is None else 64
    error = out_of_memory("in step 7", BatchSizes(64, micro_size, 64 // micro_size, 1), 6400, free)
    assert str(error) == (
        f"out of memory in step 7 with a micro batch of {micro_size}: no smaller one would fit: a plan that "
        "replays more takes less: set recompute.budget or recompute.device_memory, or lower it"
    )


def test_measuring_is_an_attempt_that_leaves_the_net_as_it_was():
    net = build_resnet(11)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    def failing(images):
        F.relu(net(images))
        raise torch.OutOfMemoryError("CUDA out of memory")

    def attempt(size):
        run = failing if size > 2 else net
        measure_activation_peak(net, run, torch.zeros(size, 3, 8, 8), torch.zeros(size, dtype=torch.int64))

    sizes, _ = shrink_until_it_fits(BatchSizes(4, 4, 1, 1), attempt, CPU)
    assert sizes.micro_size == 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
