"""Batch norm: PyTorch's own bits, the same bits again in a replay, and one batch over several processes."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils._python_dispatch import TorchDispatchMode

from deepres.memory import measure_activation_peak
from deepres.models import BatchNorm2d, ResidualUnit, build_resnet, synchronize_batch_norm
from deepres.models.batch_norm import Memo
from deepres.recompute import Plan, apply_plan, keep_all_plan, per_unit_plan
from tests.forked import Forked

DTYPES = {
    "fp32": (torch.float32, torch.float32),
    "fp64": (torch.float64, torch.float64),
    "bf16 with fp32 parameters": (torch.bfloat16, torch.float32),
}
SIZES = {"even": (3, 3), "uneven": (1, 4), "one value a channel in each": (1, 1)}


def _norm(channels: int, dtype: torch.dtype) -> BatchNorm2d:
    norm = BatchNorm2d(channels)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias)
    return norm.to(dtype)


def _outcome(norm: nn.Module, x: Tensor, *memo: Memo) -> list[Tensor]:
    """Output, gradients and buffers of one step."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    norm.zero_grad()
    y = norm(x, *memo)
    torch.manual_seed(1)
    y.backward(torch.randn_like(y))
    assert y.is_contiguous() == x.is_contiguous()
    return [y.detach(), x.grad, norm.weight.grad, norm.bias.grad, *(b.clone() for b in norm.buffers())]


def _assert_same_bits(left: list[Tensor], right: list[Tensor]) -> None:
    for a, b in zip(left, right, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def test_statistics_may_be_means_over_all_batches():
    """`momentum=None`, as `torch.optim.swa_utils.update_bn` sets it."""
    ours = build_resnet(8)
    theirs = build_resnet(8)
    theirs.load_state_dict(ours.state_dict())
    for unit in theirs.units:
        for k, norm in enumerate(unit.norms):
            unit.norms[k] = nn.BatchNorm2d(norm.num_features)
    batches = list(torch.randn(3, 4, 3, 8, 8))
    for net in (ours, theirs):
        update_bn(batches, net)
    buffers = zip(ours.units.buffers(), theirs.units.buffers(), strict=True)
    assert all(torch.equal(a, b) for a, b in buffers)
    assert ours.units[0].norms[0].momentum == 0.1


def test_a_norm_may_be_without_statistics():
    ours, theirs = _norm(7, torch.float32), nn.BatchNorm2d(7, track_running_stats=False)
    theirs.load_state_dict(ours.state_dict(), strict=False)
    ours.running_mean = ours.running_var = ours.num_batches_tracked = None
    x = torch.randn(4, 7, 5, 5)
    _assert_same_bits(_outcome(ours, x), _outcome(theirs, x))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtypes", DTYPES)
def test_it_is_pytorch_s_batch_norm_bit_for_bit(dtypes, memory_format):
    """In training, twice in a row, and then in eval mode."""
    of_x, of_parameters = DTYPES[dtypes]
    ours = _norm(7, of_parameters)
    theirs = nn.BatchNorm2d(7).to(of_parameters)
    theirs.load_state_dict(ours.state_dict())
    for training in (True, True, False):
        ours.train(training)
        theirs.train(training)
        x = torch.randn(4, 7, 5, 6).mul(3).add(2).to(of_x, memory_format=memory_format)
        _assert_same_bits(_outcome(ours, x), _outcome(theirs, x))
    assert int(ours.num_batches_tracked) == 2


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtypes", DTYPES)
@given(
    shape=st.tuples(*[st.integers(1, n) for n in (4, 9, 6, 6)]).filter(
        lambda s: s[0] * s[2] * s[3] > 1  # else there is no variance
    ),
    scale=st.sampled_from([1e-6, 1.0, 1e3]),
    seed=st.integers(0, 2**32),
)
def test_a_replay_gives_the_first_pass_s_bits_and_updates_nothing(dtypes, memory_format, shape, scale, seed):
    torch.manual_seed(seed)
    of_x, of_parameters = DTYPES[dtypes]
    norm = _norm(shape[1], of_parameters)
    x = torch.randn(shape).mul(scale).add(scale).to(of_x, memory_format=memory_format)
    memo: Memo = {}
    first = _outcome(norm, x, memo)
    assert [tuple(t.shape) for t in memo[norm]] == [(shape[1],), (shape[1],)]
    _assert_same_bits(_outcome(norm, x, memo), first)
    assert int(norm.num_batches_tracked) == 1


def _as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The forward passes of batch norm in the arithmetic of CUDA's kernel (Normalization.cuh), which multiplies by
    the weight first."""

    def normalise(x, weight, bias, mean, invstd, _):
        weight, bias, mean, invstd = (t.view(1, -1, 1, 1) for t in (weight, bias, mean, invstd))
        return weight * (x - mean) * invstd + bias

    def whole(x, weight, bias, running_mean, running_var, training, _, eps):
        mean, var = running_mean, running_var
        if training:
            var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        invstd = torch.rsqrt(var + eps)
        return normalise(x, weight, bias, mean, invstd, eps), mean, invstd

    monkeypatch.setattr(torch, "native_batch_norm", whole)
    monkeypatch.setattr(torch, "batch_norm_elemt", normalise)
    monkeypatch.setattr(Tensor, "is_cuda", True)


def test_a_replay_gives_the_first_pass_s_bits_by_the_arithmetic_of_cuda_too(monkeypatch):
    _as_on_cuda(monkeypatch)
    norm, x, memo = _norm(7, torch.float32), torch.randn(4, 7, 5, 6), {}
    first, replay = norm(x, memo), norm(x, memo)
    assert torch.equal(first, replay)


@pytest.mark.parametrize("view", [lambda x: x[:, :, ::2, 1:], lambda x: x.permute(2, 1, 0, 3)])
@pytest.mark.parametrize("dtypes", DTYPES)
def test_a_replay_of_a_view_with_gaps_gives_the_first_pass_s_bits(dtypes, view):
    of_x, of_parameters = DTYPES[dtypes]
    norm, memo = _norm(16, of_parameters), Memo()
    x = view(torch.randn(8, 16, 6, 6).mul(3).add(1).to(of_x))
    gradient = torch.randn(x.shape).to(of_x)
    found = []
    for _ in range(2):
        norm.zero_grad()
        leaf = x.detach().requires_grad_()
        y = norm(leaf, memo)
        y.backward(gradient)
        found.append([y.detach(), leaf.grad, norm.weight.grad, norm.bias.grad])
    _assert_same_bits(*found)


@pytest.mark.parametrize("plan", [per_unit_plan(2), Plan((), ("conv_outputs",) * 2)])
def test_units_on_a_view_with_gaps_train_the_same_under_a_plan(plan):
    units = nn.Sequential(*build_resnet(29).units[1:3])
    for module in units.modules():
        if isinstance(module, BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    x = torch.randn(4, 64, 12, 12)[:, :, 2:-2, 2:-2]
    found = []
    for each in (None, plan):
        units.zero_grad()
        apply_plan(units, each)
        y = units(x)
        y.square().mean().backward()
        found.append([y.detach(), *(p.grad for p in units.parameters())])
    _assert_same_bits(*found)


def test_a_memo_holds_the_batch_s_mean_and_inverse_standard_deviation():
    norm = _norm(5, torch.float64)
    x = torch.randn(4, 5, 3, 3, dtype=torch.float64)
    memo: Memo = {}
    norm(x, memo)
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    torch.testing.assert_close(memo[norm][0], mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(memo[norm][1], (variance + norm.eps).rsqrt(), rtol=0, atol=1e-12)


def test_running_statistics_are_moved_by_a_tenth_towards_the_unbiased_ones_of_the_batch():
    norm = BatchNorm2d(5).double()
    x = torch.randn(4, 5, 3, 3, dtype=torch.float64)
    norm(x)
    variance, mean = torch.var_mean(x, (0, 2, 3))
    torch.testing.assert_close(norm.running_mean, 0.1 * mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * variance, rtol=0, atol=1e-12)


def test_eval_mode_leaves_memo_and_buffers_alone():
    norm = _norm(5, torch.float32).eval()
    before = [b.clone() for b in norm.buffers()]
    memo: Memo = {}
    norm(torch.randn(4, 5, 3, 3), memo)
    assert memo == {}
    _assert_same_bits(list(norm.buffers()), before)


def test_one_value_a_channel_is_refused_in_training_alone():
    norm = BatchNorm2d(5)
    message = r"^batch norm needs more than one value a channel in training, got \(1, 5, 1, 1\)$"
    with pytest.raises(ValueError, match=message):
        norm(torch.randn(1, 5, 1, 1))
    assert int(norm.num_batches_tracked) == 0
    assert norm.eval()(torch.randn(1, 5, 1, 1)).shape == (1, 5, 1, 1)


def test_names_of_parameters_and_buffers_are_pytorch_s():
    assert list(BatchNorm2d(3).state_dict()) == list(nn.BatchNorm2d(3).state_dict())


# Two processes. `_in_each_process` runs in both and saves what it got; the tests compare in this process.


class CountCollectives(TorchDispatchMode):
    """Counts messages between processes by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func.overloadpacket.__name__
            self.names.append("allgather" if "allgather" in name else name.rstrip("_"))
        return func(*args, **(kwargs or {}))


def _whole_batch(sizes: tuple[int, int]) -> tuple[BatchNorm2d, Tensor, Tensor]:
    torch.manual_seed(3)
    shape = (sum(sizes), 4, 1, 1) if sizes == (1, 1) else (sum(sizes), 4, 3, 5)
    x, gradient = torch.randn(2, *shape, dtype=torch.float64).mul(2).add(1).unbind()
    return _norm(4, torch.float64), x, gradient


def _run(norm: nn.Module, x: Tensor, gradient: Tensor, memo: Memo | None) -> dict[str, Any]:
    x = x.clone().requires_grad_()
    norm.zero_grad()
    with CountCollectives() as forward:
        y = norm(x, memo)
    with CountCollectives() as backward:
        y.backward(gradient)
    return {
        "y": y.detach(),
        "x": x.grad,
        "weight": norm.weight.grad,
        "bias": norm.bias.grad,
        **{name: buffer.clone() for name, buffer in norm.named_buffers()},
        "forward": forward.names,
        "backward": backward.names,
    }


def _step_of_a_net(plan: bool, retention: str) -> list[Tensor]:
    """Gradients and buffers of a net whose batch norms are synchronised."""
    torch.manual_seed(5)
    net = build_resnet(29)
    synchronize_batch_norm(net, dist.group.WORLD)
    if plan:
        apply_plan(net, per_unit_plan(9, retention))
    torch.manual_seed(6 + dist.get_rank())
    net(torch.randn(2 + dist.get_rank(), 3, 8, 8)).square().mean().backward()
    return [*(p.grad for p in net.parameters()), *net.buffers()]


def _peaks() -> list[tuple[int, int]]:
    """Bytes of activations of a step, each alone and synchronised: everything kept, and a segment a unit."""
    images, labels = torch.randn(16, 3, 16, 16), torch.zeros(16, dtype=torch.long)
    peaks = []
    for plan in (keep_all_plan(9), per_unit_plan(9)):
        net = build_resnet(29)
        apply_plan(net, plan)
        alone = measure_activation_peak(net, net, images, labels)
        synchronize_batch_norm(net, dist.group.WORLD)
        peaks.append((alone, measure_activation_peak(net, net, images, labels)))
    return peaks


def _in_each_process(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    outcome: dict[str, Any] = {}
    for name, sizes in SIZES.items():
        norm, x, gradient = _whole_batch(sizes)
        synchronize_batch_norm(norm, dist.group.WORLD)
        mine = slice(0, sizes[0]) if rank == 0 else slice(sizes[0], None)
        memo: Memo = {}
        outcome[name] = {
            "first": _run(norm, x[mine], gradient[mine], memo),
            "replay": _run(norm, x[mine], gradient[mine], memo),
        }
    unit = ResidualUnit(8, 8, 8, block="basic")
    synchronize_batch_norm(unit, dist.group.WORLD)
    for retention in unit.retentions:
        with CountCollectives() as forward:
            y = unit(torch.randn(2, 8, 4, 4, requires_grad=True), retention)
        with CountCollectives() as backward:
            y.sum().backward()
        outcome[retention] = (forward.names, backward.names)
    outcome["nets"] = [
        _step_of_a_net(*how) for how in ((False, "all"), (True, "all"), (True, "conv_outputs"))
    ]
    outcome["peaks"] = _peaks()
    synchronize_batch_norm(norm, None)
    with CountCollectives() as alone:
        norm(torch.randn(2, 4, 3, 3, dtype=torch.float64))
    outcome["alone"] = alone.names
    torch.save(outcome, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory, forked: Forked) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("batch_norm")
    forked.run_script(Path(__file__), folder, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.multi_process
@pytest.mark.parametrize("sizes", SIZES)
def test_two_processes_normalise_as_one_does_on_the_whole_batch(processes, sizes):
    norm, x, gradient = _whole_batch(SIZES[sizes])
    whole = _run(norm, x, gradient, None)
    parts = [outcome[sizes]["first"] for outcome in processes]
    for name in ("y", "x"):
        torch.testing.assert_close(torch.cat([p[name] for p in parts]), whole[name], rtol=0, atol=1e-10)
    for name in ("weight", "bias"):
        torch.testing.assert_close(parts[0][name] + parts[1][name], whole[name], rtol=0, atol=1e-10)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(parts[0][name], parts[1][name])
        torch.testing.assert_close(parts[0][name], whole[name], rtol=0, atol=1e-10)


@pytest.mark.multi_process
@pytest.mark.parametrize("sizes", SIZES)
def test_a_synchronised_replay_gives_the_same_bits_without_a_message(processes, sizes):
    for outcome in processes:
        first, replay = outcome[sizes]["first"], outcome[sizes]["replay"]
        assert first["forward"] == ["allgather"]
        assert first["backward"] == ["allreduce"]
        assert replay["forward"] == []
        assert replay["backward"] == ["allreduce"]
        for name, value in first.items():
            assert name in ("forward", "backward") or torch.equal(value, replay[name])


@pytest.mark.multi_process
@pytest.mark.parametrize("retention", ResidualUnit.retentions)
def test_a_unit_sends_as_many_messages_whatever_it_keeps(processes, retention):
    for outcome in processes:
        forward, backward = outcome[retention]
        assert forward == ["allgather"] * 2
        assert backward == ["allreduce"] * 2


@pytest.mark.multi_process
def test_a_net_with_synchronised_batch_norm_trains_the_same_under_a_plan(processes):
    for outcome in processes:
        plain, *planned = outcome["nets"]
        for other in planned:
            _assert_same_bits(other, plain)


@pytest.mark.multi_process
def test_synchronisation_takes_no_memory_of_its_own(processes):
    for outcome in processes:
        for alone, synchronised in outcome["peaks"]:
            assert synchronised == pytest.approx(alone, rel=0.005)


@pytest.mark.multi_process
def test_synchronisation_can_be_taken_off(processes):
    assert [outcome["alone"] for outcome in processes] == [[], []]


if __name__ == "__main__":
    _in_each_process(Path(sys.argv[1]))
