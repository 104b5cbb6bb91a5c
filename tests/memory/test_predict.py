"""What is predicted of a unit is what the allocator sees."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deepres import build_resnet, measure_chain, predict_chain
from deepres.memory.gpus import GPUS, Gpu
from deepres.memory.roofline import Roofline
from deepres.net_options import ACTIVATIONS, SHORTCUTS
from deepres.recompute import Chain

DEPTHS = {"single": 5, "basic": 8, "bottleneck": 11}


def _nets():
    for block in DEPTHS:
        for activation in ACTIVATIONS:
            yield block, activation, "identity"
        for shortcut in SHORTCUTS[1:]:
            yield block, "full_preactivation" if block == "bottleneck" else "original", shortcut


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("block", "activation", "shortcut"), list(_nets()))
def test_kept_bytes_are_exact_unit_by_unit(block, activation, shortcut, dtype):
    net = build_resnet(DEPTHS[block], block=block, activation=activation, shortcut=shortcut)
    shape = (2, 3, 16, 16)
    predicted = predict_chain(net, shape, dtype=dtype)
    measured = measure_chain(net, shape, dtype=dtype, repeats=0)
    assert predicted.state_bytes == measured.state_bytes
    # The two factors, Python's numbers, become tensors of 8 bytes inside autograd, where no shape tells of them.
    factors = 16 if shortcut == "constant_scaling" else 0
    for a, b in zip(predicted.units, measured.units, strict=True):
        kept = [(r.name, r.kept_bytes + factors, r.reads_input) for r in a.retentions]
        assert kept == [(r.name, r.kept_bytes, r.reads_input) for r in b.retentions]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_on_a_card_dropout_keeps_a_byte_for_each_value(dtype):
    kept = []
    for shortcut in ("identity", "dropout"):
        chain = predict_chain(build_resnet(11, shortcut=shortcut), (2, 3, 16, 16), GPUS[0], dtype)
        kept.append([[r.kept_bytes for r in unit.retentions] for unit in chain.units])
    values = [unit.output_bytes // dtype.itemsize for unit in chain.units]
    assert kept[1] == [[own + num for own in unit] for unit, num in zip(kept[0], values, strict=True)]


@pytest.mark.parametrize(("p", "inplace"), [(0.0, False), (1.0, False), (0.5, True)])
def test_on_a_card_dropout_that_is_no_kernel_of_its_own_keeps_what_it_keeps_on_a_cpu(p, inplace):
    model = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.Dropout(p, inplace)) for _ in range(2)])
    on_cpu, on_card = predict_chain(model, (4, 8)), predict_chain(model, (4, 8), GPUS[0])
    for a, b in zip(on_cpu.units, on_card.units, strict=True):
        assert a.retentions[0].kept_bytes == b.retentions[0].kept_bytes


@pytest.mark.parametrize(
    ("own", "dtype", "message"),
    [
        (torch.float32, torch.float64, "torch.float32, torch.bfloat16, torch.float16, got torch.float64"),
        (torch.float32, torch.int32, "got torch.int32"),
        (
            torch.float64,
            torch.float32,
            "must be torch.float32 to compute in torch.float32, stem.conv.weight is",
        ),
        (
            torch.float64,
            torch.bfloat16,
            "must be torch.float32 or torch.bfloat16 to compute in torch.bfloat16",
        ),
    ],
)
def test_number_formats_that_nothing_is_computed_in_are_refused(own, dtype, message):
    net = build_resnet(8).to(own)
    with pytest.raises(ValueError, match=message):
        predict_chain(net, (2, 3, 16, 16), dtype=dtype)
    with pytest.raises(ValueError, match=message):
        measure_chain(net, (2, 3, 16, 16), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "context", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)],
    ids=["no_grad", "inference_mode", "autocast"],
)  # fmt: skip
def test_the_callers_context_changes_no_cost(context, dtype):
    net = build_resnet(8)

    def costs() -> tuple[Chain, Chain]:
        return (
            predict_chain(net, (2, 3, 16, 16), dtype=dtype),
            measure_chain(net, (2, 3, 16, 16), dtype=dtype, repeats=0),
        )

    expected = costs()
    with context():
        was_enabled = torch.is_grad_enabled()
        assert costs() == expected
        assert torch.is_grad_enabled() == was_enabled


def test_a_card_is_found_by_its_name_and_its_speed_counts():
    net = build_resnet(20)
    slow, fast = (predict_chain(net, (64, 3, 32, 32), name) for name in ("RTX 3050", "RTX 4090"))
    assert fast.step_ms < slow.step_ms
    assert [u.output_bytes for u in fast.units] == [u.output_bytes for u in slow.units]


CARD = Gpu("a card", 2**30, 100.0, 10.0, 20.0, 40.0, "made up")
OLD_CARD = Gpu("an old card", 2**30, 100.0, 10.0, None, None, "made up")
MS_PER_BYTE, LAUNCH_MS = 1 / (100e6 * 0.75), 0.004


def _ms(card, run, *arguments):
    with Roofline(card) as roofline:
        run(*arguments)
    return roofline.total_ms


@pytest.mark.parametrize(
    ("card", "dtype", "tflops"),
    [
        (CARD, torch.float32, 20),
        (CARD, torch.bfloat16, 40),
        (OLD_CARD, torch.float32, 10),
        (OLD_CARD, torch.half, 10),
    ],
)
def test_a_large_product_takes_its_arithmetic_at_the_rate_of_its_format(card, dtype, tflops):
    x = torch.empty(2048, 2048, device="meta", dtype=dtype)
    assert _ms(card, torch.mm, x, x) == pytest.approx(2 * 2048**3 / (tflops * 1e9 * 0.4) + LAUNCH_MS)


def test_other_operators_take_their_traffic_and_what_computes_nothing_is_free():
    x = torch.empty(8, 16, 64, 64, device="meta")
    num_bytes = x.numel() * 4
    assert _ms(CARD, torch.relu, x) == pytest.approx(2 * num_bytes * MS_PER_BYTE + LAUNCH_MS)
    assert _ms(CARD, lambda: (x.view(-1), x.detach(), torch.empty_like(x))) == 0
    tested, trained = (
        _ms(CARD, F.batch_norm, x, *torch.zeros(2, 16, device="meta"), None, None, is_training)
        for is_training in (False, True)
    )  # its statistics are read off x first
    assert trained - tested == pytest.approx(num_bytes * MS_PER_BYTE, rel=0.01)


@pytest.mark.parametrize("costs", [predict_chain, measure_chain])
@pytest.mark.parametrize("shape", [(0, 3, 32, 32), ()])
def test_an_empty_input_is_refused(costs, shape):
    with pytest.raises(ValueError, match="input_shape must be sizes of at least 1, batch first, got"):
        costs(build_resnet(20), shape)


def test_a_forward_hook_has_a_discarded_run_record_a_graph_and_costs_know():
    """So it is when a plan runs: see `deepres.recompute.retaining_unit.run_unit`."""
    net = build_resnet(11)
    net.units[1].register_forward_hook(lambda *_: None)
    plain, hooked = (
        predict_chain(each, (4, 3, 16, 16), GPUS[0]).units[1] for each in (build_resnet(11), net)
    )
    assert hooked.forward_temp_bytes >= plain.retention("all").kept_bytes > plain.forward_temp_bytes
    assert hooked.retentions == plain.retentions
