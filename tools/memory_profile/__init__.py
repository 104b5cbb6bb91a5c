"""The parts of `tools/profile_memory.py`: its command line, and its output files."""
