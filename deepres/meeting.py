"""How the processes of a run find one another before they compute together, and what if one does not come."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public all the same
from torch.distributed.distributed_c10d import PrefixStore, Store

from deepres.distributed import Process
from deepres.exit_status import ExitStatus, RunError

_POLL_S = 0.05


@dataclass(frozen=True)
class Peer:
    """One process of the run, as it announced itself.

    Attributes:
        rank: its number among all.
        host: the host and the namespace of process numbers in which `pid` is its.
        pid: the operating system's number of it.
    """

    rank: int
    host: str
    pid: int


@dataclass(frozen=True)
class Meeting:
    """All processes of a run, rank 0 first, and the store through which their group is started."""

    peers: tuple[Peer, ...]
    store: Store


def meet(process: Process, limit_s: float) -> Meeting:
    """Wait until all processes have announced themselves; collective.

    The limit is this meeting's alone: the group's own is made for slow collectives, and a process that died before
    it could join would be waited for as long, by nobody knows whom.

    Args:
        limit_s: seconds to wait for the last.

    Raises:
        RunError: a process did not come (`PROCESS_DIED`), or there is no place to meet at (`REFUSED`).
    """
    host, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), os.environ.get("MASTER_PORT", "")
    if not port.isdecimal():
        raise RunError(
            f"{process.world_size} processes need the port to meet at in MASTER_PORT, got {port!r}: use a launcher, "
            "or set it",
            ExitStatus.REFUSED,
        )
    # torchrun's agent keeps the store itself, and a new one for every restart.
    is_host = process.is_first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    end = time.monotonic() + limit_s
    me = Peer(process.rank, _this_host(), os.getpid())
    try:
        store = TCPStore(
            host,
            int(port),
            is_master=is_host,
            timeout=timedelta(seconds=limit_s),
            wait_for_workers=False,
            multi_tenant=True,  # a group that this process has started there already may stay
        )
        store.set(_key(me.rank), json.dumps(asdict(me)))
        missing = _wait(store.check, process.world_size, end)
        if missing:
            raise _absent(missing, limit_s)
        everyone = [Peer(**json.loads(store.get(_key(rank)))) for rank in range(process.world_size)]
        # The group's own keys, and its patience, are apart from the meeting's.
        store.set_timeout(timedelta(minutes=30))
        return Meeting(tuple(everyone), PrefixStore("group", store))
    except RuntimeError as error:
        if isinstance(error, RunError):
            raise
        if is_host:
            reason = str(error).splitlines()[0]
            raise RunError(f"the processes cannot meet: {reason}", ExitStatus.REFUSED) from error
        raise _absent([0], limit_s) from error


def _wait(has: Callable[[list[str]], bool], world_size: int, end: float) -> list[int]:
    """The ranks that have not come at `end`."""
    missing = list(range(world_size))
    while missing := [rank for rank in missing if not has([_key(rank)])]:
        if time.monotonic() > end:
            break
        time.sleep(_POLL_S)
    return missing


def _absent(ranks: list[int], limit_s: float) -> RunError:
    who = "process" if len(ranks) == 1 else "processes"
    message = (
        f"{who} {', '.join(map(str, ranks))} of the run did not come within {limit_s:g} s: see what it printed, or set "
        "engine.meeting_timeout_s if it takes longer to start"
    )
    return RunError(message, ExitStatus.PROCESS_DIED)


def _key(rank: int) -> str:
    return f"deepres/{rank}"


def _this_host() -> str:
    try:
        return f"{socket.gethostname()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()
