"""Weights that others have trained, for nets that `build_resnet` builds.

NOTE [ Weights from elsewhere ]
1. A source is a map of names, as data (`SOURCES`), and the arguments of `build_resnet` that make its function. Names
   and shapes alone do not: a net with the stride on another convolution takes the same file and computes something
   else. So the model is compared, module by module, with the net that the arguments make, before the file is.
2. Every key of the file is used, every parameter and buffer of the model is set, every shape is right, every number
   is real and finite: or nothing changes and all differences are told, in the file's names. Only
   `num_batches_tracked` may be missing (old files).
3. `timm`: the batch-normalised `resnetv2_50`, `_101` and `_152` (such as `resnetv2_101.a1h_in1k`). As in the
   authors' nets, units that change the shape share their activation with the projection, which has no batch norm;
   unlike there, the stride is on the 3×3 convolution, nothing is activated before the max pool, and the classifier
   is a 1×1 convolution. They want RGB from 0 … 1, less 0.5, divided by 0.5 (`data.normalize=half`). Not for: `_18`,
   `_34` (their first unit's activation is the branch's own), `d`, `t` (three convolutions in the stem, average pooling
   in shortcuts), `_bit`, `_gn`, `_evos`, `_frn` (other norms).
4. `torch7`: ResNet-200 of `fb.resnet.torch`, the one pre-activation net that was published there, with the keys of
   `convert_torch_to_pytorch` (nested `nn.Sequential`, numbered from 0). It is not quite the paper's net: units that
   change the shape project x_l itself, and batch norm follows; the first unit activates again what the stem has
   activated. Its convolutions have biases. Ours have none and need none: what is constant before a batch norm is
   subtracted from its running mean (`_fold_biases`), which leaves the function as it is, in training too. It wants
   RGB from 0 … 1, less ImageNet's mean, divided by its deviation, as `deepres.data` gives it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn

from deepres.models import ResidualUnit, ResNet, build_resnet
from deepres.models.difference import first_difference
from deepres.pretrained_names import SOURCES, KeyMap, Source
from deepres.tensor_files import read_tensors

_DEPTHS: dict[tuple[int, ...], int] = {
    (3, 4, 6, 3): 50,
    (3, 4, 23, 3): 101,
    (3, 8, 36, 3): 152,
    (3, 24, 36, 3): 200,
}
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_MOST_LISTED = 8


class PretrainedError(ValueError):
    """Weights and model do not fit, or a file holds no weights; the message is one line.

    Attributes:
        missing: keys that the model needs and the file lacks.
        unexpected: keys of the file that the model has no place for.
        wrong_shape: keys whose tensors have another shape.
        unusable: keys whose tensors hold what no net can compute with.
    """

    def __init__(
        self,
        message: str,
        missing: Sequence[str] = (),
        unexpected: Sequence[str] = (),
        wrong_shape: Sequence[str] = (),
        unusable: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.missing, self.unexpected = tuple(missing), tuple(unexpected)
        self.wrong_shape, self.unusable = tuple(wrong_shape), tuple(unusable)


def load_pretrained(model: ResNet, path: str | Path, source: Source = "timm") -> None:
    """Set a net's parameters and buffers from a file that another library has written.

    The net must be the one that the weights were trained for, classes included:

    - `timm`: `build_resnet(50, dataset="imagenet", num_classes=1000, stride_on="3x3", stem_activation=False)`,
      or 101 or 152.
    - `torch7`: `build_resnet(200, dataset="imagenet", num_classes=1000, stride_on="3x3", preactivation="own")`.

    For other classes, load first, then put another `nn.Linear` in the place of `model.head.linear`. What images the
    weights want, and where they differ from the paper's nets: NOTE [ Weights from elsewhere ] above.

    Args:
        model: the net; it stays as it is if anything does not fit.
        path: a `.safetensors`, or a `.pt` or `.pth` of plain tensors; nothing in it is executed.
        source: whose names the file has.

    Raises:
        PretrainedError: model or file is another net's, the file is damaged or holds anything but tensors by name, its
            numbers are of no use (NaN, say), or the model is on the meta device, which holds none; the message lists
            the differences.
        OSError: the file cannot be read, or there is none (FileNotFoundError).
        TypeError: the model is no `ResNet`.
        ValueError: there is no such source.
        ImportError: the file is a `.safetensors`, and safetensors is not installed.
    """
    if source not in get_args(Source):
        raise ValueError(f"source must be one of {', '.join(get_args(Source))}, got {source!r}")
    key_map = SOURCES[source]
    _check_model(model, key_map, source)
    try:
        given = read_tensors(Path(path))
    except ValueError as error:
        raise PretrainedError(str(error)) from None
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
    _check_plain(path, given)
    _check_file(path, given, needed_tensors, biases, model, key_map)
    _check_numbers(path, given, needed_tensors)
    if any(tensor.is_meta for tensor in state.values()):
        raise PretrainedError(
            "the model is on the meta device and holds no numbers: build it on another, such as cpu"
        )

    weights = {ours: given[theirs] for theirs, ours in (needed | biases).items() if theirs in given}
    if key_map.has_biases:
        _fold_biases(weights, len(model.units))
    for ours, tensor in state.items():
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


def _check_model(model: ResNet, key_map: KeyMap, source: Source) -> None:
    """Compare the model with the net that the source's weights were trained in."""
    if not isinstance(model, ResNet):
        raise TypeError(f"the model must be a deepres.ResNet, got {type(model).__name__}")
    depth = _DEPTHS.get(model.units_per_stage, 0)
    linear = getattr(model.head, "linear", None)
    block = _block(model)
    if depth == 0 or block != "bottleneck" or not isinstance(linear, nn.Linear):
        raise PretrainedError(
            f"{source} has weights of ImageNet nets of bottleneck units (depth "
            f"{', '.join(map(str, key_map.depths))}); this model has {_dashed(model.units_per_stage)} {block} units"
        )
    with torch.device("meta"):
        meant = build_resnet(
            depth,
            dataset="imagenet",
            num_classes=linear.out_features,
            stride_on="3x3",
            stem_activation=key_map.stem_activation,
            preactivation=key_map.preactivation,
        )
    difference = first_difference(model, meant)
    if difference is not None:
        raise PretrainedError(
            f"weights of {source} fit {key_map.arguments(depth, linear.out_features)}; this model's {difference}"
        )


def _check_file(
    path: str | Path,
    given: dict[str, Tensor],
    needed: dict[str, Tensor],
    biases: dict[str, str],
    model: ResNet,
    key_map: KeyMap,
) -> None:
    """Compare numbers of units, keys and shapes; a classifier may be a 1×1 convolution."""
    missing = [key for key in needed if key not in given and not key.endswith(".num_batches_tracked")]
    unexpected = [key for key in given if key not in needed and key not in biases]
    wrong_shape = [
        key
        for key, tensor in needed.items()
        if key in given and given[key].shape not in (tensor.shape, _as_convolution(tensor))
    ]
    wrong_shape += [
        key
        for key in biases
        if key in given and given[key].shape != needed[f"{key.removesuffix('bias')}weight"].shape[:1]
    ]
    if missing or unexpected or wrong_shape:
        shapes = [f"{key} {list(given[key].shape)}" for key in wrong_shape]
        parts = [
            f"{len(keys)} {what}: {_some(keys)}"
            for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
            if keys
        ]
        depth, num_classes = _DEPTHS[model.units_per_stage], model.get_parameter("head.linear.bias").numel()
        message = f"{path} is not of {key_map.arguments(depth, num_classes)}: {'; '.join(parts)}"
        units = _units_per_stage(given, key_map)
        if units in _DEPTHS and units != model.units_per_stage:
            message = (
                f"{path} has {_dashed(units)} units (depth {_DEPTHS[units]}), this model "
                f"{_dashed(model.units_per_stage)} (depth {depth})"
            )
        raise PretrainedError(message, missing, unexpected, wrong_shape)


def _check_plain(path: str | Path, given: dict[str, Tensor]) -> None:
    """Tensors that have values, all of them, in memory."""
    unusable = dict[str, str]()
    for key, tensor in given.items():
        if tensor.layout != torch.strided:
            unusable[key] = "sparse"
        elif tensor.is_nested or tensor.is_meta:
            unusable[key] = "nested" if tensor.is_nested else "without values"
    _refuse_unusable(path, unusable)


def _check_numbers(path: str | Path, given: dict[str, Tensor], needed: dict[str, Tensor]) -> None:
    """Compare what kind the numbers are, and whether the model can compute with them."""
    unusable = dict[str, str]()
    for key, tensor in given.items():
        is_count = key.endswith(".num_batches_tracked")
        if tensor.dtype not in (_INTEGERS if is_count else _FLOATS):
            unusable[key] = str(tensor.dtype).removeprefix("torch.")
            continue
        dtype = needed[key].dtype if key in needed else torch.float32
        values = tensor.to(dtype)
        if not values.isfinite().all():
            unusable[key] = f"not finite as {str(dtype).removeprefix('torch.')}"
        elif (is_count or key.endswith(".running_var")) and (values < 0).any():
            unusable[key] = "negative"
    _refuse_unusable(path, unusable)


def _refuse_unusable(path: str | Path, unusable: dict[str, str]) -> None:
    if unusable:
        told = _some([f"{key} ({why})" for key, why in unusable.items()])
        raise PretrainedError(
            f"{path} is no file of weights, which are plain, real, finite numbers: {told}",
            unusable=list(unusable),
        )


def _units_per_stage(keys: Iterable[str], key_map: KeyMap) -> tuple[int, ...]:
    """How many units each stage has whose tensors have those names."""
    pattern = (
        re.escape(key_map.unit[0][0]).replace(r"\{stage\}", r"(\d+)").replace(r"\{unit\}", r"\d+") + r"\."
    )
    found = {match[0]: int(match[1]) for match in map(re.compile(pattern).match, keys) if match}
    return tuple(number for _, number in sorted(Counter(found.values()).items()))


def _block(model: ResNet) -> str:
    num_convs = {len(unit.convs) if isinstance(unit, ResidualUnit) else 0 for unit in model.units}
    return {1: "single", 2: "basic", 3: "bottleneck"}.get(max(num_convs), "other")


def _dashed(units: Sequence[int]) -> str:
    return "-".join(map(str, units))


def _as_convolution(weight: Tensor) -> tuple[int, ...]:
    return (*weight.shape, 1, 1) if weight.dim() == 2 else tuple(weight.shape)


def _some(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _MOST_LISTED} more" if len(keys) > _MOST_LISTED else ""
    return ", ".join(keys[:_MOST_LISTED]) + more


def _fold_biases(weights: dict[str, Tensor], num_units: int) -> None:
    """Take the convolutions' biases out, and what they add out of the running means of the batch norms behind.

    A bias right before a batch norm is subtracted from its mean. A unit's last one is added to x_{l+1}: it, and
    those of the units before, are subtracted wherever x is read: in each unit's first norm and in the head's, and,
    times the weights, in that of a projection, which ends it.
    """

    def bias(conv: str) -> Tensor:
        return weights.pop(f"{conv}.bias", torch.zeros(weights[f"{conv}.weight"].shape[0])).double()

    def subtract(constant: Tensor, norm: str) -> None:
        weights[f"{norm}.running_mean"] = weights[f"{norm}.running_mean"].double() - constant

    subtract(bias("stem.conv"), "stem.norm")
    offset = torch.zeros(()).double()
    for unit in (f"units.{i}" for i in range(num_units)):
        subtract(offset, f"{unit}.norms.0")
        subtract(bias(f"{unit}.convs.0"), f"{unit}.norms.1")
        subtract(bias(f"{unit}.convs.1"), f"{unit}.norms.2")
        projection = f"{unit}.shortcut.conv"
        if f"{projection}.weight" in weights:
            projected = (weights[f"{projection}.weight"].double().flatten(1) * offset).sum(1)
            subtract(projected + bias(projection), f"{unit}.shortcut.norm")
            offset = torch.zeros(()).double()
        offset = offset + bias(f"{unit}.convs.2")
    subtract(offset, "head.norm")
