"""Trains in processes forked from one that has imported everything: a start takes a tenth of a second, not five.

They run the `main` of the command line, or a script, in the environment of a launcher. What is about a start itself
(launchers, arguments, imports) wants `tests.processes.run`.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import subprocess
import sys
from functools import partial
from pathlib import Path

from tests.processes import ROOT, environment


class Forked:
    """Forks from a process of its own, which is started when it is first needed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def train(self, folder: Path, *arguments: str | Path, num_processes: int = 1) -> str:
        """Run the command line in so many processes; their output, which goes to files in the folder.

        Raises:
            AssertionError: one of them ended with another status than 0.
        """
        return self._run("", folder, arguments, num_processes)

    def run_script(self, script: Path, folder: Path, *arguments: str | Path, num_processes: int = 2) -> str:
        """Run a script that needs no launcher of its own; as `train`."""
        return self._run(str(script), folder, arguments, num_processes)

    def _run(self, script: str, folder: Path, arguments: tuple[str | Path, ...], num_processes: int) -> str:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, __file__], cwd=ROOT, env=environment(), text=True, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = {
            "script": script,
            "arguments": list(map(str, arguments)),
            "folder": str(folder),
            "world_size": num_processes,
        }
        print(json.dumps(order), file=self._process.stdin, flush=True)
        statuses = json.loads(self._process.stdout.readline())
        output = "".join(
            (folder / f"{rank}.txt").read_text(encoding="utf-8") for rank in range(num_processes)
        )
        assert statuses == [0] * num_processes, output
        return output

    def stop(self) -> None:
        """End the process that forks."""
        if self._process is not None:
            self._process.communicate()


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what imports print is no answer
    import torch._dynamo  # noqa: F401  # what a run comes to import

    import deepres.engines.deepspeed_engine  # noqa: F401
    from deepres.train import main
    from tests.faults.forks import fork_ranks, wait

    gc.freeze()  # measuring memory collects garbage, and modules are none
    for line in sys.stdin:
        order = json.loads(line)
        folder = Path(order["folder"])
        outputs = [folder / f"{rank}.txt" for rank in range(order["world_size"])]
        run = partial(_run_script, order["script"]) if order["script"] else main
        pids = fork_ranks(order["arguments"], outputs, run=run)
        print(json.dumps(wait(pids, timeout_s=240)), file=answers, flush=True)


def _run_script(script: str, arguments: list[str]) -> int:
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
    return 0


if __name__ == "__main__":
    _serve()
