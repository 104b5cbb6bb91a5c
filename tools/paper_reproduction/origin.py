"""Where a run was trained: `made_by.json` in its folder, which committed results keep."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from deepres.commit import replace_text
from deepres.run_folder import is_held
from measuring.provenance import origin_text, provenance
from paper_reproduction.rows import ROOT, ReproductionError

_NAME = "made_by.json"


@dataclass(frozen=True)
class Origin:
    """What `made_by.json` says.

    Attributes:
        machine: machine and versions in words; empty if it does not say.
        note: what the tables are to remark; may be empty.
    """

    machine: str = ""
    note: str = ""


@dataclass(frozen=True)
class Noted:
    """What `note_origin` did.

    Attributes:
        folder: of the run.
        text: that it wrote.
        before: the text that was there, of another process that began the same run; None if there was none.
        made: the folders that it made, the innermost first.
    """

    folder: Path
    text: str
    before: str | None
    made: tuple[Path, ...]


def note_origin(folder: Path, command: Sequence[str], note: str = "") -> Noted:
    """Note the command (see `portable`), date, machine and versions of a run that begins, and what is to be remarked.

    Raises:
        ReproductionError: the folder cannot be made.
        SaveError: the note cannot be written.
    """
    made = tuple(path for path in (folder, *folder.parents) if not path.exists())
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReproductionError(f"{folder} cannot be written: {error.strerror}") from None
    made_by = provenance("cuda" if torch.cuda.is_available() else "cpu")
    text = json.dumps({"command": portable(command), "note": note, **made_by}, indent=1) + "\n"
    before = _text(folder)
    replace_text(folder / _NAME, text)
    return Noted(folder, text, before, made)


def withdraw_origin(noted: Noted) -> None:
    """Undo `note_origin` for a run that was refused: the folders that it made go too, if they are empty.

    Another process may have begun the same run: its note stays, or is put back.
    """
    if _text(noted.folder) == noted.text:
        if noted.before is not None:
            replace_text(noted.folder / _NAME, noted.before)
        elif not is_held(noted.folder):
            (noted.folder / _NAME).unlink(missing_ok=True)
    for path in noted.made:
        try:
            path.rmdir()
        except OSError:  # it is not empty, or another process has removed it
            return


def _text(folder: Path) -> str | None:
    try:
        return (folder / _NAME).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def portable(command: Sequence[str]) -> str:
    """A command as others can repeat it: this interpreter is `python`, the project's files are relative to its folder,
    and so is what lies in the folder where it was started; data lies in DIR."""
    words = []
    for word in command:
        key, equals, value = word.rpartition("=")
        if word == sys.executable:
            value = "python"
        elif key == "data.root":
            value = "DIR"
        else:
            for folder in (ROOT, Path.cwd()):
                value = value.removeprefix(f"{folder}{os.sep}")
        words.append(key + equals + value)
    return shlex.join(words)


def read_origin(folder: Path) -> Origin:
    """Where a run was trained, and what its maker remarks.

    Raises:
        ReproductionError: the note is damaged.
    """
    path = folder / _NAME
    if not path.exists():
        return Origin()
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(note["machine"], str) or not note["versions"]:
            raise TypeError
        return Origin(origin_text(note), str(note.get("note", "")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ReproductionError(f"{path} is damaged: it must say machine and versions") from None


def origins_text(origins: Iterable[str]) -> list[str]:
    """A sentence for each machine, with the number of runs that it trained."""
    texts = []
    for origin, number in Counter(origins).items():
        runs = "1 run was" if number == 1 else f"{number} runs were"
        texts.append(f"{runs} trained on {origin or 'a machine that is not noted'}.")
    return texts
