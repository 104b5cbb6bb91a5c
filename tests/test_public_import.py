"""`import deepres` needs torch and numpy alone."""

import importlib
import sys
from pathlib import Path

import pytest

import deepres
from tests.processes import run

# Run in a process of its own: nothing else of what is installed can be imported there.
_BLOCKED = """
import sys

# torch, what it cannot do without, its parts torchgen and functorch, and numpy.
allowed = {"torch", "numpy", "typing_extensions", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "filelock"}
allowed |= {"fsspec", "deepres", "torchgen", "functorch"}
allowed |= sys.stdlib_module_names


class Blocker:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in allowed and not top.startswith("_sysconfigdata"):  # the standard library's, by platform
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Blocker())
try:
    import yaml
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("the blocker does not block")
"""

_USE = """
from deepres import resnet1001
import torch
import deepres
import deepres.recompute
from deepres.recompute import per_unit_plan

assert len(resnet1001().units) == 333
net = deepres.build_resnet(20)
deepres.apply_plan(net, per_unit_plan(9))
net(torch.zeros(2, 3, 8, 8)).sum().backward()
for name in deepres.__all__:
    getattr(deepres, name)
for name in deepres.recompute.__all__:
    getattr(deepres.recompute, name)
loaded = {name.partition(".")[0] for name in sys.modules}
for name in ("deepspeed", "fairscale", "pydantic", "yaml", "PIL", "psutil", "safetensors", "tqdm"):
    assert name not in loaded, f"{name} was imported"
print("done")
"""


def _python(code: str) -> str:
    done = run(sys.executable, "-W", "error", "-c", code)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nets_and_plans_work_where_only_torch_and_numpy_can_be_imported():
    assert _python(_BLOCKED + _USE) == "done\n"


_LOAD = """
import deepres
import torch

torch.save({}, FILE)
with torch.device("meta"):
    net = deepres.build_resnet(50, dataset="imagenet", stride_on="3x3", stem_activation=False)
try:
    deepres.load_pretrained(net, FILE)
except deepres.PretrainedError as error:
    assert "stem.conv.weight" in error.missing
else:
    raise SystemExit("nothing was read")
"""


@pytest.mark.parametrize("use", ["from deepres import resnet1001", _LOAD], ids=["import", "load_pretrained"])
def test_nothing_of_the_trainer_is_imported_even_where_it_could_be(use, tmp_path):
    output = _python(
        f"import sys\n{use.replace('FILE', repr(str(tmp_path / 'weights.pt')))}\n"
        "print(*sorted({'deepspeed', 'fairscale', 'pydantic', 'yaml'} & set(sys.modules)))\n"
        "print(*sorted(name for name in sys.modules if name.startswith('deepres.')))"
    )
    third_party, ours = output.split("\n")[:2]
    assert third_party == ""
    folders = {name.split(".")[1] for name in ours.split()}
    assert not folders & {"train", "trainer", "engines", "config", "saving", "data", "weights"}


@pytest.mark.parametrize("package", ["deepres", "deepres.models", "deepres.recompute", "deepres.memory"])
def test_every_public_name_exists_and_is_listed_in_order(package):
    module = importlib.import_module(package)
    assert [name for name in module.__all__ if not hasattr(module, name)] == []
    assert len(set(module.__all__)) == len(module.__all__)


def test_the_package_says_that_it_is_typed():
    assert (Path(deepres.__file__).parent / "py.typed").exists()
