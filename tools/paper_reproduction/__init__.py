"""The experiments of "Identity Mappings in Deep Residual Networks": the paper's results, and those of runs here."""
