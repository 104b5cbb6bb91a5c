"""fp16's loss scale is the same under every engine: lowered where a process overflows, raised after good steps."""

import json
from pathlib import Path

import pytest

from deepres.engines.base import MAX_SKIPPED_STEPS

ENGINES = ("plain", "zero0", "zero1", "zero2", "zero3", "zero3_offload")
FIRST_SCALE = 2.0**16


@pytest.mark.multi_process
def test_a_step_that_overflows_is_skipped_and_lowers_the_loss_scale_under_every_engine(tmp_path, forked):
    """fairscale's scaler works on cards alone."""
    forked.run_script(Path(__file__).with_name("loss_scale.py"), tmp_path, tmp_path, *ENGINES)
    by_hand = [
        [FIRST_SCALE, 1, True],
        [FIRST_SCALE / 2, 0, False],
        [FIRST_SCALE / 2, 1, True],
        [FIRST_SCALE / 4, 0, False],
        [FIRST_SCALE / 4, 1, True],
        [FIRST_SCALE / 4, 2, True],
    ]
    for engine in ENGINES:
        steps, num_skipped = json.loads((tmp_path / f"{engine}.json").read_text(encoding="utf-8"))
        assert steps == by_hand, engine
        assert num_skipped == MAX_SKIPPED_STEPS + 1, engine
