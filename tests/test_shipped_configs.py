"""The files of configs/: each trains, with what is large made small."""

import pytest

from deepres.config import load_config
from deepres.train import main
from tests.processes import ROOT, metrics


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_trains_two_steps(tmp_path, forked, path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert "--config configs/" in text
    overrides = [
        "data.name=synthetic", "data.augmentation=null", "data.num_images=8", "train.max_steps=2",
        "train.global_batch_size=4", "train.eval_batch_size=2", f"train.run_dir={tmp_path / 'run'}", "log.plots=false",
    ]  # fmt: skip
    if "imagenet" in path.stem:
        overrides += ["data.image_size=32", "data.eval_image_size=null", "data.eval_shorter_side=null"]
    else:
        overrides += ["data.image_size=8"]
    if load_config(path).engine.name == "plain":
        assert main(["--config", str(path), *overrides]) == 0
    else:
        forked.train(tmp_path, "--config", path, *overrides)
    (summary,) = metrics(tmp_path / "run", "summary")
    assert summary["step"] == 2


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_is_written_for_its_own_data(path):
    config = load_config(path)
    assert (config.model.dataset == "imagenet") == (config.data.name == "imagenet")
