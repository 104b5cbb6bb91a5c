"""How long a row is trained: as long as in the paper, or a fraction of that."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction

from deepres.config import Config

SHORTEST = Decimal("0.000001")
_SHORT = "short-"


@dataclass(frozen=True)
class Length:
    """An exact fraction of a recipe's length.

    Attributes:
        fraction: from `SHORTEST` to 1, with at most 12 decimals.
    """

    fraction: Fraction

    @classmethod
    def parse(cls, text: str) -> Length:
        """From a decimal number such as `0.1`.

        Raises:
            ValueError: it is not one, or out of bounds.
        """
        try:
            number = Decimal(text)
        except InvalidOperation:
            number = Decimal("NaN")
        if not number.is_finite() or not SHORTEST <= number <= 1 or number != round(number, 12):
            raise ValueError(
                f"must be a number from {SHORTEST} to 1 (0.1 trains a tenth as long), got {text!r:.60}"
            )
        return cls(Fraction(number))

    @classmethod
    def of_folder(cls, name: str) -> Length | None:
        """The length whose `folder` has this name, if any."""
        try:
            length = FULL if name == FULL.folder else cls.parse(name.removeprefix(_SHORT))
        except ValueError:
            return None
        return length if length.folder == name else None

    @property
    def folder(self) -> str:
        """`full`, or `short-` and the fraction."""
        return "full" if self.fraction == 1 else f"{_SHORT}{self}"

    def __str__(self) -> str:
        """The fraction in decimals."""
        return f"{_decimal(self.fraction):f}"

    def settings(self, config: Config) -> list[str]:
        """The settings, `section.key=value`, that make a recipe this long; none for the full length.

        Numbers of steps and epochs are multiplied and rounded to the nearest, halves up; each is at least 1, milestones
        still rise, and the last one is before the end: a recipe in epochs has more epochs than milestones.

        Args:
            config: at full length.
        """
        if self.fraction == 1:
            return []
        train, optim = config.train, config.optim
        milestones: list[int] = []
        for milestone in optim.milestones:
            milestones.append(max(self._scaled(milestone), milestones[-1] + 1 if milestones else 1))
        settings = []
        for name, count, unit in (
            ("epochs", train.epochs, "epochs"),
            ("max_steps", train.max_steps, "iterations"),
        ):
            if count is not None:
                least = milestones[-1] + 1 if milestones and unit == optim.schedule_unit else 1
                settings.append(f"train.{name}={max(self._scaled(count), least)}")
        if milestones:
            settings.append(f"optim.milestones={milestones}")
        if optim.warmup:
            settings.append(f"optim.warmup={self._scaled(optim.warmup)}")
        return settings

    def is_of(self, count: int, whole: int) -> bool:
        """Whether `count` is this fraction of `whole`, rounded."""
        return count == self._scaled(whole)

    def _scaled(self, count: int) -> int:
        return max(1, int(count * self.fraction + Fraction(1, 2)))


FULL = Length(Fraction(1))


def _decimal(fraction: Fraction) -> Decimal:
    """Exact: such fractions were read from decimals."""
    return (Decimal(fraction.numerator) / Decimal(fraction.denominator)).normalize()
