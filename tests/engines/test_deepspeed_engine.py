"""What DeepSpeed is told of the host."""

import sys

from tests.processes import run

_STEP = """
import torch
torch.cuda.device_count = lambda: 1  # all that DeepSpeed looks at
torch.cuda.is_available = lambda: True
from deepres.batch_sizes import batch_sizes
from deepres.config import Config
from deepres.data import Batch
from deepres.distributed import this_process
from deepres.engines import make_engine
from deepres.models import build_resnet
config = Config.model_validate({
    "model": {"depth": 8},
    "data": {"name": "synthetic"},
    "train": {"max_steps": 1, "micro_batch_size": 2},
    "engine": {"name": "deepspeed", "device": "cpu", "zero_stage": 2},
})
net = build_resnet(8)
engine = make_engine(net, config, this_process("cpu"), batch_sizes(config.train, 1))
engine.step([Batch(torch.zeros(2, 3, 32, 32), torch.tensor([0, 1]), torch.arange(2))], 0.1)
print("computed on", {parameter.device.type for parameter in net.parameters()})
"""


def test_a_run_on_the_cpu_of_a_host_with_a_gpu_stays_there():
    done = run(sys.executable, "-c", _STEP)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "computed on {'cpu'}"
