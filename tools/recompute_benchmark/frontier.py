"""The frontier: the least extra time for each budget, from a model that anyone can check and from measured costs."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from deepres import build_resnet, make_plan
from deepres.recompute import Chain, Retention, UnitCost, simulate, uniform_plan
from deepres.recompute.planner import smallest_budget
from measuring.report import Report
from measuring.timing import Clock
from recompute_benchmark.budgets import MIB, measured_chain

BUDGETS_MIB = (146, 128, 96, 64, 48, 40, 32, 24, 16, 12, 8, 6, 4, 3, 2.5, 2, 1.5)
"""Budgets per image."""
_WIDTHS = (16, 32, 64)


def frontier_report(depth: int, batch: int, steps_file: Path | None, clock: Clock) -> Report:
    """Extra time against bytes per image, planned with the retention `all` alone and with both.

    Args:
        depth: of the net.
        batch: at which costs are measured.
        steps_file: an `overhead_*.json`, for its measured costs and steps; without one, costs are measured.
        clock: how to time.

    Raises:
        ValueError: the file cannot be read, is not such a file, or is of another net or batch.
    """
    points = list[dict[str, float]]()
    if steps_file is not None:
        measured, points = read_steps(steps_file, depth, batch)
    else:
        arguments = {"depth": depth, "batch": batch, "repeats": 7}
        measured = Chain.from_json(clock.call(measured_chain, arguments))
    fractions = replay_fractions(depth, measured)
    chains = {"model": (model_chain(depth, fractions), 1), "measured": (measured, batch)}
    floors = [smallest_budget(kind) for kind in (_with_all_alone(measured), measured)]
    floors_mib = [math.ceil(1000 * floor / batch / MIB) / 1000 for floor in floors]
    budgets = _budgets_mib(chains["model"][0], floors_mib)
    curves = {kind: _curves(chain, images, budgets) for kind, (chain, images) in chains.items()}
    rows = [
        {
            "budget_mib": mib,
            **{
                f"{kind}_{name}": curves[kind][name].get(mib)
                for kind in curves
                for name in ("uniform", "all", "both")
            },
        }
        for mib in budgets
    ]
    note = (
        "Extra time in % of a step with everything kept; a dash where no such plan fits. The model: units cost one "
        "forward each and two backward, a unit of inner width w keeps 12w values a pixel by `all` and 6w by "
        "`conv_outputs`, and transients are left out; a replay by `conv_outputs` takes "
        + ", ".join(f"{fraction:.2f}" for fraction in fractions)
        + f" forwards in the three stages, as measured. Measured: costs of each unit on this machine at batch {batch}, "
        "transients, stem, head and batch statistics included. Uniform: the best number of near-equal segments of "
        f"units kept by `all`. {' and '.join(f'{mib:g}' for mib in floors_mib)} MiB are the smallest budgets that "
        "plans keep by measured costs, with `all` and with both."
    )
    return Report(
        name=f"frontier_{depth}",
        title=f"What a budget costs: ResNet-{depth}, fp32, bytes of activations an image",
        columns={
            "budget_mib": "budget, MiB an image",
            "model_uniform": "model: uniform",
            "model_all": "plan, `all`",
            "model_both": "plan, both",
            "measured_uniform": "measured costs: uniform",
            "measured_all": "plan, `all` ",
            "measured_both": "plan, both ",
        },
        rows=rows,
        notes=[note],
        data={
            "clock": str(clock),
            "depth": depth,
            "batch": batch,
            "replay_fractions": fractions,
            "points": points,
            "uniform": [
                {"mib": peak / batch / MIB, "extra_percent": extra} for peak, extra in _best_uniform(measured)
            ],
        },
    )


def model_chain(depth: int, fractions: Sequence[float]) -> Chain:
    """The model's chain for one image: equal times, and bytes that can be counted by hand.

    Args:
        depth: of the net.
        fractions: the time of a replay from `conv_outputs` in each stage, as a fraction of a forward pass.
    """
    units = []
    per_stage = build_resnet(depth, block="bottleneck").units_per_stage
    for stage, (num_units, width, fraction) in enumerate(zip(per_stage, _WIDTHS, fractions, strict=True)):
        value_bytes = 4 * width * (32 >> stage) ** 2
        retentions = (
            Retention("all", kept_bytes=12 * value_bytes),
            Retention("conv_outputs", kept_bytes=6 * value_bytes, replay_ms=fraction),
        )
        units += [UnitCost(1.0, 2.0, 4 * value_bytes, retentions)] * num_units
    return Chain(input_bytes=4 * 16 * 32 * 32, units=tuple(units))


def replay_fractions(depth: int, chain: Chain) -> list[float]:
    """The time of a replay from `conv_outputs` in each stage of a measured chain, as a fraction of the forward pass."""
    fractions, start = [], 0
    for num_units in build_resnet(depth, block="bottleneck").units_per_stage:
        stage = chain.units[start : start + num_units]
        fractions.append(
            statistics.median(unit.retention("conv_outputs").replay_ms / unit.forward_ms for unit in stage)
        )
        start += num_units
    return fractions


def _with_all_alone(chain: Chain) -> Chain:
    """The chain with the retention `all` only."""
    units = tuple(replace(unit, retentions=(unit.retention("all"),)) for unit in chain.units)
    return replace(chain, units=units)


def _budgets_mib(model: Chain, floors_mib: Sequence[float]) -> list[float]:
    """The round budgets up to the first that keeps everything, and the smallest feasible ones."""
    keep_all_mib = _uniform_peaks(model)[0][0] / MIB
    used = [mib for k, mib in enumerate(BUDGETS_MIB) if min(BUDGETS_MIB[k:][:2]) < keep_all_mib]
    return sorted({*used, *floors_mib}, reverse=True)


def _curves(chain: Chain, images: int, budgets_mib: Sequence[float]) -> dict[str, dict[float, float]]:
    """Extra time in percent by MiB per image: uniform segments, plans with `all`, plans with both retentions."""
    plain, uniform = _with_all_alone(chain), _uniform_peaks(chain)
    curves: dict[str, dict[float, float]] = {"uniform": {}, "all": {}, "both": {}}
    for mib in budgets_mib:
        budget_bytes = math.floor(mib * MIB * images)
        for name, kind in (("all", plain), ("both", chain)):
            if budget_bytes >= smallest_budget(kind):
                curves[name][mib] = 100 * make_plan(kind, budget_bytes).extra_share
        extras = [extra for peak, extra in uniform if peak <= budget_bytes]
        if extras:
            curves["uniform"][mib] = min(extras)
    return curves


def _best_uniform(chain: Chain) -> list[tuple[int, float]]:
    """The Pareto-optimal numbers of uniform segments, in peak and time, smallest peak first."""
    best = list[tuple[int, float]]()
    for peak, extra in sorted(_uniform_peaks(chain)):
        if not best or extra < best[-1][1]:
            best.append((peak, extra))
    return best


def _uniform_peaks(chain: Chain) -> list[tuple[int, float]]:
    """Peak, and extra time in percent of a step, for each number of segments."""
    costs = []
    for num_segments in range(1, len(chain.units) + 1):
        cost = simulate(chain, uniform_plan(len(chain.units), num_segments))
        costs.append((cost.peak_bytes, 100 * (cost.total_ms / chain.step_ms - 1)))
    return costs


def read_steps(path: Path, depth: int, batch: int) -> tuple[Chain, list[dict[str, float]]]:
    """The measured chain and the measured steps: MiB per image, and extra time in percent.

    Raises:
        ValueError: the file cannot be read, or has no such steps of this net and batch.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        rows = [row for row in document["rows"] if row["peak_mib"] is not None]
        found = document["depth"], document["batch"]
        points = [{"mib": row["peak_mib"] / batch, "extra_percent": 100 * (row["ratio"] - 1)} for row in rows]
        chain = Chain.from_json(document["chain"])
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path} holds no step times as the command overhead writes them") from None
    if found != (depth, batch):
        raise ValueError(f"{path} is of depth {found[0]}, batch {found[1]}, not of {depth}, {batch}")
    return chain, points
