"""Check that pre-trained weights fit a net, before anything is changed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from deepres.models import ResidualUnit, ResNet, build_resnet
from deepres.models.difference import first_difference
from deepres.pretrained.key_maps import KeyMap, Source
from deepres.trained_net import build_call
from deepres.wording import listed

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
    """Weights do not fit the model, or a file does not hold weights; the message is one line.

    Attributes:
        missing: keys that the model needs and the file lacks.
        unexpected: keys of the file that the model does not have.
        wrong_shape: keys whose tensors have another shape.
        unusable: keys whose tensors no net can compute with.
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


def depth_of(path: str | Path, given: Iterable[str], key_map: KeyMap, source: Source) -> int:
    """The depth of the net with tensors of these names.

    Raises:
        PretrainedError: there is no such net.
    """
    units = _units_per_stage(given, key_map)
    if units not in _DEPTHS:
        has = f"{_dashed(units)} units" if units else "no units"
        raise PretrainedError(
            f"{path} is not of a net of {source} (published: depth {', '.join(map(str, key_map.depths))}): by its "
            f"names it has {has}"
        )
    return _DEPTHS[units]


def check_model(model: ResNet, key_map: KeyMap, source: Source) -> None:
    """Check that the model is the net that the source's weights were trained for."""
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
    arguments = key_map.arguments(depth, linear.out_features)
    with torch.device("meta"):
        meant = build_resnet(**arguments)
    difference = first_difference(model, meant)
    if difference is not None:
        raise PretrainedError(f"weights of {source} fit {build_call(arguments)}; this model's {difference}")


def check_file(
    path: str | Path,
    given: dict[str, Tensor],
    needed: dict[str, Tensor],
    biases: dict[str, str],
    model: ResNet,
    key_map: KeyMap,
) -> None:
    """Check numbers of units, keys and shapes; a classifier may be a 1×1 convolution."""
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
            f"{len(keys)} {what}: {listed(keys, _MOST_LISTED)}"
            for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
            if keys
        ]
        depth, num_classes = _DEPTHS[model.units_per_stage], model.get_parameter("head.linear.bias").numel()
        message = f"{path} is not of {build_call(key_map.arguments(depth, num_classes))}: {'; '.join(parts)}"
        units = _units_per_stage(given, key_map)
        if units in _DEPTHS and units != model.units_per_stage:
            message = (
                f"{path} has {_dashed(units)} units (depth {_DEPTHS[units]}), this model "
                f"{_dashed(model.units_per_stage)} (depth {depth}): {'; '.join(parts)}"
            )
        raise PretrainedError(message, missing, unexpected, wrong_shape)


def check_plain(path: str | Path, given: dict[str, Tensor]) -> None:
    """Check that tensors are dense and hold values: not sparse, nested or on the meta device."""
    unusable = dict[str, str]()
    for key, tensor in given.items():
        if tensor.layout != torch.strided:
            unusable[key] = "sparse"
        elif tensor.is_nested or tensor.is_meta:
            unusable[key] = "nested" if tensor.is_nested else "without values"
    _refuse_unusable(path, unusable)


def check_numbers(path: str | Path, given: dict[str, Tensor], needed: dict[str, Tensor]) -> None:
    """Check dtypes, and that values are finite and, for variances and counts, not negative."""
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
        told = listed([f"{key} ({why})" for key, why in unusable.items()], _MOST_LISTED)
        raise PretrainedError(
            f"{path} is not a file of weights (plain, real, finite numbers): {told}",
            unusable=list(unusable),
        )


def _units_per_stage(keys: Iterable[str], key_map: KeyMap) -> tuple[int, ...]:
    """The number of units in each stage, from the names of their tensors."""
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
