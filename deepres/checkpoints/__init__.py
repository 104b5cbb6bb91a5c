"""Checkpoints: what is in one, how it gets to the disk, and how a run goes on from it."""
