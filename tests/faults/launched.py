"""Runs started by the real launchers, and the processes that they are made of."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.faults.forks import RUN
from tests.processes import ROOT, TRAIN, environment, free_port


def start(launcher: str, run_dir: Path, *overrides: str) -> subprocess.Popen[bytes]:
    """A run of two processes (`python`: of one); its output goes to `RUN_DIR.txt`."""
    port = str(free_port())
    command = {
        "deepspeed": ["deepspeed", "--num_gpus", "2", "--master_port", port],
        "torchrun": [
            sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port,
        ],
        "python": [sys.executable],
    }[launcher]  # fmt: skip
    with Path(f"{run_dir}.txt").open("wb") as output:
        return subprocess.Popen(
            [*command, TRAIN, *RUN, f"train.run_dir={run_dir}", *overrides],
            cwd=ROOT,
            env=environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def output_of(run_dir: Path) -> str:
    return Path(f"{run_dir}.txt").read_text(encoding="utf-8", errors="replace")


def processes_of(run_dir: Path) -> list[psutil.Process]:
    """All that has the run's folder on its command line: launchers, ranks, workers."""
    found = []
    for process in psutil.process_iter():
        try:
            if f"train.run_dir={run_dir}" in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def ranks_of(run_dir: Path) -> list[psutil.Process]:
    """The training processes, rank 0 first."""
    ranks = {}
    for process in processes_of(run_dir):
        words = process.cmdline()
        is_launcher = any("torch.distributed.run" in w or w.endswith(("deepspeed", ".launch")) for w in words)
        if not is_launcher and "RANK" in process.environ():
            ranks.setdefault(int(process.environ()["RANK"]), process)
    return [ranks[rank] for rank in sorted(ranks)]


def catches_signals(process: psutil.Process) -> bool:
    """Whether the process has come past its imports, to where it handles SIGTERM."""
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    caught = int(status.split("SigCgt:")[1].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def launcher_child_of(run_dir: Path) -> psutil.Process:
    """deepspeed's inner process, which starts the ranks."""
    return next(p for p in processes_of(run_dir) if "deepspeed.launcher.launch" in p.cmdline())


def wait_for(condition: Callable[[], object], timeout_s: float, what: str) -> float:
    """Seconds until `condition()` is true."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < timeout_s, f"{what} within {timeout_s} s"
        time.sleep(0.002)
    return time.monotonic() - begin


def end_all(run_dir: Path) -> None:
    """Leave nothing behind, also where a test has failed."""
    for process in processes_of(run_dir):
        process.kill()
