"""Batches are made one ahead, and nothing else of them changes."""

import pytest
import torch

from deepres.data import Batch, DataError, Prefetch


def _batch(number):
    return Batch(torch.full((1, 3, 2, 2), float(number)), torch.zeros(1), torch.tensor([number]))


class _Made:
    """Makes batches 0, 1, … and notes which; `broken` cannot be made."""

    def __init__(self, num, broken=None):
        self.numbers, self._num, self._broken = [], num, broken

    def __iter__(self):
        for number in range(self._num):
            if number == self._broken:
                raise DataError(f"no {number}")
            self.numbers.append(number)
            yield _batch(number)


def _prefetch(made):
    return Prefetch(iter(made), torch.device("cpu"))


def _take(batches, num):
    return [batch.indices.item() for batch in batches.take(num)]


def test_the_next_batch_is_made_when_a_step_asks_for_one_more():
    made = _Made(5)
    batches = _prefetch(made)
    assert made.numbers == []
    step = batches.take(2)
    assert next(step).indices.item() == 0
    assert made.numbers == [0]
    assert next(step).indices.item() == 1
    assert made.numbers == [0, 1]
    assert next(step, None) is None
    assert made.numbers == [0, 1, 2]
    assert _take(batches, 2) == [2, 3]
    assert _take(batches, 1) == [4]


def test_a_batch_that_cannot_be_made_stops_the_step_that_needs_it():
    batches = _prefetch(_Made(5, broken=2))
    assert _take(batches, 2) == [0, 1]
    with pytest.raises(DataError, match="no 2"):
        _take(batches, 2)


def test_on_a_cpu_all_time_in_which_batches_are_made_is_waited():
    batches = _prefetch(_Made(3))
    assert _take(batches, 1) == [0]
    assert batches.waited_s() > 0
    assert batches.waited_s() == 0


class _Stream:
    """A card's queue: work is done in its order, and what a batch launches is done some time after it is made."""

    def __init__(self):
        self.launched = self.done = 0

    def record_event(self):
        return _Event(self, self.launched)

    def query(self):
        return self.done == self.launched


class _Event:
    def __init__(self, stream, number):
        self._stream, self._number = stream, number

    def query(self):
        return self._stream.done >= self._number


@pytest.mark.parametrize("is_step_done", [True, False])
def test_on_a_card_what_a_batch_launches_itself_does_not_hide_that_it_was_waited_for(
    monkeypatch, is_step_done
):
    stream = _Stream()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)

    def made():
        for number in range(2):
            if is_step_done:
                stream.done = stream.launched
            stream.launched += 1  # the batch's own copy to the card
            yield _batch(number)

    stream.launched = 1  # a step
    batches = Prefetch(made(), torch.device("cuda", 0))
    assert _take(batches, 1) == [0]
    assert (batches.waited_s() > 0) == is_step_done
