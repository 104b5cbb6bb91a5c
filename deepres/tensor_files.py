"""Tensors by name out of files of PyTorch and safetensors, without executing anything in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_WRAPPERS, _PREFIX = ("state_dict", "model"), "module."
"""Where training programs put a net's tensors, and what DataParallel puts before their names."""


@dataclass(frozen=True)
class TensorFile:
    """What a file holds.

    Attributes:
        path: the file.
        tensors: by name, on the CPU.
        metadata: what a `.safetensors` tells beside them.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)


def read_tensor_file(path: Path) -> TensorFile:
    """Read a file of tensors.

    Args:
        path: a `.safetensors`; any other file is taken for what `torch.save` wrote, and read with `weights_only=True`.
            Of a training checkpoint, it is what lies under `state_dict` or `model`; `module.` before all names goes.

    Raises:
        OSError: the file cannot be read, or there is none (FileNotFoundError).
        ValueError: it is damaged, or holds anything but tensors by name; one line that names it.
        ImportError: safetensors is needed and not installed.
    """
    with path.open("rb"):  # safetensors tells less of a file that cannot be opened
        pass
    is_safetensors = path.suffix == ".safetensors"
    try:
        if is_safetensors:
            return _safetensors(path)
        content = _unwrapped(torch.load(path, "cpu", weights_only=True))
    except (OSError, ImportError):
        raise
    except Exception as error:  # noqa: BLE001  # whatever a reader says of a broken or malicious file
        told = " ".join(str(error).split())
        kind = type(error).__name__
        why = (
            f"cannot be read: {told}" if is_safetensors else f"is refused: no file of plain tensors ({kind})"
        )
        raise ValueError(f"{path} {why}") from None
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} is refused: it must hold a dictionary of tensors by name")
    return TensorFile(path, {str(name): value for name, value in content.items()})


def _unwrapped(content: Any) -> Any:
    for key in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if isinstance(content, dict) and content and all(str(name).startswith(_PREFIX) for name in content):
        content = {str(name).removeprefix(_PREFIX): value for name, value in content.items()}
    return content


def _safetensors(path: Path) -> TensorFile:
    from safetensors import safe_open  # `import deepres` does without it

    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return TensorFile(path, tensors, dict(file.metadata() or {}))
