"""The experiments of "Identity Mappings in Deep Residual Networks": what the paper found, and what a run here finds."""
