"""Reasons to stop: a signal, a launcher that is gone, another process that has died."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

import psutil

from deepres.exit_status import ExitStatus
from deepres.rendezvous import Peer
from deepres.screen import complain

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Requests to stop; schedulers send the last two shortly before a job's time is up."""

_LAUNCHERS = {"deepspeed", "deepspeed.launcher.launch", "torchrun", "torch.distributed.run"}
_POLL_S = 0.5
_GRACE_S = 10.0


class StopRequest:
    """Records `SIGNALS` instead of dying of them, and notices when a launcher above this process is gone.

    Launchers pass signals on in their own ways: deepspeed's to one process after the other, each after the previous one
    has ended, and not at all if its outer process is signalled. So a process that is asked to stop must tell the
    others, and a launcher's end is a request, too. Further signals change nothing: launchers send several. SIGHUP stays
    ignored if it was ignored from the start, as under nohup.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._launchers = _launchers() if "LOCAL_RANK" in os.environ else []
        self._is_orphan, self._look_again_s = False, 0.0

    @property
    def reason(self) -> str | None:
        """Why this process should stop, or None."""
        if self._signal is not None:
            return signal.Signals(self._signal).name
        if self._launchers and time.monotonic() >= self._look_again_s:
            self._look_again_s = time.monotonic() + _POLL_S
            self._is_orphan = not all(map(_is_alive, self._launchers))
        return "the launcher's end" if self._is_orphan else None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for each in SIGNALS:
                if each is signal.SIGHUP and signal.getsignal(each) is signal.SIG_IGN:
                    continue
                self._before[each] = signal.signal(each, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self._signal = self._signal or number


class PeerWatch:
    """Ends this process, naming the dead one, when another process of the run on this host has died.

    A process that waits in a collective for a dead one may wait for long, and the error that ends the wait does not
    name it. Processes on other hosts are left to the launchers there.

    Args:
        rank: this process's.
        everyone: the run's processes, including this one.
    """

    def __init__(self, rank: int, everyone: Sequence[Peer]) -> None:
        self.dead: str | None = None
        self._done = threading.Event()
        self._peers: dict[int, psutil.Process | int] = {}
        for peer in everyone:
            if peer.rank != rank and peer.host == everyone[rank].host:
                try:
                    self._peers[peer.rank] = psutil.Process(peer.pid)
                except psutil.NoSuchProcess:  # already dead
                    self._peers[peer.rank] = peer.pid
        if self._peers:
            threading.Thread(target=self._watch, name="peers", daemon=True).start()

    def __enter__(self) -> PeerWatch:
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()

    def look(self, wait_s: float = 0.0) -> str | None:
        """Which process has died, if one has or does so within `wait_s`."""
        waits = [_POLL_S] * round(wait_s / _POLL_S) if self._peers else []
        for wait in [0.0, *waits]:
            if self.dead is None and not self._done.wait(wait):
                for rank, peer in self._peers.items():
                    pid = peer if isinstance(peer, int) else peer.pid
                    if isinstance(peer, int) or not _is_alive(peer):
                        self.dead = f"process {rank} of the run (pid {pid}) has died"
                        break
        return self.dead

    def _watch(self) -> None:
        while self.look() is None:
            if self._done.wait(_POLL_S):
                return
        if self._done.wait(_GRACE_S):  # the main thread noticed by itself
            return
        complain(f"error: {self.dead}: this one stops")
        os._exit(ExitStatus.PROCESS_DIED)


def _launchers() -> list[psutil.Process]:
    found = []
    for ancestor in psutil.Process().parents():
        try:
            words = {os.path.basename(word) for word in ancestor.cmdline()[:5]}  # noqa: PTH119  # words, not paths
        except psutil.Error:
            continue
        if words & _LAUNCHERS:
            found.append(ancestor)
    return found


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
