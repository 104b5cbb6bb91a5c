"""The nets to measure: freshly drawn ones, or one from a checkpoint along with the same net at initialisation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepres.analysis.variants import Variant, VariantError, parse_variants
from deepres.config import Config, ConfigError, DataConfig, load_config
from deepres.data import DataError, find_data
from deepres.known_sets import KNOWN_SETS, SET_OF, Normalize
from deepres.models import ResNet, build_resnet
from deepres.net_options import Activation, Family
from deepres.trained_net import TrainedNetError, recorded_arguments, set_weights, trained_on
from deepres.weights import config_file_of, load_weights, num_classes_of

NOISE = "noise"


@dataclass(frozen=True)
class MeasuredNet:
    """A net to measure.

    Attributes:
        name: in tables and pictures.
        depth, dataset, num_classes: as in `build_resnet`.
        config: of the run that the net is from, if any.
        make: makes the net from a seed.
        normalize: how the images that it was trained on were normalised, if that is known.
    """

    name: str
    depth: int
    dataset: Family
    num_classes: int
    config: Config | None
    make: Callable[[int], ResNet]
    normalize: Normalize | None = None


def fresh_nets(
    depth: int, variants: str, activation: Activation | None, dataset: Family
) -> tuple[MeasuredNet, ...]:
    """Nets at initialisation, each drawn from the same seed.

    Raises:
        VariantError: there is no such variant.
        ValueError: there is no net of that depth.
    """
    num_classes = KNOWN_SETS[SET_OF[dataset]].num_classes
    return tuple(
        _fresh(variant, depth, dataset, num_classes) for variant in parse_variants(variants, activation)
    )


def checkpoint_nets(
    path: Path,
    depth: int | None,
    variants: str | None,
    activation: Activation | None,
    dataset: Family | None,
) -> tuple[MeasuredNet, ...]:
    """A trained net, preceded by the same net at initialisation.

    Args:
        path: a run's folder, a checkpoint or a file of weights that records its architecture; any other file needs
            the rest.
        depth, variants, activation, dataset: of such a file's net (`identity` and `cifar` if unset).

    Raises:
        ConfigError: there are no weights, they are another net's, or arguments repeat what the file records.
        VariantError, ValueError: there is no such net, or the file is damaged.
    """
    weights = load_weights(path)
    num_classes = num_classes_of(weights)
    config_file = config_file_of(path) if path.is_dir() else None
    config = None if config_file is None else load_config(config_file)
    arguments = recorded_arguments(weights) if config is None else config.model.building(num_classes)
    if arguments is not None:
        options = {
            "--depth": depth, "--variants": variants, "--activation": activation, "--dataset": dataset
        }  # fmt: skip
        given = [option for option, value in options.items() if value is not None]
        if given:
            raise ConfigError(f"{path} records its architecture: omit {' and '.join(given)}")
        fresh = _of_arguments(arguments, num_classes, config)
    else:
        if depth is None:
            raise ConfigError(f"{path} does not record its architecture: give its --depth")
        parsed = parse_variants("identity" if variants is None else variants, activation)
        if len(parsed) > 1:
            raise VariantError(f"{path} is one net: give one variant, not {len(parsed)}")
        fresh = _fresh(parsed[0], depth, dataset or "cifar", num_classes)

    def trained(seed: int) -> ResNet:
        net = fresh.make(seed)
        try:
            set_weights(net, weights)
        except TrainedNetError as error:
            raise ConfigError(f"the weights at {path} are of another net: {error}") from None
        return net

    normalize = trained_on(weights).normalize
    return tuple(
        replace(fresh, name=f"{fresh.name}, {when}", make=make, normalize=normalize)
        for when, make in (("at initialisation", fresh.make), ("trained", trained))
    )


def _of_arguments(arguments: dict[str, Any], num_classes: int, config: Config | None) -> MeasuredNet:
    def make(seed: int) -> ResNet:
        torch.manual_seed(seed)
        return build_resnet(**arguments)

    name = f"{arguments['shortcut']}+{arguments['activation']}"
    return MeasuredNet(name, arguments["depth"], arguments["dataset"], num_classes, config, make)


def batch_of(net: MeasuredNet, where: str | None, size: int, seed: int) -> tuple[Tensor, Tensor, str]:
    """Images (N, 3, H, W) and labels (N,) that a net can take, and the name of their data.

    Args:
        net: the net to measure.
        where: the folder of CIFAR or of images; or `noise`: normal noise with random labels. None: the training
            images of the net's run, or noise for a net of no run.
        size: N.
        seed: of noise, and of order and augmentation for a net of no run. A run's net has those of its `train.seed`,
            which synthetic images are made from too.

    Raises:
        deepres.data.DataError: the data cannot be used.
        ConfigError: the data has no folder, or more classes than the net.
    """
    run = net.config
    name = SET_OF[net.dataset] if run is None else run.data.name
    if where == NOISE or (where is None and run is None):
        generator = torch.Generator().manual_seed(seed)
        side = KNOWN_SETS[name].image_size if run is None else run.data.chosen_image_size
        images = torch.randn(size, 3, side, side, generator=generator)
        return images, torch.randint(net.num_classes, (size,), generator=generator), NOISE
    if run is None:
        name = "image_folder" if name == "imagenet" else name  # a subset of its classes will do
        assert where is not None
        normalize = net.normalize or KNOWN_SETS[name].normalize
        if not KNOWN_SETS[name].takes(normalize):
            raise ConfigError(
                f"the net was trained on images normalised by {normalize}, which {name} cannot be: give --data {NOISE}"
            )
        asked = DataConfig(name=name, root=Path(where), normalize=normalize)
    else:
        if where is not None and not KNOWN_SETS[name].has_root:
            raise ConfigError(
                f"the run's data, {name}, has no place: leave --data {where} out, or give --data {NOISE}"
            )
        asked = run.data if where is None else run.data.model_copy(update={"root": Path(where)})
        seed = run.train.seed
    try:
        source = find_data(asked).open(micro_batch_size=size, seed=seed)
        try:
            batch = next(iter(source.train_batches(0)))
        finally:
            source.close()
    except DataError as error:
        if where is not None:
            raise
        raise DataError(
            f"the run's own data, {name}, cannot be used: {error}; give its place, --data DIR, or --data {NOISE}"
        ) from None
    if source.info.num_classes > net.num_classes:
        raise ConfigError(f"{asked.root} has {source.info.num_classes} classes, the net {net.num_classes}")
    return batch.images, batch.labels, name


def _fresh(variant: Variant, depth: int, dataset: Family, num_classes: int) -> MeasuredNet:
    with torch.device("meta"):
        variant.build(depth, dataset, num_classes)  # reports a mistake before anything is measured

    def build(seed: int) -> ResNet:
        torch.manual_seed(seed)
        return variant.build(depth, dataset, num_classes)

    return MeasuredNet(variant.name, depth, dataset, num_classes, None, build)
