"""What is told to nobody, or cannot be shown, ends no run."""

import io
import os
import sys
from contextlib import suppress

import pytest

from deepres.screen import allow_any_encoding, complain, flush, say
from deepres.train import main
from tests.processes import ROOT, metrics


@pytest.fixture
def broken_pipe():
    """A stream whose reader has ended, as that of `| head -3` has."""
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w", encoding="utf-8")
    yield stream
    with suppress(BrokenPipeError):
        stream.close()


def test_a_run_goes_on_when_nobody_reads_what_it_tells(tmp_path, monkeypatch, broken_pipe):
    monkeypatch.setattr(sys, "stdout", broken_pipe)
    settings = (
        "data.name=synthetic", "data.image_size=8", "data.num_images=16", "model.depth=11", "train.max_steps=2",
        "train.global_batch_size=8", "log.every=1", "log.plots=false", "engine.name=plain", "engine.zero_stage=0",
    )  # fmt: skip
    config = str(ROOT / "configs" / "quickstart.yaml")
    assert main(["--config", config, *settings, f"train.run_dir={tmp_path}"]) == 0
    assert len(metrics(tmp_path, "train")) == 2
    assert (tmp_path / "finished.json").exists()


@pytest.mark.parametrize("is_closed", [False, True], ids=["broken pipe", "closed from the start"])
def test_neither_output_needs_a_reader(monkeypatch, broken_pipe, is_closed):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None if is_closed else broken_pipe)
    for _ in range(2):
        say("a line")
        complain("another")
        flush()


def test_a_sign_that_ascii_lacks_becomes_a_question_mark(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    allow_any_encoding()
    say("micro batch 2 × 4, 3 %")
    assert written.getvalue() == b"micro batch 2 ? 4, 3 %\n"
