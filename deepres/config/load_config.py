"""Turn YAML files and `section.key=value` into a checked configuration, or into one line on what is wrong where."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from deepres.config.run_config import Config, ConfigError
from deepres.config.strict_yaml import KeyPath, YamlError, parse_value, read_yaml
from deepres.wording import listed

_BASE = "base"
_COMMAND_LINE = "command line"
_PLAINLY = {
    "model_type": "be a section of lines `key: value`",
    "path_type": "be a path",
    "bool_parsing": "be true or false",
    "bool_type": "be true or false",
    "tuple_type": "be a list",
    "string_pattern_mismatch": "be such as '500 steps', '1 epoch' or '30 minutes'",
    "string_type": "be text, '…' in quotes",
}
"""Plainer wordings of pydantic's errors, by their type; only `train.save_every` has a pattern."""


@dataclass(frozen=True)
class _Source:
    """The settings as they were read.

    Attributes:
        path: the file that was asked for; None if there is none.
        content: its sections, merged with its base's.
        places: where each key was set: `file:line`, or on the command line.
    """

    path: Path | None
    content: dict[str, Any]
    places: dict[KeyPath, str]


def load_config(path: Path | None, overrides: Iterable[str] = ()) -> Config:
    """Read a YAML file and its base, apply `section.key=value` overrides, and check what needs no data or device.

    Args:
        path: the file; None: there are only overrides.
        overrides: later ones win.

    Raises:
        ConfigError: the message is one line that says what is wrong and where.
    """
    try:
        source = _Source(None, {}, {}) if path is None else _read_with_base(path)
        for override in overrides:
            _apply_override(source, override)
    except YamlError as error:
        raise ConfigError(str(error)) from None
    try:
        return Config.model_validate(source.content)
    except ValidationError as error:
        raise ConfigError(_one_line(error, source)) from None


def _read_with_base(path: Path) -> _Source:
    own, lines = read_yaml(path)
    places = {keys: f"{path}:{line}" for keys, line in lines.items()}
    if _BASE not in own:
        return _Source(path, own, places)
    where, name = places.pop((_BASE,)), own.pop(_BASE)
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{where}: base must be the path of a YAML file, got {name!r}")
    base_path = path.parent / name
    if not base_path.is_file():
        raise ConfigError(f"{where}: base {base_path}: there is no such file")
    content, lines = read_yaml(base_path)
    base_places = {keys: f"{base_path}:{line}" for keys, line in lines.items()}
    if _BASE in content:
        raise ConfigError(
            f"{base_places[_BASE,]}: a base may not have a base itself, got {content[_BASE]!r}: write its sections "
            f"into this file, or name it in {path}"
        )
    for section, values in own.items():
        merged = content.get(section)
        if isinstance(merged, dict) and isinstance(values, dict):
            merged.update(values)
        else:
            content[section] = values
    return _Source(path, content, base_places | places)


def _apply_override(source: _Source, override: str) -> None:
    key, equals, text = override.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if path[0] == _BASE:
        raise ConfigError(f"base is for files alone (base: FILE, as a line of its own), got {override!r}")
    if not equals or len(path) < 2 or not all(path):
        raise ConfigError(f"expected section.key=value (e.g. train.epochs=3), got {override!r}")
    section: Any = source.content
    for part in path[:-1]:
        section = section.setdefault(part, {}) if isinstance(section, dict) else None
    if not isinstance(section, dict):
        raise ConfigError(f"{override!r}: {'.'.join(path[:-1])} is not a section")
    try:
        section[path[-1]] = parse_value(text)
    except YamlError as error:
        raise ConfigError(f"{key.strip()}: {error}") from None
    for keys in [k for k in source.places if k[: len(path)] == path]:
        del source.places[keys]
    for length in range(1, len(path) + 1):
        source.places.setdefault(path[:length], _COMMAND_LINE)


def _one_line(error: ValidationError, source: _Source) -> str:
    """The first of pydantic's errors, unknown keys before all others, as one line."""
    details = sorted(error.errors(include_url=False), key=lambda d: d["type"] != "extra_forbidden")
    first = details[0]
    keys = tuple(_config_keys(first["loc"]))
    where = source.places.get(keys, str(source.path or _COMMAND_LINE))
    inside = {place for key, place in source.places.items() if key[: len(keys)] == keys}
    if _COMMAND_LINE in inside and where != _COMMAND_LINE:  # the error may be in a combination of settings
        where += f" and {_COMMAND_LINE}"
    name = ".".join(keys)
    if first["type"] == "extra_forbidden":
        known = _known_keys(keys[:-1])
        close = difflib.get_close_matches(keys[-1], known, n=1)
        hint = f"did you mean {'.'.join((*keys[:-1], close[0]))}?" if close else f"known: {listed(known)}"
        return f"{where}: unknown key {name}; {hint}"
    if first["type"] == "missing":
        return f"{where}: {name} is missing"
    # For a union (none | sqrt | N), name everything that it accepts.
    same_key = [d for d in details if tuple(_config_keys(d["loc"])) == keys]
    problems = [
        _PLAINLY.get(d["type"]) or d["msg"].removeprefix("Value error, ").removeprefix("Input should ")
        for d in same_key
    ]
    problem = " or ".join(
        dict.fromkeys(p if k == 0 else p.removeprefix("be ") for k, p in enumerate(problems))
    )
    if first["msg"].startswith("Input should ") or first["type"] in _PLAINLY:
        got = "nothing" if first["input"] is None else repr(first["input"])
        return f"{where}: {name} must {problem}, got {got}"
    return ": ".join(part for part in (where, name, problem) if part)


def _config_keys(location: tuple[int | str, ...]) -> Iterator[str]:
    """The keys of a pydantic error location, without union branches and list positions."""
    section: Any = Config
    for part in location:
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            return
        yield str(part)
        field = section.model_fields.get(str(part))
        section = field.annotation if field is not None else None


def _known_keys(keys: KeyPath) -> list[str]:
    section: Any = Config
    for key in keys:
        annotation = section.model_fields[key].annotation
        section = next((a for a in get_args(annotation) if hasattr(a, "model_fields")), annotation)
    return [*section.model_fields, *([] if keys else [_BASE])]
