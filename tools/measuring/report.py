"""Results as files: a Markdown table and the same as JSON, both with their provenance."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepres.provenance import origin_text, provenance


@dataclass(frozen=True)
class Report:
    """A table and its provenance.

    Args:
        name: of the files, without suffix.
        title: its first line.
        columns: key of a row -> heading.
        rows: values by key; None is shown as a dash.
        notes: sentences below the table.
        data: what the JSON has in addition to the rows.
        device: where it was computed.
    """

    name: str
    title: str
    columns: Mapping[str, str]
    rows: Sequence[Mapping[str, Any]]
    notes: Sequence[str] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"

    def table(self) -> str:
        """The rows as a Markdown table, without empty columns."""
        keys = [key for key in self.columns if any(row.get(key) is not None for row in self.rows)]
        cells = [[_shown(row.get(key)) for key in keys] for row in self.rows]
        heads = [self.columns[key] for key in keys]
        widths = [max(len(row[j]) for row in [heads, *cells]) for j in range(len(heads))]
        is_number = [all(row[j][:1] in "-−–0123456789" for row in cells) for j in range(len(heads))]
        lines = [
            "| "
            + " | ".join(
                cell.rjust(width) if right else cell.ljust(width)
                for cell, width, right in zip(row, widths, is_number, strict=True)
            )
            + " |"
            for row in [heads, *cells]
        ]
        rule = "|" + "|".join(
            "-" * (width + 1) + (":" if right else "-")
            for width, right in zip(widths, is_number, strict=True)
        )
        return "\n".join([lines[0], rule + "|", *lines[1:]])

    def publish(self, folder: Path | None, tool: str, arguments: Sequence[str]) -> None:
        """Print the table and its notes; with a folder, also `write` them there, with the tool's command line."""
        print(self.table())
        for note in self.notes:
            print(f"\n{note}")
        if folder is not None:
            self.write(folder, shlex.join(["python", f"tools/{tool}", *arguments]))

    def write(self, folder: Path, command: str) -> None:
        """Write `<name>.md` and `<name>.json`, with the command that made them."""
        folder.mkdir(parents=True, exist_ok=True)
        made_by = {"command": command, **provenance(self.device)}
        document = {**made_by, **self.data, "rows": list(self.rows)}
        text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
        (folder / f"{self.name}.json").write_text(text, encoding="utf-8")
        parts = [
            f"# {self.title}",
            self.table(),
            *self.notes,
            f"Made by `{command}` on {made_by['date']}, {origin_text(made_by)}.",
        ]
        (folder / f"{self.name}.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.{1 if abs(value) >= 99.95 else 2 if abs(value) >= 9.995 else 3}f}"
    return str(value)
