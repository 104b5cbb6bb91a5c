"""The parts of `tools/profile_memory.py`: what is asked, and the files with the answer."""
