"""Data sets found and opened at once."""

from typing import Any

from deepres.config import DataConfig
from deepres.data import DataSource, find_data


def open_data(name: str, **options: Any) -> DataSource:
    """The source, of options of both `DataConfig` and `FoundData.open`."""
    asked = {key: options.pop(key) for key in DataConfig.model_fields if key in options}
    return find_data(DataConfig(name=name, **asked)).open(**options)
