"""What asks a process to stop."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from deepres import stopping
from deepres.rendezvous import Peer
from deepres.stopping import SIGNALS, PeerWatch, StopRequest


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_a_request_and_no_end(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.reason is None
        os.kill(os.getpid(), number)
        assert stop.reason == number.name
    assert signal.getsignal(number) == before


def test_a_terminals_end_is_no_request_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.reason is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_processes_of_other_hosts_are_not_watched():
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    everyone = [Peer(0, "here", os.getpid()), Peer(1, "there", dead.pid)]
    with PeerWatch(0, everyone) as watch:
        assert watch.look() is None


@pytest.mark.parametrize("is_waited_for", [False, True])
def test_a_process_that_died_before_it_was_watched_is_told(is_waited_for, monkeypatch):
    monkeypatch.setattr(stopping, "_GRACE_S", 60.0)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    while psutil.Process(dead.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    if is_waited_for:
        dead.wait()
    with PeerWatch(0, [Peer(0, "here", os.getpid()), Peer(1, "here", dead.pid)]) as watch:
        assert watch.look() == f"process 1 of the run (pid {dead.pid}) has died"
    dead.wait()


def test_the_first_signal_is_the_reason():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.reason == "SIGTERM"


def test_an_interrupt_that_a_shell_had_ignored_is_a_request():
    """So it starts what runs in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.reason == "SIGINT"
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_end_of_either_launcher_is_a_request(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(stopping, "_launchers", lambda: ["outer", "inner"])
    monkeypatch.setattr(stopping, "_is_alive", lambda launcher: launcher == "inner")
    assert StopRequest().reason == "the launcher's end"
