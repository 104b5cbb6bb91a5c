"""How the processes of a run find one another before they compute together, and what happens if one is missing."""

from __future__ import annotations

import json
import os
import socket
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public all the same
from torch.distributed.distributed_c10d import PrefixStore, Store

from deepres.distributed import Process
from deepres.exit_status import ExitStatus, RunError

_POLL_S = 0.05
_TRY_S = 5.0
_PROBE_S = 1.0
_num_rendezvous: Counter[tuple[str | None, str, int]] = Counter()
"""Rendezvous of this process so far, by address, port and rank: a later run must not read an earlier one's entries."""


@dataclass(frozen=True)
class Peer:
    """A process of the run, as it announced itself.

    Attributes:
        rank: its number among all.
        host: the host and the PID namespace to which `pid` belongs.
        pid: its process ID.
        terms: what must be the same in all processes, by name.
    """

    rank: int
    host: str
    pid: int
    terms: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rendezvous:
    """All processes of a run, by rank, and the store through which to start their process group."""

    peers: tuple[Peer, ...]
    store: Store


class _Stop(Protocol):
    @property
    def reason(self) -> str | None:
        """Why this process should stop, or None."""


def rendezvous(
    process: Process, limit_s: float, stop: _Stop, terms: Mapping[str, Any] | None = None
) -> Rendezvous:
    """Wait until all processes have announced themselves; collective.

    The time limit is for the rendezvous alone: the process group's is meant for slow collectives, and would be spent
    waiting for a process that died before joining, without saying which.

    Args:
        process: this process.
        limit_s: seconds to wait for the last.
        stop: what may end the waiting.
        terms: what must be the same in all processes, by name; JSON.

    Raises:
        RunError: a process did not come (`PROCESS_DIED`), there is no place to meet or another process has other terms
            (`REFUSED`), or this one is to stop (`STOPPED`).
    """
    port = os.environ.get("MASTER_PORT", "")
    if not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise RunError(
            f"{process.world_size} processes need the port to meet at, 1 to 65535, in MASTER_PORT, got {port!r}: use a "
            "launcher, or set it",
            ExitStatus.REFUSED,
        )
    wait = _Wait(limit_s, stop)
    place = (os.environ.get("MASTER_ADDR"), port, process.rank)
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"deepres/{restart}/{_num_rendezvous[place]}", _connect(process, wait))
    me = Peer(process.rank, _this_host(), os.getpid(), terms or {})
    missing = list(range(process.world_size))
    try:
        store.set(str(me.rank), json.dumps(asdict(me)))
        while missing := [rank for rank in missing if not store.check([str(rank)])]:
            if wait.is_over():
                raise _absent(missing, limit_s)
        peers = tuple(Peer(**json.loads(store.get(str(rank)))) for rank in range(process.world_size))
    except RuntimeError as error:
        if isinstance(error, RunError):
            raise
        message = "process 0 of the run has ended before all had met: see what it printed"
        raise RunError(message, ExitStatus.PROCESS_DIED) from error
    _num_rendezvous[place] += 1
    _check_terms(peers)
    store.set_timeout(timedelta(minutes=30))
    return Rendezvous(peers, PrefixStore("group", store))


def _check_terms(peers: tuple[Peer, ...]) -> None:
    first = peers[0].terms
    for peer in peers[1:]:
        differences = [
            f"{name} is {peer.terms.get(name)} there, {first.get(name)} in process 0"
            for name in sorted(first.keys() | peer.terms.keys())
            if peer.terms.get(name) != first.get(name)
        ]
        if differences:
            raise RunError(
                f"process {peer.rank} was started with other settings than process 0: {'; '.join(differences)}: start "
                "all processes with the same files and command, and runs of one host at ports of their own",
                ExitStatus.REFUSED,
            )


def _connect(process: Process, wait: _Wait) -> Store:
    """The store, which rank 0 hosts unless torchrun's agent does."""
    host, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ["MASTER_PORT"])
    is_host = process.is_first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    while True:
        if is_host or _is_open(host, port, wait.limit_s):
            try:
                return TCPStore(
                    host,
                    port,
                    is_master=is_host,
                    timeout=timedelta(seconds=min(_TRY_S, wait.limit_s)),
                    wait_for_workers=False,
                    multi_tenant=True,  # this process may have started a group there before
                )
            except RuntimeError as error:
                if is_host:
                    reason = str(error).splitlines()[0]
                    raise RunError(f"the processes cannot meet: {reason}", ExitStatus.REFUSED) from error
        if wait.is_over():
            raise _absent([0], wait.limit_s)


def _is_open(host: str, port: int, limit_s: float) -> bool:
    """Whether a process listens there.

    Checked first, as a store at a port that nobody listens on prints a stack trace and waits three times its timeout.
    """
    try:
        socket.create_connection((host, port), timeout=min(_PROBE_S, limit_s)).close()
    except (OSError, UnicodeError):  # UnicodeError: not a possible host name
        return False
    return True


class _Wait:
    def __init__(self, limit_s: float, stop: _Stop) -> None:
        self.limit_s, self._stop = limit_s, stop
        self._end = time.monotonic() + limit_s

    def is_over(self) -> bool:
        """Whether the time is up, after a moment; raises RunError if this process is to stop."""
        if self._stop.reason is not None:
            raise RunError(f"stopped by {self._stop.reason} before the processes had met", ExitStatus.STOPPED)
        time.sleep(_POLL_S)
        return time.monotonic() > self._end


def _absent(ranks: list[int], limit_s: float) -> RunError:
    who = "process" if len(ranks) == 1 else "processes"
    message = (
        f"{who} {', '.join(map(str, ranks))} of the run did not come within {limit_s:g} s: see what it printed, or set "
        "engine.rendezvous_timeout_s if it takes longer to start"
    )
    return RunError(message, ExitStatus.PROCESS_DIED)


def _this_host() -> str:
    """A unique name of this machine, even if several share a host name, as copies of an image do."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    return " ".join(parts)
