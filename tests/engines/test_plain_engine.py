"""What the plain engine asks of DistributedDataParallel."""

import torch

from deepres.batch_sizes import batch_sizes
from deepres.config import Config
from deepres.distributed import Process
from deepres.engines import plain_engine
from deepres.models import build_resnet


def test_buckets_are_megabytes_as_under_every_engine(monkeypatch):
    asked = {}
    monkeypatch.setattr(plain_engine, "DistributedDataParallel", lambda _, **options: asked.update(options))
    config = Config.model_validate(
        {
            "model": {"depth": 11},
            "data": {"name": "synthetic"},
            "train": {"max_steps": 1, "micro_batch_size": 1},
            "engine": {"bucket_mb": 3},
        }
    )
    process = Process(0, 0, 2, 2, torch.device("cpu"))
    plain_engine.PlainEngine(build_resnet(11), config, process, batch_sizes(config.train, 2))
    assert int(asked["bucket_cap_mb"] * 2**20) == 3_000_000
