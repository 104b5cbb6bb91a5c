"""A configuration on the base of another."""

import pytest
import yaml

from deepres.config import ConfigError, load_config

BASE = """\
# A recipe.
data: {name: digits, root: /base}
optim:
  learning_rate: 0.1
  milestones: [3, 5]
train: {epochs: 6, global_batch_size: 64}
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "rows").mkdir()
    (tmp_path / "recipe.yaml").write_text(BASE, encoding="utf-8")
    return tmp_path


def _row(folder, text="", base="../recipe.yaml"):
    path = folder / "rows" / "row.yaml"
    path.write_text(f"base: {base}\nmodel: {{depth: 29}}\n{text}", encoding="utf-8")
    return path


def test_sections_are_merged_key_by_key_and_the_nearer_file_wins_and_the_command_line_over_all(folder):
    path = _row(folder, "optim: {learning_rate: 0.2}\ntrain: {epochs: 4}\nlog: {every: 7}\n")
    config = load_config(path, ["train.epochs=9", "optim.momentum=0.5"])
    assert config.model.depth == 29
    assert config.optim.learning_rate == 0.2
    assert config.optim.milestones == (3, 5)
    assert config.optim.momentum == 0.5
    assert (config.train.epochs, config.train.global_batch_size) == (9, 64)
    assert str(config.data.root) == "/base"
    assert config.log.every == 7


def test_a_base_is_the_file_it_would_be_written_into(folder):
    whole = folder / "whole.yaml"
    whole.write_text(BASE + "model: {depth: 29}\n", encoding="utf-8")
    assert load_config(_row(folder)) == load_config(whole)


def test_a_list_is_replaced_and_not_joined(folder):
    assert load_config(_row(folder, "optim: {milestones: [2]}")).optim.milestones == (2,)


def test_the_path_is_relative_to_the_file_that_names_it_or_absolute(folder, monkeypatch):
    monkeypatch.chdir(folder / "rows")
    assert load_config(_row(folder)).train.epochs == 6
    assert load_config(_row(folder, base=folder / "recipe.yaml")).train.epochs == 6


def test_what_is_written_back_has_no_base_and_reads_the_same(folder):
    config = load_config(_row(folder))
    resolved = folder / "rows" / "resolved.yaml"
    resolved.write_text(config.to_yaml(), encoding="utf-8")
    assert "base" not in yaml.safe_load(config.to_yaml())
    (folder / "recipe.yaml").unlink()
    assert load_config(resolved) == config


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "learning_rate",
            "learning_rat",
            "recipe.yaml:4: unknown key optim.learning_rat; did you mean optim.learning_rate?",
        ),
        ("optim:", "optm:", "recipe.yaml:3: unknown key optm; did you mean optim?"),
        ("epochs: 6", "epochs: 0", "recipe.yaml:6: train.epochs must be greater than or equal to 1, got 0"),
        ("[3, 5]", "[5, 3]", "recipe.yaml:3: optim: milestones must rise, got [5, 3]"),
        ("# A recipe.", "train: {}", "recipe.yaml:6: duplicate key 'train'"),
        ("[3, 5]", "[3, 5", "recipe.yaml:6: not valid YAML"),
        (
            "# A recipe.",
            "base: other.yaml",
            "recipe.yaml:1: a base may not have a base itself, got 'other.yaml': write its",
        ),
    ],
)
def test_a_mistake_in_the_base_is_told_with_its_file_and_line(folder, old, new, message):
    (folder / "recipe.yaml").write_text(BASE.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(_row(folder))
    assert f"rows/../{message}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mistake_beside_a_base_is_told_with_the_line_of_the_own_file(folder):
    with pytest.raises(ConfigError, match=r"rows/row.yaml:3: optim.momentum must be less than 1, got 2"):
        load_config(_row(folder, "optim: {momentum: 2}"))


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("optim:\n", [], "{path}:3: optim must be a section of lines `key: value`, got nothing"),
        ("optim: 3\n", [], "{path}:3: optim must be a section of lines `key: value`, got 3"),
        ("", ["data.root="], "command line: data.root must be a path, got nothing"),
        (
            "",
            ["train.resume="],
            "command line: train.resume must be 'auto' or 'never' or a path, got nothing",
        ),
        ("", ["optim.milestones=3"], "command line: optim.milestones must be a list, got 3"),
        (
            "",
            ["train.save_every=500"],
            "command line: train.save_every must be such as '500 steps', '1 epoch' or '30 minutes', got 500",
        ),
    ],
)
def test_what_should_be_a_section_a_path_or_a_list_is_told_plainly(folder, text, overrides, message):
    path = _row(folder, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert str(caught.value) == message.format(path=path)


def test_the_command_line_is_blamed_for_what_it_alone_gives(folder):
    path = _row(folder, "recompute: {segments: sqrt}\n")
    with pytest.raises(ConfigError, match=r"^command line: unknown key lgo; did you mean log\?$"):
        load_config(path, ["lgo.every=2"])
    with pytest.raises(ConfigError, match=r"^command line: train\.epochs must be .* 1, got 0$"):
        load_config(path, ["train.epochs=0"])
    with pytest.raises(
        ConfigError, match=r"row.yaml:3 and command line: .*: recompute.segments=none leaves segments out$"
    ):
        load_config(path, ["recompute.budget=1GiB"])
    assert load_config(path, ["recompute.budget=1GiB", "recompute.segments=none"]).recompute.budget == 2**30


def test_what_is_of_no_section_is_told_with_the_file_and_whoever_else_gave_a_setting(folder):
    with pytest.raises(
        ConfigError,
        match=r"row.yaml and command line: engine.compile=units needs precision.channels_last=true",
    ):
        load_config(_row(folder), ["engine.compile=units"])


def test_an_own_value_takes_the_place_of_a_bad_one_in_the_base(folder):
    (folder / "recipe.yaml").write_text(BASE.replace("epochs: 6", "epochs: 0"), encoding="utf-8")
    assert load_config(_row(folder, "train: {epochs: 2}")).train.epochs == 2


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("nowhere.yaml", r"row.yaml:1: base .*rows/nowhere.yaml: there is no such file"),
        (".", r"row.yaml:1: base .*rows: there is no such file"),
        ("[a, b]", r"row.yaml:1: base must be the path of a YAML file, got \['a', 'b'\]"),
        ("", r"row.yaml:1: base must be the path of a YAML file, got None"),
        ("row.yaml", r"row.yaml:1: a base may not have a base itself, got 'row.yaml'"),
    ],
)
def test_a_base_that_is_none_is_refused(folder, base, message):
    with pytest.raises(ConfigError, match=message):
        load_config(_row(folder, base=base))


@pytest.mark.parametrize(
    "override",
    ["recompute.segments=yes", "train.epochs=on", "optim.learning_rate=true", "optim.milestones=[true]"],
)
def test_true_is_no_number(folder, override):
    with pytest.raises(
        ConfigError, match=r"may not be .*true.* \(nor yes, no, on or off, which YAML reads so\)"
    ):
        load_config(_row(folder), [override])


def test_whole_numbers_are_decimal_and_paths_have_a_home(folder, monkeypatch):
    monkeypatch.setenv("HOME", "/home/her")
    config = load_config(_row(folder), ["train.seed=010", "train.run_dir=~/runs/mine", "data.root=~/cifar"])
    assert config.train.seed == 10
    assert (str(config.train.run_dir), str(config.data.root)) == ("/home/her/runs/mine", "/home/her/cifar")
    with pytest.raises(ConfigError, match=r"train.seed must .*got '1:30'"):
        load_config(_row(folder), ["train.seed=1:30"])


def test_a_value_is_not_cut_off_at_a_comment(folder):
    with pytest.raises(ConfigError, match="'/x/my run #2' has a YAML comment from # on: quote the value"):
        load_config(_row(folder), ["train.run_dir=/x/my run #2"])
    assert str(load_config(_row(folder), ["train.run_dir='/x/my run #2'"]).train.run_dir) == "/x/my run #2"


def test_a_base_is_not_given_on_the_command_line(folder):
    for override in ("base=other.yaml", "base.x=1"):
        with pytest.raises(ConfigError, match=r"base is for files alone \(base: FILE, .*\), got 'base"):
            load_config(_row(folder), [override])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["train.accumulation=2", "train.global_batch_size=8"],
            "auto needs train.global_batch_size, and no accumulation",
        ),
        (["train.global_batch_size=null"], "auto needs train.global_batch_size, and no accumulation"),
        (
            ["train.global_batch_size=8", "recompute.device_memory=null"],
            "auto needs recompute.device_memory or recompute.budget",
        ),
    ],
)
def test_an_automatic_micro_batch_needs_a_global_batch_and_a_limit(tmp_path, settings, message):
    path = tmp_path / "c.yaml"
    path.write_text("model: {depth: 11}\ndata: {name: synthetic}\ntrain: {max_steps: 1}\n")
    with pytest.raises(ConfigError, match=message):
        load_config(path, ["train.micro_batch_size=auto", "recompute.device_memory=1GiB", *settings])


@pytest.mark.parametrize("limit", ["recompute.budget=1GiB", "recompute.device_memory=1GiB"])
def test_either_limit_will_do(tmp_path, limit):
    path = tmp_path / "c.yaml"
    path.write_text(
        "model: {depth: 11}\ndata: {name: synthetic}\n"
        "train: {max_steps: 1, micro_batch_size: auto, global_batch_size: 8}\n",
        encoding="utf-8",
    )
    load_config(path, [limit])
