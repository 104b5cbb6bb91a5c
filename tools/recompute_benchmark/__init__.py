"""The benchmarks of `compare_recompute.py`: recomputation against keep-all, its predictions and its peers."""
