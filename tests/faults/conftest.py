"""Collects what the fault tests find, from all workers; `FAULT_TABLE=FILE` writes it there."""

import os
import time
from pathlib import Path

import pytest

from tests.faults.table import FaultTable

TABLE, BEGIN = FaultTable(), time.monotonic()


class Recorder:
    """Notes a test's tries on its report, which a worker process hands to the one that writes the table."""

    def __init__(self, node: pytest.Item) -> None:
        self._node = node

    def add(self, fault: str, survived: bool, lost: int = 0, *, seconds: float = 0.0, tries: int = 1) -> None:
        """See `FaultTable.add`."""
        self._node.user_properties.append(("fault", (fault, bool(survived), lost, seconds, tries)))


@pytest.fixture
def table(request) -> Recorder:
    return Recorder(request.node)


def pytest_runtest_logreport(report):
    if report.when == "teardown":
        for kind, found in report.user_properties:
            if kind == "fault":
                fault, survived, lost, seconds, tries = found
                TABLE.add(fault, survived, lost, seconds=seconds, tries=tries)


def pytest_terminal_summary(terminalreporter):
    if TABLE.rows:
        terminalreporter.write_line("\n" + TABLE.to_markdown())
    if "FAULT_TABLE" in os.environ:
        TABLE.write(Path(os.environ["FAULT_TABLE"]), "make test-faults", (time.monotonic() - BEGIN) / 60)
