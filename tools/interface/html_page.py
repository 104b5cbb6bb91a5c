"""A report as a self-contained HTML page: tables and embedded pictures."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
body { font: 16px/1.45 system-ui, sans-serif; color: #222; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: 0; } h2 { margin-top: 2.2rem; border-bottom: 1px solid #ccc; }
h3 { margin-bottom: .3rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #e3e3e3; white-space: nowrap;
  vertical-align: top; }
td.long { white-space: normal; text-align: left; min-width: 13rem; overflow-wrap: anywhere; }
th { background: #f2f5f8; } td:first-child, th:first-child { text-align: left; }
tr:hover td { background: #f7fafc; } img { width: 100%; max-width: 60rem; display: block; margin: 1rem 0; }
.wide { overflow-x: auto; } .quiet { color: #555; font-size: .9rem; }
"""


_LONG = 30
_CODE = re.compile("`([^`]+)`")

MARK = '<meta name="generator" content="deepres">'
"""What identifies a page written here."""


@dataclass(frozen=True)
class Section:
    """A part of the page; empty fields are left out.

    Attributes:
        title: heading.
        lines: text, one paragraph each.
        tables: cells by caption, the heading row first.
        figures: pictures by their alternative text.
    """

    title: str
    lines: Sequence[str] = ()
    tables: Sequence[tuple[str, Sequence[Sequence[str]]]] = ()
    figures: Sequence[tuple[str, Figure]] = ()


def page_html(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The page, pictures embedded as data."""
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        f'{MARK}<meta name="viewport" content="width=device-width"><title>{escape(title)}</title>',
        f"<style>{_STYLE}</style></head><body>",
        f'<h1>{escape(title)}</h1><p class="quiet">{_text(subtitle)}</p>',
    ]
    for section in sections:
        parts.append(f"<h2>{escape(section.title)}</h2>")
        parts += [f'<img alt="{escape(what)}" src="{_data(figure)}">' for what, figure in section.figures]
        for caption, rows in section.tables:
            if caption:
                parts.append(f"<h3>{escape(caption)}</h3>")
            parts.append(_table(rows))
        parts += [f'<p class="quiet">{_text(line)}</p>' for line in section.lines]
    parts.append("</body></html>\n")
    return "\n".join(parts)


def _table(rows: Sequence[Sequence[str]]) -> str:
    heading = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    body = "\n".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows[1:])
    return (
        f'<div class="wide"><table><thead><tr>{heading}</tr></thead><tbody>\n{body}\n</tbody></table></div>'
    )


def _text(line: str) -> str:
    return _CODE.sub(r"<code>\1</code>", escape(line))


def _cell(text: str) -> str:
    """A table cell; wraps if it would widen the table."""
    return f'<td class="long">{escape(text)}</td>' if len(text) > _LONG else f"<td>{escape(text)}</td>"


def _data(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
