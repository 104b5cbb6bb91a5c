"""Where figures come from: date, machine, versions."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import torch


def provenance(device: str = "cpu") -> dict[str, Any]:
    """The date, the machine and the versions that figures come from."""
    names = ("torch", "numpy", "deepspeed", "fairscale")
    versions = {name: metadata.version(name) for name in names}
    return {
        "date": date.today().isoformat(),
        "machine": torch.cuda.get_device_name() if device == "cuda" else _machine(),
        "versions": {"Python": platform.python_version(), **versions},
    }


def origin_text(made_by: Mapping[str, Any]) -> str:
    """Machine and versions of a `provenance`, in words."""
    versions = ", ".join(f"{name} {version}" for name, version in made_by["versions"].items())
    return f"{made_by['machine']}, {versions}"


def _machine() -> str:
    model = "a CPU"
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    article = "an" if model[:1] in "AEIOU" else "a"
    cores, threads = os.cpu_count(), torch.get_num_threads()
    threads_text = f"{threads} thread{'s' if threads > 1 else ''}"
    return f"{cores} cores of {article} {model} ({torch.backends.cpu.get_cpu_capability()}, {threads_text})"
