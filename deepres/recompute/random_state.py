"""The state of the random number generators that a unit can draw from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class RandomState:
    """The state of the generators that a unit can draw from: the CPU's and its device's.

    As bytes, not tensors: a plan's budget counts every tensor on the CPU, too.
    """

    device: torch.device
    states: tuple[bytes, ...]

    @classmethod
    def read(cls, device: torch.device) -> RandomState:
        """The current state; the CPU's alone while a CUDA graph is captured, which forbids reading the device's."""
        states = [torch.get_rng_state()]
        if device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
            states.append(torch.cuda.get_rng_state(device))
        return cls(device, tuple(state.numpy().tobytes() for state in states))

    def restore(self) -> None:
        """Set the generators to this state."""
        states = [torch.frombuffer(bytearray(state), dtype=torch.uint8) for state in self.states]
        torch.set_rng_state(states[0])
        if len(states) > 1:
            torch.cuda.set_rng_state(states[1], self.device)


class Draws:
    """Records the generators' states in a batch's first pass, so that replays draw the same numbers.

    Args:
        device: where the units run.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._now = RandomState.read(device)
        # Before each unit's first run; one and the same object while nothing is drawn.
        self._states: dict[int, RandomState] = {}
        self._are_moved = set[int]()  # units that left the generators in another state

    def __bool__(self) -> bool:
        return bool(self._are_moved)

    @contextmanager
    def first_run(self, unit: int) -> Iterator[None]:
        """Context of a unit's first run: record the generators' state before it."""
        self._states[unit] = self._now
        yield
        now = RandomState.read(self._device)
        if now != self._now:
            self._now = now
            self._are_moved.add(unit)

    @contextmanager
    def replay(self, unit: int) -> Iterator[None]:
        """Context of a replay: the unit draws what it drew first, and the generators are left as they were."""
        now = RandomState.read(self._device)
        # `_are_moved` alone misses a unit that draws and puts the generators back (`torch.random.fork_rng`).
        if self._states[unit] == now and unit not in self._are_moved:
            yield
            return
        try:
            self._states[unit].restore()
            yield
        finally:
            now.restore()
