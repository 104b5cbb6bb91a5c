"""Reads the files of an image folder, in a directory or in an archive that is not unpacked; see `image_search`."""

import hashlib
import os
import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_CODING = ("utf-8", "surrogatepass")  # every name survives a round trip, whatever the file system's encoding
_MAX_FILE_BYTES = 2**28  # of one deflated image
_ZIP_HEADER = struct.Struct("<4s5H3L2H")


class Entry(NamedTuple):
    """An image file: its place in the folder, and its bytes in an archive."""

    split: str
    class_name: str
    file_name: str
    offset: int = 0
    num_bytes: int = 0
    crc: int = 0


class ImageFiles(ABC):
    """The image files of a folder or an archive, by number; copies in different processes are independent.

    Args:
        root: the folder or archive.
        entries: its files, sorted.
    """

    def __init__(self, root: Path, entries: list[Entry]) -> None:
        self._root = root
        # Two arrays, not a million objects: forked processes keep sharing their pages, as no reference counts change.
        names = [f"{e.split}/{e.class_name}/{e.file_name}".encode(*_CODING) for e in entries]
        self._names = np.array(names, dtype=np.bytes_)
        self._extents = np.array([(e.offset, e.num_bytes, e.crc) for e in entries], dtype=np.int64)

    def names_sha256(self) -> str:
        """A checksum of the files' names, in their order."""
        return hashlib.sha256(self._names.data).hexdigest()[:12]

    def path(self, index: int) -> str:
        """The image's location, for messages."""
        return f"{self._root}:{self._name(index)}"

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The file's content; raises `OSError` if it cannot be read."""

    def close(self) -> None:
        """Closes open files in this process."""
        return

    def _name(self, index: int) -> str:
        return bytes(self._names[index]).decode(*_CODING)

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
    """Files of a compressed tar archive, held in memory, as it can only be read sequentially."""

    def __init__(self, root: Path, entries: list[Entry], content: npt.NDArray[np.uint8]) -> None:
        super().__init__(root, entries)
        self._content = content

    def read(self, index: int) -> bytes:
        """The file's content."""
        offset, num_bytes = self._extent(index)
        return self._content[offset : offset + num_bytes].tobytes()


class TarFiles(ImageFiles):
    """Files of a plain tar archive, read in place."""

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
        # No seek: forked processes share the descriptor and thus the file position.
        content = os.pread(self._descriptor, num_bytes, offset)
        if len(content) != num_bytes:
            raise OSError(f"the archive ends after {len(content)} of {num_bytes} bytes")
        return content

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "_descriptor"}


class ZipFiles(TarFiles):
    """Files of a zip archive, stored or deflated, read in place."""

    def read(self, index: int) -> bytes:
        """The file's content; its checksum is verified."""
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
