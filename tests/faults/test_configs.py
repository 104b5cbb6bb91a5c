"""Configurations made from the schema, half of them broken: never a traceback, and the good ones train."""

import json
import sys

import pytest

from tests.processes import ROOT, run

SCRIPT = ROOT / "tests" / "faults" / "configs.py"


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("count", [12, pytest.param(300, marks=pytest.mark.slow)])
def test_no_configuration_gives_a_traceback_and_the_good_ones_run_a_step(tmp_path, table, count):
    done = run(sys.executable, SCRIPT, tmp_path, str(count), timeout=1150)
    assert done.returncode == 0, done.stderr[-3000:]
    outcomes = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(outcomes) >= 0.9 * count
    failures = []
    for outcome in outcomes:
        ran = outcome["status"] == 0 and outcome["stepped"]
        # A first step at a learning rate of 5 may well leave what is not finite: that is told, not a mistake.
        refused = outcome["status"] in (2, 3) and outcome["error"] and "\n" not in outcome["error"]
        good = not outcome["traceback"] and (ran or refused)
        table.add(f"config, {'broken on purpose' if outcome['broken'] else 'from the schema'}", good)
        if not good:
            failures.append(outcome)
    assert not failures, failures[:3]
    assert sum(outcome["stepped"] for outcome in outcomes) >= 0.15 * count
    assert sum(outcome["status"] == 2 for outcome in outcomes) >= 0.15 * count
