"""Cards that people own: how much they hold and how fast they are."""

from __future__ import annotations

import difflib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gpu:
    """A card, by its maker's figures.

    Args:
        name: maker's name and memory, as in `--gpu`.
        memory_bytes: on the card.
        bandwidth_gb_s: of its memory, 10^9 bytes a second.
        fp32_tflops: 10^12 fp32 operations a second, without tensor cores.
        tf32_tflops: with tensor cores on tf32 inputs, dense; None if it has none.
        bf16_tflops: with tensor cores on bf16 (fp16 where it has no bf16) inputs and fp32 sums, dense; None if
            it has none.
        source: where the figures stand.
    """

    name: str
    memory_bytes: int
    bandwidth_gb_s: float
    fp32_tflops: float
    tf32_tflops: float | None
    bf16_tflops: float | None
    source: str


_GIB = 2**30
GPUS: tuple[Gpu, ...] = (
    Gpu("RTX 3060 12GB", 12 * _GIB, 360, 12.7, 12.7, 25.5, "NVIDIA GA102 whitepaper; GeForce RTX 3060 page"),
)


def find_gpu(name: str) -> Gpu:
    """The card of that name; case and spaces do not matter.

    Raises:
        ValueError: there is none; the message has the nearest names.
    """
    keys = {_key(gpu.name): gpu for gpu in GPUS}
    if _key(name) in keys:
        return keys[_key(name)]
    nearest = difflib.get_close_matches(_key(name), keys, n=3, cutoff=0.3) or list(keys)[:3]
    names = ", ".join(keys[key].name for key in nearest)
    raise ValueError(f"unknown GPU {name!r}; nearest: {names}")


def _key(name: str) -> str:
    return "".join(name.lower().split())
