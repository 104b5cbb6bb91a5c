"""Training rows: each seed by `deepres/train.py` in its own processes, and none twice."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from deepres.commit import replace_text
from deepres.config import Config, load_config
from deepres.distributed import this_process
from deepres.evaluating import evaluate
from deepres.run_folder import CHECKPOINTS, CONFIG, is_locked
from paper_reproduction.length import Length
from paper_reproduction.rows import ROOT, ReproductionError, Row
from paper_reproduction.runs import differences, outcome_file, read_run, seed_folder

_TRAIN = ROOT / "deepres" / "train.py"
_ENDED = ("finished", "diverged")
_OWN_PROCESSES_GONE_S = 15.0
"""After a run has ended, its processes that decode images lock its folder for a few more seconds."""
_SET_HERE = {
    "train.seed": "use --seeds",
    "train.run_dir": "use --results",
    "train.output": "use --results",
    "train.resume": "an interrupted run always goes on",
    "train.overwrite": "use another --results, or remove the run's folder",
}


@dataclass(frozen=True)
class Order:
    """What to train.

    Attributes:
        rows: of the paper.
        seeds: for each row; None: as many as the paper's result is from.
        length: of every run.
        results: the folder of all results.
        overrides: `section.key=value`, applied to the rows' configs.
        launcher: the command that starts `deepres/train.py`.
    """

    rows: Sequence[Row]
    seeds: tuple[int, ...] | None
    length: Length
    results: Path
    overrides: Sequence[str]
    launcher: Sequence[str] = (sys.executable,)


@dataclass(frozen=True)
class _Run:
    row: Row
    asked: Config
    seed: int
    folder: Path
    settings: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.row.name}, seed {self.seed}"

    def state(self) -> str:
        """The state of the run in its folder; empty if there is none."""
        if not (self.folder / CONFIG).exists():
            return ""
        return read_run(self.row, self.asked, self.folder, self.seed).state


def train(order: Order) -> int:
    """Train what is not trained yet, one run after another, after checking everything that can be checked.

    Runs that another process is training are skipped, so that several can share the work.

    Returns:
        0, or the status of the run that ended early.

    Raises:
        ReproductionError: a run's folder holds another run, or the launcher cannot be started.
        ConfigError: an override is invalid, or a trained net's weights are gone.
        deepres.data.DataError: its test images cannot be used.
    """
    for run in list(_checked_runs(order)):
        state = run.state()
        if state in _ENDED:
            _say(f"{run}: {state} already, in {run.folder}")
            continue
        if state == "untested":
            _test(run)
            continue
        if is_locked(run.folder):
            _say(f"{run}: another process is training it, in {run.folder}")
            continue
        command = [*order.launcher, str(_TRAIN), "--config", str(run.row.config_path), *run.settings]
        _say(f"{run}: {'goes on' if state else 'begins'}\n  {shlex.join(command)}")
        status, is_stopped = _call(command)
        # Launchers change exit statuses, so the folder decides. Another process may have begun the same run while this
        # one's was starting, which then was refused.
        if run.state() not in _ENDED and not is_stopped and _stays_held(run.folder):
            _say(f"{run}: left to another process, which has begun it, in {run.folder}")
            continue
        state = run.state()  # another process may have finished it while this one waited
        if state in _ENDED:
            _say(f"{run}: {state}, in {run.folder}")
            continue
        if state:
            goes_on = "goes on" if (run.folder / CHECKPOINTS).exists() else "begins anew"
            _say(f"{run}: ended with status {status} before its end; the same command {goes_on}")
        else:
            _say(f"{run}: training ended with status {status} (see above) and left no run in {run.folder}")
        return status or 1
    return 0


def _checked_runs(order: Order) -> Iterator[_Run]:
    for override in order.overrides:
        key = override.partition("=")[0]
        if key in _SET_HERE:
            raise ReproductionError(f"{key} is set for each run: {_SET_HERE[key]}")
    seen: set[Path] = set()
    for row in order.rows:
        recipe = (*order.length.settings(row.config), *order.overrides)
        for seed in order.seeds or row.default_seeds:
            folder = seed_folder(row, order.results, order.length, seed)
            if folder in seen:
                continue
            seen.add(folder)
            settings = (*recipe, f"train.seed={seed}", f"train.run_dir={folder}", "train.resume=auto")
            asked = load_config(row.config_path, settings)
            changed = [str(each) for each in differences(row.config, asked) if each.is_another_net]
            if changed:
                raise ReproductionError(f"that would not be {row.name}: {'; '.join(changed)}")
            if (folder / CONFIG).exists():
                found = read_run(row, asked, folder, seed)
                others = [str(each) for each in differences(asked, found.config)]
                if others:
                    raise ReproductionError(
                        f"{folder} holds a run of another recipe: {'; '.join(others)}: choose another --results, or "
                        "remove it"
                    )
            yield _Run(row, asked, seed, folder, settings)


def _test(run: _Run) -> None:
    """Test a trained net at another crop than its own run did."""
    _say(f"{run}: is tested at this row's crop, in {run.folder}")
    trained, config = read_run(run.row, run.asked, run.folder, run.seed), run.asked
    device = this_process(config.engine.device).device
    found = evaluate(run.folder, config, "config", device)
    outcome = {"step": trained.step, "top1": found.top1, "top5": found.top5}
    replace_text(run.folder / outcome_file(config, trained.config), json.dumps(outcome) + "\n")


def _stays_held(folder: Path) -> bool:
    """Whether a folder stays locked for longer than by the processes that a run of ours may have left."""
    deadline = time.monotonic() + _OWN_PROCESSES_GONE_S
    while is_locked(folder):
        if time.monotonic() >= deadline:
            return True
        time.sleep(0.1)
    return False


def _call(command: Sequence[str]) -> tuple[int, bool]:
    """Run a command to its end; signals to this process are passed on, and the command's end is awaited.

    Returns:
        The command's status, and whether there was such a signal.
    """
    try:
        process = subprocess.Popen(command)
    except OSError as error:
        raise ReproductionError(f"--launcher: {command[0]} cannot be started: {error.strerror}") from None
    with _signals_passed_on(process) as passed_on:
        status = process.wait()
    return status if status >= 0 else 128 - status, bool(passed_on)


@contextmanager
def _signals_passed_on(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    passed_on: list[int] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        passed_on.append(number)
        process.send_signal(number)

    before = {each: signal.signal(each, pass_on) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield passed_on
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _say(text: str) -> None:
    print(text, flush=True)
