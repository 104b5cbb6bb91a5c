"""Where results come from: date, machine, versions."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("deepres", "torch", "numpy", "deepspeed", "fairscale", "safetensors")


def provenance(device: str = "cpu") -> dict[str, Any]:
    """The date, machine and versions that results come from; `device` is a type, `cpu` or `cuda`."""
    return {
        "date": date.today().isoformat(),
        "machine": torch.cuda.get_device_name() if device == "cuda" else _cpu(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that results depend on, as far as they are installed."""
    found = {"Python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found | {"torch": str(torch.__version__)}  # which names its CUDA, too


def origin_text(made_by: Mapping[str, Any]) -> str:
    """Machine and versions of a `provenance`, in words."""
    packages = ", ".join(f"{name} {version}" for name, version in made_by["versions"].items())
    return f"{made_by['machine']}, {packages}"


def _cpu() -> str:
    model = "a CPU"
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                model = f"{'an' if model[:1] in 'AEIOU' else 'a'} {model}"
                break
    threads = torch.get_num_threads()
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{os.cpu_count()} cores of {model} ({capability}, {threads} thread{'s' if threads > 1 else ''})"
