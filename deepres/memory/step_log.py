"""What a training step takes on a CUDA device, and what to leave behind when it runs out of memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from deepres.bytesize import format_bytes
from deepres.recompute import Chain, Plan
from deepres.recompute.frontier import Frontier, peak_of

_HISTORY_ENTRIES = 100_000


class StepMemory(NamedTuple):
    """A device's memory over a step.

    Args:
        peak_bytes: the most that tensors took.
        reserved_bytes: what the allocator has of the device.
        alloc_retries: how often, since the process began, it had to give back what it held to go on.
    """

    peak_bytes: int
    reserved_bytes: int
    alloc_retries: int


def read_step_memory(device: torch.device) -> StepMemory | None:
    """A device's memory since the last call, None for a CPU; looks for a new peak from now on."""
    if device.type != "cuda":
        return None
    stats = torch.cuda.memory_stats(device)
    torch.cuda.reset_peak_memory_stats(device)
    return StepMemory(
        stats["allocated_bytes.all.peak"], stats["reserved_bytes.all.current"], stats["num_alloc_retries"]
    )


@contextmanager
def recorded_memory(path: Path, device: torch.device) -> Iterator[None]:
    """Record what is allocated in the context, and write it for https://pytorch.org/memory_viz; CUDA alone.

    Raises:
        ValueError: the device is not a CUDA one.
    """
    if device.type != "cuda":
        raise ValueError(f"a memory snapshot needs CUDA, got {device}")
    torch.cuda.memory._record_memory_history(max_entries=_HISTORY_ENTRIES)
    try:
        yield
    finally:
        torch.cuda.memory._dump_snapshot(str(path))
        torch.cuda.memory._record_memory_history(enabled=None)


@contextmanager
def explained_out_of_memory(
    folder: Path, plan: Plan, chain: Chain, device: torch.device, *, with_history: bool = False
) -> Iterator[None]:
    """On an out-of-memory error write the plan, a snapshot (CUDA) and what would have fitted; then raise it on.

    Args:
        folder: the run's; gets `out_of_memory.json`, and `out_of_memory.pickle` for memory_viz.
        plan: what the run trains under.
        chain: what its units cost.
        device: the run's.
        with_history: also record who allocated what, which costs some time at each allocation.
    """
    on_cuda = device.type == "cuda"
    if on_cuda and with_history:
        torch.cuda.memory._record_memory_history(max_entries=_HISTORY_ENTRIES)
    try:
        yield
    except torch.OutOfMemoryError as error:
        held_bytes = torch.cuda.max_memory_allocated(device) if on_cuda else None
        advice = what_would_fit(chain, plan, held_bytes)
        document = {"error": str(error).splitlines()[0], "advice": advice, "plan": json.loads(plan.to_json())}
        (folder / "out_of_memory.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        if on_cuda:
            torch.cuda.memory._dump_snapshot(str(folder / "out_of_memory.pickle"))
        error.add_note(f"{advice}; plan and snapshot in {folder}")
        raise
    finally:
        if on_cuda and with_history:
            torch.cuda.memory._record_memory_history(enabled=None)


def what_would_fit(chain: Chain, plan: Plan, held_bytes: int | None = None) -> str:
    """One line for a run whose plan was too large: the budgets below it, and what they take.

    Args:
        chain: what the units cost.
        plan: that did not fit.
        held_bytes: the most that the device held before it ran out, if that is known.
    """
    frontier = Frontier(chain)
    peak, floor = peak_of(plan.priced(chain)), frontier.floor_bytes
    held = "" if held_bytes is None else f" with {format_bytes(held_bytes)} held"
    text = f"out of memory{held}: the plan's activations peak at {format_bytes(peak)}"
    options = []
    for share in (0.8, 0.5):
        budget_bytes = int(share * peak)
        if budget_bytes >= floor:
            extra = 100 * frontier.extra_share(frontier.plan(budget_bytes))
            options.append(
                f"recompute.budget={format_bytes(budget_bytes).replace(' ', '')} ({extra:.0f} % extra time)"
            )
    if not options:
        return f"{text}, and no plan needs less than {format_bytes(floor)}: make the batch smaller"
    return f"{text}; what would take less: {' or '.join(options)}, or a smaller batch"
