"""On a CUDA device: a run of recorded passes has the bits of the run without them."""

import pytest
import torch

from deepres.batch_sizes import batch_sizes
from deepres.config import Config
from deepres.data import Batch
from deepres.distributed import this_process
from deepres.engines import make_engine
from deepres.models import build_resnet
from deepres.recompute import apply_plan, sqrt_plan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.timeout(600),
]


def _train(cuda_graphs, accumulation, compute, under_plan, num_steps=6):
    config = Config.model_validate(
        {
            "model": {"depth": 29},
            "data": {"name": "synthetic"},
            "train": {"max_steps": 1, "micro_batch_size": 16, "accumulation": accumulation},
            "engine": {"device": "cuda", "cuda_graphs": cuda_graphs},
            "precision": {"compute": compute},
        }
    )
    torch.manual_seed(0)
    net = build_resnet(29)
    process = this_process("cuda")
    engine = make_engine(net, config, process, batch_sizes(config.train, 1))
    if under_plan:
        apply_plan(net, sqrt_plan(len(net.units)))
    generator = torch.Generator().manual_seed(1)
    sums = []
    for _ in range(num_steps):
        batches = [
            Batch(
                torch.randn(16, 3, 32, 32, generator=generator).cuda(),
                torch.randint(10, (16,), generator=generator).cuda(),
                torch.arange(16),
            )
            for _ in range(accumulation)
        ]
        sums.append(engine.step(batches, 0.01)[0])
    return [*sums, *engine.state().values()]


@pytest.mark.parametrize("under_plan", [False, True])
@pytest.mark.parametrize(("accumulation", "compute"), [(1, "fp32"), (2, "fp32"), (1, "bf16"), (1, "fp16")])
def test_cuda_graphs_change_no_bit(monkeypatch, accumulation, compute, under_plan):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        eager, replayed = (
            _train(cuda_graphs, accumulation, compute, under_plan) for cuda_graphs in (False, True)
        )
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(map(torch.equal, eager, replayed))
