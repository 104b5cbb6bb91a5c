"""What `compare_recompute.py` computes: recompute beside everything kept, beside its predictions and its peers."""
