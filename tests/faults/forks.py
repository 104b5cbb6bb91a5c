"""Training processes forked from one that has imported everything, so that killing sixty takes a minute.

They are the processes that a launcher would start: the same `main`, the same environment, real signals.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import safetensors.torch
import torch
import torch._dynamo  # every run comes to it: once, before the processes are forked
from safetensors import safe_open

import deepres.checkpoints.saving
from deepres.train import main
from tests.processes import ROOT, free_port

INTERVAL = 3
RUN = (
    "--config", str(ROOT / "configs" / "quickstart.yaml"), "data.name=synthetic", "data.image_size=16",
    "data.num_images=64", "model.depth=11", "train.epochs=2", "train.global_batch_size=8", "log.every=1",
    "log.plots=false", "engine.name=plain", "engine.zero_stage=0", f"train.save_every={INTERVAL} steps",
    "recompute.segments=none",  # to measure for a plan takes longer than the run
    "train.resume=auto", "train.save_in_background=never", "engine.rendezvous_timeout_s=15",
)  # fmt: skip


def fork(
    run_dir: Path, *overrides: str, world_size: int = 1, before: Callable[[int], object] = id
) -> list[int]:
    """Start a run; its output goes to `RUN_DIR.RANK.txt`. `before(rank)` is called in each process."""
    outputs = [Path(f"{run_dir}.{rank}.txt") for rank in range(world_size)]
    return fork_ranks([*RUN, f"train.run_dir={run_dir}", *overrides], outputs, before)


def fork_ranks(
    arguments: list[str],
    outputs: list[Path],
    before: Callable[[int], object] = id,
    run: Callable[[list[str]], int] = main,
) -> list[int]:
    """Start the command line's `main` as a launcher would, in a process for each file of output; their numbers."""
    port, pids = free_port(), []
    for rank, output in enumerate(outputs):
        variables = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(len(outputs))}
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        pids.append(fork_main(arguments, output, variables, partial(before, rank), run))
    return pids


def fork_main(
    arguments: list[str],
    output: Path,
    variables: dict[str, str],
    before: Callable[[], object] = list,
    run: Callable[[list[str]], int] = main,
) -> int:
    """Start the command line's `main` in a process, with its output in a file; the process's number."""
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            os.environ |= variables
            torch.set_num_threads(1)  # as the launched runs, whose bits these must have
            before()
            status = run(arguments)
        except BaseException:  # noqa: BLE001  # whatever it is must be seen in the output
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return pid


def wait(pids: list[int], timeout_s: float = 90) -> list[int]:
    """The processes' exit statuses, −N for signal N; they are killed after `timeout_s`, as −9."""
    end, statuses = time.monotonic() + timeout_s, dict[int, int]()
    while len(statuses) < len(pids):
        for pid in set(pids) - statuses.keys():
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                statuses[pid] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            for pid in set(pids) - statuses.keys():
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return [statuses[pid] for pid in pids]


def kill_at(moment: int) -> Callable[[int], object]:
    """Makes rank 0 kill itself before its `moment`-th change to the disk, counted over all its saves."""

    def before(rank: int) -> None:
        left = [moment]

        def dying(function):
            def wrapped(*arguments, **options):
                if "checkpoints" in str(arguments[0]) or function is os.fsync:
                    left[0] -= 1
                    if left[0] == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)

            return wrapped

        if rank == 0:
            os.fsync = dying(os.fsync)
            shutil.rmtree = dying(shutil.rmtree)
            deepres.checkpoints.saving.save_file = lambda tensors, path, metadata: dying(
                lambda where: safetensors.torch.save_file(tensors, where, metadata)
            )(path)
            for name in ("mkdir", "rename", "replace", "write_text"):
                setattr(Path, name, dying(getattr(Path, name)))

    return before


def logged_step(run_dir: Path) -> int:
    """The last whole line of the run's metrics."""
    step = 0
    with contextlib.suppress(FileNotFoundError):
        for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                step = max(step, json.loads(line).get("step", 0))
    return step


def resumed_step(run_dir: Path) -> int:
    """What a resumed run says that it goes on from; 0 if it began anew, its last step if it had finished."""
    text = Path(f"{run_dir}.0.txt").read_text(encoding="utf-8")
    if "nothing is left to do" in text:
        return logged_step(run_dir)
    return int(text.split(": step ")[1].split(",")[0]) if "resumes from" in text else 0


def same_weights(a: Path, b: Path) -> bool:
    """Whether two runs ended with the same parameters and buffers, bit for bit."""
    with safe_open(a / "model.safetensors", "pt") as x, safe_open(b / "model.safetensors", "pt") as y:
        names = set(x.keys())
        return names == set(y.keys()) and all(torch.equal(x.get_tensor(n), y.get_tensor(n)) for n in names)
