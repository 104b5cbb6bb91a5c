"""Lists and reads the files of an image folder, lying in a directory or in an archive that stays packed.

Nothing is ever extracted to disk, so no name in an archive can lead outside of it. All the same, members with
absolute names or `..`, and links in the place of images, are refused rather than passed over: data that somebody
meant to be there should not be missing silently.
"""

import itertools
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from deepres.data.batch import DataError

SPLITS = ("train", "val", "test")
ARCHIVE_SUFFIXES = (".tar", ".tar.xz", ".txz", ".tar.gz", ".tgz", ".tar.bz2", ".zip")

_MAX_FILE_BYTES = 2**28  # of one deflated image
_ZIP_HEADER = struct.Struct("<4s5H3L2H")
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, OSError)


class Entry(NamedTuple):
    """An image file: its place in the folder, and the bytes that hold it in an archive."""

    split: str
    class_name: str
    file_name: str
    offset: int = 0
    num_bytes: int = 0
    crc: int = 0


class ImageFiles(ABC):
    """The image files of a folder or an archive, by number; copies in other processes do not disturb each other.

    Args:
        root: the folder or archive.
        entries: its files, sorted.
    """

    def __init__(self, root: Path, entries: list[Entry]) -> None:
        self._root = root
        # Two arrays, not a million objects: processes share their pages for good.
        names = [os.fsencode(f"{e.split}/{e.class_name}/{e.file_name}") for e in entries]
        self._names = np.array(names, dtype=np.bytes_)
        self._extents = np.array([(e.offset, e.num_bytes, e.crc) for e in entries], dtype=np.int64)

    def path(self, index: int) -> str:
        """Where the image is, for a message."""
        return f"{self._root}:{self._name(index)}"

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The file's content; raises `OSError` if it cannot be had."""

    def close(self) -> None:
        """Closes what is open in this process."""
        return

    def _name(self, index: int) -> str:
        return os.fsdecode(self._names[index])

    def _extent(self, index: int) -> tuple[int, int]:
        return int(self._extents[index, 0]), int(self._extents[index, 1])


class FolderFiles(ImageFiles):
    """Files in a directory."""

    def path(self, index: int) -> str:
        """The file's path."""
        return str(self._root / self._name(index))

    def read(self, index: int) -> bytes:
        """The file's content."""
        return (self._root / self._name(index)).read_bytes()


class UnpackedFiles(ImageFiles):
    """Files of a compressed tar archive: it can be read in order only, so all of it is held in memory."""

    def __init__(self, root: Path, entries: list[Entry], content: npt.NDArray[np.uint8]) -> None:
        super().__init__(root, entries)
        self._content = content

    def read(self, index: int) -> bytes:
        """The file's content."""
        offset, num_bytes = self._extent(index)
        return self._content[offset : offset + num_bytes].tobytes()


class TarFiles(ImageFiles):
    """Files of a plain tar archive, read where they lie."""

    _descriptor: int | None = None

    def read(self, index: int) -> bytes:
        """The file's content."""
        return self._read_at(*self._extent(index))

    def close(self) -> None:
        """Closes the archive in this process."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None

    def _read_at(self, offset: int, num_bytes: int) -> bytes:
        if self._descriptor is None:
            self._descriptor = os.open(self._root, os.O_RDONLY | os.O_CLOEXEC)
        # No seek: forked processes share the descriptor and with it the position.
        content = os.pread(self._descriptor, num_bytes, offset)
        if len(content) != num_bytes:
            raise OSError(f"the archive ends after {len(content)} of {num_bytes} bytes")
        return content

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "_descriptor"}


class ZipFiles(TarFiles):
    """Files of a zip archive, stored or deflated, read where they lie."""

    def read(self, index: int) -> bytes:
        """The file's content; its checksum is compared."""
        offset, num_bytes = self._extent(index)
        header = _ZIP_HEADER.unpack(self._read_at(offset, _ZIP_HEADER.size))
        magic, method, name_bytes, extra_bytes = header[0], header[3], header[9], header[10]
        if magic != b"PK\x03\x04":
            raise OSError("the archive has no file where its directory says")
        content = self._read_at(offset + _ZIP_HEADER.size + name_bytes + extra_bytes, num_bytes)
        if method != zipfile.ZIP_STORED:
            content = _inflated(content)
        if zlib.crc32(content) != self._extents[index, 2]:
            raise OSError("wrong checksum in the archive")
        return content


def _inflated(content: bytes) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = inflater.decompress(content, _MAX_FILE_BYTES)
    except zlib.error as error:
        raise OSError(f"cannot be inflated: {error}") from error
    if not inflater.eof:
        raise OSError(f"cut off, or more than {_MAX_FILE_BYTES} bytes")
    return inflated


def find_image_files(root: Path) -> tuple[ImageFiles, list[Entry]]:
    """Lists `train/<class>/*` and `val/<class>/*` or `test/<class>/*`.

    In an archive these may lie in one common folder. Hidden files and whatever lies elsewhere do not count.

    Args:
        root: a directory, or an archive with one of `ARCHIVE_SUFFIXES`.

    Returns:
        The files and their entries, sorted by split, class and name.

    Raises:
        DataError: there is nothing at `root`, or it cannot be read, or it holds what is refused.
    """
    files: ImageFiles
    try:
        if root.is_dir():
            entries = sorted(_in_folder(root))
            return FolderFiles(root, entries), entries
        if not root.is_file():
            raise DataError(f"no image folder at {root}: there is nothing")
        if not root.name.endswith(ARCHIVE_SUFFIXES):
            raise DataError(
                f"{root} is neither a folder nor an archive ({', '.join(ARCHIVE_SUFFIXES)}) of images"
            )
        if root.name.endswith(".zip"):
            entries = sorted(_one_prefix(root, _in_zip(root)))
            files = ZipFiles(root, entries)
        elif root.name.endswith(".tar"):
            entries = sorted(_one_prefix(root, _in_tar(root)))
            files = TarFiles(root, entries)
        else:
            content = bytearray()
            entries = sorted(_one_prefix(root, _in_compressed_tar(root, content)))
            files = UnpackedFiles(root, entries, np.frombuffer(content, np.uint8))
    except _BROKEN as error:
        raise DataError(f"{root}: cannot be read: {error or type(error).__name__}") from error
    for first, second in itertools.pairwise(entries):
        if first[:3] == second[:3]:
            raise DataError(f"{root}: refused: holds {'/'.join(first[:3])} twice")
    return files, entries


def _in_folder(root: Path) -> Iterator[Entry]:
    for split in SPLITS:
        if not (root / split).is_dir():
            continue
        for class_folder in _visible(root / split):
            if not class_folder.is_dir():
                continue
            names = [
                file.name for file in _visible(Path(class_folder)) if file.is_file() or file.is_symlink()
            ]
            if not names:
                raise DataError(f"{class_folder.path}: a class without images")
            yield from (Entry(split, class_folder.name, name) for name in names)


def _visible(folder: Path) -> list["os.DirEntry[str]"]:
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


_Placed = tuple[tuple[str, ...], Entry]


def _one_prefix(root: Path, placed: Iterator[_Placed]) -> Iterator[Entry]:
    """Passes the entries on, which must all lie in the same folder of the archive."""
    common: tuple[str, ...] | None = None
    for prefix, entry in placed:
        common = prefix if common is None else common
        if prefix != common:
            raise DataError(
                f"{root}: holds more than one image folder: {'/'.join(common) or '.'} and {'/'.join(prefix) or '.'}"
            )
        yield entry


def _place(
    root: Path, name: str, *, is_regular: bool, offset: int, num_bytes: int, crc: int = 0
) -> _Placed | None:
    """Where a member of an archive belongs; None if it is no image's place."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{root}: refused: holds {name!r}, a name that leads outside of the archive")
    *prefix, split, class_name, file_name = ("", "", "", *path.parts)
    if split not in SPLITS or file_name.startswith(".") or class_name.startswith("."):
        return None
    if not is_regular:
        raise DataError(f"{root}: refused: {name!r} is no regular file but a link or the like")
    return tuple(part for part in prefix if part), Entry(split, class_name, file_name, offset, num_bytes, crc)


def _in_tar(root: Path) -> Iterator[_Placed]:
    archive_bytes = root.stat().st_size
    with tarfile.open(root, "r:") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # a million of them would take a gigabyte
            if member.isdir():
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


def _in_compressed_tar(root: Path, content: bytearray) -> Iterator[_Placed]:
    most_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    with tarfile.open(root, "r|*") as tar:
        for member in tar:
            if member.isdir():
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


def _in_zip(root: Path) -> Iterator[_Placed]:
    with zipfile.ZipFile(root) as archive:
        for member in archive.infolist():
            if member.is_dir():
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
