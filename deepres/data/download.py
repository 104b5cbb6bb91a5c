"""Downloads an archive over HTTP; a final name only ever holds complete, checked content."""

import contextlib
import fcntl
import hashlib
import http.client
import os
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from deepres.data.batch import DataError

_CHUNK_BYTES = 2**20
_TIMEOUT_S = 60


def file_md5(path: Path) -> str:
    """The file's MD5 in hexadecimal: protects against accidents, not against attackers."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def download_and_unpack(url: str, *, md5: str, root: Path, folder: str, verify: bool = False) -> None:
    """Downloads a tar archive into `root` and unpacks its top folder `folder` there, unless that exists.

    The processes of a machine take turns, so that only the first one downloads. An archive that is already in `root`
    and has the right checksum is not downloaded again. A failure leaves nothing but an empty lock file.

    Args:
        url: the archive's.
        md5: the archive's checksum.
        root: the folder to download and unpack to.
        folder: the archive's top folder.
        verify: compare the files of an existing folder with the archive's.

    Raises:
        DataError: the archive cannot be downloaded, is truncated, has another checksum or lacks `folder`, or an
            existing file differs from the archive's.
    """
    archive = root / url.rsplit("/", 1)[-1]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _turn(root / f".{folder}.lock"):
            is_there = (root / folder).exists()
            if is_there and not verify:
                return
            if not (archive.is_file() and file_md5(archive) == md5):
                _download(url, archive, md5)
            if is_there:
                _compare(archive, root)
            else:
                _unpack(archive, root, folder)
    except DataError:
        raise
    except urllib.error.HTTPError as error:
        error.close()
        raise DataError(f"cannot download {url}: the server answers {error.code} {error.reason}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise DataError(f"cannot download {url} to {root}: {error}") from error


@contextlib.contextmanager
def _turn(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download(url: str, target: Path, md5: str) -> None:
    digest, num_bytes = hashlib.md5(usedforsecurity=False), 0
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file, urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:
            while chunk := response.read(_CHUNK_BYTES):
                digest.update(chunk)
                num_bytes += file.write(chunk)
            expected_bytes = response.headers.get("Content-Length")
            file.flush()
            os.fsync(file.fileno())
        if expected_bytes is not None and num_bytes != int(expected_bytes):
            raise DataError(
                f"{url}: the connection was cut after {num_bytes} of {expected_bytes} bytes; try again"
            )
        if digest.hexdigest() != md5:
            raise DataError(
                f"{url}: wrong checksum: {num_bytes} bytes with MD5 {digest.hexdigest()}, expected {md5}"
            )
        Path(temporary).replace(target)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _unpack(archive: Path, root: Path, folder: str) -> None:
    temporary = Path(tempfile.mkdtemp(dir=root, prefix=f".{folder}."))
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(temporary, filter="data")
        if not (temporary / folder).is_dir():
            raise DataError(f"{archive}: holds no folder {folder}")
        (temporary / folder).rename(root / folder)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{archive}: cannot be unpacked: {error}") from error
    finally:
        shutil.rmtree(temporary)


def _compare(archive: Path, root: Path) -> None:
    with tarfile.open(archive) as tar:
        for member in tar:
            file, path = tar.extractfile(member), root / member.name
            if file is not None and not (path.is_file() and path.read_bytes() == file.read()):
                raise DataError(
                    f"{path} is not the official file, as {archive} holds it; remove {path.parent} to have it unpacked"
                )
