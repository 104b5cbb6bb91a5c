"""Load pre-trained weights of other libraries into nets that `build_resnet` builds.

NOTE [ Weights from elsewhere ]
1. A source is a map of names, as data (`SOURCES`), and the arguments of `build_resnet` that make a net with the same
   function. Names and shapes alone do not determine it: a net with the stride on another convolution accepts the same
   file and computes something else. So the model is first compared, module by module, with the net that the arguments
   make, and then with the file.
2. Either every key of the file is used, every parameter and buffer of the model is set, every shape is right, and every
   number is real and finite; or nothing changes and all differences are reported, in the file's names. Only
   `num_batches_tracked` may be missing (old files).
3. `timm`: the batch-normalised `resnetv2_50`, `_101` and `_152` (such as `resnetv2_101.a1h_in1k`). As in the
   authors' nets, units that change the shape share their activation with the projection, which has no batch norm;
   unlike there, the stride is on the 3×3 convolution, there is no activation before the max pool, and the classifier
   is a 1×1 convolution. Their input is RGB in 0 … 1, minus 0.5, divided by 0.5 (`data.normalize=half`). Not for: `_18`,
   `_34` (their first unit's activation is the branch's own), `d`, `t` (three convolutions in the stem, average pooling
   in shortcuts), `_bit`, `_gn`, `_evos`, `_frn` (other norms).
4. `torch7`: ResNet-200 of `fb.resnet.torch`, the only pre-activation net that was published there, with the keys of
   `convert_torch_to_pytorch` (nested `nn.Sequential`, numbered from 0). It is not quite the paper's net: units that
   change the shape project x_l itself, followed by batch norm; the first unit activates again what the stem has
   activated. Its convolutions have biases. Ours have none and need none: a constant before a batch norm is subtracted
   from its running mean (`fold_biases`), which does not change the function, even in training. Its input is RGB in
   0 … 1, minus ImageNet's mean, divided by its standard deviation, as `deepres.data` provides it.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, get_args

import torch
from torch import Tensor, nn

from deepres.models import ResidualUnit, ResNet, build_resnet
from deepres.pretrained.biases import fold_biases
from deepres.pretrained.checks import (
    PretrainedError,
    check_file,
    check_model,
    check_numbers,
    check_plain,
    depth_of,
)
from deepres.pretrained.key_maps import SOURCES, KeyMap, Source
from deepres.tensor_files import TensorFile, read_tensor_file
from deepres.trained_net import net_metadata

_IMAGENET_CLASSES = 1000


def load_pretrained(model: ResNet, path: str | Path, source: Source = "timm") -> None:
    """Set a net's parameters and buffers from another library's file.

    The net must be the one that the weights were trained for, classes included:

    - `timm`: `build_resnet(50, dataset="imagenet", num_classes=1000, stride_on="3x3", stem_activation=False)`,
      or 101 or 152.
    - `torch7`: `build_resnet(200, dataset="imagenet", num_classes=1000, stride_on="3x3", preactivation="own")`.

    For other classes, load first, then replace `model.head.linear` by another `nn.Linear`. For the input that the
    weights expect, and how they differ from the paper's nets, see NOTE [ Weights from elsewhere ] above.

    Args:
        model: the net; unchanged if anything does not fit.
        path: a `.safetensors`, or a `.pt` or `.pth` of plain tensors; nothing in it is executed.
        source: whose names the file has.

    Raises:
        PretrainedError: model or file is another net's, the file is damaged or holds anything but named tensors, its
            numbers are unusable (such as NaN), or the model is on the meta device, which holds none; the message lists
            the differences.
        OSError: the file cannot be read, or there is none (FileNotFoundError).
        TypeError: the model is not a `ResNet`.
        ValueError: there is no such source.
        ImportError: the file is a `.safetensors`, and safetensors is not installed.
    """
    if source not in get_args(Source):
        raise ValueError(f"source must be one of {', '.join(get_args(Source))}, got {source!r}")
    check_model(model, SOURCES[source], source)
    try:
        file = read_tensor_file(Path(path))
    except ValueError as error:
        raise PretrainedError(str(error)) from None
    weights = _checked(model, file, source)
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise PretrainedError(
            "the model is on the meta device and holds no numbers: build it on another, such as cpu"
        )
    _set(model, weights)


class PretrainedNet(NamedTuple):
    """A net with another library's weights, in evaluation mode, and its `net_metadata`."""

    net: ResNet
    metadata: dict[str, str]


def read_pretrained(file: TensorFile, source: Source) -> PretrainedNet:
    """Build the net whose weights another library's file holds.

    Raises:
        PretrainedError: it is not of a net of that source, or is damaged, as in `load_pretrained`.
    """
    key_map = SOURCES[source]
    classifier = next(theirs for theirs, ours in key_map.net if ours == "head.linear")
    weight = file.tensors.get(f"{classifier}.weight")
    num_rows = 0 if weight is None or weight.dim() == 0 else len(weight)
    depth = depth_of(file.path, file.tensors, key_map, source)
    arguments = key_map.arguments(depth, num_rows or _IMAGENET_CLASSES)
    with torch.device("meta"):  # a damaged file may ask for any number of classes
        net = build_resnet(**arguments)
    weights = _checked(net, file, source)
    net.to_empty(device="cpu")
    _set(net, weights)
    return PretrainedNet(net.eval(), net_metadata(arguments, key_map.normalize))


def _checked(model: ResNet, file: TensorFile, source: Source) -> dict[str, Tensor]:
    """A file's tensors by the model's names, without biases, once they are known to fit it."""
    key_map, path, given = SOURCES[source], file.path, file.tensors
    names = _module_names(model, key_map)
    needed = {
        f"{theirs}.{name}": f"{ours}.{name}"
        for theirs, ours in names
        for name in model.get_submodule(ours).state_dict()
    }
    biases = {
        f"{theirs}.bias": f"{ours}.bias"
        for theirs, ours in names
        if key_map.has_biases and isinstance(model.get_submodule(ours), nn.Conv2d)
    }
    state = model.state_dict()
    needed_tensors = {theirs: state[ours] for theirs, ours in needed.items()}
    check_plain(path, given)
    check_file(path, given, needed_tensors, biases, model, key_map)
    check_numbers(path, given, needed_tensors)
    weights = {ours: given[theirs] for theirs, ours in (needed | biases).items() if theirs in given}
    if key_map.has_biases:
        fold_biases(weights, len(model.units))
    return weights


@torch.no_grad()
def _set(model: ResNet, weights: dict[str, Tensor]) -> None:
    for ours, tensor in model.state_dict().items():
        tensor.copy_(weights[ours].view_as(tensor) if ours in weights else torch.zeros_like(tensor))


def _module_names(model: ResNet, key_map: KeyMap) -> list[tuple[str, str]]:
    """All modules with parameters: the file's names and ours."""
    names, index = list(key_map.net), 0
    for stage, num_units in enumerate(model.units_per_stage):
        for unit in range(num_units):
            module = model.units[index]
            assert isinstance(module, ResidualUnit)
            projection = key_map.projection if module.shortcut.conv is not None else ()
            names += [
                (theirs.format(stage=stage + key_map.first_stage, unit=unit), f"units.{index}.{ours}")
                for theirs, ours in (*key_map.unit, *projection)
            ]
            index += 1
    return names
