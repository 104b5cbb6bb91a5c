"""Processes that meet before they compute: all come, one does not, or there is no place for it."""

import multiprocessing
import os
import signal
import socket
import threading
import time
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from torch.distributed import TCPStore

from deepres.distributed import Process
from deepres.exit_status import ExitStatus, RunError
from deepres.rendezvous import rendezvous
from deepres.stopping import StopRequest
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
        met[rank] = rendezvous(process(rank), 30.0, StopRequest())

    threads = [threading.Thread(target=come, args=(rank,)) for rank in (2, 0, 1)]
    for thread in threads:
        thread.start()
        time.sleep(0.2)
    for thread in threads:
        thread.join()
    for found in met.values():
        assert [peer.rank for peer in found.peers] == [0, 1, 2]
        assert {peer.pid for peer in found.peers} == {os.getpid()}
    met[0].store.set("key", "value")
    assert met[2].store.get("key") == b"value"


def test_those_that_do_not_come_are_named_when_the_time_is_up():
    begin = time.monotonic()
    with pytest.raises(RunError, match=r"processes 1, 2 of the run did not come within 0\.5 s") as raised:
        rendezvous(process(0), 0.5, StopRequest())
    assert raised.value.exit_status is ExitStatus.PROCESS_DIED
    assert 0.5 <= time.monotonic() - begin < 5
    assert "\n" not in str(raised.value)


def test_without_the_first_there_is_nowhere_to_meet_and_nothing_is_printed_while_it_is_waited_for(capfd):
    begin = time.monotonic()
    with pytest.raises(RunError, match=r"process 0 of the run did not come within 1 s") as raised:
        rendezvous(process(1), 1.0, StopRequest())
    assert raised.value.exit_status is ExitStatus.PROCESS_DIED
    assert 1.0 <= time.monotonic() - begin < 5
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("address", ["a..b", "no-such-host.invalid"])
def test_a_name_that_no_host_has_is_waited_for_as_the_first(monkeypatch, address):
    monkeypatch.setenv("MASTER_ADDR", address)
    with pytest.raises(RunError, match=r"process 0 of the run did not come within 0\.2 s"):
        rendezvous(process(1), 0.2, StopRequest())


def test_a_port_that_another_program_has_is_told(place):
    with socket.socket() as other:
        other.bind(("", place))
        other.listen()
        with pytest.raises(RunError, match=rf"cannot meet.*{place}.*in use") as raised:
            rendezvous(process(0), 5.0, StopRequest())
    assert raised.value.exit_status is ExitStatus.REFUSED


@pytest.mark.parametrize("port", ["", "0", "70000", "http"])
def test_more_than_one_process_need_a_port(monkeypatch, port):
    monkeypatch.setenv("MASTER_PORT", port)
    with pytest.raises(RunError, match=f"3 processes need the port to meet at, 1 to 65535, .* got '{port}'"):
        rendezvous(process(0), 5.0, StopRequest())


def _come_in_vain(rank: int, seconds: float) -> str:
    try:
        rendezvous(process(rank), seconds, StopRequest())
    except RunError as error:
        return str(error)
    return ""


def test_one_that_comes_after_the_first_has_given_up_does_not_blame_it_for_being_late():
    """Two processes of three: rank 1 comes when rank 0 is about to leave, rank 2 never."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        told = [pool.submit(_come_in_vain, rank, seconds) for rank, seconds in ((0, 2.0), (1, 60.0))]
        assert "process 2 of the run did not come within 2 s" in told[0].result()
        assert "process 0 of the run has ended before all had met" in told[1].result()


def test_a_restart_by_torchrun_does_not_meet_those_of_the_run_before(monkeypatch, place):
    """Its agent keeps the store over restarts, with what the dead had written."""
    agent = TCPStore("127.0.0.1", place, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    with pytest.raises(RunError, match="processes 1, 2 of the run"):
        rendezvous(process(0), 0.3, StopRequest())
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(RunError, match="processes 0, 2 of the run"):
        rendezvous(process(1), 0.3, StopRequest())
    assert agent.num_keys() >= 2


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_ends_the_waiting(rank):
    with StopRequest() as stop:
        timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        begin = time.monotonic()
        with pytest.raises(RunError, match="stopped by SIGTERM before the processes had met") as raised:
            rendezvous(process(rank), 60.0, stop)
        timer.join()
    assert raised.value.exit_status is ExitStatus.STOPPED
    assert time.monotonic() - begin < 5


def test_processes_that_were_started_for_other_runs_are_refused_by_each_with_what_differs():
    told = {}

    def come(rank: int, rate: float) -> None:
        try:
            rendezvous(process(rank, 2), 30.0, StopRequest(), {"optim.learning_rate": rate, "train.seed": 0})
        except RunError as error:
            told[rank] = error

    threads = [threading.Thread(target=come, args=(rank, rate)) for rank, rate in ((0, 0.1), (1, 0.2))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rank in (0, 1):
        assert (
            "process 1 was started with other settings than process 0: optim.learning_rate is 0.2 there, 0.1 in"
            in str(told[rank])
        )
        assert "train.seed" not in str(told[rank])
        assert told[rank].exit_status is ExitStatus.REFUSED


def test_who_meets_again_at_the_same_place_is_not_taken_for_who_he_was(place):
    agent = TCPStore("127.0.0.1", place, is_master=True, wait_for_workers=False)

    def come(rank: int, seed: int) -> None:
        rendezvous(process(rank, 2), 30.0, StopRequest(), {"train.seed": seed})

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
        for seed in (0, 1):
            other = threading.Timer(0.3, come, (1, seed))
            other.start()
            come(0, seed)
            other.join()
    assert agent.num_keys() >= 4
