"""The allocator's own account on the CPU, kernels' workspaces included."""

import pytest
import torch
import torch.nn.functional as F

from deepres.memory import AllocatedBytes, TensorBytes

CPU = torch.device("cpu")


def test_live_and_peak_bytes_are_those_of_the_tensors_made_and_freed():
    meter = AllocatedBytes(CPU)
    with meter:
        x = torch.ones(1000)
        y = x + x
        del x
        z = y * y
        del y
    assert (meter.live_bytes, meter.peak_bytes) == (4000, 8000)
    with meter:
        del z
    assert (meter.live_bytes, meter.peak_bytes) == (0, 8000)
    meter.reset_peak()
    with meter:
        torch.zeros(10)
    assert (meter.live_bytes, meter.peak_bytes) == (0, 40)


def test_what_happens_outside_is_not_seen():
    meter = AllocatedBytes(CPU)
    held = [torch.ones(100)]
    with meter:
        held.append(torch.ones(1))
    held.append(torch.ones(100))
    assert (meter.live_bytes, meter.peak_bytes) == (4, 4)


def test_it_sees_the_copies_that_a_convolution_makes_and_counting_tensors_does_not():
    x, weight = torch.randn(2, 16, 32, 32), torch.randn(16, 16, 3, 3)
    F.conv2d(x, weight, padding=1)
    tensors, meter = TensorBytes(), AllocatedBytes(CPU)
    with tensors:
        F.conv2d(x, weight, padding=1)
    with meter:
        F.conv2d(x, weight, padding=1)
    assert tensors.peak_bytes == x.nbytes
    assert meter.peak_bytes >= 2 * x.nbytes


def test_an_exception_closes_the_account():
    meter = AllocatedBytes(CPU)
    try:
        with meter:
            kept = torch.ones(100)
            raise KeyError
    except KeyError:
        pass
    assert meter.live_bytes == kept.nbytes
    with meter:
        pass
    assert meter.live_bytes == kept.nbytes


@pytest.mark.parametrize(
    ("backend", "rounded", "expected"),
    [("native", False, 1000), ("native", True, 1024), ("cudaMallocAsync", False, 1024)],
)
def test_on_a_card_it_counts_what_its_allocator_tells(monkeypatch, backend, rounded, expected):
    """CUDA's own allocator knows of blocks alone: all other figures of it are 0."""
    is_native, stats = backend == "native", {}

    def hold(requested):
        for when in ("current", "peak"):
            stats[f"requested_bytes.all.{when}"] = requested * is_native
            stats[f"allocated_bytes.all.{when}"] = -(-requested // 512) * 512

    for name, value in (
        ("get_allocator_backend", lambda: backend),
        ("memory_stats", lambda _: stats),
        ("synchronize", lambda _: None),
        ("reset_peak_memory_stats", lambda _: None),
    ):
        monkeypatch.setattr(torch.cuda, name, value)
    with AllocatedBytes(torch.device("cuda", 0), rounded=rounded) as meter:
        hold(1000)
    assert meter.live_bytes == meter.peak_bytes == expected
