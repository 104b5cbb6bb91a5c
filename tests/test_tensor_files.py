import pytest
import torch

from deepres.tensor_files import read_tensor_file

TENSORS = {"stem.weight": torch.arange(3.0), "count": torch.tensor(2)}
PARALLEL = {f"module.{name}": tensor for name, tensor in TENSORS.items()}


@pytest.mark.parametrize(
    "content",
    [
        TENSORS,
        PARALLEL,
        {"state_dict": TENSORS, "epoch": 3},
        {"model": PARALLEL, "optimizer": {"lr": 0.1}},
    ],
    ids=["plain", "of DataParallel", "in a checkpoint", "in a checkpoint of DataParallel"],
)
def test_a_net_s_tensors_are_found_where_training_programs_put_them(tmp_path, content):
    path = tmp_path / "x.pt"
    torch.save(content, path)
    found = read_tensor_file(path).tensors
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


def test_a_name_that_alone_begins_with_module_stays(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"module.a": torch.zeros(1), "b": torch.zeros(1)}, path)
    assert read_tensor_file(path).tensors.keys() == {"module.a", "b"}


@pytest.mark.parametrize("content", [{"epoch": 3}, {"state_dict": {"a": 1}}, [torch.zeros(1)]])
def test_what_holds_no_tensors_by_name_is_refused(tmp_path, content):
    path = tmp_path / "x.pt"
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"x.pt is refused: it must hold a dictionary of tensors by name"):
        read_tensor_file(path)
