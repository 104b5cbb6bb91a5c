"""Memory: what a run holds, measured."""

from deepres.memory.measure import measure_activation_peak
from deepres.memory.tracking import TensorBytes

__all__ = ["TensorBytes", "measure_activation_peak"]
