"""The rules of the house that no import contract can state."""

import re
import sys
import tomllib
from importlib import metadata
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "deepres"


def _dependencies() -> set[str]:
    """The import names of what the project depends on."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    names = {re.split(r"[\[<>=~! ;]", requirement)[0].lower() for requirement in requirements} - {"deepres"}
    by_import = metadata.packages_distributions()
    return {name for name, packages in by_import.items() if names & {p.lower() for p in packages}}


def test_no_module_bears_the_name_of_a_standard_module_or_a_dependency():
    # `deepspeed deepres/train.py` puts deepres/ first on sys.path: such a file would be imported instead.
    dependencies = _dependencies()
    assert {"torch", "deepspeed", "fairscale", "yaml", "PIL", "pydantic"} <= dependencies
    modules = {path.stem for path in PACKAGE.glob("*.py")} | {
        path.name for path in PACKAGE.iterdir() if path.is_dir()
    }
    assert not (modules - {"__init__"}) & (set(sys.stdlib_module_names) | dependencies)
    nested = {path.stem for path in PACKAGE.rglob("*.py")} - {"__init__"}
    assert not nested & (set(sys.stdlib_module_names) | dependencies)


def test_package_roots_hold_nothing_but_re_exports():
    for path in (PACKAGE / "__init__.py", PACKAGE / "recompute" / "__init__.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^(def|class|if|for|try) ", text, re.MULTILINE), path


def test_no_file_is_longer_than_300_lines():
    lengths = {
        path: len(path.read_text(encoding="utf-8").splitlines())
        for folder in ("deepres", "tools")
        for path in ROOT.glob(f"{folder}/**/*.py")
    }
    assert len(lengths) > 30
    assert {str(path): length for path, length in lengths.items() if length > 300} == {}
