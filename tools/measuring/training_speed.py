"""Images per second of a step's options, of the whole trainer, and of a bare PyTorch loop over the same net."""

from __future__ import annotations

import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml

from deepres import build_resnet
from deepres.config import OptimConfig
from deepres.data import Batch
from deepres.engines import make_engine
from deepres.engines.cuda_graph import NUM_EAGER
from deepres.job import prepare, run_job
from deepres.optim import sgd_settings
from deepres.stopping import StopRequest
from measuring.timing import block_s, times_in_turns
from recompute_benchmark.nets import make_batch

BARE = "bare PyTorch loop"
OPTIONS: dict[str, tuple[str, ...]] = {
    "trainer's step": (),
    "fused SGD": ("optim.fused=true",),
    "channels_last": ("precision.channels_last=true",),
    "compiled units, channels_last": ("precision.channels_last=true", "engine.compile=units"),
    "bf16": ("precision.compute=bf16",),
    "bf16, channels_last": ("precision.compute=bf16", "precision.channels_last=true"),
    "bf16, compiled units, channels_last": (
        "precision.compute=bf16",
        "precision.channels_last=true",
        "engine.compile=units",
    ),
    "CUDA graphs": ("engine.cuda_graphs=true",),
    "bf16, channels_last, CUDA graphs": (
        "precision.compute=bf16",
        "precision.channels_last=true",
        "engine.cuda_graphs=true",
    ),
}
_RATE = 0.01


def steps_of_options(
    depth: int, batch: int, rounds: int, steps: int, device: str, with_compiler: bool
) -> list[dict[str, Any]]:
    """A row for the bare loop and each option: a whole step, including the update, on one batch."""
    with _config(depth, batch, steps, device) as path:
        runs: dict[str, Callable[[], object]] = {BARE: _bare_loop(depth, batch, device)}
        rows: dict[str, dict[str, Any]] = {BARE: {"name": BARE}}
        for name, overrides in OPTIONS.items():
            is_compiled, is_recorded = (
                option in overrides for option in ("engine.compile=units", "engine.cuda_graphs=true")
            )
            if (is_compiled and not with_compiler) or (is_recorded and device != "cuda"):
                continue
            rows[name] = {"name": name}
            try:
                step = _engine_step(path, overrides, batch)
                start = time.monotonic()
                for _ in range(NUM_EAGER + 1 if is_recorded else 1):
                    step()
            except Exception as error:  # noqa: BLE001  # such as a compiler's: the other rows are still valid
                rows[name]["note"] = f"failed: {(str(error).splitlines() or [type(error).__name__])[0]:.80}"
                continue
            runs[name] = step
            if is_compiled or is_recorded:
                rows[name]["preparation_s"] = time.monotonic() - start
        times = times_in_turns(runs, BARE, rounds, steps)
    for name, of_step in times.items():
        rows[name]["images_per_s"] = 1000 * batch / of_step.median_ms
        rows[name] |= {"ratio": of_step.ratio, "ratios": of_step.ratios}
    return list(rows.values())


def trainer_and_bare_loop(depth: int, batch: int, rounds: int, steps: int, device: str) -> dict[str, Any]:
    """The row of the whole trainer (augmentation, metrics, schedule, checks, log) against the bare loop, in turns.

    Its note has the bare loop's rate in this process, which differs from that in the process of `steps_of_options`.
    """
    ratios, rates, bare_rates, waits = [], [], [], []
    with _config(depth, batch, steps + 1, device) as path:
        bare = _bare_loop(depth, batch, device)
        for _ in range(rounds):
            bare_rates.append(steps * batch / block_s(bare, steps))
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
                summary = run_job(prepare(path, [f"train.run_dir={folder}/run"]), StopRequest())
            assert summary is not None
            rates.append(summary.images_per_s)
            waits.append(summary.data_wait_share)
            ratios.append(bare_rates[-1] / summary.images_per_s)
    bare_rate = statistics.median(bare_rates)
    return {
        "name": "whole trainer",
        "images_per_s": statistics.median(rates),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "data_wait_percent": 100 * statistics.median(waits),
        "bare_images_per_s": bare_rate,
        "note": f"bare loop beside it: {bare_rate:.4g} images/s",
    }


def _bare_loop(depth: int, batch: int, device: str) -> Callable[[], object]:
    """A minimal training step: zero_grad, forward, loss, backward, update."""
    torch.backends.cudnn.benchmark = True  # as the trainer does
    torch.manual_seed(0)
    net = build_resnet(depth).to(device).train()
    optimizer = torch.optim.SGD(net.parameters(), **sgd_settings(OptimConfig(learning_rate=_RATE)))
    images, labels = make_batch(batch, device)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()

    return step


def _engine_step(path: Path, overrides: tuple[str, ...], batch: int) -> Callable[[], object]:
    job = prepare(path, list(overrides))
    engine = make_engine(job.net, job.config, job.process, job.sizes)
    images, labels = make_batch(batch, job.process.device.type)
    batches = [Batch(images, labels, torch.arange(batch))]

    return lambda: engine.step(batches, _RATE)


@contextlib.contextmanager
def _config(depth: int, batch: int, steps: int, device: str) -> Iterator[Path]:
    """A configuration with CIFAR's pipeline over synthetic images: one epoch of `steps` steps, and an evaluation."""
    content = {
        "model": {"depth": depth},
        "data": {
            "name": "synthetic",
            "image_size": 32,
            "num_images": steps * batch,
            "augmentation": "crop_flip",
        },
        "optim": {"learning_rate": _RATE},
        "train": {"max_steps": steps, "global_batch_size": batch, "save_every": None},
        "engine": {"device": device},
        "log": {"plots": False},
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        yield path
