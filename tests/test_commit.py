"""Folders that are there whole or not at all."""

import errno
import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from deepres.commit import (
    MANIFEST,
    DamagedError,
    SaveError,
    commit_folder,
    replace_file,
    replace_text,
    verify_file,
    verify_folder,
)

NAMES = frozenset({"a.safetensors", "b.json"})


def commit(target: Path, value: float = 1.0, needed_bytes: int = 0) -> None:
    files = {
        "a.safetensors": lambda path: save_file({"x": torch.full((50,), value)}, path),
        "b.json": lambda path: path.write_text(json.dumps({"value": value}), encoding="utf-8"),
    }
    commit_folder(target, files, needed_bytes)


def test_what_is_committed_verifies_and_leaves_nothing_aside(tmp_path):
    commit(tmp_path / "step-1")
    verify_folder(tmp_path / "step-1", NAMES)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    assert {path.name for path in (tmp_path / "step-1").iterdir()} == {*NAMES, MANIFEST}


def test_who_may_read_a_file_is_told_by_the_umask_for_all_alike(tmp_path):
    commit(tmp_path / "step-1")
    replace_file(tmp_path / "c.safetensors", lambda path: save_file({"x": torch.zeros(1)}, path))
    (tmp_path / "plain").write_text("")
    expected = (tmp_path / "plain").stat().st_mode
    for path in (*(tmp_path / "step-1").iterdir(), tmp_path / "c.safetensors"):
        assert path.stat().st_mode == expected, path


def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    """Watches the real system calls: a rename may only follow the fsync of all that it makes visible."""
    on_disk, renamed = set(), []
    fsync, rename, replace = os.fsync, Path.rename, Path.replace

    def watched_fsync(descriptor):
        on_disk.add(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    def watched(move):
        def moved(self, target):
            inside = [self, *self.iterdir()] if self.is_dir() else [self]
            renamed.append((self.name, Path(target).name, {str(p) for p in inside} - on_disk))
            return move(self, target)

        return moved

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "rename", watched(rename))
    monkeypatch.setattr(Path, "replace", watched(replace))
    commit(tmp_path / "step-1")
    assert renamed == [("step-1.tmp", "step-1", set())]
    assert str(tmp_path) in on_disk
    on_disk.clear()
    replace_text(tmp_path / "latest", "step-1\n")
    assert renamed[1:] == [("latest.tmp", "latest", set())]
    assert str(tmp_path) in on_disk


@pytest.mark.parametrize("name", [*sorted(NAMES), MANIFEST])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "deleted", "swapped", "linked"])
def test_every_damage_to_every_file_is_found_by_name(tmp_path, name, damage):
    commit(tmp_path / "step-1", 1.0)
    commit(tmp_path / "step-2", 2.0)
    path = tmp_path / "step-2" / name
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[:-1])
    elif damage == "flipped":
        path.write_bytes(content[:9] + bytes([content[9] ^ 1]) + content[10:])
    elif damage == "deleted":
        path.unlink()
    elif damage == "swapped":
        shutil.copy(tmp_path / "step-1" / name, path)
    else:
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DamagedError) as error:
        verify_folder(tmp_path / "step-2", NAMES)
    if damage == "swapped" and name == MANIFEST:  # then it is the others that are not what it says
        assert "step-2/a.safetensors has changed" in str(error.value)
    else:
        assert f"step-2/{name}" in str(error.value)
    if damage == "truncated" and name != MANIFEST:
        assert f"{name} has {len(content) - 1} bytes, {len(content)} were saved" in str(error.value)


def test_a_file_that_the_manifest_does_not_list_is_not_taken_for_one_of_the_folder(tmp_path):
    commit(tmp_path / "step-1")
    (tmp_path / "step-1" / "c.pt").touch()
    with pytest.raises(DamagedError, match=f"{MANIFEST} does not list c.pt"):
        verify_file(tmp_path / "step-1" / "c.pt", NAMES)


def test_any_bit_flipped_in_a_manifest_is_found(tmp_path):
    commit(tmp_path / "step-1")
    path = tmp_path / "step-1" / MANIFEST
    content = path.read_bytes()
    for position in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[position] ^= 1 << bit
            path.write_bytes(flipped)
            with pytest.raises(DamagedError):
                verify_folder(tmp_path / "step-1", NAMES)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "c.pkl"])
def test_a_manifest_cannot_name_other_files(tmp_path, name):
    commit(tmp_path / "step-1")
    with pytest.raises(DamagedError, match="no file of a checkpoint"):
        verify_folder(tmp_path / "step-1", frozenset({"a.safetensors"}))
    from deepres.commit import _manifest_text

    text = _manifest_text({name: [1, "0" * 64]})
    (tmp_path / "step-1" / MANIFEST).write_text(text, encoding="utf-8")
    with pytest.raises(DamagedError, match=re.escape(repr(name))):
        verify_folder(tmp_path / "step-1", NAMES)


def test_a_newer_manifest_asks_for_a_newer_deepres(tmp_path):
    commit(tmp_path / "step-1")
    path = tmp_path / "step-1" / MANIFEST
    path.write_text(
        path.read_text(encoding="utf-8").replace('"version": 1', '"version": 2'), encoding="utf-8"
    )
    with pytest.raises(DamagedError, match="version 2, and this deepres reads up to 1: update deepres"):
        verify_folder(tmp_path / "step-1", NAMES)


def test_what_will_not_fit_is_refused_before_it_is_written_with_path_and_bytes(tmp_path):
    commit(tmp_path / "step-1")
    with pytest.raises(SaveError) as error:
        commit(tmp_path / "step-2", needed_bytes=10**18)
    free = shutil.disk_usage(tmp_path).free
    found = re.search(
        r"(\S+/step-2) cannot be written: No space left.* needs about (\d+) bytes, (\d+) bytes are free",
        str(error.value),
    )
    assert found is not None
    assert found[1] == str(tmp_path / "step-2")
    assert int(found[2]) == 10**18
    assert int(found[3]) == pytest.approx(free, rel=0.1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    verify_folder(tmp_path / "step-1", NAMES)


def test_what_was_written_aside_is_removed_where_the_disk_is_full_in_the_middle(tmp_path):
    def fill_up(path):
        path.write_text("the beginning", encoding="utf-8")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    files = {"b.json": lambda path: path.write_text("{}", encoding="utf-8"), "a.safetensors": fill_up}
    with pytest.raises(SaveError, match="step-1 cannot be written: No space left"):
        commit_folder(tmp_path / "step-1", files, 0)
    with pytest.raises(SaveError, match="weights cannot be written: No space left"):
        replace_file(tmp_path / "weights", fill_up)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_where_a_disk_or_a_quota_is_full_the_bytes_that_were_free_then_are_told(
    tmp_path, monkeypatch, number
):
    def fill_up(path):
        path.touch()
        raise OSError(number, os.strerror(number))

    def usage(_path):
        return SimpleNamespace(free=7 if (tmp_path / "step-1.tmp" / "a.safetensors").exists() else 10**9)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(
        SaveError, match=f"step-1 cannot be written: {os.strerror(number)}.* 7 bytes are free"
    ):
        commit_folder(tmp_path / "step-1", {"a.safetensors": fill_up}, 0)


def test_a_full_disk_is_told_where_there_is_no_room_for_the_folder_either(tmp_path, monkeypatch):
    def fill_up(*_arguments, **_options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "mkdir", fill_up)
    with pytest.raises(SaveError, match=r"step-1 cannot be written: No space left.* bytes are free"):
        commit_folder(tmp_path / "checkpoints" / "step-1", {}, 0)


def test_weights_for_which_there_is_no_room_are_told_with_the_bytes_that_are_free(tmp_path):
    def fill_up(_path):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(
        SaveError, match=r"weights cannot be written: .*No space left.* bytes are free: make room"
    ):
        replace_file(tmp_path / "weights", fill_up)


def test_a_damaged_folder_of_the_same_name_is_replaced(tmp_path):
    commit(tmp_path / "step-1", 1.0)
    commit(tmp_path / "step-1.replaced.tmp", 0.0)
    (tmp_path / "step-1" / "b.json").unlink()
    (tmp_path / "step-1.tmp").mkdir()
    commit(tmp_path / "step-1", 2.0)
    verify_folder(tmp_path / "step-1", NAMES)
    assert json.loads((tmp_path / "step-1" / "b.json").read_text(encoding="utf-8")) == {"value": 2.0}
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def test_what_is_no_regular_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SaveError, match="pipe cannot be written: it exists and is not a regular file"):
        replace_text(tmp_path / "pipe", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
    assert (tmp_path / "pipe").is_fifo()
