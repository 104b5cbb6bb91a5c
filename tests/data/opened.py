"""Data sets found and opened at once."""

from typing import Any

from deepres.data import DataSource, find_data

_OF_OPEN = (
    "micro_batch_size", "accumulation", "eval_batch_size", "seed", "num_workers", "rank", "world_size", "device",
    "max_bad_images",
)  # fmt: skip


def open_data(name: str, **options: Any) -> DataSource:
    """The source, of options of both `find_data` and `FoundData.open`."""
    opening = {key: options.pop(key) for key in _OF_OPEN if key in options}
    return find_data(name, **options).open(**opening)
