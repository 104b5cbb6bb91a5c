"""Are budgets kept? The process's own memory peak against budget and prediction."""

from __future__ import annotations

import os
import statistics
from pathlib import Path
from typing import Any

from deepres import apply_plan, make_plan, measure_chain
from deepres.recompute import Chain, Plan, keep_all_plan, simulate
from deepres.recompute.planner import smallest_budget
from measuring.child import call_in_child
from measuring.report import Report
from measuring.timing import Clock
from recompute_benchmark.nets import Job, make_batch, make_net

# Larger blocks are mapped separately and unmapped when freed, so that resident memory is memory in use.
MAPPED_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
MIB = 2**20
_NUM_STEPS = 5


def budgets_report(depth: int, batch: int, num_budgets: int, clock: Clock) -> Report:
    """Peaks under plans for budgets from the smallest feasible one up to keep-all.

    Args:
        depth: of the net.
        batch: images.
        num_budgets: geometrically spaced; the last one keeps everything.
        clock: how to time; if that takes a single thread, so does this.
    """
    text = clock.call(measured_chain, {"depth": depth, "batch": batch, "repeats": 3})
    chain = Chain.from_json(text)
    rows = []
    for budget_bytes in spaced_budgets(chain, num_budgets):
        plan = make_plan(chain, budget_bytes)
        arguments = {"depth": depth, "batch": batch, "plan": plan.to_json()}
        measured = call_in_child(process_peak, arguments, MAPPED_MALLOC, processor_time=clock.processor_time)
        process_bytes, allocated_bytes = measured["process_bytes"], measured["allocated_bytes"]
        rows.append(
            {
                "budget_mib": budget_bytes / MIB,
                "predicted_mib": plan.peak_bytes / MIB,
                "allocated_mib": allocated_bytes / MIB,
                "process_mib": process_bytes / MIB,
                "over_budget_percent": 100 * (process_bytes / budget_bytes - 1),
                "over_prediction_percent": 100 * (process_bytes / plan.peak_bytes - 1),
                "is_kept": process_bytes <= 1.03 * budget_bytes,
                "predicted_extra_percent": 100 * plan.extra_share,
                "num_segments": plan.num_segments,
                "nesting_depth": plan.nesting_depth,
                "idle_mib": measured["idle_bytes"] / MIB,
            }
        )
    note = (
        "The process's peak is VmHWM, reset before a step, above what is resident between steps: the model, its "
        f"gradients and the batch; the median of {_NUM_STEPS} steps. Each row is a process of its own, in which glibc "
        "maps every block above 64 KiB by itself (`MALLOC_MMAP_THRESHOLD_=65536`), so that freed memory is seen to go. "
        "The allocator's peak is counted by PyTorch's CPU allocator in another step of the same process."
    )
    return Report(
        name=f"budgets_{depth}",
        title=f"Budgets kept in reality: ResNet-{depth}, batch {batch}, fp32",
        columns={
            "budget_mib": "budget, MiB",
            "predicted_mib": "predicted peak, MiB",
            "allocated_mib": "allocator's peak, MiB",
            "process_mib": "process's peak, MiB",
            "over_budget_percent": "process over budget, %",
            "over_prediction_percent": "process over prediction, %",
            "is_kept": "within budget + 3 %",
            "predicted_extra_percent": "predicted extra time, %",
            "num_segments": "segments",
            "nesting_depth": "nesting",
        },
        rows=rows,
        notes=[note],
        data={"depth": depth, "batch": batch},
    )


def spaced_budgets(chain: Chain, num_budgets: int) -> list[int]:
    """From the smallest feasible budget to the one that keeps everything, geometrically spaced."""
    floor = smallest_budget(chain)
    top = simulate(chain, keep_all_plan(len(chain.units))).peak_bytes
    if num_budgets == 1:
        return [floor]
    inner = [round(floor * (top / floor) ** (k / (num_budgets - 1))) for k in range(1, num_budgets - 1)]
    return [floor, *inner, top]


def measured_chain(depth: int, batch: int, repeats: int) -> str:
    """The chain of a net, as JSON; call it where the allocator's behaviour is steady."""
    return measure_chain(make_net(depth), (batch, 3, 32, 32), repeats=repeats).to_json()


def process_peak(depth: int, batch: int, plan: str) -> dict[str, Any]:
    """Peaks of a step under a plan: the process's, above its idle level, and that of PyTorch's allocator."""
    net = make_net(depth)
    images, labels = make_batch(batch)
    job = Job(net, net, images, labels)
    apply_plan(net, Plan.from_json(plan))
    job.step()  # libraries build their kernels and threads their stacks, including those that only plans use
    idle_bytes = _status_bytes("VmRSS")
    process_bytes = round(statistics.median(_step_bytes(job) for _ in range(_NUM_STEPS)))
    return {"process_bytes": process_bytes, "idle_bytes": idle_bytes, "allocated_bytes": job.peak_bytes()}


def _step_bytes(job: Job) -> int:
    """The process's peak in a step, above what was resident before it."""
    before_bytes = _status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM to VmRSS
    job.step()
    return _status_bytes("VmHWM") - before_bytes


def _status_bytes(name: str) -> int:
    for line in Path(f"/proc/{os.getpid()}/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc has no {name}: peaks of a process can be read on Linux only")
