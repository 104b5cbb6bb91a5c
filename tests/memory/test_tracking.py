"""The bytes of tensors, counted as they are made and freed."""

import gc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from deepres.memory import AllocatedBytes, TensorBytes


def test_a_tensor_counts_from_its_making_to_its_end():
    with TensorBytes() as tracker:
        a = torch.empty(1000)
        assert tracker.live_bytes == 4000
        b = torch.empty(10, dtype=torch.float64)
        assert tracker.live_bytes == 4080
        del a
        assert (tracker.live_bytes, tracker.peak_bytes) == (80, 4080)
        c = torch.empty(3, dtype=torch.bool)
        assert (tracker.live_bytes, tracker.peak_bytes) == (83, 4080)
        del b, c
    assert (tracker.live_bytes, tracker.peak_bytes) == (0, 4080)


def test_views_and_changes_in_place_share_a_storage_and_count_once():
    with TensorBytes() as tracker:
        x = torch.zeros(6, 4)
        views = [x.view(4, 6), x[1], x.t(), x.detach(), *x.split(2)]
        x.add_(1)
        x[0].zero_()
        assert tracker.live_bytes == 96
        del x
        assert tracker.live_bytes == 96  # its views hold the storage
        del views
        assert tracker.live_bytes == 0


def test_an_expanded_tensor_counts_what_it_occupies():
    with TensorBytes() as tracker:
        x = torch.zeros(()).expand(1000)
        assert x.numel() == 1000
        assert tracker.live_bytes == 4


def test_tensors_that_autograd_holds_count_until_the_backward_pass():
    x = torch.ones(100, requires_grad=True)
    with TensorBytes() as tracker:
        loss = x.exp().exp().sum()
        assert tracker.live_bytes == 400 + 400 + 4  # exp keeps its output
        loss.backward()
        assert tracker.live_bytes == 4 + 400  # the gradient of x


def test_gradients_are_added_up_in_place_as_without_a_mode():
    """Autograd itself adds out of place under one."""
    peaks = []
    for meter in (TensorBytes(), AllocatedBytes(torch.device("cpu"))):
        x = torch.ones(10_000, requires_grad=True)
        x.grad = torch.zeros(10_000)
        with meter:
            y = x.neg()
            loss = y.neg().sum() + y.mul(2).sum()
            del y
            loss.backward()
        peaks.append(meter.peak_bytes)
    assert peaks[0] == pytest.approx(peaks[1], abs=100)


def test_several_results_of_one_operator_all_count():
    with TensorBytes() as tracker:
        parts = torch.ones(8).sort(descending=True)
        assert tracker.live_bytes == 8 * 4 + 8 * 8
        pieces = torch.unbind(parts.values.double() * 2)
        assert len(pieces) == 8
        assert tracker.live_bytes == 8 * 4 + 8 * 8 + 8 * 8


def test_tensors_made_before_and_their_views_do_not_count():
    before, parameter = torch.ones(50), nn.Parameter(torch.ones(70))
    with TensorBytes() as tracker:
        parameter.detach().add_(1)
        seven_rows = parameter.view(7, 10)
        before.add_(1)
        assert tracker.live_bytes == 0
        assert (seven_rows + 1).shape == (7, 10)
        assert tracker.peak_bytes == 280


def test_the_peak_begins_anew_at_what_is_alive():
    with TensorBytes() as tracker:
        a, b = torch.ones(10), torch.ones(100)
        del b
        assert (tracker.live_bytes, tracker.peak_bytes) == (40, 440)
        tracker.reset_peak()
        assert tracker.peak_bytes == 40
        c = torch.ones(20)
        assert tracker.peak_bytes == 120
        del a, c


def test_tensors_freed_after_the_context_are_taken_off_too():
    with TensorBytes() as tracker:
        x = torch.ones(10)
    y = torch.ones(10)
    assert tracker.live_bytes == 40
    del x
    assert tracker.live_bytes == 0
    assert y.numel() == 10


@pytest.mark.parametrize("size", [0, 1])
def test_empty_tensors_take_nothing(size):
    with TensorBytes() as tracker:
        x = torch.empty(size, 5)
        assert tracker.live_bytes == tracker.peak_bytes == x.numel() * 4


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("make"), st.integers(0, 5), st.integers(0, 1000)),
            st.tuples(st.just("view"), st.integers(0, 5), st.integers(0, 5)),
            st.tuples(st.just("free"), st.integers(0, 5), st.just(0)),
            st.tuples(st.just("add_"), st.integers(0, 5), st.just(0)),
        ),
        max_size=40,
    )
)
def test_whatever_is_made_viewed_and_freed_the_count_is_that_of_distinct_storages(steps):
    slots: list[torch.Tensor | None] = [None] * 6
    highest = 0
    with TensorBytes() as tracker:
        for what, i, argument in steps:
            if what == "make":
                slots[i] = None
                slots[i] = torch.empty(argument, dtype=torch.uint8)
            elif what == "view" and slots[argument] is not None:
                slots[i] = slots[argument][:1]
            elif what == "free":
                slots[i] = None
            elif slots[i] is not None:
                slots[i].add_(1)
            storages = {
                t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in slots if t is not None
            }
            storages.pop(0, None)
            assert tracker.live_bytes == sum(storages.values())
            highest = max(highest, tracker.live_bytes)
        assert tracker.peak_bytes == highest


def test_cycles_count_until_they_are_collected():
    """As they do in the allocator."""
    with TensorBytes() as tracker:
        cycle = [torch.ones(10)]
        cycle.append(cycle)
        del cycle
        assert tracker.live_bytes == 40
        gc.collect()
        assert tracker.live_bytes == 0
