"""Freed memory that a process keeps is there without the system having to clear its pages again."""

import ctypes
import os
import subprocess
import sys

import pytest

_PROGRAM = """
import resource, sys
import torch
from deepres.memory import keep_freed_memory

def faults_of_filling(num_bytes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(num_bytes, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "kept":
    keep_freed_memory()
print(*(faults_of_filling(2**26) for _ in range(5)))
"""


pytestmark = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library has no mallopt"
)


def _page_faults(how: str, **variables: str) -> list[int]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    result = subprocess.run(
        [sys.executable, "-c", _PROGRAM, how],
        check=True,
        capture_output=True,
        text=True,
        env=clean | variables,
    )
    return [int(number) for number in result.stdout.split()]


def test_freed_memory_is_used_again_without_page_faults() -> None:
    kept, given_back = _page_faults("kept"), _page_faults("given back")
    assert kept[0] > 30  # with huge pages, fewer than one for each 4 KiB
    assert kept[-1] < kept[0] / 10
    assert given_back[-1] > kept[0] / 2


def test_what_the_environment_sets_holds() -> None:
    kept = _page_faults("kept", MALLOC_MMAP_THRESHOLD_="65536")
    assert kept[-1] > kept[0] / 2
