"""What a step holds at the end of its forward phase, unit by unit."""

from __future__ import annotations

from deepres.recompute import Chain, Plan
from deepres.recompute.segment_tree import segment_tree


def held_after_forward(chain: Chain, plan: Plan) -> tuple[list[int], list[int]]:
    """The bytes of each unit's input, if no other unit keeps it, and of what each unit keeps.

    The sums are those of `timeline` at the HEAD, except for a discarded x_L.
    """
    retentions = [unit.retention(name) for unit, name in zip(chain.units, plan.retentions, strict=True)]
    inputs, kept, is_held = [0] * plan.num_units, [0] * plan.num_units, False
    for item in segment_tree(plan.num_units, plan.segments)[0].items():
        start = item if isinstance(item, int) else item.start
        if not is_held:  # else it is among what the previous unit keeps
            inputs[start] = chain.state_bytes[start]
        is_held = isinstance(item, int)
        if isinstance(item, int):
            kept[item] = retentions[item].kept_bytes
            dropped_bytes = retentions[item].dropped_bytes(chain.state_bytes[item])
            if inputs[item] and item:
                inputs[item] -= dropped_bytes
            elif item and chain.units[item - 1].leaves_output(retentions[item - 1]):
                kept[item - 1] -= dropped_bytes
    return inputs, kept
