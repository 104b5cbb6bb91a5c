"""Lengths, results and tables of the paper's rows, against figures found by hand; mistakes told in one line."""

import json
import shutil
import time
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace

import pytest
from PIL import Image
from safetensors.torch import save_file

import paper_reproduction.launch
import paper_reproduction.rows
import reproduce_paper
from deepres import build_resnet
from deepres.config import load_config
from deepres.known_sets import KNOWN_SETS
from deepres.run_folder import lock_run_folder
from paper_reproduction.length import FULL, Length
from paper_reproduction.rows import CONFIGS, all_rows
from paper_reproduction.runs import outcome_file
from tests.processes import ROOT

ROWS = {row.name: row for row in all_rows()}
FINAL_STEP = 1564


def _config(name, length=FULL, *overrides):
    row = ROWS[name]
    return load_config(row.config_path, [*length.settings(row.config), *overrides])


@pytest.mark.parametrize(
    ("name", "fraction", "settings"),
    [
        (
            "resnet20/original",
            "0.0244375",
            ["train.max_steps=1564", "optim.milestones=[782, 1173]", "optim.warmup=10"],
        ),
        (
            "table1/original",
            "0.1",
            ["train.max_steps=6400", "optim.milestones=[3200, 4800]", "optim.warmup=40"],
        ),
        (
            "table4/cifar10_resnet1001_batch64",
            "0.1",
            ["train.epochs=20", "optim.milestones=[8, 12]"],
        ),
        ("table5/resnet200_original", "0.05", ["train.epochs=5", "optim.milestones=[2, 3]"]),
        ("table5/resnet200_original", "0.001", ["train.epochs=3", "optim.milestones=[1, 2]"]),
        (
            "resnet20/original",
            "0.000001",
            ["train.max_steps=3", "optim.milestones=[1, 2]", "optim.warmup=1"],
        ),
        ("table1/original", "1", []),
        ("table1/original", "1.0", []),
    ],
)
def test_a_shortened_recipe_has_its_length_drops_and_warm_up_scaled_and_rounded(name, fraction, settings):
    assert Length.parse(fraction).settings(ROWS[name].config) == settings


def test_every_row_can_be_shortened_to_anything():
    for name in ROWS:
        for fraction in ("0.5", "0.0244375", "0.00001"):
            length = Length.parse(fraction)
            train = _config(name, length).train
            assert (train.max_steps or train.epochs) >= 1


@pytest.mark.parametrize(
    ("text", "folder"),
    [("0.0244375", "short-0.0244375"), ("0.10", "short-0.1"), ("1e-2", "short-0.01"), ("1.00", "full")],
)
def test_the_folder_is_named_after_the_fraction_and_read_back(text, folder):
    length = Length.parse(text)
    assert length.folder == folder
    assert Length.of_folder(folder) == length


@pytest.mark.parametrize("name", ["short-0.10", "short-2", "0.1", "fuller", "short-"])
def test_other_folders_are_of_no_length(name):
    assert Length.of_folder(name) is None


def _leave_run(
    results, name, seed, top1, *overrides, length=FULL, top5=0.99, end="finished", step=None, made_by=()
):
    """What a run that ended leaves, as far as it is committed."""
    folder = results / name / length.folder / f"seed-{seed}"
    folder.mkdir(parents=True)
    config = _config(name, length, f"train.seed={seed}", "data.root=/elsewhere", *overrides)
    (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    lines = [
        *({"kind": "made_by", "note": "", **each} for each in made_by),
        {"kind": "plan", "micro_batch_size": config.train.micro_batch_size, "accumulation": 2},
        {"kind": "train", "step": 100, "loss": 1.0},
    ]
    if end == "diverged":
        lines.append({"kind": "not_finite", "step": 103, "what": "loss"})
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(each) + "\n" for each in lines), encoding="utf-8"
    )
    if end == "finished":
        marker = {"step": step or config.train.max_steps or FINAL_STEP, "top1": top1, "top5": top5}
        (folder / "finished.json").write_text(json.dumps(marker) + "\n", encoding="utf-8")
    return folder


def _table(capsys, results, *options):
    """The lines of `table`, by row label, split at two spaces or more."""
    status = reproduce_paper.main(["table", "--results", str(results), *options])
    out, err = capsys.readouterr()
    assert (status, err) == (0, "")
    return out


def _cells(markdown, title, label):
    """The cells of a line of the Markdown."""
    (block,) = [part for part in markdown.split("\n## ") if part.startswith(title)]
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in block.splitlines()
        if line.startswith(f"| {label} |")
    ]


def test_the_table_has_the_median_the_range_and_what_differs_beside_the_paper(tmp_path, capsys):
    short = Length.parse("0.0244375")
    for seed, top1 in ((1, 0.8100), (2, 0.8234), (3, 0.7999)):
        _leave_run(
            tmp_path, "resnet20/full_preactivation", seed, top1, length=short,
            made_by=[{"machine": "a CPU", "versions": {"torch": "2"}, "note": "JPEG" if seed == 2 else ""}],
        )  # fmt: skip
    _leave_run(tmp_path, "resnet20/original", 1, 0.5, "precision.compute=bf16", length=short)
    _leave_run(tmp_path, "resnet20/original", 2, None, length=short, end="unfinished")
    _leave_run(tmp_path, "table1/original", 1, 0.93)
    _leave_run(tmp_path, "table1/original", 3, 0.92)
    _leave_run(tmp_path, "table1/original", 2, 0.94, "train.global_batch_size=64", "train.max_steps=640")
    _leave_run(tmp_path, "table1/original", 5, 0.9, length=Length.parse("0.5"))
    _leave_run(tmp_path, "table1/dropout", 1, None, end="diverged")
    _leave_run(tmp_path, "table1/dropout", 2, 0.4)
    _leave_run(tmp_path, "table1/conv1x1", 1, None, end="diverged")
    _leave_run(tmp_path, "table5/resnet200_original", 1, 0.79, top5=0.945)
    out = _table(capsys, tmp_path)
    text = (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert _cells(text, "Not in the paper", "ResNet-20, full pre-activation") == [
        ["ResNet-20, full pre-activation", "–", "19.00", "17.66–20.01", "3", "1,564 of 64,000 steps (0.0244375)",
         "seed 2: JPEG"]
    ]  # fmt: skip
    bf16, begun = _cells(text, "Not in the paper", "ResNet-20, original")
    steps = "1,564 of 64,000 steps (0.0244375)"
    assert bf16[2:] == ["50.00", "", "1", steps, "precision.compute is bf16, not fp32"]
    assert begun[2:] == ["unfinished", "", "", steps, "unfinished at step 100"]
    full, other, half = _cells(text, "Table 1", "original")
    assert full[1:] == ["6.61", "7.50", "7.00–8.00", "2", "64,000 steps", ""]
    assert other[1:] == [
        "6.61", "6.00", "", "1", "640 of 64,000 steps (0.01)",
        "train.max_steps is 640, not 64000; train.global_batch_size is 64, not 128",
    ]  # fmt: skip
    assert half[1:] == ["6.61", "10.00", "", "1", "32,000 of 64,000 steps (0.5)", ""]
    (twin, *_) = _cells(text, "Table 2", "ResNet-110, original")
    assert twin[1:] == [*full[1:-1], "= table1/original"]
    (dropout,) = _cells(text, "Table 1", "dropout shortcut, 0.5")
    assert dropout[1:5] == ["fail (> 20)", "fail", "60.00–fail", "2"]
    assert dropout[6] == "seed 1: diverged in step 103"
    (conv,) = _cells(text, "Table 1", "1×1 conv shortcut")
    assert conv[1:5] == ["12.22", "fail", "", "1"]
    (imagenet,) = _cells(text, "Table 5", "200, original, 320 crop")
    assert imagenet[1:6] == ["21.8 / 6.0", "21.00 / 5.50", "", "1", "90 epochs"]
    (missing,) = _cells(text, "Table 3", "CIFAR-10, 1001, pre-activation")
    assert missing[1:] == ["4.92", "not run", "", "", "", ""]
    for file in (text, out):
        assert "3 runs were trained on a CPU, torch 2." in file
        assert "10 runs were trained on a machine that is not noted." in file
    assert text.count("\n## ") == 7
    page = (tmp_path / "tables.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert "<td>17.66–20.01</td>" in page
    assert "http" not in page


def test_a_note_with_signs_of_markdown_stays_in_its_cell(tmp_path, capsys):
    note = "images | <b> of\r\nC:\\data\n"
    made_by = [{"machine": "a CPU", "versions": {"torch": "2"}, "note": note}]
    _leave_run(tmp_path, "table1/original", 1, 0.9, made_by=made_by)
    out = _table(capsys, tmp_path)
    assert "images | <b> of C:\\data\n" in out
    line = next(
        line for line in (tmp_path / "tables.md").read_text(encoding="utf-8").splitlines() if "images" in line
    )
    assert line.endswith("| images \\| &lt;b> of C:\\\\data |")
    assert "<td>images | &lt;b&gt; of C:\\data</td>" in (tmp_path / "tables.html").read_text(encoding="utf-8")


def test_files_are_written_where_they_are_wanted(tmp_path, capsys):
    (tmp_path / "results").mkdir()
    markdown, html = tmp_path / "a" / "b.md", tmp_path / "c.html"
    _table(capsys, tmp_path / "results", "--markdown", str(markdown), "--html", str(html))
    assert markdown.read_text(encoding="utf-8").count("not run") == 57
    assert html.exists()
    assert not list((tmp_path / "results").iterdir())


@pytest.mark.parametrize(("synchronised", "size"), [("false", 32), ("true", 128)])
def test_batch_norm_over_another_number_of_images_is_told(tmp_path, capsys, synchronised, size):
    folder = _leave_run(tmp_path, "table1/original", 1, 0.9, f"engine.sync_batch_norm={synchronised}")
    (folder / "metrics.jsonl").write_text(
        '{"kind": "plan", "micro_batch_size": 32, "accumulation": 1}\n{"kind"', encoding="utf-8"
    )
    _table(capsys, tmp_path)
    text = (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert _cells(text, "Table 1", "original")[0][-1] == f"batch norm over {size} images, not 64"


@pytest.mark.parametrize(
    ("micro_sizes", "synchronised", "remark"),
    [
        ((128, 16), "false", "batch norm over 128 and 16 images, not 64"),
        ((64, 16, 64), "false", "batch norm over 64 and 16 images, not always 64"),
        ((64, 64), "false", ""),
        ((128, 32), "true", "batch norm over 128 and 32 images, not 64"),
    ],
)
def test_each_number_of_images_that_batch_norm_saw_is_told(
    tmp_path, capsys, micro_sizes, synchronised, remark
):
    """A run may go on with another micro batch than it began with."""
    folder = _leave_run(tmp_path, "table1/original", 1, 0.9, f"engine.sync_batch_norm={synchronised}")
    lines = [{"kind": "plan", "micro_batch_size": each, "accumulation": 128 // each} for each in micro_sizes]
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(each) + "\n" for each in lines), encoding="utf-8"
    )
    _table(capsys, tmp_path)
    text = (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert _cells(text, "Table 1", "original")[0][-1] == remark


def test_list_has_every_row_and_what_was_run(tmp_path, capsys):
    _leave_run(tmp_path, "table1/original", 1, 0.9)
    _leave_run(tmp_path, "table1/original", 2, None, end="unfinished", length=Length.parse("0.1"))
    assert reproduce_paper.main(["list", "--results", str(tmp_path)]) == 0
    _, *lines, _, where = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(ROWS)
    ran = "full: 1 seed; short-0.1: 0 seeds, 1 unfinished"
    assert lines[0].split("  ")[0] == "table1/original"
    assert "1,727,962" in lines[0]
    assert [line.split()[0] for line in lines if ran in line] == list(ROWS["table1/original"].twins)
    assert where == "the config of a row: configs/paper/ROW.yaml"
    assert all((CONFIGS / f"{row}.yaml").is_file() for row in ROWS)


def test_a_remark_on_many_recipes_is_told_once_below_the_tables(tmp_path, capsys):
    names = ("original", "conv1x1", "dropout", "constant_scaling_both", "exclusive_gating_bias-6")
    for count, name in enumerate(names, 1):
        _leave_run(tmp_path, f"table1/{name}", 1, 0.9, "precision.compute=bf16")
        out = _table(capsys, tmp_path)
        text = (tmp_path / "tables.md").read_text(encoding="utf-8")
        remark = "precision.compute is bf16, not fp32"
        assert _cells(text, "Table 1", "original")[0][-1] == ("a" if count > 3 else remark)
        assert (f"\na: {remark}.\n" in out) == (f"\na: {remark}.\n" in text) == (count > 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: command"),
        (["tabel"], "invalid choice: 'tabel'"),
        (["run"], "the following arguments are required: TABLE[/ROW]"),
        (["run", "nothing"], "there is no table 'nothing'; known: table1, table2, table3, table4, table5, text"),
        (["run", "table1/orignal"], "there is no row 'table1/orignal'; did you mean table1/original?"),
        (["run", "table1", "--short", "0"], "--short: must be a number from 0.000001 to 1 (0.1 trains a"),
        (["run", "table1", "--short", "2"], "to 1 (0.1 trains a tenth as long), got '2'"),
        (["run", "table1", "--short", "nan"], "got 'nan'"),
        (["run", "table1", "--short", "a tenth"], "got 'a tenth'"),
        (["run", "table1", "--short", "1e-999999999"], "got '1e-999999999'"),
        (["run", "table1", "--short", "0.1234567890123"], "got '0.1234567890123'"),
        (["run", "table1", "--seeds", "99999999999999999999"], "train.seed must be less than 4611"),
        (["run", "table1", "--seeds", "1,x"], "--seeds: must be different whole numbers such as 1,2,3, got '1,x'"),
        (["run", "table1", "--seeds", "1,1"], "must be different whole numbers such as 1,2,3, got '1,1'"),
        (["run", "table1", "--seeds", ""], "must be different whole numbers such as 1,2,3, got ''"),
        (["run", "table1", "--launcher", ""], '--launcher: must be a command such as "deepspeed --num_gpus 2"'),
        (["run", "table1", "--launcher", "./nowhere", "--results", "."], "--launcher: ./nowhere cannot be started: No"),
        (["run", "table1", "train.seed=3"], "train.seed is set for each run: use --seeds"),
        (["run", "table1", "train.run_dir=x"], "train.run_dir is set for each run: use --results"),
        (["run", "table1", "model.depth=20"], "that would not be table1/original: model.depth is 20, not 110"),
        (["run", "table1", "data.name=cifar100"], "that would not be table1/original: data.name is cifar100, not"),
        (["run", "table1", "--short", "0.1", "optim.lr=1"], "unknown key optim.lr"),
        (["run", "table1", "nonsense"], "expected section.key=value"),
        (["table", "--results", "nowhere"], "there is no folder nowhere; results are in "),
        (["list", "--results", str(ROOT / "README.md")], "--results: must be a folder, got"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_status_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    try:
        status = reproduce_paper.main(arguments)
    except SystemExit as end:
        status = end.code
    error = capsys.readouterr().err
    assert status == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


def _spoil_depth(folder):
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    spoilt = text.replace("depth: 110", "depth: 20").replace("shortcut: identity", "shortcut: conv1x1")
    (folder / "config.yaml").write_text(spoilt, encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            _spoil_depth,
            "seed-1 is no run of table1/original: model.depth is 20, not 110; model.shortcut is conv1x1, not identity",
        ),
        (lambda run: run.rename(run.with_name("seed-2")), "train.seed is 1, not 2"),
        (lambda run: run.rename(run.with_name("first")), "first must be called seed-1 for the run with train.seed=1"),
        (lambda run: run.parent.rename(run.parents[1] / "short-5"), "short-5 must be called full, or short-0.1 for"),
        (lambda run: run.rename(run.with_name("seed-01")), "seed-01 must be called seed-1 for the run with train.se"),
        (lambda run: (run / "config.yaml").unlink(), "seed-1 lacks config.yaml, which says what was trained: move"),
        (
            lambda run: run.parents[2].rename(run.parents[3] / "tabel1"),
            "tabel1 is not named after a table; did you mean table1?",
        ),
        (
            lambda run: run.parents[1].rename(run.parents[2] / "orignal"),
            "table1/orignal is not named after a row; did you mean table1/original?",
        ),
        (lambda run: (run / "config.yaml").write_text("modle: 1"), "config.yaml:1: unknown key modle"),
        (lambda run: (run / "finished.json").write_text("{}\n"), "finished.json is damaged: it must say step, top1"),
        (lambda run: (run / "finished.json").write_text('{"step"'), "finished.json is damaged"),
        (
            lambda run: (run / "finished.json").write_text('{"step": 1, "top1": NaN, "top5": NaN}'),
            "finished.json is damaged: it must say step, top1 and top5, which are fractions",
        ),
        (lambda run: (run / "metrics.jsonl").write_text("]\n"), "metrics.jsonl cannot be read"),
        (lambda run: (run / "metrics.jsonl").write_text("3\n"), "metrics.jsonl cannot be read: expected JSON objects"),
        (
            lambda run: (run / "metrics.jsonl").write_text('{"kind": "made_by"}\n'),
            "metrics.jsonl is damaged: a line of made_by must say machine, versions and note",
        ),
    ],
)  # fmt: skip
def test_results_that_are_not_the_row_s_are_refused(tmp_path, capsys, spoil, message):
    spoil(_leave_run(tmp_path, "table1/original", 1, 0.9))
    assert reproduce_paper.main(["table", "--results", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "tables.md").exists()


def test_a_run_of_another_recipe_is_not_gone_on_with(tmp_path, capsys):
    _leave_run(tmp_path, "table1/original", 1, None, "train.global_batch_size=64", end="unfinished")
    assert reproduce_paper.main(["run", "table1/original", "--results", str(tmp_path)]) == 2
    assert (
        "holds a run of another recipe: train.global_batch_size is 64, not 128: choose"
        in capsys.readouterr().err
    )


@pytest.fixture
def call(monkeypatch):
    """Stands for `deepres/train.py`: `call(each_call)` has a function of the seed return status and whether stopped."""

    def stand_in(each_call):
        seeds = iter(range(1, 99))
        monkeypatch.setattr(paper_reproduction.launch, "_call", lambda _: each_call(next(seeds)))
        monkeypatch.setattr(paper_reproduction.launch, "_OWN_PROCESSES_GONE_S", 0.3)

    return stand_in


def _run_two(results, *options):
    arguments = ["run", "resnet20/original", "--seeds", "1,2", "--results", str(results), *options]
    return reproduce_paper.main(arguments)


def test_a_run_that_another_process_took_meanwhile_is_left_to_it(tmp_path, call, capsys):
    """Of two commands that begin together, one finds the folder held only once its own process has started."""
    folder = tmp_path / "resnet20" / "original" / "full" / "seed-1"
    with ExitStack() as others:

        def each_call(seed):
            if seed == 1:
                others.enter_context(lock_run_folder(folder))
                return 2, False
            _leave_run(tmp_path, "resnet20/original", 2, 0.9)
            return 0, False

        call(each_call)
        assert _run_two(tmp_path) == 0
    out = capsys.readouterr().out
    assert "seed 1: left to another process, which has begun it, in" in out
    assert "seed 2: finished, in" in out


@pytest.mark.parametrize("end", ["finished", "diverged"])
def test_a_run_that_another_process_ended_meanwhile_is_done(tmp_path, call, capsys, end):
    def each_call(seed):
        _leave_run(tmp_path, "resnet20/original", seed, 0.9 if end == "finished" else None, end=end)
        return 2, False

    call(each_call)
    assert _run_two(tmp_path) == 0
    assert f"seed 2: {end}, in " in capsys.readouterr().out


def test_a_run_is_trained_on_all_machines_on_which_it_went_on(tmp_path, capsys):
    machines = [{"machine": each, "versions": {"torch": "2"}} for each in ("a CPU", "a GPU", "a CPU")]
    _leave_run(tmp_path, "resnet20/original", 1, 0.9, made_by=machines)
    _leave_run(tmp_path, "resnet20/original", 2, 0.9)
    out = _table(capsys, tmp_path)
    assert "1 run was trained on a CPU, torch 2; then on a GPU, torch 2.\n" in out
    assert "1 run was trained on a machine that is not noted.\n" in out


def test_of_the_runs_of_a_row_and_its_twin_that_with_a_result_counts(tmp_path, capsys):
    _leave_run(tmp_path, "table1/original", 1, None, end="unfinished")
    _leave_run(tmp_path, "table2/resnet110_original", 1, 0.9)
    assert reproduce_paper.main(["table", "--results", str(tmp_path)]) == 0
    capsys.readouterr()
    text = (tmp_path / "tables.md").read_text(encoding="utf-8")
    (original, *_) = _cells(text, "Table 2", "ResNet-110, original")
    assert original[2] == "10.00"
    _leave_run(tmp_path, "table3/cifar10_resnet110_original", 1, 0.8)
    assert reproduce_paper.main(["table", "--results", str(tmp_path)]) == 2
    assert "are the same run, and both have ended: move one of them away" in capsys.readouterr().err


def test_a_run_that_epochs_ended_sooner_is_shown_with_the_steps_that_it_took(tmp_path, capsys):
    _leave_run(tmp_path, "resnet20/original", 1, 0.5, "train.epochs=2", step=780)
    assert reproduce_paper.main(["table", "--results", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "780 of 64,000 steps (0.012)" in text
    assert "train.epochs is 2, not unset" in text


@pytest.mark.parametrize(("status", "is_stopped", "held_s"), [(143, True, 9), (1, False, 0.1)])
def test_a_run_that_was_stopped_or_whose_own_processes_hold_it_ends_the_command(
    tmp_path, call, monkeypatch, status, is_stopped, held_s
):
    folder = tmp_path / "resnet20" / "original" / "full" / "seed-1"
    asked = []

    def is_locked(_):
        asked.append(time.monotonic())
        return len(asked) > 1 and time.monotonic() < asked[1] + held_s

    monkeypatch.setattr(
        paper_reproduction.launch, "is_locked", lambda path: path == folder and is_locked(path)
    )
    call(lambda _: (status, is_stopped))
    assert _run_two(tmp_path) == status
    assert not folder.exists()


def test_the_run_of_a_twin_is_done_already(tmp_path, capsys):
    folder = _leave_run(tmp_path, "table1/original", 7, 0.9)
    arguments = ["run", "table3/cifar10_resnet110_original", "--seeds", "7", "--results", str(tmp_path)]
    assert reproduce_paper.main(arguments) == 0
    assert f"finished already, in {folder}\n" in capsys.readouterr().out


def test_a_net_that_the_paper_tests_at_two_crops_is_trained_once_and_tested_again(
    tmp_path, capsys, monkeypatch
):
    ten_classes = replace(KNOWN_SETS["imagenet"], num_classes=10)
    monkeypatch.setitem(KNOWN_SETS, "imagenet", ten_classes)
    at_320, at_224 = "table5/resnet152_original", "table5/resnet152_original_at224"
    images, results = tmp_path / "images", tmp_path / "results"
    for place in (images / split / str(label) for split in ("train", "val") for label in range(10)):
        place.mkdir(parents=True)
        Image.new("RGB", (40, 40), (20 * int(place.name), 99, 9)).save(place / "0.png")
    own = (
        f"data.root={images}",
        "data.image_size=32",
        "data.num_workers=0",
        "train.eval_batch_size=5",
    )
    folder = _leave_run(results, at_320, 1, 0.6, *own, top5=0.8)
    arguments = ["run", at_224, "--results", str(results), *own]
    assert reproduce_paper.main(arguments) == 2
    assert "holds no model.safetensors" in capsys.readouterr().err
    before = _cells(
        _table(capsys, results) and (results / "tables.md").read_text(),
        "Table 5",
        "152, original, 224 crop",
    )
    assert before[0][2] == "untested"
    assert before[0][6].endswith("trained, but not tested at this crop")

    config = ROWS[at_320].config.model
    net = build_resnet(**config.model_dump(exclude={"num_classes"}), num_classes=10)
    save_file(net.state_dict(), folder / "model.safetensors")
    assert reproduce_paper.main(arguments) == 0
    assert f"is tested at this row's crop, in {folder}" in capsys.readouterr().out
    assert reproduce_paper.main(arguments) == 0
    assert f"finished already, in {folder}" in capsys.readouterr().out
    outcome = json.loads((folder / "test-224.json").read_text(encoding="utf-8"))
    _table(capsys, results)
    text = (results / "tables.md").read_text(encoding="utf-8")
    here = {label: _cells(text, "Table 5", f"152, original, {label} crop")[0][2] for label in ("224", "320")}
    assert here == {
        "224": f"{100 - 100 * outcome['top1']:.2f} / {100 - 100 * outcome['top5']:.2f}",
        "320": "40.00 / 20.00",
    }


@pytest.mark.parametrize(
    ("crop", "name"),
    [
        ((320, 320), "test-320.json"),
        ((320, None), "test-320.json"),
        ((320, 480), "test-320-of-480.json"),
        ((224, 256), "test-224.json"),
        ((None, 224), "test-224-of-224.json"),
        ((None, None), "finished.json"),
    ],
)
def test_a_test_s_file_is_named_after_its_crop_and_what_that_is_of(crop, name):
    settings = [f"data.eval_{key}={'null' if value is None else value}"
                for key, value in zip(("image_size", "shorter_side"), crop, strict=True)]  # fmt: skip
    row = "table5/resnet152_original_at224"
    assert outcome_file(_config(row, FULL, *settings), _config(row)) == name


def test_a_result_at_another_shorter_side_is_not_the_row_s(tmp_path, monkeypatch, capsys):
    at_320 = "table5/resnet152_original"
    _leave_run(tmp_path, "table5/resnet152_original_at224", 1, 0.7)
    monkeypatch.setattr(paper_reproduction.launch, "evaluate", lambda *_: SimpleNamespace(top1=0.6, top5=0.8))

    def here():
        _table(capsys, tmp_path)
        text = (tmp_path / "tables.md").read_text(encoding="utf-8")
        return _cells(text, "Table 5", "152, original, 320 crop")[0][2]

    arguments = ["run", at_320, "--results", str(tmp_path)]
    assert reproduce_paper.main([*arguments, "data.eval_shorter_side=480"]) == 0
    assert here() == "untested"
    assert reproduce_paper.main(arguments) == 0
    assert here() == "40.00 / 20.00"


def test_a_base_with_an_unknown_key_is_told_with_its_file_and_line(tmp_path, monkeypatch, capsys):
    shutil.copytree(CONFIGS, tmp_path / "paper")
    base = tmp_path / "paper" / "cifar.yaml"
    base.write_text(base.read_text(encoding="utf-8").replace("momentum", "momentun"), encoding="utf-8")
    monkeypatch.setattr(paper_reproduction.rows, "CONFIGS", tmp_path / "paper")
    assert reproduce_paper.main(["list"]) == 2
    error = capsys.readouterr().err
    assert "paper/table1/../cifar.yaml:7: unknown key optim.momentun; did you mean optim.momentum?" in error


def test_a_run_that_another_process_ends_meanwhile_is_done(tmp_path, call, monkeypatch, capsys):
    def refused(_):
        return 2, False

    def ended(_):
        _leave_run(tmp_path, "resnet20/original", 1, 0.9)
        return False

    monkeypatch.setattr(paper_reproduction.launch, "_stays_held", ended)
    call(refused)
    arguments = ["run", "resnet20/original", "--seeds", "1", "--results", str(tmp_path)]
    assert reproduce_paper.main(arguments) == 0
    assert "resnet20/original, seed 1: finished, in" in capsys.readouterr().out


def test_a_launcher_that_leaves_no_run_is_told(tmp_path, capsys):
    arguments = ["run", "resnet20/original", "--seeds", "1", "--results", str(tmp_path), "--launcher", "true"]
    assert reproduce_paper.main(arguments) == 1
    assert "training ended with status 0 (see above) and left no run in" in capsys.readouterr().out
