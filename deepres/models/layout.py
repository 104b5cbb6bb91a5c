"""How many units each stage of a net has, and how wide they are (ResNet v1, Table 1 and Section 4.2)."""

from __future__ import annotations

from dataclasses import dataclass

from deepres.net_options import LAYERS, Block, Family, default_block

_IMAGENET_UNITS: dict[tuple[Block, int], tuple[int, ...]] = {
    ("basic", 18): (2, 2, 2, 2),
    ("basic", 34): (3, 4, 6, 3),
    ("bottleneck", 50): (3, 4, 6, 3),
    ("bottleneck", 101): (3, 4, 23, 3),
    ("bottleneck", 152): (3, 8, 36, 3),
    ("bottleneck", 200): (3, 24, 36, 3),
}


@dataclass(frozen=True)
class Layout:
    """The stages of a net.

    Attributes:
        stem_channels: of the first unit's input.
        units: how many each stage has.
        widths: the channels of each stage's 3×3 convolutions.
    """

    stem_channels: int
    units: tuple[int, ...]
    widths: tuple[int, ...]


def layout_of(depth: int, dataset: Family, asked: Block | None) -> Layout:
    """The stages of a net.

    Args:
        depth: weighted layers.
        dataset: the kind of net.
        asked: the kind of unit; None for the one that the paper uses at this depth.

    Raises:
        ValueError: no such net; names the nearest depths.
    """
    block = asked or default_block(depth, dataset)
    if dataset == "imagenet":
        if (block, depth) not in _IMAGENET_UNITS:
            known = sorted(d for b, d in _IMAGENET_UNITS if b == block)
            allowed = f"one of {', '.join(map(str, known))}" if known else "that of a CIFAR net"
            raise ValueError(f"depth must be {allowed} for ImageNet nets of {block} units, got {depth}")
        return Layout(64, _IMAGENET_UNITS[block, depth], (64, 128, 256, 512))
    step = 3 * LAYERS[block]
    if depth < step + 2 or (depth - 2) % step:
        blocks: tuple[Block, ...] = (asked,) if asked else ("basic", "bottleneck")
        raise ValueError(_no_such_depth(depth, blocks))
    return Layout(16, ((depth - 2) // step,) * 3, (16, 32, 64))


def _no_such_depth(depth: int, blocks: tuple[Block, ...]) -> str:
    examples = {"basic": "20, 110", "bottleneck": "164, 1001", "single": "110"}
    forms = [f"{3 * LAYERS[block]}n+2 for {block} units (e.g. {examples[block]})" for block in blocks]
    near = set[int]()
    for step in (3 * LAYERS[block] for block in blocks):
        below = max(1, (depth - 2) // step) * step + 2
        near |= {below, below + step} if depth > below else {below}
    nearest = [
        max((d for d in near if d <= depth), default=None),
        min((d for d in near if d > depth), default=None),
    ]
    told = ", ".join(str(d) for d in nearest if d is not None)
    return f"depth must be {' or '.join(forms)}, got {depth}; nearest: {told}"
