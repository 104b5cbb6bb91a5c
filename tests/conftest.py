"""Settings that hold for all tests."""

import hypothesis
import pytest
import torch

# The same examples in every run, and no deadline: the machines that run this are slow at times.
hypothesis.settings.register_profile("deepres", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("deepres")


@pytest.fixture(autouse=True)
def _fresh_generators():
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Let the tests of a module that share what its fixtures set up run in one worker."""
    for item in items:
        scopes = {definitions[-1].scope for definitions in item._fixtureinfo.name2fixturedefs.values()}
        if "module" in scopes:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
