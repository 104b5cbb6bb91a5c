"""Tensors by name out of files of PyTorch and safetensors, without executing anything in them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU.

    Args:
        path: a `.safetensors`; any other file is taken for what `torch.save` wrote, and read with `weights_only=True`.

    Raises:
        OSError: the file cannot be read, or there is none (FileNotFoundError).
        ValueError: it is damaged, or holds anything but tensors by name; one line that names it.
        ImportError: safetensors is needed and not installed.
    """
    with path.open("rb"):  # safetensors tells less of a file that cannot be opened
        pass
    is_safetensors = path.suffix == ".safetensors"
    try:
        content = _safetensors(path) if is_safetensors else torch.load(path, "cpu", weights_only=True)
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
    return {str(name): value for name, value in content.items()}


def read_metadata(path: Path) -> dict[str, str]:
    """What a `.safetensors` tells beside its tensors; nothing for other files.

    Raises:
        OSError, ValueError, ImportError: as of `read_tensors`.
    """
    if path.suffix != ".safetensors":
        return {}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import safe_open  # `import deepres` does without it

    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
