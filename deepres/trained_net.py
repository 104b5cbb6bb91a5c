"""A trained net in one file: its weights, and the arguments of `build_resnet` that make the net they are of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from deepres.models import ResNet, build_resnet
from deepres.models.difference import first_difference
from deepres.tensor_files import read_metadata, read_tensors

_KEY = "deepres.build_resnet"


class TrainedNetError(ValueError):
    """A file's net is not known, or another one than was meant; the message is one line."""


def net_metadata(net: ResNet) -> dict[str, str]:
    """What a file of the net's weights has to tell beside them; for `safetensors.torch.save_file`."""
    return {_KEY: json.dumps(net.arguments)}


def load_resnet(path: str | Path) -> ResNet:
    """The net that a run left as `model.safetensors`, or `tools/export.py` wrote, on the CPU and in evaluation mode.

    The file tells what net it is of. Nothing in it is executed, and no random number is drawn.

    Raises:
        TrainedNetError: the file does not tell its net, or holds other weights than that has.
        ValueError: the file is damaged.
        OSError: it cannot be read, or there is none (FileNotFoundError).
        ImportError: safetensors is not installed.
    """
    path = Path(path)
    tensors = read_tensors(path)
    arguments = told_arguments(path)
    if arguments is None:
        raise TrainedNetError(
            f"{path} does not tell what net its weights are of, as files of deepres do: build it with build_resnet and "
            "use its load_state_dict"
        )
    depth = arguments.get("depth")
    if isinstance(depth, int) and depth > len(tensors):  # before so many units are built
        raise TrainedNetError(f"{path} is damaged: it tells of {depth} layers and has {len(tensors)} tensors")
    net = _built(path, arguments)
    try:
        net.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise TrainedNetError(f"{path} has not the weights of {_call(arguments)}: {_line(error)}") from None
    return net.eval()


def check_net(net: ResNet, path: Path) -> None:
    """Compare a net with the one that a file of weights is of, if it tells.

    Raises:
        TrainedNetError: they differ.
    """
    arguments = told_arguments(path)
    if arguments is None:
        return
    difference = first_difference(net, _built(path, arguments))
    if difference is not None:
        raise TrainedNetError(f"{path} has weights of {_call(arguments)}: here {difference}")


def told_arguments(path: Path) -> dict[str, Any] | None:
    """The arguments of `build_resnet` that make the net of a file of weights; None if it does not tell.

    Raises:
        TrainedNetError: what it tells are no arguments.
    """
    told = read_metadata(path).get(_KEY)
    if told is None:
        return None
    try:
        arguments = json.loads(told)
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise TrainedNetError(f"{path} is damaged: what it tells of its net is {told:.80}")
    return arguments


def _built(path: Path, arguments: Mapping[str, Any]) -> ResNet:
    """Without values."""
    try:
        with torch.device("meta"):
            return build_resnet(**arguments)
    except (TypeError, ValueError) as error:
        raise TrainedNetError(f"{path} tells of a net that cannot be built: {_line(error)}") from None


def _call(arguments: Mapping[str, Any]) -> str:
    """What was given to `build_resnet` beside its defaults."""
    defaults = {name: parameter.default for name, parameter in signature(build_resnet).parameters.items()}
    given = [f"{name}={value!r}" for name, value in arguments.items() if value != defaults[name]]
    return f"build_resnet({', '.join(given)})"


def _line(error: Exception) -> str:
    return f"{' '.join(str(error).split()):.300}"
