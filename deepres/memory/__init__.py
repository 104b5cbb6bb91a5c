"""Memory and time of a run: measured, or predicted without the device."""

from deepres.memory.allocated import AllocatedBytes
from deepres.memory.host_heap import keep_freed_memory
from deepres.memory.measure import measure_activation_peak, measure_chain
from deepres.memory.predict import predict_chain
from deepres.memory.tracking import TensorBytes

__all__ = [
    "AllocatedBytes",
    "TensorBytes",
    "keep_freed_memory",
    "measure_activation_peak",
    "measure_chain",
    "predict_chain",
]
