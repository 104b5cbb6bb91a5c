"""Collects what the fault tests find; `FAULT_TABLE=FILE` writes it there."""

import os
import time
from pathlib import Path

import pytest

from tests.faults.table import FaultTable

TABLE, BEGIN = FaultTable(), time.monotonic()


@pytest.fixture(scope="session")
def table() -> FaultTable:
    return TABLE


def pytest_terminal_summary(terminalreporter):
    if TABLE.rows:
        terminalreporter.write_line("\n" + TABLE.to_markdown())
    if "FAULT_TABLE" in os.environ:
        TABLE.write(Path(os.environ["FAULT_TABLE"]), "make test-faults", (time.monotonic() - BEGIN) / 60)
