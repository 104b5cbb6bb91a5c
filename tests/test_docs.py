"""The documents: every file they link to exists, and every symbol that a link names is in its file."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    "README.md",
    "docs/paper.md",
    "docs/plans.md",
    "docs/reliability.md",
    "docs/reproducing.md",
    "docs/settings.md",
    "docs/training.md",
    "results/propagation/README.md",
)
_LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")


def _links(document: str) -> list[tuple[str, Path]]:
    """Text and file of each link within the project."""
    folder = (ROOT / document).parent
    text = (ROOT / document).read_text(encoding="utf-8")
    return [
        (name, folder / target.partition("#")[0])
        for name, target in _LINK.findall(text)
        if "://" not in target
    ]


def _defines(file: Path, symbol: str) -> bool:
    """Whether a module defines `name` or `Class.member`."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    for name in symbol.split("."):
        found = [
            node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name
        ]
        if not found:
            return False
        body = found[0].body
    return True


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_a_document_links_to_is_there(document):
    missing = [str(target) for _, target in _links(document) if not target.exists()]
    assert missing == []


def test_the_symbols_that_the_paper_s_document_names_are_in_the_files_it_links_to():
    named = [(text.strip("`"), target) for text, target in _links("docs/paper.md") if target.suffix == ".py"]
    assert len(named) > 30
    assert [f"{symbol} in {target.name}" for symbol, target in named if not _defines(target, symbol)] == []


_KEEPS_ITS_BUDGET = """
from deepres.memory.allocated import AllocatedBytes
x, meter = torch.randn(512, 256), AllocatedBytes(torch.device("cpu"))
with meter:
    loss(model(x)).backward()
assert 23 * 2**20 < meter.peak_bytes + x.nbytes <= 24 * 2**20, meter.peak_bytes
"""


def test_the_example_of_a_plan_on_a_model_of_one_s_own_keeps_its_budget():
    (code,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/plans.md").read_text(encoding="utf-8"), re.DOTALL
    )
    code += "assert plan.peak_bytes <= 24 * 2**20 and all(p.grad is not None for p in model.parameters())\n"
    code += _KEEPS_ITS_BUDGET
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("64 units, ")
