import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepres.batch_sizes import BatchSizes, batch_sizes, smaller_micro_batches
from deepres.config import ConfigError, TrainConfig

counts = st.integers(1, 64)


def _sizes(world_size=1, **given_sizes):
    return batch_sizes(TrainConfig(max_steps=1, **given_sizes), world_size)


@given(micro=counts, accumulation=counts, world_size=counts)
def test_any_two_give_the_third(micro, accumulation, world_size):
    total = micro * accumulation * world_size
    expected = BatchSizes(total, micro, accumulation, world_size)
    assert _sizes(world_size, global_batch_size=total, micro_batch_size=micro) == expected
    assert _sizes(world_size, global_batch_size=total, accumulation=accumulation) == expected
    assert _sizes(world_size, micro_batch_size=micro, accumulation=accumulation) == expected
    assert (
        _sizes(world_size, global_batch_size=total, micro_batch_size=micro, accumulation=accumulation)
        == expected
    )


def test_one_alone_means_no_accumulation():
    assert _sizes(2, global_batch_size=128) == BatchSizes(128, 64, 1, 2)
    assert _sizes(2, micro_batch_size=128) == BatchSizes(256, 128, 1, 2)


@pytest.mark.parametrize(
    ("world_size", "given_sizes", "message"),
    [
        (2, {"global_batch_size": 63}, r"63 does not divide by 2 processes; nearest: 62, 64"),
        (
            1,
            {"global_batch_size": 63, "micro_batch_size": 2},
            r"micro_batch_size 2 does not divide; nearest: 1, 3, 7, 9",
        ),
        (2, {"global_batch_size": 64, "accumulation": 5}, r"accumulation 5 does not divide; nearest:"),
        (
            2,
            {"global_batch_size": 64, "micro_batch_size": 8, "accumulation": 3},
            r"64 is not .* 8 × .* 3 × 2 processes = 48; with this micro batch, accumulation is 4",
        ),
        (1, {}, "give global_batch_size or micro_batch_size"),
        (1, {"accumulation": 2}, "give global_batch_size or micro_batch_size"),
    ],
)
def test_a_contradiction_is_refused_with_values_that_hold(world_size, given_sizes, message):
    with pytest.raises(ConfigError, match=message):
        _sizes(world_size, **given_sizes)


@given(total=counts, world_size=st.integers(1, 4), micro=counts)
def test_what_is_accepted_always_multiplies_up(total, world_size, micro):
    try:
        sizes = _sizes(world_size, global_batch_size=total, micro_batch_size=micro)
    except ConfigError:
        assert total % (world_size * micro)
    else:
        assert sizes.micro_size * sizes.accumulation * sizes.world_size == sizes.global_size == total


def test_smaller_micro_batches_go_down_to_one_image():
    assert smaller_micro_batches(BatchSizes(24, 6, 2, 2)) == [
        BatchSizes(24, micro, 12 // micro, 2) for micro in (4, 3, 2, 1)
    ]
