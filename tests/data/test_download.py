import dataclasses
import functools
import hashlib
import http.server
import shutil
import tarfile
import threading
from pathlib import Path

import pytest

from deepres.data import DataError
from deepres.data.cifar import find_cifar, read_cifar
from deepres.data.download import download_and_unpack


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; /cut/ ends every answer in the middle."""

    requests: list[str] = []  # noqa: RUF012  (one server at a time)

    def do_GET(self):
        self.requests.append(self.path)
        if not self.path.startswith("/cut/"):
            super().do_GET()
            return
        content = Path(self.translate_path(self.path.removeprefix("/cut"))).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])

    def log_message(self, format, *args):  # noqa: A002
        pass


@pytest.fixture
def server(tmp_path):
    served = tmp_path / "served"
    served.mkdir()
    Handler.requests.clear()
    handler = functools.partial(Handler, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", served
        running.shutdown()
        thread.join()


@pytest.fixture
def archive(server, tiny_cifar):
    """A tiny CIFAR whose binary archive is on the server; its address, and the MD5 that it has."""
    url, served = server
    binary, _ = tiny_cifar.cifar.layouts
    path = served / tiny_cifar.cifar.archive
    with tarfile.open(path, "w:gz") as tar:
        tar.add(tiny_cifar.root / binary.folder, binary.folder)
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    return url, dataclasses.replace(tiny_cifar.cifar, archive_md5=md5)


def test_a_good_archive_is_fetched_once_checked_and_unpacked(archive, tmp_path, tiny_cifar):
    url, cifar = archive
    root = tmp_path / "new" / "root"
    for _ in range(2):
        layout, folder = find_cifar(cifar, root, download=True, base_url=url + "/")
    images, _ = read_cifar(cifar, layout, folder, "train")
    assert images.numpy().tobytes() == tiny_cifar.images["train"].tobytes()
    assert Handler.requests == [f"/{cifar.archive}"]
    visible = sorted(path.name for path in root.iterdir() if not path.name.endswith(".lock"))
    assert visible == sorted([cifar.archive, layout.folder])


def test_an_archive_that_is_there_already_is_not_fetched_again(archive, tmp_path, server):
    url, cifar = archive
    root = tmp_path / "root"
    root.mkdir()
    (root / cifar.archive).write_bytes((server[1] / cifar.archive).read_bytes())
    find_cifar(cifar, root, download=True, base_url=url)
    assert Handler.requests == []


def test_binary_files_that_are_there_are_verified_by_the_archive(archive, tmp_path, tiny_cifar):
    url, cifar = archive
    root, binary = tmp_path / "root", cifar.layouts[0]
    shutil.copytree(tiny_cifar.root / binary.folder, root / binary.folder)
    for _ in range(2):
        assert find_cifar(cifar, root, download=True, base_url=url, verify=True)[0] == binary
    assert Handler.requests == [f"/{cifar.archive}"]
    path = root / binary.folder / binary.test
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match=f"{path} is not the official file, as .*{cifar.archive} holds it"):
        find_cifar(cifar, root, download=True, base_url=url, verify=True)
    path.unlink()
    with pytest.raises(DataError, match="is not the official file"):
        find_cifar(cifar, root, download=True, base_url=url, verify=True)


def test_nothing_is_fetched_unasked(archive, tmp_path):
    url, cifar = archive
    with pytest.raises(DataError, match=r"or data\.download=true"):
        find_cifar(cifar, tmp_path / "root", base_url=url)
    assert Handler.requests == []


@pytest.mark.parametrize(
    ("path", "md5", "message"),
    [
        ("", "0" * 32, r"wrong checksum: \d+ bytes with MD5 [0-9a-f]{32}, expected 0{32}"),
        ("/cut", None, r"the connection was cut after \d+ of \d+ bytes; try again"),
        ("/absent", None, "cannot download .* 404"),
    ],
)
def test_a_failed_download_says_why_and_leaves_nothing(archive, tmp_path, path, md5, message):
    url, cifar = archive
    root = tmp_path / "root"
    cifar = dataclasses.replace(cifar, archive_md5=md5 or cifar.archive_md5)
    with pytest.raises(DataError, match=message) as error:
        find_cifar(cifar, root, download=True, base_url=url + path)
    assert "\n" not in str(error.value)
    assert [entry.name for entry in root.iterdir() if not entry.name.endswith(".lock")] == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "nonsense"])
def test_an_address_without_a_server_is_an_error_of_one_line(archive, tmp_path, url):
    with pytest.raises(DataError, match=f"cannot download {url}"):
        find_cifar(archive[1], tmp_path / "root", download=True, base_url=url)


def test_an_archive_with_names_that_lead_outside_is_not_unpacked(server, tmp_path):
    url, served = server
    (served / "file").write_text("evil")
    with tarfile.open(served / "evil.tar.gz", "w:gz") as tar:
        tar.add(served / "file", "folder/file")
        tar.add(served / "file", "../../evil")
    md5 = hashlib.md5((served / "evil.tar.gz").read_bytes()).hexdigest()
    root = tmp_path / "a" / "root"
    with pytest.raises(DataError, match="cannot be unpacked"):
        download_and_unpack(f"{url}/evil.tar.gz", md5=md5, root=root, folder="folder")
    assert not list(tmp_path.rglob("evil"))
    assert not (root / "folder").exists()


def test_an_archive_without_the_folder_is_an_error(server, tmp_path):
    url, served = server
    (served / "file").write_text("something else")
    with tarfile.open(served / "other.tar.gz", "w:gz") as tar:
        tar.add(served / "file", "file")
    md5 = hashlib.md5((served / "other.tar.gz").read_bytes()).hexdigest()
    with pytest.raises(DataError, match=r"other\.tar\.gz: holds no folder wanted"):
        download_and_unpack(f"{url}/other.tar.gz", md5=md5, root=tmp_path / "root", folder="wanted")


def test_several_at_once_fetch_once(archive, tmp_path):
    url, cifar = archive
    failures = []

    def fetch():
        try:
            find_cifar(cifar, tmp_path / "root", download=True, base_url=url)
        except DataError as error:
            failures.append(error)

    threads = [threading.Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert Handler.requests == [f"/{cifar.archive}"]
