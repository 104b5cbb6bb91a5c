"""SIGKILL, in every step of a save and at any moment: nothing corrupt, at most one interval lost."""

import json
import sys

import pytest

from tests.faults.forks import INTERVAL
from tests.processes import ROOT, run

SCRIPT = ROOT / "tests" / "faults" / "kills.py"
SLOW = pytest.mark.slow
FAULTS = {
    "steps": "SIGKILL before each change that saves make to the disk",
    "moments": "SIGKILL of a single process, at random",
    "all": "SIGKILL of both processes, at random",
    "other": "SIGKILL of one of two processes, at random",
    "in-save": "SIGKILL of one of two processes in a save",
}


@pytest.mark.multi_process
@pytest.mark.parametrize(
    "kinds",
    [
        ["steps:2", "other:1"],
        pytest.param(["steps:60"], marks=SLOW),
        pytest.param(["moments:35", "all:15"], marks=SLOW),
        pytest.param(["other:10", "in-save:20"], marks=SLOW),
    ],
    ids=lambda kinds: "-".join(kinds).replace(":", ""),
)
@pytest.mark.timeout(1500)
def test_a_killed_run_goes_on_from_its_last_checkpoint_as_if_it_had_not_been(tmp_path, table, kinds):
    done = run(sys.executable, SCRIPT, tmp_path, *kinds, timeout=1450)
    assert done.returncode == 0, done.stderr
    failures = []
    for line in done.stdout.splitlines():
        found = json.loads(line)
        assert any(one["killed"] for one in found["tries"]), found
        for k, one in enumerate(found["tries"]):
            others_ended = all(status == 5 for status in one["others"]) and one["ended_s"] < 60
            is_named = one["named"] or not one["others"]
            # A moment after the run's end kills nothing that counts.
            was_running = one["killed"] and 0 not in one["others"]
            has_ended = one["killed"] or set(one["others"]) == {0}  # by the kill, or before it
            survived = one["survived"] and has_ended and (not was_running or (others_ended and is_named))
            table.add(
                FAULTS[found["kind"]], survived, one["lost"], seconds=one["ended_s"] if one["others"] else 0
            )
            if not survived or one["lost"] > INTERVAL:
                failures.append((found["kind"], k, one))
    assert not failures
