"""Data sets, and the batches that one rank sees of them."""

from deepres.data.batch import IGNORED_LABEL, Batch, DataError, DataInfo
from deepres.data.opening import FoundData, find_data
from deepres.data.prefetch import Prefetch
from deepres.data.source import DataSource

__all__ = [
    "IGNORED_LABEL",
    "Batch",
    "DataError",
    "DataInfo",
    "DataSource",
    "FoundData",
    "Prefetch",
    "find_data",
]
