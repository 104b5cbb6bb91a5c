"""What surrounds a recorded pass, without a GPU: replaying is doing the work again, which reads the same places."""

import copy
import operator
from contextlib import contextmanager
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from deepres import apply_plan, build_resnet
from deepres.batch_sizes import BatchSizes
from deepres.config import Config
from deepres.data import Batch
from deepres.distributed import this_process
from deepres.engines import Engine
from deepres.engines.cuda_graph import NUM_EAGER, RecordedPass
from deepres.engines.plain_engine import PlainEngine
from deepres.gradients import allocate_gradients
from deepres.recompute import sqrt_plan


class _Recorder:
    """Runs the work at each replay, with its result in one place as a graph's, and counts."""

    def __init__(self):
        self.num_recorded = self.num_replayed = self.num_aside = 0

    @contextmanager
    def aside(self):
        self.num_aside += 1
        yield

    def record(self, run):
        self.num_recorded += 1
        place = None

        def replay():
            nonlocal place
            self.num_replayed += 1
            result = run()
            place = torch.empty_like(result) if place is None else place
            return place.copy_(result)

        return replay


def _batches(sizes):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 3, 32, 32, generator=generator), torch.randint(10, (n,), generator=generator))
        for n in sizes
    ]


def _passes_of(net):
    def run(images, labels):
        logits = net(images)
        F.cross_entropy(logits, labels).backward()
        return logits.detach()

    return run


@pytest.mark.parametrize("under_plan", [False, True])
def test_recorded_passes_are_the_passes(under_plan):
    torch.manual_seed(0)
    nets = [build_resnet(20)]
    nets.append(copy.deepcopy(nets[0]))
    recorder = _Recorder()
    passes = [_passes_of(nets[0]), RecordedPass(_passes_of(nets[1]), recorder)]
    if under_plan:
        apply_plan(nets[1], sqrt_plan(9))
    sizes = [4] * (NUM_EAGER + 2) + [3, 5, 4]
    batches = _batches(sizes)
    for images, labels in batches:
        logits = [run(images, labels).clone() for run in passes]
        assert torch.equal(*logits)
    assert (recorder.num_recorded, recorder.num_replayed) == (1, 3)  # those of 3 and 5 ran as usual
    assert recorder.num_aside == NUM_EAGER
    for batch, as_it_was in zip(batches, _batches(sizes), strict=True):
        assert all(map(torch.equal, batch, as_it_was))
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    for a, b in zip(nets[0].buffers(), nets[1].buffers(), strict=True):
        assert torch.equal(a, b)


def test_a_step_adds_up_what_its_recorded_micro_batches_gave():
    config = Config(
        model={"depth": 20}, data={"name": "synthetic"}, train={"max_steps": 9, "global_batch_size": 8}
    )
    engines = []
    for _ in range(2):
        torch.manual_seed(0)
        engines.append(PlainEngine(build_resnet(20), config, this_process("cpu"), BatchSizes(8, 4, 2, 1)))
    recorder = _Recorder()
    allocate_gradients(engines[1].net)
    gradients = [parameter.grad for parameter in engines[1].net.parameters()]
    engines[1]._recorded = RecordedPass(partial(Engine._pass, engines[1], is_last=True), recorder)
    for k in range(5):
        if k == 4:
            assert recorder.num_replayed == 8 - NUM_EAGER
            assert all(map(operator.is_, gradients, (p.grad for p in engines[1].net.parameters())))
            engines[1].run_eagerly()
        batches = [Batch(*pair, torch.arange(4)) for pair in _batches([4, 4])]
        sums = [engine.step([batches[k % 2], batches[1 - k % 2]], 0.1)[0] for engine in engines]
        assert torch.equal(*sums)
    assert recorder.num_replayed == 8 - NUM_EAGER
    for a, b in zip(*(engine.net.parameters() for engine in engines), strict=True):
        assert torch.equal(a, b)


def test_a_batch_may_be_overwritten_once_its_pass_is_over():
    recorded = RecordedPass(lambda images, _: images * 2, _Recorder())
    batch = torch.ones(2, 3), torch.zeros(2)
    for value in range(NUM_EAGER + 3):
        batch[0].fill_(value)
        assert torch.equal(recorded(*batch), torch.full((2, 3), 2.0 * value))
