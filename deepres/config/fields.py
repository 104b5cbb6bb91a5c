"""The types of a configuration's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

from deepres.bytesize import parse_bytes


class Section(BaseModel):
    """A group of settings: validated, frozen, without unknown keys."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_booleans_for_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        assert info.field_name is not None
        kind = cls.model_fields[info.field_name].annotation
        values = value if isinstance(value, list) else [value]
        if bool not in (kind, *get_args(kind)) and any(isinstance(each, bool) for each in values):
            raise ValueError(f"may not be {str(value).lower()} (nor yes, no, on or off, which YAML reads so)")
        return value


MOST_PIXELS = 2**14
"""The largest height or width of an image."""


def _in_fp32(value: float) -> float:
    if abs(value) > 1e38:
        raise ValueError(f"must fit fp32, which holds numbers up to 1e38, got {value:g}")
    return value


def _not_empty(value: Any) -> Any:
    if value == "":
        raise ValueError("may not be empty: leave it out, or give a path")
    return value


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"has no home folder for {path.parts[0]}, got {str(path)!r}") from None


PositiveInt = Annotated[int, Field(ge=1)]
ImageSize = Annotated[int, Field(ge=1, le=MOST_PIXELS)]
NumClasses = Annotated[int, Field(ge=1, le=10_000_000)]
AnyFloat = Annotated[float, AfterValidator(_in_fp32)]
PositiveFloat = Annotated[float, Field(gt=0), AfterValidator(_in_fp32)]
NonNegativeFloat = Annotated[float, Field(ge=0), AfterValidator(_in_fp32)]
Bytes = Annotated[int, BeforeValidator(parse_bytes)]
HostPath = Annotated[Path, BeforeValidator(_not_empty), AfterValidator(_expanded)]
"""May begin with `~`, which shells do not expand after `key=`."""
