"""SIGTERM, SIGINT and SIGHUP, to whatever process and at whatever moment: one checkpoint, and nothing left behind."""

import signal
import time
from itertools import product

import pytest

from deepres.checkpoints.resuming import newest_checkpoint
from deepres.checkpoints.saving import checkpoints_in
from tests.faults.forks import RUN, logged_step, same_weights
from tests.faults.launched import (
    catches_signals,
    end_all,
    launcher_child_of,
    output_of,
    processes_of,
    ranks_of,
    start,
    wait_for,
)

pytestmark = pytest.mark.multi_process
SLOW = pytest.mark.slow
# Steps of some 20 ms, an evaluation of some seconds.
LONG = ("data.num_images=640", "train.eval_batch_size=1", "train.max_steps=90")
RECEIVERS, MOMENTS = ("launcher", "child", "rank"), ("first step", "training", "evaluation", "save")
CASES = [
    pytest.param(
        "deepspeed", receiver, moment, (signal.SIGTERM, signal.SIGINT)[(i + j) % 2], 1,
        marks=SLOW,
    )
    for (i, receiver), (j, moment) in product(enumerate(RECEIVERS), enumerate(MOMENTS))
]  # fmt: skip
CASES += [
    pytest.param("torchrun", "launcher", "save", signal.SIGTERM, 1, marks=SLOW),
    pytest.param("torchrun", "rank", "evaluation", signal.SIGINT, 1, marks=SLOW),
    pytest.param("python", "launcher", "training", signal.SIGINT, 75),
    pytest.param("python", "launcher", "first step", signal.SIGTERM, 75, marks=SLOW),
    pytest.param("python", "launcher", "training", signal.SIGHUP, 75, marks=SLOW),
]


def reach(moment, run_dir):
    """Wait for the moment: the plan is written right before the first step, once the processes have met."""
    if moment == "first step":
        wait_for((run_dir / "plan.json").exists, 120, "the start")
        wait_for(lambda: all(map(catches_signals, ranks_of(run_dir))), 60, "the processes' start")
    elif moment == "training":
        wait_for(lambda: logged_step(run_dir) >= 20, 120, "step 20")
    elif moment == "evaluation":
        wait_for(lambda: logged_step(run_dir) >= 80, 120, "the last step of the epoch")
        time.sleep(0.3)
    else:
        wait_for(lambda: list((run_dir / "checkpoints").glob("*.tmp")), 120, "a save")


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, forked):
    """`whole_run(num_processes)`: the folder of the run that nothing interrupts."""
    base = tmp_path_factory.mktemp("whole")

    def folder(num_processes):
        run_dir = base / str(num_processes)
        if not run_dir.exists():
            whole = (*LONG, "train.save_every=null", f"train.run_dir={run_dir}")
            forked.train(base, *RUN, *whole, num_processes=num_processes)
        return run_dir

    return folder


@pytest.mark.parametrize(("launcher", "receiver", "moment", "number", "status"), CASES)
def test_a_signal_saves_once_ends_all_and_loses_nothing(
    tmp_path, table, forked, whole_run, launcher, receiver, moment, number, status
):
    run_dir = tmp_path / "run"
    overrides = [*LONG, "train.save_every=1 steps" if moment == "save" else "train.save_every=1000 steps"]
    process = start(launcher, run_dir, *overrides)
    try:
        reach(moment, run_dir)
        target = {
            "launcher": lambda: process,
            "child": lambda: launcher_child_of(run_dir),
            "rank": lambda: ranks_of(run_dir)[1],
        }[receiver]()
        target.send_signal(number)
        begin = time.monotonic()
        while processes_of(run_dir) and time.monotonic() - begin < 60:
            process.poll()
            time.sleep(0.1)
        ended_s = time.monotonic() - begin
        exit_status = process.wait(10)
    finally:
        end_all(run_dir)
    text = output_of(run_dir)
    found = newest_checkpoint(run_dir, print)
    stopped = found.progress.step if found else -1
    num_processes = 1 if launcher == "python" else 2
    arguments = (*RUN, f"train.run_dir={run_dir}", *overrides)
    try:
        forked.train(tmp_path, *arguments, num_processes=num_processes)
        is_same = same_weights(run_dir, whole_run(num_processes))
    except AssertionError as error:
        print(error)
        is_same = False
    lost = logged_step(run_dir) - stopped if found is None else 0
    survived = found is not None and ended_s < 35 and is_same and "stopped by" in text
    table.add(f"{number.name} to {launcher}'s {receiver}: {moment}", survived, lost, seconds=ended_s)
    assert found is not None, text
    assert moment == "save" or len(checkpoints_in(run_dir / "checkpoints")) <= 2
    assert ended_s < 35, text
    assert f"after step {stopped}; train.resume=auto resumes from there" in text
    assert exit_status != 0, text
    if launcher == "python":
        assert exit_status == status
    assert is_same
