"""Numbers gone wrong in one process stop all before the update, and the message says where they first were."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

from deepres.data import DataSource
from deepres.exit_status import RunError
from deepres.job import prepare, run_job
from deepres.stopping import StopRequest
from tests.processes import PLAIN, QUICKSTART, ROOT, SMALL, run

SCRIPT = ROOT / "tests" / "faults" / "poisoned.py"
EXPECTED = {
    "input": "it first shows in the images; samples 17;",
    "output": "it first shows in the output of unit 1 (of 0 … 2); samples ",
    "loss": "it first shows in the loss; samples ",
    "gradient": "it first shows in the gradient of the output of unit 0 (of 0 … 2); samples ",
}
GROUPS = [
    ["plain:input:1", "plain:output:0", "plain:gradient:1"],
    *(
        pytest.param(
            [f"{engine}:{what}:{k % 2}" for k, what in enumerate(EXPECTED, start)], marks=pytest.mark.slow
        )
        for start, engine in enumerate(
            ("plain", "fairscale", "zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
        )
    ),
]


@pytest.mark.multi_process
@pytest.mark.timeout(900)
@pytest.mark.parametrize("cases", GROUPS, ids=lambda cases: cases[-1].split(":")[0])
def test_what_is_not_finite_stops_all_processes_before_the_update_and_is_told(tmp_path, table, cases):
    done = run(sys.executable, SCRIPT, tmp_path, *cases, timeout=880)
    assert done.returncode == 0, done.stderr[-3000:]
    outcomes = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [outcome["case"] for outcome in outcomes] == cases
    failures = []
    for outcome in outcomes:
        _, what, rank = outcome["case"].split(":")
        rank = "[01]" if what == "input" else rank
        is_told = EXPECTED[what] in outcome["message"] and re.search(
            f"in process {rank} it", outcome["message"]
        )
        stopped = outcome["statuses"] == [3, 3] and outcome["saved"] == outcome["step"] - 1
        survived = is_told and stopped and outcome["is_same"] and outcome["message"].count("\n") == 1
        table.add(f"not finite: {what} of one of two processes", survived)
        if not survived:
            failures.append(outcome)
    assert not failures


def test_what_a_random_number_caused_shows_again_in_the_replay(tmp_path):
    """Of a unit whose sixth number, that of step 5, makes its output NaN whenever it is drawn."""
    job = prepare(Path(QUICKSTART), [*SMALL, *PLAIN, f"train.run_dir={tmp_path}"])
    drawn = []

    def spoil(_unit, _inputs, output):
        drawn.append(float(torch.rand(())))
        return output * torch.nan if len(drawn) >= 6 and drawn[-1] == drawn[5] else None

    job.net.units[1].register_forward_hook(spoil)
    with pytest.raises(RunError, match=r"the loss of step 5 is not finite: .* the output of unit 1 "):
        run_job(job, StopRequest())


def test_what_is_told_is_of_the_steps_own_images_among_several_micro_batches(tmp_path, monkeypatch):
    finish, first = DataSource._finish, []

    def spoil(source, fetched, *, augment):
        batch = finish(source, fetched, augment=augment)
        first.append(int(batch.indices[1]))
        if augment and len(first) > 10:  # the third of step 3's
            batch.images[batch.indices == first[10]] = torch.inf
        return batch

    monkeypatch.setattr(DataSource, "_finish", spoil)
    settings = ("train.micro_batch_size=2", f"train.run_dir={tmp_path}")
    job = prepare(Path(QUICKSTART), [*SMALL, *PLAIN, *settings])
    with pytest.raises(
        RunError, match=r"the loss of step 3 is not finite: .* in the images; samples "
    ) as told:
        run_job(job, StopRequest())
    assert f"; samples {first[10]};" in str(told.value)
