"""A trained net in one file: its weights, the arguments of `build_resnet` that make it, and what it was trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from deepres.known_sets import Normalize
from deepres.models import ResNet, build_resnet
from deepres.models.difference import first_difference
from deepres.tensor_files import TensorFile, read_tensor_file

_KEY = "deepres.net"
"""The only key: safetensors writes several in random order, and equal nets are to be equal files."""


class TrainedNetError(ValueError):
    """A file's net is unknown, or not the one that was expected; the message is one line."""


class TrainedOn(NamedTuple):
    """What a net was trained on, as far as its file of weights records it.

    Attributes:
        normalize: how the images were normalised (`data.normalize`).
        classes_sha256: of the names of its classes, which image folders give; else empty.
    """

    normalize: Normalize | None
    classes_sha256: str


def net_metadata(
    arguments: Mapping[str, Any], normalize: Normalize, classes_sha256: str = ""
) -> dict[str, str]:
    """Metadata of a file of weights, for `safetensors.torch.save_file`.

    Args:
        arguments: of `build_resnet`, which make the net whose weights the file holds.
        normalize: how the images that it was trained on were normalised.
        classes_sha256: of the names of its classes; empty if they have none.
    """
    told = {"build_resnet": dict(arguments), "normalize": normalize, "classes_sha256": classes_sha256}
    return {_KEY: json.dumps(told)}


def trained_on(file: TensorFile) -> TrainedOn:
    """What the net in a file of weights was trained on.

    Raises:
        TrainedNetError: what it records is damaged.
    """
    told = _told(file)
    return TrainedOn(None, "") if told is None else TrainedOn(told["normalize"], told["classes_sha256"])


def load_resnet(path: str | Path) -> ResNet:
    """Load the net in a run's `model.safetensors`, or one that `tools/export.py` wrote: on the CPU, in evaluation mode.

    The file records the net's architecture. Nothing in it is executed, and no random number is drawn. Numbers of other
    dtypes become fp32. A checkpoint's checksums are not verified.

    Raises:
        TrainedNetError: the file does not record its architecture, or its weights are not those of its architecture.
        ValueError: it cannot be read as tensors.
        OSError: it cannot be read at all, or there is none (FileNotFoundError).
        ImportError: safetensors is not installed.
    """
    return recorded_net(read_tensor_file(Path(path)))


def recorded_net(file: TensorFile) -> ResNet:
    """Like `load_resnet`, for a file that has been read already."""
    recorded = _recorded(file)
    if recorded is None:
        raise TrainedNetError(
            f"{file.path} does not record its architecture, as files of deepres do: build the net with build_resnet "
            "and use its load_state_dict"
        )
    net = recorded.net.to_empty(device="cpu")
    net.load_state_dict(file.tensors)
    return net.eval()


def set_weights(net: ResNet, file: TensorFile) -> None:
    """Set a net's parameters and buffers to those of a file.

    Raises:
        TrainedNetError: they are another net's, by what the file records or by their names and shapes.
    """
    recorded = _recorded(file)
    if recorded is not None:
        difference = first_difference(net, recorded.net)
        if difference is not None:
            raise TrainedNetError(
                f"{file.path} has weights of {build_call(recorded.arguments)}: here {difference}"
            )
    wrong = _first_wrong(file.tensors, net.state_dict())
    if wrong is not None:
        raise TrainedNetError(f"{file.path} has weights of another net: {wrong}")
    net.load_state_dict(file.tensors)


def recorded_arguments(file: TensorFile) -> dict[str, Any] | None:
    """All arguments of `build_resnet` that make the net of a file of weights; None if it does not record them.

    Raises:
        TrainedNetError: what it records does not make a net, or makes one with other weights than it holds.
    """
    recorded = _recorded(file)
    return None if recorded is None else recorded.arguments


def build_call(arguments: Mapping[str, Any]) -> str:
    """The call of `build_resnet` with these arguments, without defaults, for messages."""
    defaults = {name: parameter.default for name, parameter in signature(build_resnet).parameters.items()}
    given = [f"{name}={value!r}" for name, value in arguments.items() if value != defaults[name]]
    return f"build_resnet({', '.join(given)})"


class _Recorded(NamedTuple):
    """Arguments of `build_resnet`, and the net that they make, on the meta device."""

    arguments: dict[str, Any]
    net: ResNet


def _told(file: TensorFile) -> dict[str, Any] | None:
    """What `net_metadata` has recorded."""
    text = file.metadata.get(_KEY)
    if text is None:
        return None
    told: dict[str, Any] | None = None
    with suppress(ValueError, RecursionError):
        told = json.loads(text)
    if (
        not isinstance(told, dict)
        or not isinstance(told.get("build_resnet"), dict)
        or told.get("normalize") not in get_args(Normalize)
        or not isinstance(told.get("classes_sha256"), str)
    ):
        raise TrainedNetError(f"{file.path} is damaged: it records {text[:80]!r} as its net")
    return told


def _recorded(file: TensorFile) -> _Recorded | None:
    path, tensors, told = file.path, file.tensors, _told(file)
    if told is None:
        return None
    given = told["build_resnet"]
    depth = given.get("depth")
    if isinstance(depth, int) and depth > len(tensors):  # before so many units are built
        raise TrainedNetError(f"{path} is damaged: it records {depth} layers and has {len(tensors)} tensors")
    try:
        bound = signature(build_resnet).bind(**given)
        bound.apply_defaults()
        with torch.device("meta"):
            net = build_resnet(**bound.arguments)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TrainedNetError(f"{path} records a net that cannot be built: {_line(error)}") from None
    wrong = _first_wrong(tensors, net.state_dict())
    if wrong is not None:
        raise TrainedNetError(f"{path} does not hold the weights of {build_call(bound.arguments)}: {wrong}")
    return _Recorded(bound.arguments, net)


def _first_wrong(tensors: Mapping[str, Tensor], needed: Mapping[str, Tensor]) -> str | None:
    for name in {**needed, **tensors}:
        if name not in tensors:
            return f"{name} is missing"
        if name not in needed:
            return f"unexpected tensor {name[:80]!r}"
        if tensors[name].shape != needed[name].shape:
            return f"{name} is {list(tensors[name].shape)} instead of {list(needed[name].shape)}"
    return None


def _line(error: Exception) -> str:
    return f"{' '.join(str(error).split()):.300}"
