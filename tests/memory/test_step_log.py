"""What a run tells of its memory: on a CPU nothing, and that costs nothing."""

import pytest
import torch

from deepres.memory.step_log import (
    read_step_memory,
    recorded_memory,
    start_memory_history,
    write_memory_snapshot,
)

_CPU = torch.device("cpu")


def test_a_cpu_has_no_memory_to_tell_of(tmp_path):
    assert read_step_memory(_CPU) is None
    start_memory_history(_CPU)
    write_memory_snapshot(tmp_path / "x", _CPU)
    with (
        pytest.raises(ValueError, match="a memory snapshot needs CUDA, got cpu"),
        recorded_memory(tmp_path, _CPU),
    ):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
def test_a_card_tells_its_peak_and_leaves_a_snapshot(tmp_path):
    device = torch.device("cuda")
    read_step_memory(device)
    with recorded_memory(tmp_path / "snapshot.pickle", device):
        x = torch.zeros(2**20, device=device)
        del x
    memory = read_step_memory(device)
    assert memory is not None
    assert memory.peak_bytes >= 2**22
    assert memory.reserved_bytes >= memory.peak_bytes
    assert (tmp_path / "snapshot.pickle").stat().st_size > 0
    again = read_step_memory(device)
    assert again is not None
    assert again.peak_bytes < memory.peak_bytes
