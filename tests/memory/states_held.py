"""Run in two processes: accumulates gradients, and prints the bytes of model states that are there at once."""

import os

import torch

from deepres.batch_sizes import batch_sizes
from deepres.config import Config, DataConfig, EngineConfig, ModelConfig, OptimConfig, TrainConfig
from deepres.data import Batch
from deepres.distributed import any_process, start_process_group, stop_process_group, this_process
from deepres.engines import make_engine
from deepres.memory.run_memory import other_memory
from deepres.run_net import net_of

process = this_process("cpu")
start_process_group(process)
config = Config(
    model=ModelConfig(depth=8),
    data=DataConfig(name="synthetic"),
    optim=OptimConfig(),
    train=TrainConfig(max_steps=1, micro_batch_size=2, accumulation=2),
    engine=EngineConfig(bucket_mb=0.01),
)
torch.manual_seed(0)
net = net_of(config)
sizes = batch_sizes(config.train, process.world_size)
engine = make_engine(net, config, process, sizes)
parameters = list(net.parameters())
batch = Batch(torch.randn(2, 3, 8, 8), torch.tensor([0, 1]), torch.tensor([0, 1]))


def storages(tensors):
    return {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in tensors)}


for _ in range(3):  # buckets are made anew after the first step
    engine.step([batch] * 2, 0.01)
engine.run_passes([batch] * 2)
buckets = storages(p.grad for p in parameters)
engine._forget_gradients()
states = storages(parameters) | storages(s["momentum_buffer"] for s in engine._optimizer.state.values())
apart = {}


def micro_batches():
    yield batch
    apart.update(storages(p.grad for p in parameters))
    yield batch


engine.run_passes(micro_batches())
assert storages(p.grad for p in parameters) == buckets, "buckets do not stay where they are"
held = states | buckets | apart
predicted = other_memory(
    config, num_parameters=sum(p.numel() for p in parameters), image_size=8, micro_size=2,
    world_size=process.world_size, on_cuda=False,
)  # fmt: skip
any_process([False], process.device)
if process.is_first:
    num_bytes = predicted.total_bytes - predicted.batch_bytes
    print(
        "HELD",
        sum(held.values()),
        "PREDICTED",
        num_bytes,
        "PARAMETERS",
        sum(p.nbytes for p in parameters),
        flush=True,
    )
stop_process_group()
os._exit(0)  # a thread of gloo may abort an interpreter that shuts down
