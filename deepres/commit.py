"""Write folders atomically: under a temporary name, checked, then renamed.

NOTE [ Committing a folder ]
1. Files are written to `NAME.tmp/` and each is forced to the disk (fsync).
2. `manifest.json` is written last: format, version, and every file's size and SHA-256. It carries a checksum of
   itself, and is read back only if its text is, byte for byte, what this module would write.
3. The folder is forced to the disk, renamed to `NAME`, and so is the folder that holds it.
4. So the manifest and files of a folder without `.tmp` were on disk before it got that name. A leftover `.tmp` was
   never finished and may be removed at any time.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

MANIFEST = "manifest.json"
UNFINISHED = ".tmp"
_FORMAT, _VERSION = "deepres.manifest", 1
_FULL = (errno.ENOSPC, errno.EDQUOT)
os.umask(_UMASK := os.umask(0))


class DamagedError(ValueError):
    """A folder whose files are not those that were committed; the message names the file."""


class NewerError(DamagedError):
    """A folder that a newer deepres wrote; it may well be whole."""


class SaveError(RuntimeError):
    """Something could not be written; the message has the path and, if the disk is full, the bytes."""


def commit_folder(target: Path, files: Mapping[str, Callable[[Path], object]], needed_bytes: int) -> None:
    """Write `target` by NOTE [ Committing a folder ]; an existing folder of that name is replaced.

    Args:
        target: the folder to be; its parent is created if necessary.
        files: for each name, a function that writes the file to a given path.
        needed_bytes: approximate size of the files, to fail early if they will not fit.

    Raises:
        SaveError: the disk is full or cannot be written; the unfinished folder is removed.
    """
    unfinished = target.with_name(target.name + UNFINISHED)
    try:
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(unfinished, ignore_errors=True)
        free_bytes = shutil.disk_usage(unfinished.parent).free
        if free_bytes < needed_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        unfinished.mkdir()
        sizes_and_hashes = {}
        for name, write in files.items():
            write(unfinished / name)
            _make_readable(unfinished / name)
            force_to_disk(unfinished / name)
            sizes_and_hashes[name] = [(unfinished / name).stat().st_size, file_sha256(unfinished / name)]
        (unfinished / MANIFEST).write_text(_manifest_text(sizes_and_hashes), encoding="utf-8")
        force_to_disk(unfinished / MANIFEST)
        force_to_disk(unfinished)
        if target.exists():  # damaged, and a resumed run has reached its step again
            replaced = target.with_name(f"{target.name}.replaced{UNFINISHED}")
            shutil.rmtree(replaced, ignore_errors=True)
            target.rename(replaced)
        unfinished.rename(target)
        force_to_disk(target.parent)
        shutil.rmtree(target.with_name(f"{target.name}.replaced{UNFINISHED}"), ignore_errors=True)
    except (OSError, SafetensorError) as error:
        message = _why_not(target, needed_bytes, error)
        shutil.rmtree(unfinished, ignore_errors=True)
        raise SaveError(message) from error


def verify_folder(folder: Path, names: frozenset[str]) -> None:
    """Check every file of a committed folder against its manifest.

    Args:
        folder: the folder.
        names: the names that its manifest may list; others are refused.

    Raises:
        DamagedError: the manifest or a file is missing, is a link, or has changed.
        NewerError: the manifest is newer than this deepres.
        OSError: one cannot be read.
    """
    for name, (num_bytes, sha256) in sorted(_read_manifest(folder, names).items()):
        _verify(folder / name, num_bytes, sha256)


def verify_file(path: Path, names: frozenset[str]) -> None:
    """Like `verify_folder`, for one file of the folder; the others may be missing."""
    files = _read_manifest(path.parent, names)
    if path.name not in files:
        raise DamagedError(f"{path.parent / MANIFEST} does not list {path.name}")
    _verify(path, *files[path.name])


def _verify(path: Path, num_bytes: int, sha256: str) -> None:
    if path.is_symlink() or not path.is_file():
        raise DamagedError(f"{path} is {'not a regular file' if path.exists() else 'missing'}")
    if path.stat().st_size != num_bytes:
        raise DamagedError(f"{path} has {path.stat().st_size} bytes, {num_bytes} were saved")
    if file_sha256(path) != sha256:
        raise DamagedError(f"{path} has changed since it was saved (SHA-256)")


def replace_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically: readers find the old text or the new, even after a crash.

    Raises:
        SaveError: it cannot be written.
    """
    replace_file(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Like `replace_text`, for what `write` writes to the path that it is given.

    Raises:
        SaveError: it cannot be written, or exists and is not a regular file (a link is replaced, not followed).
    """
    aside = path.with_name(path.name + UNFINISHED)
    try:
        if path.exists() and not path.is_file():
            raise SaveError(f"{path} cannot be written: it exists and is not a regular file")
        write(aside)
        _make_readable(aside)
        force_to_disk(aside)
        aside.replace(path)
        force_to_disk(path.parent)
    except (OSError, SafetensorError) as error:
        raise SaveError(_why_not(path, None, error)) from error
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def _make_readable(path: Path) -> None:
    """Give a file the default mode; safetensors makes files that only their owner may read."""
    with suppress(OSError):
        path.chmod(0o666 & ~_UMASK)


def force_to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, would survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest_text(files: Mapping[str, Any]) -> str:
    content = {"format": _FORMAT, "version": _VERSION, "files": dict(sorted(files.items()))}
    checksum = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({**content, "checksum": checksum}, indent=1) + "\n"


def _read_manifest(folder: Path, names: frozenset[str]) -> dict[str, tuple[int, str]]:
    path = folder / MANIFEST
    if path.is_symlink() or not path.is_file():
        raise DamagedError(f"{path} is missing: this is not a checkpoint, or one that was never completed")
    content_bytes = path.read_bytes()
    try:
        text = content_bytes.decode()
        content = json.loads(text)
        version = content["version"] if content["format"] == _FORMAT else None
        if isinstance(version, int) and version > _VERSION:
            raise NewerError(
                f"{path} is of version {version}, and this deepres reads up to {_VERSION}: update deepres"
            )
        files = {str(name): (int(size), str(sha256)) for name, (size, sha256) in content["files"].items()}
        is_intact = text == _manifest_text(content["files"])
    except (KeyError, TypeError, AttributeError, RecursionError, ValueError) as error:
        if isinstance(error, DamagedError):
            raise
        raise DamagedError(f"{path} is damaged") from None
    if not is_intact:
        raise DamagedError(f"{path} has changed since it was saved")
    if not files.keys() <= names:
        raise DamagedError(f"{path} lists {sorted(files.keys() - names)[0]!r}, no file of a checkpoint")
    return files


def _why_not(path: Path, needed_bytes: int | None, error: Exception) -> str:
    is_full = getattr(error, "errno", None) in _FULL or any(f"os error {n}" in str(error) for n in _FULL)
    reason = (getattr(error, "strerror", None) or str(error)).strip()
    if not is_full:
        return f"{path} cannot be written: {reason}"
    where = next(folder for folder in path.parents if folder.exists())
    free_bytes = shutil.disk_usage(where).free
    needs = f", needs about {needed_bytes} bytes" if needed_bytes is not None else ""
    return (
        f"{path} cannot be written: {reason}{needs}, {free_bytes} bytes are free: make room and start again"
    )
