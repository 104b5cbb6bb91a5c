"""The profiler's command line: answers, files, and mistakes told in one line."""

import json
import os
import re
import sys

import pytest
import torch

import profile_memory
from memory_profile import outputs
from memory_profile.question import read_configs
from tests.processes import ROOT
from tests.processes import run as run_process

SMALL = ("--depth", "20", "--batch-size", "16")


def run(*arguments: object) -> int:
    try:
        return profile_memory.main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse's
        return stop.code


def test_a_depth_alone_is_enough(capsys):
    assert run("--depth", "20") == 0
    text = capsys.readouterr().out
    for part in (
        "ResNet-20, cifar: basic",
        "batch 128, fp32",
        "ZeRO 3, offload",
        "RTX 3060 12GB (none was named)",
    ):
        assert part in text
    for strategy in (
        "keep all",
        "a segment per unit",
        "√units",
        "best uniform",
        "plan for 50 %",
        "plan at the floor",
    ):
        assert f"\n  {strategy}" in text


def test_of_several_depths_one_that_no_plan_fits_has_a_row_that_says_so(capsys, tmp_path):
    out = tmp_path / "a.json"
    assert run("--depths", "20,32", "--batch-size", "4", "--budget", "1KiB", "--json", out) == 0
    answer = json.loads(out.read_text(encoding="utf-8"))
    assert [row["depth"] for row in answer["depths"]] == [20, 32]
    assert {law["what"] for law in answer["growth"]} >= {"keep all, power law", "√units, power law"}
    asked = [row for net in answer["nets"] for row in net["rows"] if row["budget_bytes"] == 2**10]
    assert ["num_segments" in row for row in asked] == [False, False]
    text = capsys.readouterr().out
    assert text.count("plan for 1.00 KiB") == 2
    assert text.count("  two nets\n") == 5  # laws that have no error, through two points


def test_a_page_of_others_is_not_overwritten(capsys, tmp_path):
    theirs = tmp_path / "index.html"
    theirs.write_text("<html>theirs</html>", encoding="utf-8")
    assert run(*SMALL, "--html", tmp_path) == 2
    assert "holds another index.html: give another folder" in capsys.readouterr().err
    assert theirs.read_text(encoding="utf-8") == "<html>theirs</html>"
    theirs.unlink()
    assert run(*SMALL, "--html", tmp_path) == 0
    assert run(*SMALL, "--html", tmp_path) == 0  # its own


def test_everything_is_written(capsys, tmp_path):
    out = [tmp_path / name for name in ("a.json", "a.csv", "a.png")]
    page = tmp_path / "new" / "page"
    done = run(
        *SMALL, "--json", out[0], "--csv", out[1], "--plot", out[2], "--html", page, "--budget", "20MiB"
    )
    assert done == 0
    (net,) = json.loads(out[0].read_text(encoding="utf-8"))["nets"]
    assert any(row["budget_bytes"] == 20 * 2**20 for row in net["rows"])
    assert len(out[1].read_text(encoding="utf-8").splitlines()) == len(net["rows"]) + 1
    for stem in ("a", "a-step", "a-units"):
        assert (tmp_path / f"{stem}.png").read_bytes().startswith(b"\x89PNG")
    html = (page / "index.html").read_text(encoding="utf-8")
    assert html.count("data:image/png;base64,") == 3
    assert "largest batch on" in html
    assert "wrote" in capsys.readouterr().out


def test_numbers_tell_the_command_that_makes_them_again(capsys, tmp_path):
    out = tmp_path / "a.json"
    arguments = ("--depth", "8", "--batch-size", "4", "--gpu", "RTX 4090", "--json", str(out))
    assert profile_memory.main(list(arguments)) == 0
    document = json.loads(out.read_text(encoding="utf-8"))
    assert document["command"] == (
        f"tools/profile_memory.py --depth 8 --batch-size 4 --gpu 'RTX 4090' --json {out}"
    )


def test_numbers_can_be_piped_while_the_report_is_read():
    done = run_process(sys.executable, "tools/profile_memory.py", *SMALL, "--json", "-")
    assert done.returncode == 0, done.stderr
    (net,) = json.loads(done.stdout)["nets"]
    assert net["model"]["depth"] == 20
    assert "keep all" in done.stderr


def test_what_cards_train_is_among_the_numbers(capsys, tmp_path):
    out = tmp_path / "a.json"
    assert run(*SMALL, "--capacity", "--json", out) == 0
    capacity = json.loads(out.read_text(encoding="utf-8"))["capacity"]
    (cards,) = capacity["nets"]
    (printed,) = (
        line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("24.0 GiB")
    )
    batches = [cards[-1]["keep_all_batch"], *cards[-1]["plan_batches"]]
    assert cards[-1]["memory_bytes"] == 24 * 2**30
    assert len(batches) == 1 + len(capacity["extra_shares"])
    assert printed.split()[2:] == [f"{batch:,}" for batch in batches]


def test_a_page_alone_draws_each_net_once(capsys, tmp_path, monkeypatch):
    drawn = []
    draw = outputs.draw
    monkeypatch.setattr(outputs, "draw", lambda *what: drawn.append(what) or draw(*what))
    assert run("--depth", "8", "--batch-size", "4", "--html", tmp_path) == 0
    assert len(drawn) == 1


def test_text_and_numbers_need_no_matplotlib(tmp_path):
    hide = (
        "import sys; sys.modules['matplotlib'] = None; import profile_memory; "
        "sys.exit(profile_memory.main(sys.argv[1:]))"
    )
    environment = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tools'}"}
    options = (
        "--depth",
        "8",
        "--batch-size",
        "4",
        "--json",
        tmp_path / "a.json",
        "--csv",
        tmp_path / "a.csv",
    )
    done = run_process(sys.executable, "-c", hide, *options, **environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.json").stat().st_size > 1000


@pytest.mark.parametrize("option", [("--plot", "x.png"), ("--html", "page")])
def test_pictures_without_matplotlib_are_refused_before_any_work(option, capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run(*SMALL, option[0], tmp_path / option[1]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == "error: --plot and --html need matplotlib: pip install 'deepres[quickstart]'\n"
    assert not list(tmp_path.iterdir())


def test_several_depths_are_compared(capsys, tmp_path):
    assert run("--depths", "20,14", "--batch-size", "8", "--plot", tmp_path / "x.png") == 0
    text = capsys.readouterr().out
    assert text.index("ResNet-14") < text.index("ResNet-20") < text.index("Growth with depth")
    assert (tmp_path / "x-depths.png").exists()


def test_a_configuration_tells_everything_and_options_go_first(capsys):
    assert run("--config", ROOT / "configs/quickstart.yaml") == 0
    text = capsys.readouterr().out
    assert "ResNet-29" in text
    assert "batch 64" in text
    assert "(ZeRO 1)" in text
    options = ("--precision", "bf16", "--batch-size", "4", "--zero-stage", "2", "--optimizer", "sgd")
    assert run("--config", ROOT / "configs/quickstart.yaml", *options) == 0
    text = capsys.readouterr().out
    assert "batch 4, bf16" in text
    assert "(ZeRO 2)" in text


@pytest.mark.parametrize(("stage", "parameters_too"), [(2, False), (3, True)])
def test_offload_is_all_that_the_configurations_own_stage_can(tmp_path, stage, parameters_too):
    config = tmp_path / "run.yaml"
    config.write_text(
        "model: {depth: 20}\ndata: {name: cifar10}\ntrain: {max_steps: 1, global_batch_size: 16}\n"
        f"engine: {{name: deepspeed, zero_stage: {stage}}}\n",
        encoding="utf-8",
    )
    (read,) = read_configs(profile_memory.parser().parse_args(["--config", str(config), "--offload"]))
    assert read.engine.offload_optimizer
    assert read.engine.offload_parameters is parameters_too


def test_measured_columns_stand_beside_the_predicted(capsys):
    assert run("--depth", "8", "--batch-size", "4", "--measure") == 0
    text = capsys.readouterr().out
    assert "measured ms" in text
    assert "does not fit" not in text


def test_what_does_not_fit_the_memory_is_not_run_and_the_rest_goes_on(capsys):
    assert run("--depth", "8", "--batch-size", "16", "--measure", "--device-memory", "186MiB") == 0
    lines = capsys.readouterr().out.splitlines()
    (keep_all,) = [line for line in lines if line.startswith("  keep all ")]
    assert keep_all.endswith("does not fit")
    (per_unit,) = [line for line in lines if line.startswith("  a segment per unit ")]
    assert per_unit.count("%") == 3  # of extra time, bytes and milliseconds


def test_the_cards_are_listed(capsys):
    assert run("--gpu", "list") == 0
    assert "RTX 4090" in capsys.readouterr().out


NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="this host has a GPU")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --depth, --depths or --config"),
        (
            ("--depth", "1000"),
            (
                "depth must be 6n+2 for basic units (e.g. 20, 110) or 9n+2 for bottleneck units (e.g. 164, 1001), "
                "got 1000; nearest: 998, 1001"
            ),
        ),
        (("--depth", "51", "--dataset", "imagenet"), "depth must be one of 50, 101, 152, 200"),
        (("--depth", "99999999"), "depth must be at most 30,000 here"),
        (("--depth", "x"), "invalid int value: 'x'"),
        (("--depths", "20,y"), "--depths must be numbers with commas (110,164,1001), got '20,y'"),
        (("--depth", "20", "--depths", "20"), "give --depth or --depths, not both"),
        (("--depth", "20", "model.depth=110"), "give --depth or model.depth, not both"),
        ((*SMALL, "train.micro_batch_size=8"), "give --batch-size or train.micro_batch_size, not both"),
        ((*SMALL, "data.image_size=64"), "images of cifar10 are 32×32: leave data.image_size unset, got 64"),
        ((*SMALL, "model.dataset=imagnet"), "model.dataset must be cifar or imagenet, got 'imagnet'"),
        ((*SMALL, "recompute.plan=/nowhere"), "recompute.plan /nowhere cannot be read: No such file"),
        ((*SMALL, "model.shortcutt=conv1x1"), "unknown key model.shortcutt; did you mean model.shortcut?"),
        ((*SMALL, "conv1x1"), "expected section.key=value (e.g. train.epochs=3), got 'conv1x1'"),
        ((*SMALL, "--gpu", "RTX 306"), "unknown GPU 'RTX 306'; nearest: RTX 3060 12GB"),
        (
            (*SMALL, "--budget", "1MiB"),
            "no plan fits a budget of 1.00 MiB at batch 16: the smallest that any plan needs",
        ),
        ((*SMALL, "--budget", "much"), "expected a positive size"),
        ((*SMALL, "--device-memory", "0"), "argument --device-memory: expected a positive size"),
        (("--depth", "20", "--batch-size", "0"), "must be a whole number of at least 1, got '0'"),
        (("--depth", "20", "--batch-size", "9" * 23), "must be at most 1048576, got '9999"),
        ((*SMALL, "--activation", "swish"), "argument --activation: invalid choice: 'swish'"),
        ((*SMALL, "--json", "x.png", "--plot", "x.png"), "x.png is asked for twice: give each output a file"),
        ((*SMALL, "--csv", "x-units.png", "--plot", "x.png"), "x-units.png is asked for twice: give each"),
        (
            (*SMALL, "--offload", "--zero-stage", "1", "engine.offload_optimizer=false"),
            "give --offload or engine.offload_optimizer, not both",
        ),
        ((*SMALL, "--offload"), "--offload needs --zero-stage 1, 2 or 3"),
        ((*SMALL, "--measure", "--gpu", "T4"), "take the device at hand: leave out --gpu"),
        ((*SMALL, "--json", "/nowhere/x.json"), "argument --json: /nowhere/x.json cannot be written"),
        ((*SMALL, "--plot", "/"), "argument --plot: / cannot be written"),
        ((*SMALL, "--plot", "x.jpg"), "--plot must be a .png file"),
        ((*SMALL, "--html", "/proc/x"), "--html /proc/x cannot be written"),
        (("--config", "/nowhere.yaml"), "/nowhere.yaml: cannot be read: No such file or directory"),
        (("--depth", "20", "--world-size", "3"), "128"),
        pytest.param((*SMALL, "--snapshot", "x.pickle"), "--snapshot needs a CUDA device", marks=NO_CUDA),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_mistake_is_told_in_one_line_and_ends_with_2(arguments, message, capsys):
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


def test_settings_of_a_configuration_may_stand_anywhere(capsys):
    assert run("model.shortcut=conv1x1", *SMALL, "precision.channels_last=true") == 0
    told = capsys.readouterr().out
    assert "shortcut conv1x1\n" in told
    assert ", fp32, channels_last\n" in told


def test_a_data_set_may_be_a_setting_and_the_run_s_engine_is_among_the_states(capsys):
    assert run("--depth", "50", "--batch-size", "2", "model.dataset=imagenet", "engine.name=fairscale") == 0
    told = capsys.readouterr().out
    assert "an image of 224 × 224\n" in told
    assert "\n  fairscale  " in told


def test_a_broken_configuration_is_told_in_one_line(capsys, tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("model: {depht: 20}\ndata: {name: cifar10}\ntrain: {epochs: 1}\n", encoding="utf-8")
    assert run("--config", path) == 2
    assert "unknown key model.depht; did you mean model.depth?" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(capsys, tmp_path):
    tmp_path.chmod(0o500)
    assert run(*SMALL, "--csv", tmp_path / "x.csv") == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_configurations_own_plan_and_memory_count(tmp_path, capsys):
    config = tmp_path / "run.yaml"
    content = "model: {depth: 20}\ndata: {name: cifar10}\ntrain: {max_steps: 1, global_batch_size: 16}\n"
    config.write_text(content + "recompute: {device_memory: 700MiB}\n", encoding="utf-8")
    assert run("--config", config) == 0
    out = capsys.readouterr().out
    assert "a device as fast as RTX 3060 12GB, 700 MiB" in out
    assert "the configuration's" in out
    config.write_text(content + "recompute: {segments: 5}\n", encoding="utf-8")
    assert run("--config", config) == 0
    out = capsys.readouterr().out
    assert "RTX 3060 12GB (none was named), 12.0 GiB" in out
    assert "the configuration's" in out


def test_the_memory_that_is_asked_about_is_what_the_configuration_s_plan_is_for(tmp_path, capsys):
    config = tmp_path / "run.yaml"
    content = "model: {depth: 20}\ndata: {name: cifar10}\ntrain: {max_steps: 1, global_batch_size: 16}\n"
    config.write_text(content + "recompute: {device_memory: 700MiB}\n", encoding="utf-8")
    for options, memory in ((("--device-memory", "450MiB"), "450 MiB"), (("--gpu", "T4"), "16.0 GiB")):
        assert run("--config", config, *options) == 0
        out = capsys.readouterr().out
        row = next(line for line in out.splitlines() if "the configuration's" in line)
        assert f", {memory}\n" in out
        assert " yes " in row
    assert run("--config", config, "--device-memory", "10MiB") == 0
    assert re.search(r"the configuration's +needs .* no plan", capsys.readouterr().out)


def test_an_automatic_micro_batch_is_the_one_that_training_would_take(capsys):
    settings = ("model.depth=20", "train.global_batch_size=1024", "train.micro_batch_size=auto")
    settings = (*settings, "data.name=synthetic", "recompute.device_memory=700MiB")
    assert run("--config", ROOT / "configs" / "cifar10_resnet20.yaml", *settings) == 0
    out = capsys.readouterr().out
    batch = int(re.match(r"train.micro_batch_size is auto: (\d+) here; --batch-size sets", out)[1])
    assert batch in (256, 512)
    assert f"\n  batch {batch}, fp32" in out
    (row,) = (line for line in out.splitlines() if "the configuration's" in line)
    assert " yes " in row
    assert (
        run(
            "--config",
            ROOT / "configs" / "cifar10_resnet20.yaml",
            *settings,
            "recompute.device_memory=258MiB",
        )
        == 2
    )
    assert "no smaller micro batch fits" in capsys.readouterr().err


def test_growth_is_fitted_over_nets_of_one_kind(capsys):
    assert run("--depths", "11,14,29", "--batch-size", "16") == 0
    out = capsys.readouterr().out
    assert "bottleneck units alone (11, 29)" in out
    assert re.search(r"14 +6 +basic", out)
    assert run("--depths", "20,29", "--batch-size", "16") == 0
    assert "nothing is fitted" in capsys.readouterr().out
