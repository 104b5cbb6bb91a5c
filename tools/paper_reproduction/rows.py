"""The rows of the paper's tables with the configs that train them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from deepres import build_resnet
from deepres.config import Config, ModelConfig, load_config
from deepres.net_options import LAYERS
from deepres.run_net import expected_num_classes
from deepres.wording import listed, nearest
from paper_reproduction.claims import FAILED_ABOVE, TABLES, Claim, Table

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "paper"
RESULTS = ROOT / "results" / "paper"


class ReproductionError(ValueError):
    """A request that cannot be fulfilled; the message is one line."""


@dataclass(frozen=True)
class Row:
    """A row of a table and how it is trained.

    Attributes:
        table, claim: what the paper says.
        config: its configuration, resolved.
        twins: names of all rows that are trained like this one, in the paper's order, including this one: the paper
            shows some nets in several tables, or tested at several crops, and a run of one is a run of all.
    """

    table: Table
    claim: Claim
    config: Config
    twins: tuple[str, ...]

    @property
    def name(self) -> str:
        """`TABLE/ROW`."""
        return _name(self.table, self.claim)

    @property
    def config_path(self) -> Path:
        """The file of its config."""
        return _config_path(self.name)

    @property
    def figure(self) -> str:
        """The paper's error, in %, as printed there."""
        claim = self.claim
        if not self.table.is_in_paper:
            return "–"
        if claim.error is None:
            return f"fail (> {FAILED_ABOVE:g})"
        if claim.top5_error is not None:
            return f"{claim.error:.1f} / {claim.top5_error:.1f}"
        return f"{claim.error:.2f}" + f" ({claim.spread})" * bool(claim.spread)

    @property
    def default_seeds(self) -> tuple[int, ...]:
        """As many seeds as the paper's result has runs: the median of five on CIFAR, one on ImageNet."""
        return (1,) if self.config.model.dataset == "imagenet" else (1, 2, 3, 4, 5)

    @property
    def num_parameters(self) -> int:
        """The number of the net's parameters, all of which are trained."""
        return _num_parameters(self.config.model, expected_num_classes(self.config))


def all_rows() -> tuple[Row, ...]:
    """Every row, in the paper's order.

    Raises:
        ConfigError: a row's config cannot be read.
    """
    claims = [(table, claim) for table in TABLES for claim in table.claims]
    configs = {_name(*each): load_config(_config_path(_name(*each))) for each in claims}
    twins: dict[Config, list[str]] = {}
    for name, config in configs.items():
        twins.setdefault(_without_crop(config), []).append(name)
    return tuple(
        Row(table, claim, config, tuple(twins[_without_crop(config)]))
        for (table, claim), config in zip(claims, configs.values(), strict=True)
    )


def _without_crop(config: Config) -> Config:
    """The configuration without the test crop, on which training does not depend."""
    data = config.data.model_copy(update={"eval_image_size": None, "eval_shorter_side": None})
    return config.model_copy(update={"data": data})


def find_rows(rows: Sequence[Row], target: str) -> list[Row]:
    """The rows that `TABLE` or `TABLE/ROW` names.

    Raises:
        ReproductionError: there is none; the message lists the existing names, or the nearest.
    """
    target = target.rstrip("/")
    table, slash, name = target.partition("/")
    if not slash and table not in [each.name for each in TABLES]:
        namesakes = [row.name for row in rows if row.claim.name == table]
        alike = namesakes or [row.name for row in rows if table in row.claim.name]
        raise ReproductionError(
            f"there is no table {table!r}; {_did_you_mean(alike) or nearest(table, [t.name for t in TABLES])}"
        )
    found = [row for row in rows if target in (row.name, row.table.name)]
    if not found:
        of_table = [row.name for row in rows if row.table.name == table]
        hint = _did_you_mean([row for row in of_table if name in row])
        raise ReproductionError(
            f"there is no row {target!r}; {hint or nearest(target, of_table or [row.name for row in rows])}"
        )
    return found


def _did_you_mean(names: Sequence[str]) -> str:
    """A suggestion of names; empty if there are none."""
    return f"did you mean {listed(names, most=4)}?" if names else ""


def check_results(rows: Sequence[Row], results: Path) -> None:
    """Check that the folder of results exists, and that all folders in it belong to a row.

    Raises:
        ReproductionError: it does not exist (only `RESULTS` may be missing), or a folder does not have the name of a
            table or row.
    """
    if results != RESULTS and not results.is_dir():
        raise ReproductionError(
            f"there is no folder {results}; results are in {RESULTS} unless --results says so"
        )
    tables, names = [table.name for table in TABLES], [row.name for row in rows]
    for of_table in folders_in(results):
        if of_table.name not in tables:
            raise ReproductionError(
                f"{of_table} is not named after a table; {nearest(of_table.name, tables)}"
            )
        for folder in folders_in(of_table):
            name = f"{of_table.name}/{folder.name}"
            if name not in names:
                raise ReproductionError(f"{folder} is not named after a row; {nearest(name, names)}")


def folders_in(path: Path) -> list[Path]:
    """The folders in a folder, sorted by name, without hidden ones; none if there is no such folder.

    Raises:
        ReproductionError: it cannot be read.
    """
    try:
        return sorted(each for each in path.iterdir() if each.is_dir() and each.name[0] != ".")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ReproductionError(f"{path} cannot be read: {error.strerror}") from None


class _LeftEmpty(TorchFunctionMode):
    """Skips random initialisation, which takes milliseconds even for a tensor without values."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        is_drawn = function in (torch.Tensor.normal_, torch.Tensor.uniform_)
        return args[0] if is_drawn else function(*args, **(kwargs or {}))


@cache
def _num_parameters(model: ModelConfig, num_classes: int) -> int:
    options = model.building(num_classes)
    if model.dataset == "imagenet":
        return _count(options)
    block = model.chosen_block
    layers = 3 * LAYERS[block]  # of one unit in each of the three stages
    one, two = (_count({**options, "block": block, "depth": num * layers + 2}) for num in (1, 2))
    # A stage's further units are like its second one; building hundreds of them takes seconds.
    return one + (two - one) * ((model.depth - 2) // layers - 1)


def _count(options: dict[str, Any]) -> int:
    with torch.device("meta"), _LeftEmpty():
        net = build_resnet(**options)
    return sum(p.numel() for p in net.parameters())


def _name(table: Table, claim: Claim) -> str:
    return f"{table.name}/{claim.name}"


def _config_path(name: str) -> Path:
    return CONFIGS / f"{name}.yaml"
