"""How signals and gradients propagate through a net: what the paper's equations say, measured."""

from deepres.analysis.propagation import Propagation, measure_propagation
from deepres.analysis.variants import Variant, VariantError, parse_variants

__all__ = ["Propagation", "Variant", "VariantError", "measure_propagation", "parse_variants"]
