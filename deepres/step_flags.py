"""Flags that the processes exchange in each step, along with its loss."""

from typing import NamedTuple


class StepFlags(NamedTuple):
    """Requests of one process after a step or, once exchanged, those that any process has made.

    Attributes:
        to_stop: stop after a checkpoint.
        to_save: a checkpoint is due.
        in_background: save while the training goes on.
        has_failed: a checkpoint could not be written: end.
        lacks_data: the next step's first batch could not be made: end after a checkpoint.
    """

    to_stop: bool
    to_save: bool
    in_background: bool
    has_failed: bool
    lacks_data: bool
