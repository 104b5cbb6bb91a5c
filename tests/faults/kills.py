"""Kills runs and goes on with them, each as often as it is told to; prints a line of JSON for each kind of kill.

    python kills.py FOLDER KIND:COUNT…

Kinds: `steps` (rank 0, before each change that a save makes to the disk), `moments` (at random), `all` (both of two
processes, at random), `other` (rank 1 of two, at random), `in-save` (either of two, in a save).
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from deepres.checkpoints import checkpointer
from tests.faults.forks import INTERVAL, fork, kill_at, logged_step, resumed_step, same_weights, wait


def kill_in_snapshot(number: int):
    """Makes rank 1 kill itself as the `number`-th snapshot is gathered, half-way through the momentum."""

    def before(rank: int) -> None:
        if rank != 1:
            return
        take, calls = checkpointer.take_snapshot, [number]

        def dying(engine, *arguments):
            calls[0] -= 1
            if calls[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return take(engine, *arguments)

        checkpointer.take_snapshot = dying

    return before


def tried(base: Path, kind: str, k: int, whole: Path, seconds: float) -> dict[str, object]:
    """One kill, and what came of it."""
    run_dir = base / f"{kind}-{k}"
    world_size = 1 if kind in ("steps", "moments") else 2
    pause = random.Random(k).uniform(0.0, seconds)
    if kind == "steps":
        pids = fork(run_dir, before=kill_at(k + 1))
    elif kind == "in-save":
        by_rank_0 = k % 2 == 0
        # A run makes six snapshots, and some ninety changes to the disk.
        before = kill_at(20 + 3 * k) if by_rank_0 else kill_in_snapshot(1 + k // 2 % 6)
        pids = fork(run_dir, world_size=2, before=before)
    else:
        pids = fork(run_dir, world_size=world_size)
        time.sleep(pause)
        for pid in pids[1:] if kind == "other" else pids:
            os.kill(pid, signal.SIGKILL)  # one that has ended still has its number: nobody has waited for it
    begin = time.monotonic()
    statuses = wait(pids)
    ended_s = time.monotonic() - begin
    if kind in ("moments", "all", "other") and set(statuses) == {0}:
        # It ended before its moment: once more, with an earlier one.
        shutil.rmtree(run_dir)
        return tried(base, kind, k, whole, pause)
    output = "".join(Path(f"{run_dir}.{rank}.txt").read_text(encoding="utf-8") for rank in range(world_size))
    reached = logged_step(run_dir)
    again = wait(fork(run_dir, world_size=world_size))
    is_whole = set(again) == {0} and same_weights(run_dir, whole) and (run_dir / "finished.json").exists()
    lost = reached - resumed_step(run_dir)
    shutil.rmtree(run_dir)
    return {
        "killed": -9 in statuses,
        "others": [status for status in statuses if status != -9],
        "named": any(f"process {rank} of the run" in output for rank, s in enumerate(statuses) if s == -9),
        "ended_s": ended_s,
        "survived": is_whole and 0 <= lost <= INTERVAL,
        "lost": lost,
        "output": ""
        if is_whole
        else output[-2000:] + Path(f"{run_dir}.0.txt").read_text(encoding="utf-8")[-2000:],
    }


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for argument in sys.argv[2:]:
        name, count = argument.split(":")
        processes = 1 if name in ("steps", "moments") else 2
        uninterrupted = folder / f"whole-{processes}"
        shutil.rmtree(uninterrupted, ignore_errors=True)
        start = time.monotonic()
        assert set(wait(fork(uninterrupted, world_size=processes))) == {0}
        length = time.monotonic() - start
        print(
            json.dumps(
                {
                    "kind": name,
                    "tries": [tried(folder, name, k, uninterrupted, length) for k in range(int(count))],
                }
            ),
            flush=True,
        )
