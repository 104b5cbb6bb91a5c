"""Plans under DistributedDataParallel, in two processes: the same bits as without, in each of them."""

import contextlib
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from deepres import apply_plan, build_resnet
from deepres.recompute import Plan, keep_all_plan, per_unit_plan, uniform_plan
from deepres.recompute.gradient_guard import GradientGuard
from deepres.recompute.unit_states import UnitStates
from tests.forked import Forked

pytestmark = pytest.mark.multi_process

NESTED = Plan(((0, 8), (1, 8), (2, 4), (5, 7)), ("all", "conv_outputs", "all") * 3)
CASES: dict[str, dict[str, Any]] = {
    "nested segments": {"plan": NESTED},
    "every unit discarded": {"plan": per_unit_plan(9)},
    "outputs of convolutions alone": {"plan": keep_all_plan(9, "conv_outputs")},
    "everything discarded": {"plan": Plan(((0, 9),), ("all",) * 9)},
    "gated, activations after addition": {
        "plan": NESTED,
        "net": {"activation": "original", "shortcut": "exclusive_gating"},
    },
    "dropout": {"plan": NESTED, "net": {"shortcut": "dropout"}},
    "bf16": {"plan": NESTED, "dtype": torch.bfloat16},
    "gradients that are views of buckets": {"plan": NESTED, "ddp": {"gradient_as_bucket_view": True}},
    "buffers of the first process": {"plan": NESTED, "ddp": {"broadcast_buffers": True}},
    "a static graph": {"plan": NESTED, "ddp": {"static_graph": True}},
    "accumulated gradients": {"plan": NESTED, "num_micro_batches": 3},
    "a frozen prefix": {"plan": uniform_plan(9, 2), "num_frozen": 3},
    "units without stem and head": {"plan": NESTED, "only_units": True},
}


def _train(
    plan: Plan | None,
    *,
    net: dict[str, Any] | None = None,
    ddp: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    num_micro_batches: int = 1,
    num_frozen: int = 0,
    only_units: bool = False,
) -> list[Tensor]:
    """Losses, gradients, buffers, parameters and the generator's state over three steps."""
    torch.manual_seed(0)
    model: nn.Module = build_resnet(29, **(net or {}))
    if num_frozen:
        model.stem.requires_grad_(False)
        model.units[:num_frozen].requires_grad_(False)
    if only_units:
        model = nn.Sequential(*model.units)
    apply_plan(model, plan)
    # Several buckets, so that messages and backward pass overlap, and buckets in another order after the first step.
    parallel = DistributedDataParallel(
        model, **{"broadcast_buffers": False, "bucket_cap_mb": 0.02, **(ddp or {})}
    )
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    torch.manual_seed(10 + dist.get_rank())
    found: list[Tensor] = []
    for _ in range(3):
        for k in range(num_micro_batches):
            x, labels = torch.randn(2, 16 if only_units else 3, 8, 8), torch.randint(10, (2,))
            is_last = k + 1 == num_micro_batches
            with contextlib.nullcontext() if is_last else parallel.no_sync():
                with torch.autocast("cpu", dtype) if dtype is not None else contextlib.nullcontext():
                    logits = parallel(x).flatten(1)
                    loss = F.cross_entropy(logits, labels) / num_micro_batches
                loss.backward()
            found.append(loss.detach())
        found += [p.grad.clone() for p in model.parameters() if p.grad is not None]
        found += [b.clone() for b in model.buffers()]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return [*found, *model.parameters(), torch.get_rng_state()]


def _refusals() -> dict[str, str]:
    """What DDP would average before it is complete, under a plan."""
    return {
        "shared parameters": _refusal(nn.Linear(6, 6)),
        "two forward passes": _refusal(num_passes=2),
        "unused parameters": _refusal(find_unused_parameters=True),
        "a penalty": _refusal(penalty=1e-3),
    }


def _refusal(
    shared: nn.Linear | None = None, *, num_passes: int = 1, penalty: float = 0.0, **ddp: bool
) -> str:
    units = nn.Sequential(*[nn.Sequential(shared or nn.Linear(6, 6), nn.Tanh()) for _ in range(4)])
    apply_plan(units, per_unit_plan(4))
    parallel = DistributedDataParallel(units, **ddp)
    try:
        loss = sum(parallel(torch.randn(3, 6)).sum() for _ in range(num_passes))
        if penalty:
            loss = loss + penalty * sum(p.square().sum() for p in units[1].parameters())
        loss.backward()
    except RuntimeError as error:
        return str(error)
    return "none"


def _in_each_process(folder: Path) -> None:
    dist.init_process_group("gloo")
    found = {}
    for name, how in CASES.items():
        plan, options = how["plan"], {key: value for key, value in how.items() if key != "plan"}
        with_a_plan, without = _train(plan, **options), _train(None, **options)
        different = [
            k for k, (a, b) in enumerate(zip(with_a_plan, without, strict=True)) if not torch.equal(a, b)
        ]
        found[name] = {"different": different, "loss": without[0], "parameters": without[-4:-1]}
    found["refusals"] = _refusals()
    torch.save(found, folder / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory, forked: Forked) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("executor")
    forked.run_script(Path(__file__), folder, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_data_parallel_training_under_a_plan_has_the_bits_of_training_without(processes, case):
    first, second = (found[case] for found in processes)
    assert first["different"] == []
    assert second["different"] == []
    # The processes had batches of their own, and exchanged gradients.
    assert not torch.equal(first["loss"], second["loss"])
    assert all(map(torch.equal, first["parameters"], second["parameters"]))


def test_gradients_that_would_be_averaged_before_they_are_complete_are_refused(processes):
    for found in processes:
        refusals = found["refusals"]
        assert "DistributedDataParallel, units must not share parameters" in refusals["shared parameters"]
        assert (
            "each forward pass needs a backward pass of its own (of DDP all but the last under no_sync())"
            in refusals["two forward passes"]
        )
        assert "DistributedDataParallel cannot find unused parameters" in refusals["unused parameters"]
        assert "but the loss also depends on it in another way (a penalty," in refusals["a penalty"]


def test_a_saved_model_does_not_take_another_process_s_backward_pass_for_its_last():
    """Backward passes are numbered in each process anew."""
    guard, states = GradientGuard(), UnitStates([])
    x = torch.ones(1, requires_grad=True)
    y = x.clone()

    def check(_: Tensor) -> None:
        guard.check_backward(states, is_under_ddp=True)

    def check_loaded(_: Tensor) -> None:
        pickle.loads(pickle.dumps(guard)).check_backward(
            states, is_under_ddp=True
        )  # in a pass of the number of the last one
        with pytest.raises(RuntimeError, match="each forward pass needs a backward pass of its own"):
            guard.check_backward(states, is_under_ddp=True)

    y.register_hook(check)
    x.register_hook(check_loaded)
    y.backward()


if __name__ == "__main__":
    _in_each_process(Path(sys.argv[1]))
