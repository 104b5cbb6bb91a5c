"""Every engine trains as plain PyTorch does: same batches, same losses, same parameters."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SHARDING = ("zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload", "fairscale")
pytestmark = pytest.mark.multi_process


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, forked):
    """`outcome(engine, accumulation, extra)`: losses, logits and final state after 6 steps in two processes.

    Four steps with anything but a plan.
    """
    folder = tmp_path_factory.mktemp("contract")
    cases = [
        *(f"{engine}:1:{extra}" for engine in ("plain", *SHARDING) for extra in ("none", "plan")),
        *(
            f"{engine}:2:{extra}"
            for engine in ("plain", "zero2", "zero3", "fairscale")
            for extra in ("none", "plan")
        ),
        *(f"{engine}:1:clip" for engine in ("plain", "zero1", "zero2", "zero3", "fairscale")),
        *(f"{engine}:1:{extra}" for engine in ("plain", "zero2", "zero3") for extra in ("sync", "sync-plan")),
        *(
            f"{engine}:1:{extra}"
            for engine in ("plain", "zero2", "fairscale")
            for extra in ("dropout", "dropout-plan")
        ),
        *(f"{engine}:1:bf16" for engine in ("plain", "zero1", "zero3", "fairscale")),
        *(f"{engine}:1:channels_last" for engine in ("plain", "zero1", "zero2", "zero3", "fairscale")),
        # Last: with it DeepSpeed sends gradients in fp16, in all that follows in the process.
        *(f"{engine}:1:fp16-clip" for engine in ("plain", "fairscale", "zero1", "zero2", "zero3")),
    ]
    forked.run_script(Path(__file__).with_name("contract.py"), folder, folder, *cases)
    return lambda engine, accumulation=1, extra="none": load_file(
        folder / f"{engine}:{accumulation}:{extra}.safetensors"
    )


def assert_same(ours, theirs, relative):
    """Losses and logits element by element, tensors of the state relative to the largest value of each."""
    assert ours.keys() == theirs.keys()
    for name, ours_tensor in ours.items():
        difference = (ours_tensor.double() - theirs[name].double()).abs().max()
        scale = theirs[name].double().abs().max()
        assert difference <= relative * scale, f"{name}: {float(difference):g} of {float(scale):g}"


def assert_same_at_first(losses, expected):
    """The first four losses agree; sums in another order (by process first, say) drift apart from there on."""
    torch.testing.assert_close(losses[:4], expected[:4], rtol=1e-4, atol=0)


@pytest.mark.parametrize("engine", SHARDING)
def test_every_engine_gives_plain_ddps_losses_and_parameters(outcomes, engine):
    plain = outcomes("plain")
    assert float(plain["losses"].std()) > 0.01
    assert_same(outcomes(engine), plain, 1e-5)


@pytest.mark.parametrize("engine", ["zero2", "zero3", "fairscale"])
def test_accumulated_micro_batches_give_plain_ddps_losses(outcomes, engine):
    assert_same_at_first(outcomes(engine, 2)["losses"], outcomes("plain", 2)["losses"])


@pytest.mark.parametrize("engine", ["zero1", "zero2", "zero3", "fairscale"])
@pytest.mark.parametrize(("extra", "tolerance"), [("clip", 1e-4), ("fp16-clip", 1e-3)])
def test_clipping_is_by_the_norm_of_the_whole_gradient(outcomes, engine, extra, tolerance):
    plain = outcomes("plain", extra=extra)
    assert not torch.equal(plain["losses"], outcomes("plain")["losses"][:4])
    found = outcomes(engine, extra=extra)
    torch.testing.assert_close(found["losses"], plain["losses"], rtol=tolerance, atol=0)
    weight = "head.linear.weight"
    assert_same({weight: found[weight]}, {weight: plain[weight]}, tolerance)


@pytest.mark.parametrize("engine", ["zero1", "zero3", "fairscale"])
def test_bf16_is_the_same_autocast_under_every_engine(outcomes, engine):
    assert_same(outcomes(engine, extra="bf16"), outcomes("plain", extra="bf16"), 1e-5)
    assert not torch.equal(outcomes(engine, extra="bf16")["losses"], outcomes(engine)["losses"][:4])
    state = outcomes(engine, extra="bf16")
    assert {t.dtype for name, t in state.items() if name.endswith(("weight", "bias", "running_mean"))} == {
        torch.float32
    }


@pytest.mark.parametrize("engine", ["plain", "zero1", "zero2", "zero3", "fairscale"])
def test_channels_last_is_a_format_and_no_other_training(outcomes, engine):
    assert_same_at_first(outcomes(engine, extra="channels_last")["losses"], outcomes("plain")["losses"])


@pytest.mark.parametrize(
    ("engine", "accumulation", "extra"),
    [
        *((engine, 1, "plan") for engine in ("plain", *SHARDING)),
        *((engine, 2, "plan") for engine in ("plain", "zero2", "zero3", "fairscale")),
        *((engine, 1, "sync-plan") for engine in ("plain", "zero2", "zero3")),
        *((engine, 1, "dropout-plan") for engine in ("plain", "zero2", "fairscale")),
    ],
)
def test_a_plan_changes_no_bit_under_any_engine(outcomes, engine, accumulation, extra):
    kept = outcomes(engine, accumulation, extra.removesuffix("plan").removesuffix("-") or "none")
    planned = outcomes(engine, accumulation, extra)
    assert all(torch.equal(kept[name], planned[name]) for name in kept)


def test_synchronised_batch_norm_is_another_training_and_the_same_under_zero(outcomes):
    synchronised = outcomes("plain", extra="sync")
    assert not torch.equal(synchronised["losses"], outcomes("plain")["losses"][:4])
    assert_same(outcomes("zero3", extra="sync"), synchronised, 1e-5)
