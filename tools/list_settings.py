"""Print every setting of a run's configuration as Markdown: its values, its default, what it does.

python tools/list_settings.py > docs/settings.md
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from deepres.argument_parser import Parser
from deepres.config import Config
from interface.command_line import run_program

_ABOUT = """# Settings

A run is a YAML file of these sections; `section.key=value` on the command line overrides it. A run's `config.yaml` has
all of them, as they were. `python tools/list_settings.py > docs/settings.md` writes this page.
"""
_BYTES = {"budget", "device_memory"}
"""Integer settings that may be written with a unit."""


def main(arguments: list[str]) -> int:
    """Run a command line; 0."""
    Parser(description=__doc__).parse_args(arguments)
    print(reference())
    return 0


def reference() -> str:
    """The page."""
    sections = Config.model_json_schema()["$defs"]
    lines = [_ABOUT]
    for name, field in Config.model_fields.items():
        assert isinstance(field.annotation, type)
        section = sections[field.annotation.__name__]
        lines += [f"## {name}", "", _one_line(section["description"]), ""]
        lines += ["| setting | values | default | |", "|---|---|---|---|"]
        required = section.get("required", [])
        for key, setting in section["properties"].items():
            values = " or ".join(dict.fromkeys(_values(key, setting)))
            default = "must be given" if key in required else f"`{_plain(setting['default'])}`"
            about = _one_line(setting["description"])
            lines.append(f"| `{name}.{key}` | {values} | {default} | {about} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def _values(key: str, schema: dict[str, Any]) -> Iterator[str]:
    """The values that a setting may have, from its JSON schema."""
    for each in schema.get("anyOf", [schema]):
        if "enum" in each or "const" in each:
            yield ", ".join(f"`{value}`" for value in each.get("enum", [each.get("const")]))
        elif each["type"] == "array":
            yield "list of " + " or ".join(_values(key, each["items"]))
        elif each["type"] == "string":
            text = "`N steps`, `N epochs` or `N minutes`" if "pattern" in each else "text"
            yield "path" if each.get("format") == "path" else text
        elif each["type"] == "integer" and key in _BYTES:
            yield "bytes, such as `2GiB`"
        elif each["type"] in ("integer", "number"):
            kind = "whole number" if each["type"] == "integer" else "number"
            signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
            limits = [f"{sign} {each[limit]:,}" for limit, sign in signs.items() if limit in each]
            yield " ".join([kind, ", ".join(limits)]).strip()
        else:
            yield {"boolean": "`true`, `false`", "null": "`null`"}[each["type"]]


def _plain(default: object) -> str:
    """A default as YAML writes it."""
    return default if isinstance(default, str) and default else json.dumps(default)


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    run_program(main)
