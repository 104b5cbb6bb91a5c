"""Processes that meet before they compute: all come, one does not, or there is no place for it."""

import os
import socket
import threading
import time

import pytest
import torch

from deepres.distributed import Process
from deepres.exit_status import ExitStatus, RunError
from deepres.meeting import meet
from tests.processes import free_port


def process(rank: int, world_size: int = 3) -> Process:
    return Process(rank, rank, world_size, world_size, torch.device("cpu"))


@pytest.fixture(autouse=True)
def place(monkeypatch) -> int:
    port = free_port()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    return port


def test_all_are_known_to_all_whatever_the_order_in_which_they_come():
    met = {}

    def come(rank: int) -> None:
        met[rank] = meet(process(rank), 30.0)

    threads = [threading.Thread(target=come, args=(rank,)) for rank in (2, 0, 1)]
    for thread in threads:
        thread.start()
        time.sleep(0.2)
    for thread in threads:
        thread.join()
    for meeting in met.values():
        assert [peer.rank for peer in meeting.peers] == [0, 1, 2]
        assert {peer.pid for peer in meeting.peers} == {os.getpid()}
    met[0].store.set("key", "value")
    assert met[2].store.get("key") == b"value"


def test_those_that_do_not_come_are_named_when_the_time_is_up():
    begin = time.monotonic()
    with pytest.raises(RunError, match=r"processes 1, 2 of the run did not come within 0\.5 s") as raised:
        meet(process(0), 0.5)
    assert raised.value.exit_status is ExitStatus.PROCESS_DIED
    assert 0.5 <= time.monotonic() - begin < 5
    assert "\n" not in str(raised.value)


def test_without_the_first_there_is_nowhere_to_meet():
    with pytest.raises(RunError, match=r"process 0 of the run did not come within 1 s") as raised:
        meet(process(1), 1.0)
    assert raised.value.exit_status is ExitStatus.PROCESS_DIED


def test_a_port_that_another_program_has_is_told(place):
    with socket.socket() as other:
        other.bind(("", place))
        other.listen()
        with pytest.raises(RunError, match=rf"cannot meet.*{place}.*in use") as raised:
            meet(process(0), 5.0)
    assert raised.value.exit_status is ExitStatus.REFUSED


def test_more_than_one_process_need_a_port(monkeypatch):
    monkeypatch.delenv("MASTER_PORT")
    with pytest.raises(RunError, match=r"3 processes need the port to meet at in MASTER_PORT, got ''"):
        meet(process(0), 5.0)
