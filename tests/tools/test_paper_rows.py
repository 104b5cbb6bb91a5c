"""The paper's rows: each has its figure and its config, is the net that it says, and trains."""

import math
import statistics
from pathlib import Path

import pytest

from deepres.config import ConfigError, load_config
from deepres.train import main
from paper_reproduction.claims import TABLES
from paper_reproduction.rows import CONFIGS, RESULTS, ReproductionError, all_rows, find_rows
from paper_reproduction.runs import runs_of
from tests.processes import metrics

ROWS = {row.name: row for row in all_rows()}

BASIC, BOTTLENECK, BOTTLENECK_1001 = 1_727_962, 1_703_258, 10_327_706  # full pre-activation, 10 classes
RESNET_101, RESNET_152, RESNET_200 = 44_541_480, 60_185_128, 64_666_152
HUNDRED = 90 * (256 + 1)  # ten classes make room for a hundred: weights and biases of the linear layer
# Post-activation nets normalise their projections, of which there is one a stage; basic nets have none.
CIFAR_PROJECTIONS = 2 * (64 + 128 + 256)
IMAGENET_PROJECTIONS = 2 * (256 + 512 + 1024 + 2048)
# 18 units a stage: a gate is a 1×1 convolution with a bias; a conv1x1 shortcut is one with batch norm instead.
GATES = 18 * sum(width**2 + width for width in (16, 32, 64))
CONV1X1 = sum(17 * width**2 + 18 * 2 * width for width in (16, 32, 64)) + 16 * 16 + 16 * 32 + 32 * 64
# Convolutions normalised after them rather than before: without the batch norm of the 16 channels of the stem.
AFTER_CONVS = -2 * 16

NUM_PARAMETERS = {
    "table1/original": BASIC,
    "table1/constant_scaling_plain": BASIC,
    "table1/constant_scaling_shortcut": BASIC,
    "table1/constant_scaling_both": BASIC,
    **{f"table1/exclusive_gating_bias{bias}": BASIC + GATES for bias in range(0, -8, -1)},
    "table1/shortcut_only_gating_bias0": BASIC + GATES,
    "table1/shortcut_only_gating_bias-6": BASIC + GATES,
    "table1/conv1x1": BASIC + CONV1X1,
    "table1/dropout": BASIC,
    "table2/resnet110_original": BASIC,
    "table2/resnet110_bn_after_addition": BASIC,
    "table2/resnet110_relu_before_addition": BASIC,
    "table2/resnet110_relu_only_preactivation": BASIC + AFTER_CONVS,
    "table2/resnet110_full_preactivation": BASIC,
    "table2/resnet164_original": BOTTLENECK + CIFAR_PROJECTIONS,
    "table2/resnet164_bn_after_addition": BOTTLENECK,
    "table2/resnet164_relu_before_addition": BOTTLENECK + CIFAR_PROJECTIONS,
    "table2/resnet164_relu_only_preactivation": BOTTLENECK + AFTER_CONVS,
    "table2/resnet164_full_preactivation": BOTTLENECK,
    "table3/cifar10_resnet110_single_original": BASIC,
    "table3/cifar10_resnet110_single_full_preactivation": BASIC,
    "table3/cifar10_resnet110_original": BASIC,
    "table3/cifar10_resnet110_full_preactivation": BASIC,
    "table3/cifar10_resnet164_original": BOTTLENECK + CIFAR_PROJECTIONS,
    "table3/cifar10_resnet164_full_preactivation": BOTTLENECK,
    "table3/cifar10_resnet1001_original": BOTTLENECK_1001 + CIFAR_PROJECTIONS,
    "table3/cifar10_resnet1001_full_preactivation": BOTTLENECK_1001,
    "table3/cifar100_resnet164_original": BOTTLENECK + CIFAR_PROJECTIONS + HUNDRED,
    "table3/cifar100_resnet164_full_preactivation": BOTTLENECK + HUNDRED,
    "table3/cifar100_resnet1001_original": BOTTLENECK_1001 + CIFAR_PROJECTIONS + HUNDRED,
    "table3/cifar100_resnet1001_full_preactivation": BOTTLENECK_1001 + HUNDRED,
    "table4/cifar10_resnet110_original": BASIC,
    "table4/cifar10_resnet1202_original": 19_421_274,
    "table4/cifar10_resnet164": BOTTLENECK,
    "table4/cifar10_resnet1001": BOTTLENECK_1001,
    "table4/cifar10_resnet1001_batch64": BOTTLENECK_1001,
    "table4/cifar100_resnet164_original": BOTTLENECK + CIFAR_PROJECTIONS + HUNDRED,
    "table4/cifar100_resnet1001_original": BOTTLENECK_1001 + CIFAR_PROJECTIONS + HUNDRED,
    "table4/cifar100_resnet164": BOTTLENECK + HUNDRED,
    "table4/cifar100_resnet1001": BOTTLENECK_1001 + HUNDRED,
    "table5/resnet152_original_at224": RESNET_152 + IMAGENET_PROJECTIONS,
    "table5/resnet152_original": RESNET_152 + IMAGENET_PROJECTIONS,
    "table5/resnet152_full_preactivation": RESNET_152,
    "table5/resnet200_original": RESNET_200 + IMAGENET_PROJECTIONS,
    "table5/resnet200_full_preactivation": RESNET_200,
    # Normalised projections as in original units; the first unit has a batch norm of its own after the stem's.
    "table5/resnet200_aspect_ratio": RESNET_200 + IMAGENET_PROJECTIONS + 2 * 64,
    "text/resnet101_original": RESNET_101 + IMAGENET_PROJECTIONS,
    "text/resnet101_bn_after_addition": RESNET_101,
    "resnet20/original": 269_722,
    "resnet20/full_preactivation": 269_722,
}


def test_every_claim_has_a_config_and_every_config_a_claim():
    files = {str(path.relative_to(CONFIGS).with_suffix("")) for path in CONFIGS.glob("*/*.yaml")}
    claims = [f"{table.name}/{claim.name}" for table in TABLES for claim in table.claims]
    assert files == set(claims) == set(ROWS)
    assert len(claims) == len(set(claims)) == 57


def test_tables_have_the_paper_s_numbers_of_rows():
    sizes = {table.name: len(table.claims) for table in TABLES}
    assert sizes == {
        "table1": 16, "table2": 10, "table3": 12, "table4": 9, "table5": 6, "text": 2, "resnet20": 2
    }  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_a_config_tells_its_command_and_the_figure_that_the_claims_have(name):
    row = ROWS[name]
    command, *comments = [
        line for line in row.config_path.read_text(encoding="utf-8").splitlines() if line[:1] == "#"
    ]
    assert f"deepres/train.py --config configs/paper/{name}.yaml data.root=DIR" in command
    said = " ".join(comment.removeprefix("# ") for comment in comments)
    if not row.table.is_in_paper:
        assert "not in the paper" in said
    elif row.claim.error is None:
        assert "failed (error above 20 %) in the paper" in said
    elif row.claim.top5_error is not None:
        assert f"is {row.figure} %" in said
    else:
        assert f"is {row.claim.error:.2f} %" in said
        assert row.claim.spread in said


@pytest.mark.parametrize("name", ROWS)
def test_a_config_tells_what_was_measured_with_it(name):
    said = ROWS[name].config_path.read_text(encoding="utf-8")
    runs = next(iter(runs_of(ROWS[name], RESULTS).values()), [])  # of the longest recipe
    assert ("Not yet run." in said) == (not runs)
    if runs:
        error = statistics.median(run.error for run in runs)
        figure = "diverged" if math.isinf(error) else f"{error:.2f} %"
        assert f"{figure} (results/paper/tables.md)" in said


def test_every_row_has_the_parameters_that_were_counted_by_hand():
    assert {name: row.num_parameters for name, row in ROWS.items()} == NUM_PARAMETERS


@pytest.mark.parametrize(
    ("n", "name"), [(3, "resnet20/original"), (200, "table4/cifar10_resnet1202_original")]
)
def test_basic_nets_of_6n_and_2_layers_have_the_parameters_of_these(n, name):
    convs = 3 * 9 * 16 + 2 * n * 9 * (16**2 + 32**2 + 64**2) - 9 * (32**2 + 64**2) + 9 * (16 * 32 + 32 * 64)
    norms = 2 * 16 + 2 * n * 2 * (16 + 32 + 64)
    assert convs + norms + 64 * 10 + 10 == NUM_PARAMETERS[name]


@pytest.mark.parametrize("name", [name for name in ROWS if not name.startswith(("table5", "text"))])
def test_cifar_rows_are_trained_by_the_paper_s_recipe_but_for_that_of_the_authors_code(name):
    config = ROWS[name].config
    optim, train = config.optim, config.train
    assert (optim.learning_rate, optim.momentum, optim.weight_decay, optim.factor) == (0.1, 0.9, 1e-4, 0.1)
    assert config.data.name == ("cifar100" if "cifar100" in name else "cifar10")
    schedule = (optim.schedule_unit, optim.milestones, optim.warmup)
    if name.endswith("batch64"):
        assert schedule == ("epochs", (80, 121), 0)
        assert train.micro_batch_size == 32
        assert (train.epochs, train.max_steps, train.global_batch_size) == (200, None, 64)
        assert (optim.nesterov, config.data.chosen_normalize) == (True, "mean_std")
    else:
        assert schedule == ("iterations", (32_000, 48_000), 400)
        assert optim.warmup_learning_rate == 0.01
        assert train.micro_batch_size == 64
        assert (train.epochs, train.max_steps, train.global_batch_size) == (None, 64_000, 128)
        assert (optim.nesterov, config.data.chosen_normalize) == (False, "per_pixel_mean")


@pytest.mark.parametrize("name", [name for name in ROWS if name.startswith(("table5", "text"))])
def test_imagenet_rows_are_trained_at_224_for_90_epochs_and_tested_at_their_crop(name):
    config = ROWS[name].config
    assert (config.data.name, config.data.image_size) == ("imagenet", None)
    assert config.data.augmentation == ("scale_and_aspect" if "aspect" in name else "scale")
    side = None if "resnet101" in name or "at224" in name else 320
    assert (config.data.eval_image_size, config.data.eval_shorter_side) == (side, side)
    assert (config.optim.schedule_unit, config.optim.milestones, config.optim.warmup) == (
        "epochs",
        (30, 60),
        0,
    )
    assert (config.train.epochs, config.train.global_batch_size, config.train.micro_batch_size) == (
        90,
        256,
        32,
    )
    assert config.optim.nesterov == ("aspect" in name)


def test_a_net_that_the_paper_shows_twice_is_trained_once():
    assert ROWS["table3/cifar10_resnet110_original"].twins == (
        "table1/original",
        "table2/resnet110_original",
        "table3/cifar10_resnet110_original",
        "table4/cifar10_resnet110_original",
    )
    assert len({row.twins for row in ROWS.values()}) == 57 - 13
    for row in ROWS.values():
        for twin in row.twins:
            at_same_crop = ROWS[twin].config.data.eval_image_size == row.config.data.eval_image_size
            assert (ROWS[twin].claim.error == row.claim.error) == at_same_crop


def test_the_bases_are_no_runs():
    for path in CONFIGS.glob("*.yaml"):
        with pytest.raises(ConfigError, match="model is missing"):
            load_config(path)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "tabel1",
            "there is no table 'tabel1'; did you mean table1?",
        ),
        ("9", "there is no table '9'; known: table1, table2, table3, table4, table5, text, resnet20"),
        ("Table1", "there is no table 'Table1'; did you mean table1?"),
        (
            "resnet152_original",
            "there is no table 'resnet152_original'; did you mean table5/resnet152_original?",
        ),
        (
            "resnet164",
            "there is no table 'resnet164'; did you mean table2/resnet164_original, table2/resnet164_bn_after",
        ),
        ("tabel1/original", "there is no row 'tabel1/original'; did you mean table1/original?"),
        (
            "table1/shortcut_only",
            "there is no row 'table1/shortcut_only'; did you mean table1/shortcut_only_gating_bias0, table1/short",
        ),
        ("table1/zzz", "there is no row 'table1/zzz'; known: table1/original, table1/constant"),
        ("table1/orignal", "there is no row 'table1/orignal'; did you mean table1/original?"),
        ("table1/resnet110_original", "there is no row 'table1/resnet110_original'; did you mean"),
    ],
)
def test_what_the_paper_does_not_have_is_refused_with_the_nearest(target, message):
    with pytest.raises(ReproductionError) as caught:
        find_rows(list(ROWS.values()), target)
    assert str(caught.value).startswith(message)


def _smallest_depth(name: str) -> int:
    """Of the row's family."""
    model = ROWS[name].config.model
    if model.dataset == "imagenet":
        return 18
    return {"basic": 8, "bottleneck": 11, "single": 5}[model.block]


@pytest.fixture(scope="module")
def run_dirs() -> dict[str, Path]:
    """By a run's settings: rows that differ in depth alone, or in nothing, are one run here."""
    return {}


@pytest.mark.parametrize("name", ROWS)
def test_every_row_trains_two_steps_in_the_smallest_net_of_its_family(tmp_path, run_dirs, name):
    is_imagenet = ROWS[name].config.model.dataset == "imagenet"
    overrides = [
        f"model.depth={_smallest_depth(name)}", "data.name=synthetic", "data.augmentation=null",
        f"data.image_size={32 if is_imagenet else 8}", "data.eval_image_size=null", "data.eval_shorter_side=null",
        "data.num_images=8", "train.max_steps=2", "train.global_batch_size=4", "train.micro_batch_size=4",
        "train.eval_batch_size=2",
        "train.save_every=null", "log.plots=false",
    ]  # fmt: skip
    settings = load_config(ROWS[name].config_path, overrides).to_yaml()
    if settings not in run_dirs:
        run_dir = f"train.run_dir={tmp_path / 'run'}"
        assert main(["--config", str(ROWS[name].config_path), *overrides, run_dir]) == 0
        run_dirs[settings] = tmp_path / "run"
    run_dir = run_dirs[settings]
    (summary,) = metrics(run_dir, "summary")
    assert summary["step"] == 2
    resolved = load_config(run_dir / "config.yaml")
    depth = {"depth": resolved.model.depth}
    assert resolved.model == ROWS[name].config.model.model_copy(update=depth)
