"""Lists the files of an image folder, in a directory or in an archive that is not unpacked.

Nothing is ever extracted to disk, so no name in an archive can lead outside of it. Still, members with absolute names
or `..`, and links in place of images, are refused rather than skipped: images should not be missing silently.
"""

import itertools
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Self

import numpy as np

from deepres.data.batch import DataError
from deepres.data.image_files import Entry, FolderFiles, ImageFiles, TarFiles, UnpackedFiles, ZipFiles

SPLITS = ("train", "val", "test")
"""`test` is for sets without `val`."""
ARCHIVE_SUFFIXES = (".tar", ".tar.xz", ".txz", ".tar.gz", ".tgz", ".tar.bz2", ".zip")

_NESTED = "a folder inside a class's; images must lie in their class's folder itself"
_CHUNK_BYTES = 2**20
_BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    OSError,
    ValueError,
    ArithmeticError,
    NotImplementedError,
)
"""What Python's readers raise for damaged archives and for unknown kinds."""


def find_image_files(root: Path) -> tuple[ImageFiles, list[Entry]]:
    """Lists `train/<class>/*` and `val/<class>/*` or `test/<class>/*`.

    In an archive these may be in one common folder. Hidden files and files elsewhere are ignored, as is `test` if there
    is `val`.

    Args:
        root: a directory, or an archive with one of `ARCHIVE_SUFFIXES`.

    Returns:
        The files and their entries, sorted by split, class and name.

    Raises:
        DataError: there is nothing at `root`, or it cannot be read, or it has members that are refused.
    """
    files: ImageFiles
    try:
        if root.is_dir():
            entries = sorted(_in_folder(root))
            return FolderFiles(root, entries), entries
        if not root.is_file():
            raise DataError(
                f"no image folder at {root}: there is nothing; set data.root to the folder or archive that holds train/"
            )
        if not root.name.endswith(ARCHIVE_SUFFIXES):
            raise DataError(
                f"{root} is neither a folder nor an archive ({', '.join(ARCHIVE_SUFFIXES)}) of images"
            )
        if root.name.endswith(".zip"):
            entries = _sorted_files(root, _in_zip(root))
            files = ZipFiles(root, entries)
        elif root.name.endswith(".tar"):
            entries = _sorted_files(root, _in_tar(root))
            files = TarFiles(root, entries)
        else:
            content = bytearray()
            entries = _sorted_files(root, _in_compressed_tar(root, content))
            files = UnpackedFiles(root, entries, np.frombuffer(content, np.uint8))
    except DataError:
        raise
    except _BROKEN as error:
        raise DataError(f"{root}: cannot be read: {str(error) or type(error).__name__}") from error
    for first, second in itertools.pairwise(entries):
        if first[:3] == second[:3]:
            raise DataError(f"{root}: refused: holds {'/'.join(first[:3])} twice")
    return files, entries


def _in_folder(root: Path) -> Iterator[Entry]:
    has_val = _is_folder(root / "val") and bool(_visible(root / "val"))
    for split in SPLITS[:2] if has_val else SPLITS:
        if not _is_folder(root / split):
            continue
        for class_folder in map(Path, _visible(root / split)):
            if not _is_folder(class_folder):
                continue
            files = _visible(class_folder)
            inner = next((file.path for file in files if file.is_dir()), None)
            if inner is not None:
                raise DataError(f"{inner}: {_NESTED}")
            names = [file.name for file in files if file.is_file() or file.is_symlink()]
            if not names:
                raise DataError(f"{class_folder}: a class without images")
            yield from (Entry(split, class_folder.name, name) for name in names)


def _is_folder(path: Path) -> bool:
    """Whether it is a folder; a dangling link is an error: if it were skipped, other classes would get its label."""
    if path.is_symlink() and not path.exists():
        raise DataError(f"{path}: refused: a link that leads nowhere; mend or remove it")
    return path.is_dir()


def _visible(folder: Path) -> list["os.DirEntry[str]"]:
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


_Placed = tuple[tuple[str, ...], Entry]
"""A folder of the archive, and an entry in it; the entry of a class folder has no file name."""


def _sorted_files(root: Path, placed: Iterator[_Placed]) -> list[Entry]:
    """The entries of files, sorted; all must be in the same folder of the archive, and each class must have some."""
    files: list[Entry] = []
    folders: list[_Placed] = []
    common: tuple[str, ...] | None = None
    for prefix, entry in placed:
        if not entry.file_name:
            folders.append((prefix, entry))
            continue
        common = prefix if common is None else common
        if prefix != common:
            raise DataError(
                f"{root}: holds more than one image folder: {'/'.join(common) or '.'} and {'/'.join(prefix) or '.'}"
            )
        files.append(entry)
    used = SPLITS[:2] if any(entry.split == "val" for entry in files) else SPLITS
    classes = {(entry.split, entry.class_name) for entry in files}
    for prefix, (split, class_name, *_) in folders:
        if prefix == common and split in used and (split, class_name) not in classes:
            raise DataError(f"{root}: {split}/{class_name}: a class without images")
    return sorted(entry for entry in files if entry.split in used)


def _place(
    root: Path, name: str, *, is_regular: bool, offset: int, num_bytes: int, crc: int = 0
) -> _Placed | None:
    """Where a member of an archive belongs; None if that is not a place for images."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{root}: refused: holds {name!r}, a name that leads outside of the archive")
    *prefix, split, class_name, file_name = ("", "", "", *path.parts)
    if file_name.startswith(".") or class_name.startswith("."):
        return None
    if split not in SPLITS:
        is_hidden = any(part.startswith(".") for part in path.parts)
        if not (is_hidden or set(SPLITS).isdisjoint(path.parts[:-3])):
            raise DataError(f"{root}: refused: {name!r}: {_NESTED}")
        return None
    if not is_regular:
        raise DataError(f"{root}: refused: {name!r} is not a regular file but a link or the like")
    return tuple(part for part in prefix if part), Entry(split, class_name, file_name, offset, num_bytes, crc)


def _class_folders(name: str) -> Iterator[_Placed]:
    """The place of an archive's folder, if it is a class folder."""
    *prefix, split, class_name = ("", "", *PurePosixPath(name).parts)
    if split in SPLITS and not class_name.startswith("."):
        yield tuple(part for part in prefix if part), Entry(split, class_name, "")


class _Member(tarfile.TarInfo):
    """A tar member whose broken header is an error.

    tarfile takes one for the end of the archive, and a negative size can make some versions of Python loop for ever.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        if member.size < 0:
            raise tarfile.InvalidHeaderError("a negative size")  # type: ignore[attr-defined]
        return member

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            member = super().fromtarfile(tar)
            if member.size < 0:  # from an extended header
                raise tarfile.InvalidHeaderError("a negative size")  # type: ignore[attr-defined]
            return member
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the end-of-archive mark
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"damaged or cut off at byte {tar.offset}: {error}") from error


def _read_to_the_end(tar: tarfile.TarFile) -> None:
    """Check that only padding follows the end mark; reading on also verifies a compressed file's checksum."""
    assert tar.fileobj is not None
    while chunk := tar.fileobj.read(_CHUNK_BYTES):
        if chunk.strip(b"\0"):
            raise tarfile.ReadError("more follows behind its end: several archives in one file?")


def _in_tar(root: Path) -> Iterator[_Placed]:
    archive_bytes = root.stat().st_size
    with tarfile.open(root, "r:", tarinfo=_Member) as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # a million of them would take a gigabyte
            if member.isdir():
                yield from _class_folders(member.name)
                continue
            placed = _place(
                root,
                member.name,
                is_regular=member.isreg() and not member.issparse(),
                offset=member.offset_data,
                num_bytes=member.size,
            )
            if member.offset_data + member.size > archive_bytes:
                raise tarfile.ReadError(f"cut off in {member.name}")
            if placed is not None:
                yield placed
        _read_to_the_end(tar)


def _in_compressed_tar(root: Path, content: bytearray) -> Iterator[_Placed]:
    most_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    with tarfile.open(root, "r:*", tarinfo=_Member) as tar:
        for member in tar:
            if member.isdir():
                yield from _class_folders(member.name)
                continue
            placed = _place(
                root, member.name, is_regular=member.isreg(), offset=len(content), num_bytes=member.size
            )
            if placed is None:
                continue
            if len(content) + member.size > most_bytes:
                raise DataError(
                    f"{root}: unpacks to more than half of this machine's memory ({most_bytes} bytes); "
                    "unpack it to disk, or use a plain .tar or .zip, which is read in place"
                )
            file = tar.extractfile(member)
            assert file is not None
            content += file.read()
            yield placed
        _read_to_the_end(tar)


def _in_zip(root: Path) -> Iterator[_Placed]:
    with zipfile.ZipFile(root) as archive:
        for member in archive.infolist():
            if member.is_dir():
                yield from _class_folders(member.filename)
                continue
            placed = _place(
                root,
                member.filename,
                is_regular=stat.S_IFMT(member.external_attr >> 16) in (0, stat.S_IFREG),
                offset=member.header_offset,
                num_bytes=member.compress_size,
                crc=member.CRC,
            )
            if placed is None:
                continue
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1:
                raise DataError(
                    f"{root}: {member.filename} is encrypted, or neither stored nor deflated; pack it again"
                )
            yield placed
