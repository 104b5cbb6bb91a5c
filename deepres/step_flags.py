"""What the processes tell one another in each step, beside its loss."""

from typing import NamedTuple


class StepFlags(NamedTuple):
    """What a process, or some process, wants between two steps.

    Attributes:
        to_stop: after a checkpoint.
        to_save: as a checkpoint is due.
        in_background: to save while the training goes on.
        has_failed: to end, as a checkpoint could not be written.
        lacks_data: to end after a checkpoint, as the next step's first batch could not be made.
    """

    to_stop: bool
    to_save: bool
    in_background: bool
    has_failed: bool
    lacks_data: bool
