"""Reads named tensors from PyTorch and safetensors files, without executing anything in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_WRAPPERS, _PREFIX = ("state_dict", "model"), "module."
"""Keys under which training programs save a net's tensors, and DataParallel's prefix of their names."""


@dataclass(frozen=True)
class TensorFile:
    """A file's content.

    Attributes:
        path: the file.
        tensors: by name, on the CPU.
        metadata: of a `.safetensors`.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)


def read_tensor_file(path: Path) -> TensorFile:
    """Read a file of tensors.

    Args:
        path: a `.safetensors`; any other file is read as `torch.save` writes it, with `weights_only=True`. Of a
            training checkpoint, what is under `state_dict` or `model` is taken; a prefix `module.` of all names is
            removed.

    Raises:
        OSError: the file cannot be read, or there is none (FileNotFoundError).
        ValueError: it is damaged, or holds anything but named tensors; the message is one line that names the file.
        ImportError: safetensors is needed and not installed.
    """
    with path.open("rb"):  # safetensors says less about a file that cannot be opened
        pass
    is_safetensors = path.suffix == ".safetensors"
    try:
        if is_safetensors:
            return read_safetensors(path)
        content = _unwrapped(torch.load(path, "cpu", weights_only=True))
    except (OSError, ImportError):
        raise
    except Exception as error:  # noqa: BLE001  # whatever a reader raises for a broken or malicious file
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


def read_safetensors(path: Path) -> TensorFile:
    """Like `read_tensor_file`, for a `.safetensors` of any name; raises what safetensors does."""
    from safetensors import safe_open  # not needed by `import deepres`

    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return TensorFile(path, tensors, dict(file.metadata() or {}))
