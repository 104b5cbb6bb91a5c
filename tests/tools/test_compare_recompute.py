"""The benchmark of recompute, run as a user would; what must be exact is asserted, times are not."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.processes import ROOT, run

TOOL = ROOT / "tools" / "compare_recompute.py"


def _run(folder: Path, command: str, *options: str) -> dict[str, Any]:
    result = run(sys.executable, TOOL, command, "--depth", "29", *options, "--out", folder)
    assert result.returncode == 0, result.stderr
    (path,) = folder.glob("*.json")
    markdown = path.with_suffix(".md").read_text(encoding="utf-8")
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["command"] in markdown
    assert result.stdout.partition("\n\n")[0] in markdown
    return document


@pytest.mark.multi_process
def test_budgets_are_kept_and_peaks_are_those_predicted(tmp_path):
    rows = _run(tmp_path, "budgets", "--batch", "16", "--budgets", "2")["rows"]
    assert len(rows) == 2
    for row in rows:
        assert row["predicted_mib"] <= row["budget_mib"]
        assert row["is_kept"]
        assert row["allocated_mib"] == pytest.approx(row["predicted_mib"], rel=0.01)
        assert row["process_mib"] == pytest.approx(row["predicted_mib"], rel=0.05)
    assert rows[0]["num_segments"] > 0
    assert rows[-1]["num_segments"] == 0


@pytest.mark.multi_process
def test_step_times_stand_beside_their_predictions(tmp_path):
    document = _run(
        tmp_path,
        "overhead",
        "--batch",
        "4",
        "--budgets",
        "2",
        "--rounds",
        "3",
        "--steps",
        "1",
        "--processor-time",
    )
    keep_all, *plans = document["rows"]
    assert keep_all["ratios"] == [1, 1, 1]
    assert keep_all["predicted_ratio"] == 1
    assert [len(row["ratios"]) for row in plans] == [3, 3]
    assert plans[0]["predicted_ratio"] > plans[1]["predicted_ratio"] > 1
    for row in plans:
        assert row["ratio"] == sorted(row["ratios"])[1]
        assert row["predicted_ratio"] == 1 + row["extra_ms"] / keep_all["step_ms"]


@pytest.mark.multi_process
@pytest.mark.parametrize("layout", [(), ("--channels-last",)])
def test_deepres_is_exact_at_its_peers_peaks_and_a_peer_without_time_says_so(tmp_path, layout):
    options = ("--batch", "8", "--rounds", "1", "--steps", "1", "--compile-limit", "1", *layout)
    rows = {row["name"]: row for row in _run(tmp_path, "peers", *options)["rows"]}
    compiled = rows.pop("torch.compile, budget 0.5")
    assert compiled["remark"] == "compilation and steps: not within 1 s"
    assert "peak_mib" not in compiled

    ours = {name: row for name, row in rows.items() if name.startswith("deepres at")}
    peers = {name.removeprefix("deepres at the peak of: "): rows[name.partition(": ")[2]] for name in ours}
    assert len(peers) == 7
    for row in [*ours.values(), rows["deepres' executor, uniform segments"], rows["keep all"]]:
        assert row["gradients_equal"]
        assert row["buffers_equal"]
    for name, peer in peers.items():
        mine = ours[f"deepres at the peak of: {name}"]
        assert mine["budget_bytes"] == peer["peak_bytes"]
        assert mine["peak_bytes"] < 1.01 * peer["peak_bytes"]
        assert peer["peak_bytes"] < rows["keep all"]["peak_bytes"]
        assert peer["gradients_equal"]  # recomputing is deterministic on a CPU
        assert peer["buffers_equal"] == name.startswith("fairscale")  # all others update statistics twice


@pytest.mark.multi_process
def test_the_frontier_falls_with_the_budget_and_with_choice(tmp_path):
    rows = _run(tmp_path, "frontier", "--batch", "4")["rows"]
    assert (tmp_path / "frontier_29.png").stat().st_size > 10_000
    assert rows == sorted(rows, key=lambda row: -row["budget_mib"])
    num_compared = 0
    for kind in ("model", "measured"):
        for name in ("uniform", "all", "both"):
            extras = [row[f"{kind}_{name}"] for row in rows if row[f"{kind}_{name}"] is not None]
            assert extras[0] == 0
            assert extras[-1] > 10
        for row in rows:
            uniform, plain, both = (row[f"{kind}_{name}"] for name in ("uniform", "all", "both"))
            if uniform is not None:
                assert both <= plain + 1e-9
                assert plain <= uniform + 1e-9
                num_compared += plain < uniform
    assert num_compared > 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--depth", "30", "--batch", "4"), "depth must be 9n+2 for bottleneck units"),
        (
            ("--depth", "29", "--batch", "0"),
            "argument --batch: must be a whole number of at least 1, got '0'",
        ),
        (("--depth", "29", "--batch", "4", "--measured", "nowhere.json"), "cannot read nowhere.json"),
        (
            ("--depth", "29", "--batch", "4", "--measured", "pyproject.toml"),
            "pyproject.toml holds no step times",
        ),
        (("--depth", "29"), "the following arguments are required: --batch"),
    ],
)
def test_what_cannot_be_run_ends_with_one_line_and_status_2(options, message):
    result = run(sys.executable, TOOL, "frontier", *options)
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("tpu", "argument --device: must be cpu or cuda, got 'tpu'"),
        pytest.param(
            "cuda",
            "argument --device: cuda: there is no GPU here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_a_device_that_is_not_there_is_refused(device, message):
    result = run(sys.executable, TOOL, "peers", "--depth", "29", "--batch", "4", "--device", device)
    assert result.returncode == 2
    assert result.stderr == f"error: {message}\n"
