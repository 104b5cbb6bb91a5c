import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepres.config import Config, ConfigError, load_config

GOOD = "model: {depth: 29}\ndata: {name: digits}\ntrain: {epochs: 1, global_batch_size: 64}\n"


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(GOOD, encoding="utf-8")
    return file


def test_defaults_are_the_papers_optimizer_and_no_recomputation(path):
    config = load_config(path)
    assert (config.optim.learning_rate, config.optim.momentum, config.optim.weight_decay) == (0.1, 0.9, 1e-4)
    assert config.recompute.segments == "none"
    assert config.engine.name == "plain"


def test_what_is_written_back_reads_the_same(path, tmp_path):
    config = load_config(path, ["optim.milestones=[3, 5]", "recompute.segments=sqrt", "data.root=/x"])
    again = tmp_path / "again.yaml"
    again.write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(again) == config


def test_a_float_that_yaml_takes_for_text_is_read(path):
    assert load_config(path, ["optim.weight_decay=1e-4"]).optim.weight_decay == 1e-4


def test_overrides_win_and_may_begin_a_section(path):
    config = load_config(path, ["model.depth=47", "engine.bucket_mb=1"])
    assert config.model.depth == 47
    assert config.engine.bucket_mb == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.deph=20", r"unknown key model.deph; did you mean model.depth\?"),
        ("modle.depth=20", r"unknown key modle; did you mean model\?"),
        ("train.zzz=1", r"unknown key train.zzz; known: epochs, max_steps"),
        ("model.depth=deep", r"model.depth must be a valid integer.*got 'deep'"),
        ("model.depth=20.5", r"model.depth must be a valid integer.*got 20.5"),
        ("model.dropout=0.3", r"model: dropout=0.3 has no effect with shortcut=identity; it is for dropout"),
        ("recompute.max_extra=0.1", r"recompute.max_extra is for train.micro_batch_size=auto"),
        ("model.block=big", r"model.block must be 'basic', 'bottleneck' or 'single', got 'big'"),
        ("optim.learning_rate=-1", r"optim.learning_rate must be greater than 0, got -1"),
        ("optim.learning_rate=.nan", r"optim.learning_rate must be a finite number, got nan"),
        ("optim.learning_rate=.inf", r"optim.learning_rate must be a finite number, got inf"),
        (
            "optim.learning_rate=1e308",
            r"optim.learning_rate: must fit fp32, which holds numbers up to 1e38, got",
        ),
        (
            "optim.warmup_learning_rate=1e308",
            r"optim.warmup_learning_rate: must fit fp32, which holds numbers up to 1e38, got",
        ),
        (
            "optim.weight_decay=1e308",
            r"optim.weight_decay: must fit fp32, which holds numbers up to 1e38, got",
        ),
        ("model.gate_bias=-1e308", r"model.gate_bias: must fit fp32, which holds numbers up to 1e38, got"),
        ("engine.bucket_mb=1e308", r"engine.bucket_mb must be less than or equal to 1000000.*, got"),
        (f"data.image_size={10**20}", r"data.image_size must be less than or equal to 16384, got 1000"),
        (f"data.num_classes={10**20}", r"data.num_classes must be less than or equal to 10000000, got"),
        (f"data.num_images={10**20}", r"data.num_images must be less than or equal to 100000000, got"),
        ("optim.milestones=[5, 3]", r"milestones must rise, got \[5, 3\]"),
        ("engine.zero_stage=4", r"engine.zero_stage must be 0, 1, 2 or 3, got 4"),
        ("engine.compile=units", r"engine.compile=units needs precision.channels_last=true"),
        ("engine.zero_stage=2", r"zero_stage needs engine.name=deepspeed, got engine.name=plain"),
        ("engine.offload_optimizer=true", r"offload_optimizer needs engine.name=deepspeed"),
        (
            "recompute.segments=0",
            r"recompute.segments must be 'none' or 'sqrt' or greater than or equal to 1, got 0",
        ),
        ("recompute.segments=some", r"recompute.segments must be 'none' or 'sqrt' or.*got 'some'"),
        ("train.epochs=null", r"train: give epochs or max_steps"),
        ("train.save_every=5", r"train.save_every must be such as '500 steps', .* got 5"),
        ("log.note=5", r"log.note must be text, '…' in quotes, got 5"),
        ("log.note=2024-13-45", r"'2024-13-45' is not a YAML value"),
        ("train.run_dir=''", r"train.run_dir: may not be empty: leave it out"),
        ("train.run_dir=#5", r"'#5' has a YAML comment from # on: quote the value"),
        ("train.run_dir=~nosuchuser/x", r"train.run_dir: has no home folder for ~nosuchuser, got '~nosuch"),
        (" optim.learning_rate =x", r"optim.learning_rate must be a valid number, .*got 'x'"),
        ("model.depth=9000002", r"model.depth must be less than or equal to 30000, got 9000002"),
        ("nonsense", r"expected section.key=value"),
        ("model.=1", r"expected section.key=value"),
        ("model.depth.x=1", r"model.depth is not a section"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_is_allowed(path, override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path, [override])
    assert "\n" not in str(caught.value)
    assert "pydantic" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.activation=original", "model.preactivation=own"],
            "preactivation=own has no effect with activation=original; it is for relu_only_preactivation or full_",
        ),
        (
            ["model.shortcut=conv1x1", "model.matching=zero_padding"],
            "matching=zero_padding has no effect with shortcut=conv1x1; it is for identity or ",
        ),
    ],
)
def test_a_setting_that_the_net_does_not_have_is_refused(path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(path, overrides)


def test_a_mistake_in_the_file_is_told_with_its_line(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(GOOD.replace("epochs: 1", "epochs: 0"), encoding="utf-8")
    with pytest.raises(
        ConfigError, match=r"run.yaml:3: train.epochs must be greater than or equal to 1, got 0"
    ):
        load_config(file)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("offload", ["offload_optimizer", "offload_parameters"])
def test_offload_is_accepted_just_where_the_stage_has_it(path, stage, offload):
    overrides = ["engine.name=deepspeed", f"engine.zero_stage={stage}", f"engine.{offload}=true"]
    if stage == 3 or (stage > 0 and offload == "offload_optimizer"):
        assert getattr(load_config(path, overrides).engine, offload)
    else:
        with pytest.raises(ConfigError, match=f"{offload} needs zero_stage"):
            load_config(path, overrides)


@given(
    st.dictionaries(
        st.text(max_size=8), st.recursive(st.none() | st.integers() | st.text(max_size=5), st.lists)
    )
)
def test_whatever_a_file_holds_the_answer_is_a_config_or_one_line(tmp_path_factory, content):
    import yaml

    file = tmp_path_factory.mktemp("any") / "run.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert "\n" not in str(caught.value)


def test_a_config_is_frozen(path):
    with pytest.raises(ValueError, match="frozen"):
        load_config(path).train.epochs = 2
    assert isinstance(load_config(path), Config)


@pytest.mark.parametrize(
    ("others", "what"),
    [
        (["engine.sync_batch_norm=true"], "sync_batch_norm"),
        (["engine.name=deepspeed", "engine.zero_stage=3"], "zero_stage 3"),
    ],
)
def test_compiled_units_refuse_what_one_graph_cannot_do(path, others, what):
    with pytest.raises(
        ConfigError, match=f"compile=units cannot be combined with {what}: switch one of them off"
    ):
        load_config(path, ["engine.compile=units", "precision.channels_last=true", *others])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optim.fused=true", "precision.compute=fp16"], "optim.fused cannot be combined with precision.compute=fp16"),
        (["engine.cuda_graphs=true", "engine.name=deepspeed"], "cuda_graphs needs engine.name=plain"),
        (
            ["engine.cuda_graphs=true", "engine.compile=units", "precision.channels_last=true"],
            "cuda_graphs needs engine.compile=none",
        ),
        (
            ["engine.cuda_graphs=true", "model.shortcut=dropout"],
            "engine.cuda_graphs cannot be combined with model.shortcut=dropout",
        ),
        (
            ["engine.cuda_graphs=true", "recompute.device_memory=1GiB"],
            "engine.cuda_graphs cannot be combined with recompute.device_memory",
        ),
        (
            [
                "engine.cuda_graphs=true", "train.micro_batch_size=auto", "train.global_batch_size=8",
                "recompute.budget=1GiB",
            ],
            "engine.cuda_graphs needs a number as train.micro_batch_size",
        ),
        (
            [
                "engine.compile=units", "precision.channels_last=true", "train.micro_batch_size=auto",
                "train.global_batch_size=8", "recompute.budget=1GiB",
            ],
            "engine.compile=units needs a number as train.micro_batch_size",
        ),
    ],
)  # fmt: skip
def test_options_of_speed_that_would_go_wrong_together_are_refused(path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(path, overrides)
