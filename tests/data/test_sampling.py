import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepres.data.sampling import Request, Schedule, normals, shuffled, uniforms

counts = st.integers(1, 6)
seeds = st.integers(0, 2**64 - 1)


def schedules(num_train: int, num_test: int, micro: int, accumulation: int, world: int, seed: int = 0):
    return [
        Schedule(seed, num_train, num_test, micro, accumulation, micro, rank, world) for rank in range(world)
    ]


@given(num_samples=st.integers(0, 500), seed=seeds, epoch=st.integers(0, 10**6))
def test_an_epochs_order_holds_each_sample_once(num_samples, seed, epoch):
    assert sorted(shuffled(num_samples, seed, epoch).tolist()) == list(range(num_samples))


def test_the_order_differs_between_seeds_and_between_epochs_and_never_changes():
    assert shuffled(10, seed=0, epoch=0).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    orders = [shuffled(1000, seed, epoch).tolist() for seed in range(4) for epoch in range(4)]
    assert len(set(map(tuple, orders))) == 16


def test_every_place_is_as_likely_for_every_sample():
    hits = np.zeros((5, 5))
    for epoch in range(4000):
        hits[np.arange(5), shuffled(5, seed=1, epoch=epoch)] += 1
    assert np.abs(hits / 4000 - 0.2).max() < 5 * (0.2 * 0.8 / 4000) ** 0.5


@given(
    steps=st.integers(1, 4),
    micro=counts,
    accumulation=counts,
    world=counts,
    rest=st.integers(0, 5),
    seed=seeds,
)
def test_a_step_takes_the_next_stretch_of_the_global_order_however_the_batch_is_factored(
    steps, micro, accumulation, world, rest, seed
):
    batch = micro * accumulation * world
    num_train = steps * batch + min(rest, batch - 1)
    order = shuffled(num_train, seed, epoch=3)
    ranks = [list(s.train(epoch=3)) for s in schedules(num_train, 1, micro, accumulation, world, seed)]
    assert {len(requests) for requests in ranks} == {steps * accumulation}
    for step in range(steps):
        parts = [
            request
            for m in range(step * accumulation, (step + 1) * accumulation)
            for request in (requests[m] for requests in ranks)
        ]
        assert np.concatenate([part.indices for part in parts]).tolist() == (
            order[step * batch : (step + 1) * batch].tolist()
        )
        for part in parts:
            first = part.first_position
            assert part.indices.tolist() == order[first : first + micro].tolist()


@given(start=st.integers(0, 7), micro=counts, world=counts)
def test_an_epoch_entered_in_the_middle_goes_on_as_if_never_left(start, micro, world):
    for schedule in schedules(7 * micro * world, 1, micro, 1, world):
        whole = list(schedule.train(epoch=5))
        for resumed, expected in zip(schedule.train(epoch=5, start=start), whole[start:], strict=True):
            assert_same(resumed, expected)


@given(num_test=st.integers(1, 200), batch=counts, world=counts)
def test_evaluation_shows_each_image_once_in_as_many_equal_batches_on_every_rank(num_test, batch, world):
    all_ranks = schedules(10**6, num_test, batch, 1, world)
    ranks = [list(schedule.test()) for schedule in all_ranks]
    assert {len(requests) for requests in ranks} == {all_ranks[0].num_test_batches}
    for requests in zip(*ranks, strict=True):
        sizes = {len(request.indices) for request in requests}
        assert len(sizes) == 1
        assert 1 <= sizes.pop() <= batch
    shown = np.concatenate([request.indices for requests in ranks for request in requests])
    assert sorted(shown[shown >= 0].tolist()) == list(range(num_test))
    assert (shown < 0).sum() < world  # no more fillers than it takes


@given(seed=seeds, epoch=st.integers(0, 1000), first=st.integers(0, 10**9), split=st.integers(0, 8))
def test_random_numbers_depend_on_their_position_alone(seed, epoch, first, split):
    whole = uniforms(seed, epoch, first, 8, 7)
    parts = [uniforms(seed, epoch, first, split, 7), uniforms(seed, epoch, first + split, 8 - split, 7)]
    assert np.array_equal(whole, np.concatenate(parts))
    assert whole.shape == (8, 7)
    assert ((whole >= 0) & (whole < 1)).all()


def test_random_numbers_are_uniform_and_unrelated_between_positions_and_draws():
    draws = uniforms(seed=0, epoch=0, first_position=0, num_positions=100_000, num_draws=3)
    assert np.abs(draws.mean(0) - 0.5).max() < 0.005
    assert np.abs(draws.var(0) - 1 / 12).max() < 0.001
    neighbours = np.concatenate([draws[:-1], draws[1:]], axis=1)
    assert np.abs(np.corrcoef(neighbours.T) - np.eye(6)).max() < 0.015


def test_an_images_random_numbers_are_none_of_those_that_order_the_epoch():
    draws = uniforms(seed=0, epoch=0, first_position=0, num_positions=1000, num_draws=4)
    assert not np.array_equal(draws.reshape(-1).argsort(kind="stable"), shuffled(4000, seed=0, epoch=0))


def test_a_seed_that_does_not_fit_64_bits_is_an_error():
    with pytest.raises(ValueError, match=r"seed must be in 0 … 2\*\*64 − 1, got -1"):
        shuffled(3, seed=-1, epoch=0)


def assert_same(one: Request, other: Request) -> None:
    assert (one.epoch, one.first_position) == (other.epoch, other.first_position)
    assert np.array_equal(one.indices, other.indices)


def test_normal_numbers_are_normal_independent_and_those_of_their_positions():
    drawn = normals(7, 2, 0, 20_000)
    assert np.array_equal(normals(7, 2, 500, 10), drawn[500:510])
    assert np.abs(drawn.mean(0)).max() < 5 / 20_000**0.5
    assert np.abs(np.cov(drawn.T) - np.eye(3)).max() < 5 * (2 / 20_000) ** 0.5
    assert np.abs((drawn**4).mean(0) - 3).max() < 5 * (96 / 20_000) ** 0.5
    others = uniforms(7, 2, 0, 20_000, 4)
    correlations = np.corrcoef(drawn.T, others.T)[:3, 3:]
    assert np.abs(correlations).max() < 5 / 20_000**0.5


UNIFORMS = [0.28413744129381846, 0.6186200549663141, 0.3613417685833824]
NORMALS = [-1.0057833489466033, 0.9717614681052923, 1.5573557442469335]


def test_random_numbers_of_a_position_never_change():
    """Else a run that goes on under a newer deepres sees other images."""
    assert uniforms(7, 2, 3, 1, 3).tolist() == [UNIFORMS]
    assert normals(7, 2, 3, 1)[0].tolist() == pytest.approx(NORMALS, rel=1e-12)


UNIFORMS = [0.28413744129381846, 0.6186200549663141, 0.3613417685833824]
NORMALS = [-1.0057833489466033, 0.9717614681052923, 1.5573557442469335]
