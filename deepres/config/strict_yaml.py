"""Strict YAML: no duplicate keys, no aliases, no Python objects, and every error with its file and line."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

KeyPath = tuple[str, ...]
_INT = "tag:yaml.org,2002:int"


class _Loader(yaml.SafeLoader):
    """A loader without aliases, and of integers only in decimals, not YAML 1.1's others: `010` for 8, `1:30` for 90."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, form) for tag, form in forms if tag != _INT]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuse `*name`: a few lines of it can stand for millions of values."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "an alias (`*name`); write its value out", mark)
        return super().compose_node(parent, index)


_Loader.add_implicit_resolver(_INT, re.compile(r"[-+]?(0|[1-9][0-9_]*)$"), list("-+0123456789"))


_MISTAKES = (yaml.YAMLError, ValueError, KeyError, RecursionError)
"""What PyYAML raises; the last three for impossible dates, `!!bool x` and thousands of nested brackets."""


class YamlError(ValueError):
    """A file that is not YAML, or YAML that is refused; the message begins with `file:line`."""


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """The mapping in the file, and each key's line number (from 1), by the key's path.

    Raises:
        YamlError: the file cannot be read, is not YAML, is not a mapping, has a duplicate key or one that is not text,
            has an alias, or asks for anything but plain data (`!!python/object`).
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise YamlError(f"{path}: cannot be read: {reason}") from None
    try:
        node = yaml.compose(text, Loader=_Loader)
        lines: dict[KeyPath, int] = {}
        if node is not None:
            _note_lines(node, (), lines, path)
        content = yaml.load(text, _Loader)
    except YamlError:
        raise
    except _MISTAKES as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise YamlError(f"{where}: not valid YAML: {problem}") from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise YamlError(f"{path}:1: expected sections such as `model:`, got a {type(content).__name__}")
    return content, lines


def parse_value(text: str) -> Any:
    """Parse the value of a command-line `key=value` as YAML.

    Raises:
        YamlError: it is not YAML, or has a comment.
    """
    try:
        value = yaml.load(text, _Loader)
    except _MISTAKES:
        raise YamlError(f"{text!r:.80} is not a YAML value") from None
    if " #" in f" {text}" and "#" not in str(value):
        raise YamlError(f"{text!r} has a YAML comment from # on: quote the value ('…') if that belongs to it")
    return value


def _note_lines(node: yaml.Node, prefix: KeyPath, lines: dict[KeyPath, int], path: Path) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[Hashable] = set()
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            kind = "list" if isinstance(key, yaml.SequenceNode) else "mapping"
            raise YamlError(f"{path}:{line}: a key must be text, such as `model`, got a {kind}")
        if key.value in seen:
            raise YamlError(f"{path}:{line}: duplicate key {'.'.join((*prefix, str(key.value)))!r}")
        seen.add(key.value)
        lines[*prefix, str(key.value)] = line
        _note_lines(value, (*prefix, str(key.value)), lines, path)
