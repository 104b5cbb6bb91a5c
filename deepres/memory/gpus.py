"""Cards that people own: how much they hold and how fast they are."""

from __future__ import annotations

import difflib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gpu:
    """A card, by its maker's figures.

    Args:
        name: maker's name and memory, as in `--gpu`.
        memory_bytes: on the card. What CUDA offers of it is less by up to 7 % (its own context, error correction).
        bandwidth_gb_s: of its memory, 10^9 bytes a second.
        fp32_tflops: 10^12 fp32 operations a second, without tensor cores.
        tf32_tflops: with tensor cores on tf32 inputs, dense; None if it has none.
        bf16_tflops: with tensor cores on bf16 (fp16 where it has no bf16) inputs and fp32 sums, dense; None if
            it has none.
        source: where the figures are from.
    """

    name: str
    memory_bytes: int
    bandwidth_gb_s: float
    fp32_tflops: float
    tf32_tflops: float | None
    bf16_tflops: float | None
    source: str


_GIB = 2**30
# GeForce cards, then data-centre cards, each by age; rates are at the maker's boost clock.
# fmt: off
GPUS: tuple[Gpu, ...] = (
    Gpu("GTX 1080 Ti", 11 * _GIB, 484, 11.3, None, None, "NVIDIA GeForce GTX 1080 Ti product page"),
    Gpu("RTX 2060", 6 * _GIB, 336, 6.5, None, 25.8, "NVIDIA Turing whitepaper, appendix (fp16, fp32 sums)"),
    Gpu("RTX 2080 Ti", 11 * _GIB, 616, 13.4, None, 53.8, "NVIDIA Turing whitepaper, appendix (fp16, fp32 sums)"),
    Gpu("RTX 3050", 8 * _GIB, 224, 9.1, 9.1, 18.2, "GeForce RTX 3050 page, GA102 whitepaper"),
    Gpu("RTX 3060 12GB", 12 * _GIB, 360, 12.7, 12.7, 25.5, "GeForce RTX 3060 page, GA102 whitepaper"),
    Gpu("RTX 3070", 8 * _GIB, 448, 20.3, 20.3, 40.6, "NVIDIA GA102 whitepaper, appendix"),
    Gpu("RTX 3080 10GB", 10 * _GIB, 760, 29.8, 29.8, 59.5, "NVIDIA GA102 whitepaper, table 2"),
    Gpu("RTX 3090", 24 * _GIB, 936, 35.6, 35.6, 71.0, "NVIDIA GA102 whitepaper, table 2"),
    Gpu("RTX 4060 Ti 16GB", 16 * _GIB, 288, 22.1, 22.1, 44.1, "GeForce RTX 4060 Ti page, Ada whitepaper"),
    Gpu("RTX 4070", 12 * _GIB, 504, 29.1, 29.1, 58.3, "GeForce RTX 4070 page, Ada whitepaper"),
    Gpu("RTX 4080", 16 * _GIB, 717, 48.7, 48.7, 97.5, "NVIDIA Ada whitepaper, appendix"),
    Gpu("RTX 4090", 24 * _GIB, 1008, 82.6, 82.6, 165.2, "NVIDIA Ada whitepaper, appendix"),
    Gpu("RTX 5090", 32 * _GIB, 1792, 104.8, 104.8, 209.5, "NVIDIA RTX Blackwell whitepaper, appendix"),
    Gpu("T4", 16 * _GIB, 320, 8.1, None, 65.0, "NVIDIA T4 datasheet (fp16)"),
    Gpu("V100 16GB", 16 * _GIB, 900, 15.7, None, 125.0, "NVIDIA V100 datasheet, SXM2 (fp16)"),
    Gpu("V100 32GB", 32 * _GIB, 900, 15.7, None, 125.0, "NVIDIA V100 datasheet, SXM2 (fp16)"),
    Gpu("A10G", 24 * _GIB, 600, 31.2, 35.0, 70.0, "NVIDIA A10G datasheet (AWS)"),
    Gpu("L4", 24 * _GIB, 300, 30.3, 60.0, 121.0, "NVIDIA L4 datasheet (half of sparse)"),
    Gpu("L40S", 48 * _GIB, 864, 91.6, 183.0, 362.0, "NVIDIA L40S datasheet"),
    Gpu("A100 40GB", 40 * _GIB, 1555, 19.5, 156.0, 312.0, "NVIDIA A100 datasheet, SXM4"),
    Gpu("A100 80GB", 80 * _GIB, 2039, 19.5, 156.0, 312.0, "NVIDIA A100 datasheet, SXM4"),
    Gpu("H100 80GB", 80 * _GIB, 3350, 66.9, 494.7, 989.4, "NVIDIA H100 whitepaper, SXM5 (dense)"),
    Gpu("H200", 140 * _GIB, 4800, 66.9, 494.7, 989.4, "NVIDIA H200 datasheet, SXM (half of sparse)"),
)
# fmt: on


def find_gpu(name: str) -> Gpu:
    """The card of that name, or the only one whose name has all its words; case and spaces do not matter.

    Raises:
        ValueError: there is none; the message has the nearest names.
    """
    keys = {_key(gpu.name): gpu for gpu in GPUS}
    if _key(name) in keys:
        return keys[_key(name)]
    words = set(name.lower().split())
    having_all = [gpu for gpu in GPUS if words and words <= set(gpu.name.lower().split())]
    if len(having_all) == 1:
        return having_all[0]
    nearest = [key for key in keys if _key(name) and (_key(name) in key or key in _key(name))]
    nearest = (nearest + difflib.get_close_matches(_key(name), keys, n=3, cutoff=0.3) + list(keys))[:3]
    names = ", ".join(dict.fromkeys(keys[key].name for key in nearest))
    raise ValueError(f"unknown GPU {name!r}; nearest: {names}")


def _key(name: str) -> str:
    return "".join(name.lower().split())
