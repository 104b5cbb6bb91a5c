import bz2
import gzip
import io
import lzma
import os
import pickle
import stat
import tarfile
import zipfile

import numpy as np
import pytest

from deepres.data import DataError
from deepres.data.image_files import Entry, FolderFiles
from deepres.data.image_search import find_image_files

ARCHIVES = ["set.tar", "set.tar.xz", "set.tar.gz", "set.tar.bz2", "set.zip"]


def content(files, entries):
    return {"/".join(entry[:3]): files.read(i) for i, entry in enumerate(entries)}


@pytest.fixture
def expected(image_folder):
    return {
        str(path.relative_to(image_folder)): path.read_bytes()
        for path in sorted(image_folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("prefix", ["", "./", "some/where/"])
@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_gives_the_same_files_in_the_same_order_as_the_folder(
    image_folder, pack, expected, name, prefix
):
    files, entries = find_image_files(pack(image_folder, name, prefix))
    assert list(content(files, entries).items()) == list(expected.items())
    assert content(*find_image_files(image_folder)) == expected


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_copy_in_another_process_reads_the_same(image_folder, pack, expected, name):
    files, entries = find_image_files(pack(image_folder, name))
    files.read(0)
    assert content(pickle.loads(pickle.dumps(files)), entries) == expected
    files.close()
    assert content(files, entries) == expected  # closing only lets go
    files.close()


def test_forked_processes_do_not_disturb_each_other(image_folder, pack, expected):
    files, entries = find_image_files(pack(image_folder, "set.tar"))
    files.read(0)  # the children share this descriptor
    children = []
    for _ in range(3):
        if (child := os.fork()) == 0:
            os._exit(0 if all(content(files, entries) == expected for _ in range(50)) else 1)
        children.append(child)
    assert all(content(files, entries) == expected for _ in range(50))
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    files.close()


def test_hidden_files_and_files_elsewhere_do_not_count(image_folder, pack, expected):
    for name in (
        ".DS_Store",
        "readme.txt",
        "train/.hidden/0.png",
        "train/.hidden/x/0.png",
        "train/cat/._0.png",
        "extra/cat/0.png",
    ):
        (image_folder / name).parent.mkdir(parents=True, exist_ok=True)
        (image_folder / name).write_bytes(b"x")
    for root in (image_folder, pack(image_folder, "set.zip"), pack(image_folder, "set.tar")):
        assert content(*find_image_files(root)) == expected


def test_a_folder_inside_a_class_is_refused_rather_than_passed_over(image_folder, pack):
    (image_folder / "train" / "cat" / "more").mkdir()
    (image_folder / "train" / "cat" / "more" / "0.png").write_bytes(b"x")
    for root in (image_folder, pack(image_folder, "set.zip", "some/"), pack(image_folder, "set.tar")):
        with pytest.raises(
            DataError, match=r"train/cat/more.*: a folder inside a class's; images must lie in"
        ):
            find_image_files(root)


@pytest.mark.parametrize("link", ["class", "split"])
def test_a_class_or_split_that_is_a_link_counts_if_it_leads_somewhere(image_folder, expected, link):
    elsewhere = image_folder.with_name("elsewhere")
    elsewhere.mkdir()
    for folder in ("train/dog", "test/dog") if link == "class" else ("test",):
        (image_folder / folder).rename(elsewhere / folder.replace("/", "_"))
        (image_folder / folder).symlink_to(elsewhere / folder.replace("/", "_"))
    assert content(*find_image_files(image_folder)) == expected
    elsewhere.rename(elsewhere.with_name("gone"))
    with pytest.raises(DataError, match=r"refused: a link that leads nowhere; mend or remove it"):
        find_image_files(image_folder)


def add(tar: tarfile.TarFile, name: str, data: bytes = b"x", **fields) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in fields.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("name", ["evil.tar", "evil.tar.gz"])
@pytest.mark.parametrize(
    ("member", "fields", "message"),
    [
        ("../train/cat/1.png", {}, r"refused: holds '../train/cat/1.png', a name that leads outside"),
        ("train/cat/../../../1.png", {}, "a name that leads outside"),
        ("/train/cat/1.png", {}, "a name that leads outside"),
        (
            "train/cat/1.png",
            {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd", "size": 0},
            "is not a regular file",
        ),
        (
            "train/cat/1.png",
            {"type": tarfile.LNKTYPE, "linkname": "train/cat/0.png", "size": 0},
            "is not a regular",
        ),
        ("train/cat/1.png", {"type": tarfile.FIFOTYPE, "size": 0}, "is not a regular file"),
        ("train/cat/0.png", {}, "holds train/cat/0.png twice"),
        ("other/train/cat/1.png", {}, r"more than one image folder: \. and other"),
    ],
)
def test_a_tar_archive_with_suspicious_members_is_refused(tmp_path, name, member, fields, message):
    with tarfile.open(tmp_path / name, "w:gz" if name.endswith("gz") else "w") as tar:
        add(tar, "train/cat/0.png")
        add(tar, member, **fields)
    with pytest.raises(DataError, match=message):
        find_image_files(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("member", "mode", "message"),
    [
        ("../train/cat/1.png", stat.S_IFREG, "a name that leads outside"),
        ("/train/cat/1.png", stat.S_IFREG, "a name that leads outside"),
        ("train/cat/1.png", stat.S_IFLNK, "is not a regular file"),
    ],
)
def test_a_zip_archive_with_suspicious_members_is_refused(tmp_path, member, mode, message):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        info = zipfile.ZipInfo(member)
        info.external_attr = (mode | 0o644) << 16
        archive.writestr(info, b"/etc/passwd")
    with pytest.raises(DataError, match=message):
        find_image_files(tmp_path / "evil.zip")


def test_links_that_are_no_images_are_passed_over(tmp_path):
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        add(tar, "train/cat/0.png")
        add(tar, "latest", type=tarfile.SYMTYPE, linkname="/etc", size=0)
    _, entries = find_image_files(tmp_path / "set.tar")
    assert len(entries) == 1


def test_a_zip_member_of_another_compression_is_an_error(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("train/cat/0.png", b"x" * 100)
    with pytest.raises(DataError, match=r"train/cat/0.png is encrypted, or neither stored nor deflated"):
        find_image_files(tmp_path / "set.zip")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damage_in_a_zip_archive_is_noticed_when_the_file_is_read(tmp_path, method):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("train/cat/0.png", np.random.default_rng(0).bytes(1000))
    damaged = bytearray(path.read_bytes())
    damaged[500] ^= 1
    path.write_bytes(damaged)
    files, _ = find_image_files(path)
    with pytest.raises(OSError, match=r"checksum|inflated|cut off"):
        files.read(0)
    files.close()


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_cut_off_archive_is_an_error_of_one_line(image_folder, pack, name):
    path = pack(image_folder, name)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DataError, match=f"{name}: cannot be read: ") as error:
        find_image_files(path)
    assert "\n" not in str(error.value)


COMPRESS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("damage", ["cut at a member", "cut in a header", "broken header", "two in one"])
def test_a_tar_archive_never_ends_before_its_end_mark(image_folder, pack, suffix, damage):
    path = pack(image_folder, "set.tar")
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        begin = tar.getmembers()[10].offset
    spoilt = {
        "cut at a member": whole[:begin],
        "cut in a header": whole[: begin + 100],
        "broken header": whole[: begin + 20] + b"?" + whole[begin + 21 :],
        "two in one": whole + whole,
    }[damage]
    message = (
        "more follows behind its end" if damage == "two in one" else f"damaged or cut off at byte {begin}: "
    )
    path = path.with_name(f"spoilt.tar{suffix}")
    path.write_bytes(COMPRESS[suffix](spoilt))
    with pytest.raises(DataError, match=rf"spoilt\.tar{suffix}: cannot be read: {message}"):
        find_image_files(path)


def test_the_checksum_of_a_gzip_file_is_compared(image_folder, pack):
    path = pack(image_folder, "set.tar")
    packed = bytearray(gzip.compress(path.read_bytes(), compresslevel=0))
    packed[len(packed) // 2] ^= 1  # in the pixels of an image
    path.with_name("set.tar.gz").write_bytes(packed)
    with pytest.raises(DataError, match=r"set\.tar\.gz: cannot be read: CRC check failed"):
        find_image_files(path.with_name("set.tar.gz"))


def test_an_archive_larger_than_memory_says_to_unpack_it(image_folder, pack, monkeypatch):
    path = pack(image_folder, "set.tar.xz")
    monkeypatch.setattr(os, "sysconf", lambda _: 100)
    with pytest.raises(
        DataError, match=r"more than half of this machine's memory .* use a plain .tar or .zip"
    ):
        find_image_files(path)


def test_what_is_no_folder_and_no_archive_is_an_error(tmp_path):
    with pytest.raises(DataError, match=f"no image folder at {tmp_path / 'absent'}: there is nothing"):
        find_image_files(tmp_path / "absent")
    (tmp_path / "set.rar").touch()
    with pytest.raises(DataError, match=r"set\.rar is neither a folder nor an archive \(\.tar, "):
        find_image_files(tmp_path / "set.rar")


def test_a_link_that_leads_nowhere_counts_as_an_image_that_cannot_be_read(image_folder):
    (image_folder / "train" / "cat" / "7.png").symlink_to("nowhere")
    files, entries = find_image_files(image_folder)
    index = [entry[:3] for entry in entries].index(("train", "cat", "7.png"))
    with pytest.raises(OSError, match=r"nowhere|7.png"):
        files.read(index)
    assert files.path(index) == str(image_folder / "train/cat/7.png")


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("name", ["README", "train/a/0.png"])
@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_member_of_negative_size_is_no_way_back(tmp_path, suffix, name, kind):
    path = tmp_path / f"set.tar{suffix}"
    with tarfile.open(path, f"w:{suffix[1:]}", format=kind) as tar:
        tar.addfile(tarfile.TarInfo("first"))
        member = tarfile.TarInfo(name)
        if kind == tarfile.PAX_FORMAT:
            member.pax_headers = {"size": "-512"}
        else:
            member.size = -512
        tar.addfile(member)
    with pytest.raises(DataError, match="a negative size"):
        find_image_files(path)


def _with_a_broken_name(content: bytes) -> bytes:
    return content.replace("ä".encode(), b"\xff\xff")


def _of_a_newer_zip(content: bytes) -> bytes:
    place = content.index(b"PK\1\2") + 6
    return content[:place] + bytes([148]) + content[place + 1 :]


@pytest.mark.parametrize("change", [_with_a_broken_name, _of_a_newer_zip])
def test_a_zip_archive_that_python_cannot_read_is_an_error_of_one_line(tmp_path, change):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for split in ("train", "val"):
            archive.writestr(f"{split}/ä/0.png", b"x")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match="cannot be read") as raised:
        find_image_files(path)
    assert "\n" not in str(raised.value)


def test_a_tar_member_too_large_for_a_number_is_an_error_of_one_line(tmp_path):
    path = tmp_path / "set.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        member = tarfile.TarInfo("train/a/0.png")
        member.size = 2**70
        tar.addfile(member)
    with pytest.raises(DataError, match=r"cannot be read|cut off"):
        find_image_files(path)


@pytest.mark.parametrize("name", ["ä.png", "\udcc3\udca9.png"])
def test_every_name_comes_back_as_it_was(tmp_path, name):
    """The second is what a file system of ASCII makes of another one's."""
    assert FolderFiles(tmp_path, [Entry("train", "a", name)]).path(0) == str(tmp_path / "train" / "a" / name)
