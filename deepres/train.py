"""Train a residual network.

deepspeed deepres/train.py --config configs/imagenet200_zero2.yaml data.root=DIR [section.key=value ...]
python deepres/train.py --config configs/cifar10_resnet1001.yaml data.root=DIR recompute.device_memory=8GiB
torchrun --nproc_per_node 2 deepres/train.py --config configs/cifar10_resnet110.yaml data.root=DIR

docs/settings.md lists all settings.
"""

from __future__ import annotations

import logging
import os
import time
import traceback
from pathlib import Path

from deepres.argument_parser import Parser
from deepres.commit import SaveError
from deepres.config import ConfigError
from deepres.data import DataError
from deepres.distributed import stop_process_group
from deepres.exit_status import ExitStatus, RunError
from deepres.job import prepare, run_job
from deepres.screen import allow_any_encoding, complain, flush
from deepres.stopping import StopRequest

_FIRST_SPEAKS_S = 10.0  # one process may take seconds longer than another to import PyTorch


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns an `ExitStatus`."""
    parser = Parser(description=__doc__)
    parser.add_argument("--config", required=True, type=Path, help="a YAML file such as those in configs/")
    parser.add_argument("--local_rank", type=int, help="given by the deepspeed launcher")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="override the file's settings"
    )
    options = parser.parse_intermixed_args(arguments)
    allow_any_encoding()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    stop = StopRequest()
    try:
        with stop:
            run_job(prepare(options.config, options.overrides, options.local_rank), stop)
    except (ConfigError, DataError, RunError, SaveError) as error:
        status = _exit_status(error)
        _tell(error, status, is_stopped=stop.reason is not None)
        return status
    finally:
        stop_process_group()
    return ExitStatus.FINISHED


def _tell(error: Exception, status: ExitStatus, *, is_stopped: bool) -> None:
    """Print the error, only once per host if all processes there have it.

    Args:
        error: this process's.
        status: the process's exit status.
        is_stopped: whether the launcher has already asked it to stop.
    """
    local_rank = os.environ.get("LOCAL_RANK", "0")
    # If LOCAL_RANK is not a number, that is the error, and every process may print it.
    is_first = not local_rank.isdecimal() or int(local_rank) == 0
    if not (is_first or status is ExitStatus.PROCESS_DIED or error.__cause__ is not None):
        if status not in (ExitStatus.REFUSED, ExitStatus.OUT_OF_MEMORY) or is_stopped:
            return
        # A launcher ends all processes once one has ended: let that be the first, after it has printed the error. If
        # this process is still alive then, the error is its own.
        time.sleep(_FIRST_SPEAKS_S)
    complain(f"error: {error}")


def _exit_status(error: ConfigError | DataError | RunError | SaveError) -> ExitStatus:
    if isinstance(error, RunError):
        return error.exit_status
    return ExitStatus.NOT_SAVED if isinstance(error, SaveError) else ExitStatus.REFUSED


if __name__ == "__main__":
    try:
        exit_status = main()
    except Exception:  # noqa: BLE001  # a bug in this program: print it last
        complain(traceback.format_exc().rstrip())
        exit_status = ExitStatus.FAILED
    flush()
    # Not sys.exit: a gloo thread that takes the GIL while the interpreter shuts down would abort the process, and exit
    # would wait for the processes that decode images, which leave SIGTERM to this one.
    os._exit(exit_status)
