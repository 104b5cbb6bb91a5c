"""The benchmark of recompute, run as a user would; what must be exact is asserted, times are not."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import compare_recompute
from tests.processes import ROOT, run

TOOL = ROOT / "tools" / "compare_recompute.py"


def _document(folder: Path, printed: str) -> dict[str, Any]:
    """What was written to a folder, as it was printed."""
    (path,) = folder.glob("*.json")
    markdown = path.with_suffix(".md").read_text(encoding="utf-8")
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["command"] in markdown
    assert printed.partition("\n\n")[0] in markdown
    return document


@pytest.fixture
def measure(tmp_path, capsys):
    """Runs a command line in this process; what measures is in processes of its own."""

    def run_command(command: str, *options: str) -> dict[str, Any]:
        arguments = [command, "--depth", "29", *options, "--out", str(tmp_path)]
        assert compare_recompute.main(arguments) == 0, capsys.readouterr().err
        return _document(tmp_path, capsys.readouterr().out)

    return run_command


@pytest.mark.multi_process
def test_budgets_are_kept_and_peaks_are_those_predicted(tmp_path):
    """The whole tool in a process of its own, where there is no matplotlib."""
    options = ("budgets", "--depth", "29", "--batch", "8", "--budgets", "2", "--out", tmp_path)
    hide = f"import sys, runpy; sys.modules['matplotlib'] = None; runpy.run_path({str(TOOL)!r}, run_name='__main__')"
    done = run(sys.executable, "-c", hide, *options, PYTHONPATH=f"{ROOT}:{ROOT / 'tools'}")
    assert done.returncode == 0, done.stderr
    rows = _document(tmp_path, done.stdout)["rows"]
    assert len(rows) == 2
    for row in rows:
        assert row["predicted_mib"] <= row["budget_mib"]
        assert row["is_kept"]
        assert row["allocated_mib"] == pytest.approx(row["predicted_mib"], rel=0.01)
        assert row["process_mib"] == pytest.approx(row["predicted_mib"], rel=0.05)
    assert rows[0]["num_segments"] > 0
    assert rows[-1]["num_segments"] == 0


@pytest.mark.multi_process
def test_step_times_stand_beside_their_predictions(measure):
    options = ("--batch", "4", "--budgets", "2", "--rounds", "3", "--steps", "1", "--processor-time")
    document = measure("overhead", *options)
    keep_all, *plans = document["rows"]
    assert keep_all["ratios"] == [1, 1, 1]
    assert keep_all["predicted_ratio"] == 1
    assert [len(row["ratios"]) for row in plans] == [3, 3]
    assert plans[0]["predicted_ratio"] > plans[1]["predicted_ratio"] > 1
    for row in plans:
        assert row["ratio"] == sorted(row["ratios"])[1]
        assert row["predicted_ratio"] == 1 + row["extra_ms"] / keep_all["step_ms"]


@pytest.mark.multi_process
@pytest.mark.parametrize("layout", [(), pytest.param(("--channels-last",), marks=pytest.mark.slow)])
def test_deepres_is_exact_at_its_peers_peaks_and_a_peer_without_time_says_so(measure, layout):
    options = ("--batch", "4", "--rounds", "1", "--steps", "1", "--compile-limit", "1", *layout)
    rows = {row["name"]: row for row in measure("peers", *options)["rows"]}
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
def test_the_frontier_falls_with_the_budget_and_with_choice(measure, tmp_path):
    rows = measure("frontier", "--batch", "4")["rows"]
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


NET = ("--depth", "29", "--batch", "4")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("frontier", "--depth", "30", "--batch", "4"), "depth must be 9n+2 for bottleneck units"),
        (
            ("frontier", "--depth", "29", "--batch", "0"),
            "argument --batch: must be a whole number of at least 1, got '0'",
        ),
        (("frontier", *NET, "--measured", "nowhere.json"), "cannot read nowhere.json"),
        (
            ("frontier", *NET, "--measured", str(ROOT / "pyproject.toml")),
            "pyproject.toml holds no step times",
        ),
        (("frontier", "--depth", "29"), "the following arguments are required: --batch"),
        (("peers", *NET, "--device", "tpu"), "argument --device: must be cpu or cuda, got 'tpu'"),
        (("peers", *NET, "--compile-budget", "2"), "must be a number from 0 to 1, got '2'"),
        pytest.param(
            ("peers", *NET, "--device", "cuda"),
            "argument --device: cuda: there is no GPU here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_what_cannot_be_run_ends_with_one_line_and_status_2(arguments, message, capsys):
    try:
        status = compare_recompute.main(list(arguments))
    except SystemExit as stop:  # argparse's
        status = stop.code
    told = capsys.readouterr()
    assert (status, told.out) == (2, "")
    (line,) = told.err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_a_mistake_in_a_process_of_its_own_is_one_line_too():
    done = run(sys.executable, TOOL, "peers", "--depth", "30", "--batch", "4")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: depth must be 9n+2")
    assert done.stderr.count("\n") == 1


def test_without_matplotlib_the_picture_is_refused_before_anything_is_measured(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert compare_recompute.main(["frontier", *NET, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: the picture of --out needs matplotlib: pip install")
