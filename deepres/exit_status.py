"""What a training process ends with."""

from enum import IntEnum


class ExitStatus(IntEnum):
    """The exit statuses of `deepres/train.py`; launchers may turn all but the first into 1."""

    FINISHED = 0
    FAILED = 1
    """An unexpected error, with its traceback."""
    REFUSED = 2
    """It cannot be run as it was asked for, or its data cannot be read."""
    NOT_FINITE = 3
    """A loss or gradient was not finite."""
    NOT_SAVED = 4
    """A checkpoint could not be written."""
    PROCESS_DIED = 5
    """Another process of the run has died."""
    OUT_OF_MEMORY = 6
    """A micro batch did not fit the memory, in a step, before the first one or in an evaluation."""
    STOPPED = 75
    """A signal stopped it, and a checkpoint is written: the same command with train.resume=auto goes on."""


class RunError(RuntimeError):
    """A run that ends before its end; the message is one line.

    Attributes:
        exit_status: what the process ends with.
    """

    def __init__(self, message: str, exit_status: ExitStatus) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class LoneRunError(RunError):
    """One that this process alone has, while the others wait for it: it can do nothing with them any more."""
