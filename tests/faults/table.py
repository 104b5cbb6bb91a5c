"""What the faults did, as a table."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path


@dataclass
class Row:
    """One kind of fault."""

    tries: int = 0
    survived: int = 0
    lost: int = 0
    seconds: float = 0.0


@dataclass
class FaultTable:
    """Counts, for each kind of fault, the tries, those survived, and the most steps lost and seconds taken."""

    rows: dict[str, Row] = field(default_factory=dict)

    def add(self, fault: str, survived: bool, lost: int = 0, *, seconds: float = 0.0, tries: int = 1) -> None:
        row = self.rows.setdefault(fault, Row())
        row.tries += tries
        row.survived += tries * bool(survived)
        row.lost = max(row.lost, lost)
        row.seconds = max(row.seconds, seconds)

    def to_markdown(self) -> str:
        lines = [
            "| fault | times tried | survived | lost steps (most) | seconds to the end (most) |",
            "|---|---|---|---|---|",
        ]
        for fault, row in sorted(self.rows.items(), key=lambda item: item[0].lower()):
            seconds = f"{row.seconds:.1f}" if row.seconds else ""
            lines.append(f"| {fault} | {row.tries} | {row.survived} | {row.lost} | {seconds} |")
        total = sum(row.tries for row in self.rows.values())
        survived = sum(row.survived for row in self.rows.values())
        lines.append(
            f"| **all** | {total} | {survived} | {max((r.lost for r in self.rows.values()), default=0)} | |"
        )
        return "\n".join(lines) + "\n"

    def write(self, path: Path, command: str, minutes: float) -> None:
        """The table with the command, date, machine and versions that made it."""
        packages = ("torch", "deepspeed", "fairscale", "safetensors", "numpy", "pydantic")
        versions = ", ".join(f"{p} {metadata.version(p)}" for p in packages)
        text = (
            f"# Faults\n\n`{command}`, {time.strftime('%Y-%m-%d')}, {minutes:.0f} minutes on {os.cpu_count()} cores, "
            f"Linux {platform.machine()}, CPU only.\nPython {platform.python_version()}, {versions}.\n\n"
            '"Survived": what the fault\'s row promises in docs/reliability.md held, and where a run went on, it ended '
            "with the bits of one that was never interrupted.\nThe saving interval of the killed runs is 3 steps.\n\n"
        )
        path.write_text(text + self.to_markdown(), encoding="utf-8")
