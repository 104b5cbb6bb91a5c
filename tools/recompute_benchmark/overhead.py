"""Step times under plans against predictions: keep-all's time plus the plan's extra time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deepres import apply_plan, make_plan, measure_chain
from deepres.recompute import PricedPlan
from measuring.report import Report
from measuring.timing import Clock, times_in_turns
from recompute_benchmark.budgets import MIB, spaced_budgets
from recompute_benchmark.nets import Job, make_batch, make_net


def overhead_report(
    depth: int, batch: int, num_budgets: int, rounds: int, steps: int, clock: Clock, device: str = "cpu"
) -> Report:
    """Measured and predicted step times under plans for several budgets.

    Args:
        depth: of the net.
        batch: images.
        num_budgets: geometrically spaced between the smallest, whose steps take very long, and keep-all, without both.
        rounds: how often each has its turn.
        steps: timed steps in each turn.
        clock: how to time.
        device: where to compute.
    """
    arguments: dict[str, object] = {"depth": depth, "batch": batch, "num_budgets": num_budgets}
    arguments |= {"rounds": rounds, "steps": steps, "device": device}
    measured = clock.call(measured_overhead, arguments)
    note = (
        f"Times are {clock}: medians of {rounds} alternating blocks of {steps} steps, each after one that is not "
        "timed; ratios are of blocks of the same round. Predicted is (keep-all time measured + the plan's predicted "
        f"extra time) / keep-all time measured; keep-all was predicted at {measured['predicted_keep_all_ms']:.0f} ms."
    )
    data = {key: value for key, value in measured.items() if key != "rows"}
    return Report(
        name=f"overhead_{depth}",
        title=f"Step times as predicted: ResNet-{depth}, batch {batch}, fp32",
        columns={
            "name": "plan",
            "peak_mib": "predicted peak, MiB",
            "step_ms": "step, ms",
            "ratio": "time over keep-all",
            "predicted_ratio": "predicted",
            "excess_percent": "step over prediction, %",
            "spread_percent": "middle half of rounds, ± %",
        },
        rows=measured["rows"],
        notes=[note],
        data={"clock": str(clock), "depth": depth, "batch": batch, **data},
        device=device,
    )


def measured_overhead(
    depth: int, batch: int, num_budgets: int, rounds: int, steps: int, device: str = "cpu"
) -> dict[str, Any]:
    """Measure a chain, plan, and time the plans, all in this process."""
    net = make_net(depth, device=device)
    images, labels = make_batch(batch, device)
    chain = measure_chain(net, (batch, 3, 32, 32), device, repeats=7)
    plans: dict[str, PricedPlan | None] = {"keep all": None}
    for budget_bytes in spaced_budgets(chain, num_budgets + 2)[1:-1]:
        plans[f"budget {budget_bytes / MIB:.4g} MiB"] = make_plan(chain, budget_bytes)
    job = Job(net, net, images, labels)

    applied: list[PricedPlan | None] = [None]

    def step_of(plan: PricedPlan | None) -> Callable[[], None]:
        def step() -> None:
            if applied[0] is not plan:  # in the untimed step
                apply_plan(net, plan)
                applied[0] = plan
            job.step()

        return step

    times = times_in_turns({name: step_of(plan) for name, plan in plans.items()}, "keep all", rounds, steps)
    keep_all_ms = times["keep all"].median_ms
    rows = []
    for name, plan in plans.items():
        extra_ms = 0.0 if plan is None else plan.extra_ms
        predicted_ratio = 1 + extra_ms / keep_all_ms
        ratios = sorted(times[name].ratios)
        quarter = len(ratios) // 4
        spread = (ratios[len(ratios) - 1 - quarter] - ratios[quarter]) / 2
        rows.append(
            {
                "name": name,
                "peak_mib": None if plan is None else plan.peak_bytes / MIB,
                "step_ms": times[name].median_ms,
                "ratio": times[name].ratio,
                "predicted_ratio": predicted_ratio,
                "excess_percent": 100 * (times[name].ratio / predicted_ratio - 1),
                "spread_percent": 100 * spread / times[name].ratio,
                "ratios": times[name].ratios,
                "extra_ms": extra_ms,
            }
        )
    return {"rows": rows, "predicted_keep_all_ms": chain.step_ms, "chain": chain.to_json()}
