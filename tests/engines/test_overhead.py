"""What the trainer's step does beside a bare loop's: narrow nets spend a GPU's time on launches, which are counted."""

from collections import Counter

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from deepres import build_resnet
from deepres.batch_sizes import BatchSizes
from deepres.config import Config
from deepres.data import Batch
from deepres.distributed import this_process
from deepres.engines import make_engine
from deepres.optim import sgd


class _Operators(TorchDispatchMode):
    """Counts them."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.counts[str(operator)] += 1
        return operator(*args, **(kwargs or {}))


def _num_operators(step):
    step()  # the first one allocates momentum
    with _Operators() as operators:
        step()
    return operators.counts.total()


def test_a_step_calls_at_most_3_percent_more_operators_than_a_bare_loop():
    images, labels = torch.randn(2, 3, 32, 32), torch.tensor([1, 2])
    config = Config(
        model={"depth": 29}, data={"name": "synthetic"}, train={"max_steps": 9, "global_batch_size": 2}
    )
    engine = make_engine(build_resnet(29), config, this_process("cpu"), BatchSizes(2, 2, 1, 1))
    batch = Batch(images, labels, torch.arange(2))
    net = build_resnet(29)
    optimizer = sgd(net.parameters(), config.optim)

    def bare():
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()

    num_bare = _num_operators(bare)
    assert num_bare > 700
    assert _num_operators(lambda: engine.step([batch], 0.1)) <= 1.03 * num_bare
