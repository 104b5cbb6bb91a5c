"""Checkpoints: what is in one, how it is written to disk, and how a run resumes from it."""
