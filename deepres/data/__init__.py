"""Data sets, and the batches that one rank sees of them."""

from deepres.data.ahead import BatchesAhead
from deepres.data.batch import IGNORED_LABEL, Batch, DataError, DataInfo
from deepres.data.opening import DATASETS, FoundData, find_data
from deepres.data.pipeline import Augmentation, Normalize
from deepres.data.source import DataSource

__all__ = [
    "DATASETS",
    "IGNORED_LABEL",
    "Augmentation",
    "Batch",
    "BatchesAhead",
    "DataError",
    "DataInfo",
    "DataSource",
    "FoundData",
    "Normalize",
    "find_data",
]
