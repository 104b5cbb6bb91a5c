"""Exit statuses of a training process, and the errors that carry them."""

from enum import IntEnum


class ExitStatus(IntEnum):
    """The exit statuses of `deepres/train.py`; launchers may turn all but the first into 1."""

    FINISHED = 0
    FAILED = 1
    """An unexpected error, with its traceback."""
    REFUSED = 2
    """The run cannot be done as configured, or its data cannot be read."""
    NOT_FINITE = 3
    """A loss or gradient was not finite."""
    NOT_SAVED = 4
    """A checkpoint could not be written."""
    PROCESS_DIED = 5
    """Another process of the run has died."""
    OUT_OF_MEMORY = 6
    """A micro batch did not fit into memory: in a step, before the first one, or in an evaluation."""
    STOPPED = 75
    """A signal stopped it, after a checkpoint if it trains and saves any; train.resume=auto resumes from that."""


class RunError(RuntimeError):
    """A run that ends early; the message is one line.

    Attributes:
        exit_status: the process's.
    """

    def __init__(self, message: str, exit_status: ExitStatus) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class LoneRunError(RunError):
    """An error of this process alone: the others wait in a collective, so no collective may follow."""
