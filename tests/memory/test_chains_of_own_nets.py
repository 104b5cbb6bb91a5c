"""Chains of nets that are not the shipped ones: what is read of them, and what is refused in one line."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from deepres import apply_plan, make_plan, measure_chain, predict_chain
from deepres.memory import AllocatedBytes
from deepres.recompute import Chain, Plan, keep_all_plan, per_unit_plan, simulate

BOTH = pytest.mark.parametrize("costs", [measure_chain, predict_chain])


class _Block(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[0](x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norms[1](x))


class _LanguageModel(nn.Module):
    def __init__(self, num_tokens: int = 50, width: int = 64) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(num_tokens, width), nn.Linear(width, num_tokens)
        self.units = nn.Sequential(*[_Block(width) for _ in range(6)])

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.units(self.embedding(tokens)))


def _peak_bytes(model: nn.Module, plan: Plan, x: Tensor) -> int:
    apply_plan(model, plan)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    meter = AllocatedBytes(torch.device("cpu"))
    with meter:
        model(x).mean().backward()
    return meter.peak_bytes


@pytest.mark.parametrize("plan", [keep_all_plan(6), per_unit_plan(6), Plan(((0, 5), (1, 4)), ("all",) * 6)])
def test_the_peak_of_a_language_model_is_predicted_and_measured(plan):
    tokens = torch.randint(50, (8, 64))
    model = _LanguageModel()
    peak_bytes = _peak_bytes(model, plan, tokens)
    for costs in (predict_chain, lambda *how, **named: measure_chain(*how, **named, repeats=0)):
        chain = costs(model, tuple(tokens.shape), input_dtype=torch.long, loss=torch.Tensor.mean)
        assert 0.99 * peak_bytes <= simulate(chain, plan).peak_bytes <= 1.03 * peak_bytes


def _layers() -> nn.Sequential:
    """A VGG whose units are its layers: only the ReLUs read what the batch norms put out, and they read it once."""
    widths = (3, 16, 16, 32, 32)
    blocks = [
        (nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        for before, width in itertools.pairwise(widths)
    ]
    return nn.Sequential(*itertools.chain.from_iterable(blocks), nn.AdaptiveAvgPool2d(1))


@pytest.mark.parametrize(
    "plan",
    [
        keep_all_plan(13),
        per_unit_plan(13),
        Plan(((0, 3), (3, 6), (6, 9)), ("all",) * 13),
        Plan(((0, 8), (0, 5), (2, 4), (8, 11), (9, 11)), ("all",) * 13),
    ],
)
def test_what_no_unit_s_backward_reads_counts_as_long_as_it_is_there(plan):
    shape = (16, 3, 16, 16)
    net, images = _layers(), torch.randn(shape)
    peak_bytes = _peak_bytes(net, plan, images)
    for costs in (predict_chain, lambda *how, **named: measure_chain(*how, **named, repeats=0)):
        chain = costs(net, shape, loss=torch.Tensor.mean)
        assert [not unit.retentions[0].reads_input for unit in chain.units[:-1]] == [False, False, True] * 4
        # The images were there before the step.
        predicted_bytes = simulate(chain, plan).peak_bytes - images.nbytes
        assert 0.99 * peak_bytes <= predicted_bytes <= 1.03 * peak_bytes


class _Quarter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 256)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).chunk(4, -1)[0]


@BOTH
def test_an_output_that_is_a_part_of_a_larger_tensor_holds_all_of_it(costs):
    net, x = nn.Sequential(*[_Quarter() for _ in range(8)], nn.Linear(64, 1)), torch.randn(256, 64)
    chain = costs(net, tuple(x.shape), loss=torch.Tensor.mean)
    for plan in (keep_all_plan(9), per_unit_plan(9)):
        peak_bytes = _peak_bytes(net, plan, x)
        assert 0.99 * peak_bytes <= simulate(chain, plan).peak_bytes <= 1.15 * peak_bytes


class _LongSkip(nn.Module):
    """Its head uses the stem's output, too, as super-resolution nets do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 3, 3, padding=1)
        self.units = nn.Sequential(
            *[nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()) for _ in range(8)]
        )

    def forward(self, x: Tensor) -> Tensor:
        first = self.stem(x)
        return self.head(self.units(first) + first)


@pytest.mark.parametrize("repeats", [0, 1])
def test_what_the_head_uses_of_the_stem_waits_for_the_units_backward(repeats):
    net, images = _LongSkip(), torch.randn(4, 3, 32, 32)
    loss = torch.Tensor.mean
    chains = [
        predict_chain(net, tuple(images.shape), loss=loss),
        measure_chain(net, tuple(images.shape), loss=loss, repeats=repeats),
    ]
    for plan in (keep_all_plan(8), per_unit_plan(8)):
        peak_bytes = _peak_bytes(net, plan, images)
        for chain in chains:
            assert 0.99 * peak_bytes <= simulate(chain, plan).peak_bytes <= 1.15 * peak_bytes


class _Query(nn.Module):
    """Units that begin with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 8))
        self.units = nn.Sequential(*[nn.Linear(8, 8) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        return self.units(self.query.expand(4, 8)) + x + self.query


@pytest.mark.parametrize("repeats", [0, 2])
def test_units_may_begin_with_a_parameter_that_the_head_uses_too(repeats):
    net = _Query()
    before = net.query.detach().clone()
    assert len(measure_chain(net, (4, 8), repeats=repeats).units) == 3
    assert torch.equal(net.query, before)


class _Tokens(nn.Module):
    """Adds constant tokens: the gradient of its input is a view of a larger one."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x.new_zeros(len(x), 63, x.shape[2])], 1)


@BOTH
def test_a_gradient_that_is_a_part_of_a_larger_one_holds_all_of_it(costs):
    units = [nn.Sequential(nn.Linear(16, 256), nn.Tanh(), nn.Linear(256, 16)) for _ in range(6)]
    net, x = nn.Sequential(*units, _Tokens()), torch.randn(256, 1, 16)
    chain = costs(net, tuple(x.shape), loss=torch.Tensor.mean)
    for plan in (keep_all_plan(7), per_unit_plan(7)):
        peak_bytes = _peak_bytes(net, plan, x)
        assert 0.99 * peak_bytes <= simulate(chain, plan).peak_bytes


@BOTH
def test_a_lazy_layer_is_to_be_run_first(costs):
    net = nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 8))
    with pytest.raises(
        ValueError, match=r"^parameter 0.weight has no shape yet, as its layer is lazy: run a"
    ):
        costs(net, (4, 8))
    net(torch.ones(1, 8))
    assert len(costs(net, (4, 8)).units) == 2


@BOTH
def test_frozen_units_hold_no_more_than_they_pass_on(costs):
    net = nn.Sequential(*[nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(12)], nn.Linear(64, 1))
    net[:6].requires_grad_(False)
    x = torch.randn(256, 64)
    chain = costs(net, tuple(x.shape), loss=torch.Tensor.mean)
    peak_bytes = _peak_bytes(net, keep_all_plan(13), x)
    assert 0.99 * peak_bytes <= simulate(chain, keep_all_plan(13)).peak_bytes - x.nbytes <= 1.03 * peak_bytes


class _Expanding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).expand(-1, 8)


@BOTH
def test_units_may_return_expanded_tensors(costs):
    chain = costs(nn.Sequential(*[_Expanding() for _ in range(3)]), (4, 8))
    assert len(chain.units) == 3


@BOTH
def test_units_that_cannot_be_copied_are_refused_in_one_line(costs):
    net = nn.Sequential(*[nn.utils.spectral_norm(nn.Linear(8, 8)) for _ in range(2)])
    net(torch.randn(4, 8)).mean().backward()
    with pytest.raises(TypeError, match=r"^a Linear cannot be copied, .* use those of torch.nn.utils.param"):
        costs(net, (4, 8))


class _ComputingInBf16(nn.Linear):
    """Casts its weight anew in each run, and keeps the cast until its backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


@BOTH
def test_units_may_enter_autocast_themselves(costs):
    model = nn.Sequential(*[_ComputingInBf16(256, 256) for _ in range(4)])
    plan = make_plan(costs(model, (4, 256)), 2**30)
    assert _peak_bytes(model, plan, torch.randn(4, 256)) == pytest.approx(plan.peak_bytes, rel=0.03)


class _Masking(nn.Linear):
    def __init__(self) -> None:
        super().__init__(8, 8)
        self.mask = torch.ones(8)  # no buffer

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.mask


@BOTH
def test_units_may_have_tensors_that_are_no_buffers(costs):
    chain = costs(nn.Sequential(*[_Masking() for _ in range(3)]), (5, 8))
    assert [unit.output_bytes for unit in chain.units] == [160] * 3


class _Nearest(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(-1)


@BOTH
def test_units_may_take_and_return_integers(costs):
    net = nn.Sequential(nn.Linear(32, 20), _Nearest(), nn.Embedding(20, 32), nn.Linear(32, 32))
    chain = costs(net, (3, 32))
    assert chain.state_bytes == (3 * 32 * 4, 3 * 20 * 4, 3 * 8, 3 * 32 * 4, 3 * 32 * 4)


@BOTH
def test_units_may_know_the_model_and_share_what_is_not_theirs(costs):
    class Knowing(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.__dict__["model"].scale

    model = nn.Module()
    model.scale = nn.Parameter(torch.ones(8))
    model.units = nn.Sequential(*[Knowing(8, 8) for _ in range(3)])
    for unit in model.units:
        unit.__dict__["model"] = model
    assert [unit.output_bytes for unit in costs(model.units, (5, 8)).units] == [160] * 3


class _Of(nn.Module):
    """A model whose forward pass is a function of the model and its input."""

    def __init__(self, run: Callable[[nn.Module, Tensor], object], unit: nn.Module | None = None) -> None:
        super().__init__()
        self.units = nn.Sequential(*[unit or nn.Linear(8, 8) for _ in range(3)])
        self._run = run

    def forward(self, x: Tensor) -> object:
        return self._run(self, x)


def _one_by_one(model: nn.Module, x: Tensor) -> Tensor:
    for unit in model.units:
        x = unit(x)
    return x


REFUSED = {
    "one by one": (_one_by_one, r"^the forward pass takes its units one by one, and a plan is of one call"),
    "a part": (
        lambda m, x: m.units[:2](x),
        r"^the forward pass takes its units one by one, and a plan is of",
    ),
    "twice": (
        lambda m, x: m.units(m.units(x)),
        r"^the forward pass calls its units more than once, and a plan",
    ),
    "a tuple": (
        lambda m, x: (m.units(x), x),
        r"^the model returns a tuple instead of one tensor: pass `loss`",
    ),
}


@BOTH
@pytest.mark.parametrize("run", REFUSED)
def test_models_of_which_a_chain_would_tell_something_else_are_refused(costs: Callable[..., Chain], run):
    forward, message = REFUSED[run]
    with pytest.raises(TypeError, match=message):
        costs(_Of(forward), (2, 8))


class _First(nn.LSTM):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[0]


class _Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8, sparse=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.embedding(x.argmax(-1))


class _Masked(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[x[:, 0] > -9])


@pytest.mark.parametrize(
    ("unit", "what"),
    [
        (_First(8, 8), "is an LSTM, of which"),
        (_Masked(8, 8), r"depends on values, by aten\.nonzero\.default"),
        (_Sparse(), r"does what PyTorch cannot do without values \(Cannot access storage of Sparse"),
    ],
)
@pytest.mark.parametrize("gpu", [None, "RTX 4090"])
def test_what_cannot_be_predicted_is_refused_and_can_be_measured(unit, what, gpu):
    model = _Of(lambda m, x: m.units(x), unit)
    with pytest.raises(
        ValueError, match=f"^what the model takes cannot be predicted where a part of it {what}"
    ):
        predict_chain(model, (5, 8), gpu)
    assert len(measure_chain(model, (5, 8), repeats=0).units) == 3
