"""Calling functions in a fresh process, with its own environment and time limit."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from deepres.memory import keep_freed_memory


class ChildTimeoutError(RuntimeError):
    """The process did not end within its time limit."""


class ChildFailedError(RuntimeError):
    """The process failed; the message is its last line."""


def call_in_child(
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    environment: Mapping[str, str] | None = None,
    limit_s: float | None = None,
    *,
    processor_time: bool = False,
) -> Any:
    """Call a function of a module that can be imported from here in a new process.

    Args:
        function: takes and returns what JSON can hold.
        arguments: by name.
        environment: variables to set in addition to this process's.
        limit_s: seconds after which the process, and what it has started, is ended.
        processor_time: compute in one thread, and make `time.perf_counter` return the process's CPU time: so a machine
            that others use too is as good as a quiet one.

    Raises:
        ChildTimeoutError: it took longer.
        ChildFailedError: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        clock = "processor" if processor_time else "wall"
        call = [function.__module__, function.__qualname__, json.dumps(dict(arguments)), str(answer), clock]
        with (Path(folder) / "log").open("w+") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "measuring.child", *call],
                env={**os.environ, **(environment or {}), "PYTHONPATH": os.pathsep.join(sys.path)},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                process.wait(limit_s)
            except subprocess.TimeoutExpired:
                raise ChildTimeoutError(f"not within {limit_s:g} s") from None
            finally:
                if process.poll() is None:
                    _end_session(process)
            if process.returncode:
                log.seek(0)
                lines = [line.strip() for line in log if line.strip()] or [f"status {process.returncode}"]
                raise ChildFailedError(lines[-1])
        return json.loads(answer.read_text(encoding="utf-8"))


def _end_session(process: subprocess.Popen[bytes]) -> None:
    """End the process and its children (compilers), which are alone in its session."""
    os.killpg(process.pid, 15)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.wait()
    time.sleep(0.1)


def _main() -> None:
    module, name, arguments, answer, clock = sys.argv[1:]
    keep_freed_memory()
    if clock == "processor":
        torch.set_num_threads(1)  # threads that wait for each other spin, which would count as CPU time
        time.perf_counter = time.process_time
    result = getattr(importlib.import_module(module), name)(**json.loads(arguments))
    Path(answer).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    _main()
