"""deepres and its peers, measured in one run: memory peaks, times, exactness."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch._functorch.config

from deepres import InfeasibleBudgetError, ResNet, apply_plan, make_plan, measure_chain
from deepres.deterministic import use_deterministic_algorithms
from deepres.models import compile_units
from deepres.recompute import Chain, Plan, simulate, uniform_plan
from measuring.child import ChildFailedError, ChildTimeoutError
from measuring.report import Report
from measuring.timing import Clock, times_in_turns
from recompute_benchmark.budgets import MIB
from recompute_benchmark.nets import Forward, Job, Outcome, make_batch, make_net
from recompute_benchmark.peers import SEGMENTED, WHOLE, apply_peer, segments_of

_FRESH_COMPILER = {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
_NUM_CANDIDATES = 4
"""How many numbers of segments are measured: those with the smallest predicted peaks."""
_BLOCKS = 0.02
"""What a GPU's allocator may hand out beyond the requested size, as a fraction of it."""


def contest_report(
    depth: int,
    batch: int,
    rounds: int,
    steps: int,
    clock: Clock,
    *,
    compile_budgets: Sequence[float],
    compile_limit_s: float,
    limit_s: float,
    device: str = "cpu",
    channels_last: bool = False,
) -> Report:
    """All peers, and deepres at each one's measured peak.

    Args:
        depth: of the net.
        batch: images.
        rounds: how often each has its turn.
        steps: timed steps in each turn.
        clock: how to time steps; compilation and planning are always timed by wall clock.
        compile_budgets: fractions of the activations' memory that `torch.compile` may keep.
        compile_limit_s: how long each of these may take, with compilation and steps.
        limit_s: how long all others may take.
        device: where to compute.
        channels_last: the layout of all nets and images; compiled units are included only with it.
    """
    common = {"depth": depth, "batch": batch, "rounds": rounds, "steps": steps, "device": device}
    common["channels_last"] = channels_last
    layout = "channels_last" if channels_last else "contiguous"
    rows = clock.call(contest, {**common, "compile_budget": None}, limit_s=limit_s)
    for budget in compile_budgets:
        name = f"torch.compile, budget {budget:g}"
        try:
            found = clock.call(
                contest, {**common, "compile_budget": budget}, _FRESH_COMPILER, compile_limit_s
            )
        except ChildTimeoutError as error:
            found = [{"name": name, "remark": f"compilation and steps: {error}"}]
        except ChildFailedError as error:
            found = [{"name": name, "remark": f"failed: {error}"}]
        rows += [{**row, "run": name} for row in found]
    note = (
        f"Step times are {clock}: medians of {rounds} alternating blocks of {steps} steps, each after one that is not "
        "timed; a ratio is of blocks of the same round and process. Peaks are what PyTorch's allocator hands out "
        "in a step above what is there before it. deepres' rows have the measured peak of the peer named as their "
        f"budget. The number of segments is that with the least measured peak of the {_NUM_CANDIDATES} with the least "
        "predicted ones. Equal: to everything kept, in every bit, after one step (loss and gradients; running "
        "statistics and counts of batches), and with compiled units to all of these kept. Peers run with PyTorch's own "
        "batch norm."
    )
    if device == "cuda":
        note += (
            " PyTorch's algorithms are deterministic ones. deepres is given "
            f"{100 * _BLOCKS:g} % less than a peer's peak: the allocator's blocks are larger than what is asked for."
        )
    return Report(
        name=f"peers_{depth}_channels_last" if channels_last else f"peers_{depth}",
        title=f"deepres and its peers at equal or lower peak: ResNet-{depth}, batch {batch}, fp32, {layout}",
        columns={
            "name": "",
            "peak_mib": "peak, MiB",
            "step_ms": "step, ms",
            "ratio": "time over keep-all",
            "preparation_s": "compiling or planning, s",
            "gradients_equal": "gradients equal",
            "buffers_equal": "batch-norm buffers equal",
            "budget_kept": "budget in bytes kept",
            "remark": "remark",
        },
        rows=rows,
        notes=[note],
        data={"clock": str(clock), "depth": depth, "batch": batch, "layout": layout},
        device=device,
    )


@dataclass
class _Entry:
    """A contestant."""

    name: str
    job: Job
    preparation_s: float | None = None
    budget_bytes: int | None = None
    remark: str | None = None
    peak_bytes: int = 0
    outcome: Outcome | None = None
    reference: Outcome | None = None

    def measure(self) -> _Entry:
        """Measure its peak, and record what a step leaves."""
        self.outcome = self.job.outcome()
        self.peak_bytes = self.job.peak_bytes()
        return self


class _PlannedNet:
    """A net that several plans share, so that its thousand layers are held only once."""

    def __init__(self, net: ResNet) -> None:
        self.net = net
        self._plan: Plan | None = None

    def forward_under(self, plan: Plan | None) -> Forward:
        def forward(images: Any) -> Any:
            if self._plan is not plan:
                apply_plan(self.net, plan)
                self._plan = plan
            return self.net(images)

        return forward


def contest(
    depth: int,
    batch: int,
    rounds: int,
    steps: int,
    compile_budget: float | None,
    device: str = "cpu",
    channels_last: bool = False,
) -> list[dict[str, Any]]:
    """Rows measured in one process: keep-all, peers (or the compiler alone), and deepres at their peaks."""
    if device == "cuda":  # otherwise bits differ from one step to the next
        use_deterministic_algorithms()
    images, labels = make_batch(batch, device, channels_last=channels_last)

    def measured(net: ResNet) -> Chain:
        return measure_chain(net, (batch, 3, 32, 32), device, channels_last=channels_last)

    ours = _PlannedNet(make_net(depth, device=device, channels_last=channels_last))
    chain = measured(ours.net)
    keep_all = _Entry("keep all", Job(ours.net, ours.forward_under(None), images, labels)).measure()
    compiled_units: tuple[_PlannedNet, Chain, _Entry] | None = None
    if compile_budget is None:
        peers = [_segmented(name, depth, chain, (images, labels)) for name in SEGMENTED]
        peers += [_whole(name, depth, (images, labels)) for name in WHOLE]
    else:
        peers = [_compiled(depth, compile_budget, (images, labels))]
        if channels_last:
            theirs = _PlannedNet(make_net(depth, device=device, channels_last=True))
            compile_units(theirs.net.units)
            job = Job(theirs.net, theirs.forward_under(None), images, labels)
            whole = _after_compiling(_Entry("deepres, compiled units", job))
            whole.reference = whole.outcome
            compiled_units = theirs, measured(theirs.net), whole

    entries = [keep_all]
    for peer in peers:
        entries.append(peer)
        mine = _planned(ours, chain, peer, keep_all.job)
        if mine is not None:
            entries.append(mine)
        if compiled_units is not None:
            theirs, their_chain, whole = compiled_units
            entries.append(whole)
            mine = _planned(theirs, their_chain, peer, whole.job)
            if mine is not None:
                mine.name = mine.name.replace("deepres", "deepres, compiled units,")
                mine.reference = whole.outcome
                entries.append(mine)
    if compile_budget is None:
        entries.append(_uniform(ours, chain, keep_all.job))
    times = times_in_turns({entry.name: entry.job.step for entry in entries}, "keep all", rounds, steps)
    assert keep_all.outcome is not None
    rows = []
    for entry in entries:
        assert entry.outcome is not None
        reference = entry.reference or keep_all.outcome
        is_kept: bool | str | None = "takes none" if entry in peers else None
        if entry.budget_bytes is not None:
            is_kept = entry.peak_bytes <= entry.budget_bytes
        rows.append(
            {
                "name": entry.name,
                "peak_mib": entry.peak_bytes / MIB,
                "step_ms": times[entry.name].median_ms,
                "ratio": times[entry.name].ratio,
                "ratios": times[entry.name].ratios,
                "preparation_s": entry.preparation_s,
                "gradients_equal": entry.outcome.has_gradients_of(reference),
                "buffers_equal": entry.outcome.has_buffers_of(reference),
                "budget_bytes": entry.budget_bytes,
                "budget_kept": is_kept,
                "peak_bytes": entry.peak_bytes,
                "remark": entry.remark,
            }
        )
    return rows


def _peers_net(depth: int, batch: tuple[Any, Any]) -> ResNet:
    images = batch[0]
    layout = not images.is_contiguous()
    return make_net(depth, torch_norms=True, device=str(images.device), channels_last=layout)


def _segmented(name: str, depth: int, chain: Chain, batch: tuple[Any, Any]) -> _Entry:
    best: _Entry | None = None
    for num_segments in least_peaks(name, chain)[:_NUM_CANDIDATES]:
        net = _peers_net(depth, batch)
        entry = _Entry(name, Job(net, apply_peer(name, net, num_segments), *batch)).measure()
        entry.remark = f"{num_segments} segments"
        if best is None or entry.peak_bytes < best.peak_bytes:
            best = entry
    assert best is not None
    return best


def least_peaks(name: str, chain: Chain) -> list[int]:
    """Numbers of segments in the order of their predicted peaks, smallest first."""
    num_units = len(chain.units)
    peaks = []
    for num_segments in range(1, num_units + 1):
        plan = Plan(segments_of(name, num_units, num_segments), ("all",) * num_units)
        peaks.append((simulate(chain, plan).peak_bytes, num_segments))
    return [num_segments for _, num_segments in sorted(peaks)]


def _whole(name: str, depth: int, batch: tuple[Any, Any]) -> _Entry:
    net = _peers_net(depth, batch)
    return _Entry(name, Job(net, apply_peer(name, net), *batch)).measure()


def _compiled(depth: int, budget: float, batch: tuple[Any, Any]) -> _Entry:
    net = _peers_net(depth, batch)
    with torch._functorch.config.patch(activation_memory_budget=budget):
        return _after_compiling(
            _Entry(f"torch.compile, budget {budget:g}", Job(net, torch.compile(net), *batch))
        )


def _after_compiling(entry: _Entry) -> _Entry:
    """Measure an entry after a first step, in which everything is compiled, and which is undone."""
    state = {name: value.clone() for name, value in entry.job.net.state_dict().items()}
    start = time.monotonic()
    entry.job.step()
    entry.preparation_s = time.monotonic() - start
    entry.job.net.load_state_dict(state)
    return entry.measure()


def _planned(ours: _PlannedNet, chain: Chain, peer: _Entry, like: Job) -> _Entry | None:
    name = f"deepres at the peak of: {peer.name}"
    on_cuda = like.images.device.type == "cuda"
    start = time.monotonic()
    try:
        plan = make_plan(chain, round((1 - _BLOCKS) * peer.peak_bytes) if on_cuda else peer.peak_bytes)
    except InfeasibleBudgetError as error:
        smallest = f"below deepres' smallest, {error.smallest_bytes / MIB:.1f} MiB"
        peer.remark = "; ".join(filter(None, (peer.remark, smallest)))
        return None
    preparation_s = time.monotonic() - start
    job = Job(ours.net, ours.forward_under(plan), like.images, like.labels)
    remark = f"{plan.num_segments} segments, nested {plan.nesting_depth} deep"
    return _Entry(name, job, preparation_s, peer.peak_bytes, remark).measure()


def _uniform(ours: _PlannedNet, chain: Chain, like: Job) -> _Entry:
    num_segments = least_peaks("uniform", chain)[0]
    plan = uniform_plan(len(chain.units), num_segments)
    job = Job(ours.net, ours.forward_under(plan), like.images, like.labels)
    return _Entry("deepres' executor, uniform segments", job, remark=f"{num_segments} segments").measure()
