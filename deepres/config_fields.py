"""What kinds of values a configuration's settings have."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from deepres.bytesize import parse_bytes


class Section(BaseModel):
    """Settings that belong together: checked, frozen, without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


MOST_PIXELS = 2**14
"""Of an image, high or wide."""


def _in_fp32(value: float) -> float:
    if abs(value) > 1e38:
        raise ValueError(f"must fit fp32, which holds numbers up to 1e38, got {value:g}")
    return value


PositiveInt = Annotated[int, Field(ge=1)]
ImageSize = Annotated[int, Field(ge=1, le=MOST_PIXELS)]
NumClasses = Annotated[int, Field(ge=1, le=10_000_000)]
AnyFloat = Annotated[float, AfterValidator(_in_fp32)]
PositiveFloat = Annotated[AnyFloat, Field(gt=0)]
NonNegativeFloat = Annotated[AnyFloat, Field(ge=0)]
Bytes = Annotated[int, BeforeValidator(parse_bytes)]
