"""Full, forbidden and read-only disks: what was saved stays whole, and the message says what to do."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from deepres.checkpoints.resuming import newest_checkpoint, read_checkpoint
from deepres.checkpoints.saving import checkpoints_in
from tests.faults.forks import RUN
from tests.processes import ROOT, TRAIN, environment

CAN_MOUNT = subprocess.run(
    ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False
).returncode == 0  # fmt: skip
needs_mount = pytest.mark.skipif(not CAN_MOUNT, reason="mounting a file system needs privileges")


def train(run_dir, *overrides, mount=None, then="", script=TRAIN):
    """Train in a name space of mounts of its own, with the folder's file system as `mount` makes it."""
    steps = f"""
        set -e
        {mount or ""}
        set +e
        "$@"
        status=$?
        {then}
        exit $status
    """
    command = [sys.executable, script, *RUN, f"train.run_dir={run_dir}", *overrides]
    return subprocess.run(
        ["unshare", "-m", "bash", "-c", textwrap.dedent(steps), "bash", *command],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


@needs_mount
@pytest.mark.parametrize(
    "script",
    [
        pytest.param(TRAIN, id="before", marks=pytest.mark.slow),
        pytest.param("tests/faults/filling_disk.py", id="during"),
    ],
)
def test_a_full_disk_leaves_the_old_checkpoint_and_tells_path_and_bytes(tmp_path, table, script):
    """Too full for a second checkpoint: before it is begun, and from the middle of it on."""
    disk, saved = tmp_path / "disk", tmp_path / "saved"
    disk.mkdir()
    size_kib = 1650 if script == TRAIN else 2600
    mount = f"mount -t tmpfs -o size={size_kib}k tmpfs {disk}"
    done = train(disk / "run", mount=mount, then=f"cp -r {disk}/run {saved}", script=script)
    (path,) = checkpoints_in(saved / "checkpoints")
    is_whole = read_checkpoint(path).progress.step == 3
    parts = (
        f"{disk}/run/checkpoints/step-00000006",
        "No space left on device",
        "bytes are free",
        "needs about",
    )
    told = all(part in done.stderr for part in parts)
    table.add("disk full", done.returncode == 4 and is_whole and told)
    assert done.returncode == 4, done.stderr
    assert is_whole
    assert told, done.stderr
    assert "Traceback" not in done.stderr
    assert not list((saved / "checkpoints").glob("*.tmp"))


@pytest.mark.slow
@needs_mount
def test_a_disk_that_becomes_read_only_ends_the_run_with_its_checkpoints_whole(tmp_path, table):
    run_dir, saved = tmp_path / "run", tmp_path / "saved"
    disk = run_dir / "checkpoints"
    disk.mkdir(parents=True)
    wait = f"while [ ! -d {disk}/step-00000006 ]; do sleep 0.05; done"
    mount = (
        f"mount -t tmpfs tmpfs {disk}\n({wait}; until mount -o remount,ro {disk}; do :; done) 2>/dev/null &"
    )
    done = train(run_dir, "train.epochs=60", mount=mount, then=f"cp -r {run_dir} {saved}")
    found = newest_checkpoint(saved, print)
    told = "Read-only file system" in done.stderr and f"{disk}/step-" in done.stderr
    survived = done.returncode == 4 and found is not None and found.progress.step >= 6 and told
    table.add("file system becomes read-only", survived)
    assert survived, (done.returncode, done.stderr[-2000:], found)


@pytest.mark.slow
@needs_mount
def test_a_read_only_folder_is_refused_before_anything_starts(tmp_path, table):
    disk = tmp_path / "disk"
    disk.mkdir()
    done = train(disk / "run", mount=f"mount -t tmpfs -o ro tmpfs {disk}")
    survived = (
        done.returncode == 2 and done.stderr.count("\n") == 1 and "Read-only file system" in done.stderr
    )
    table.add("read-only folder", survived)
    assert survived, done.stderr


def test_a_folder_without_permission_is_refused(table):
    """By a person who is not root, who may do anything."""
    drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.getuid() == 0 else []
    if drop and not shutil.which("setpriv"):
        pytest.skip("dropping root's permissions needs setpriv")
    code = """
        import sys
        from pathlib import Path
        from deepres.config import ConfigError
        from deepres.config import load_config
        from deepres.run_folder import lock_run_folder, check_run_folder
        config = load_config(Path(sys.argv[1]))
        try:
            with lock_run_folder(Path(sys.argv[2])):
                check_run_folder(config, Path(sys.argv[2]))
        except ConfigError as error:
            print(error)
    """
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "locked").mkdir(mode=0o555)
        survived = True
        for run_dir in (f"{folder}/locked/run", f"{folder}/locked"):
            command = [
                *drop,
                sys.executable,
                "-c",
                textwrap.dedent(code),
                str(ROOT / "configs/quickstart.yaml"),
                run_dir,
            ]
            done = subprocess.run(
                command, env=environment(), capture_output=True, text=True, timeout=60, check=False
            )
            told = re.fullmatch(f"{run_dir}.* cannot be written: Permission denied\n", done.stdout)
            table.add("permission denied", told is not None)
            survived &= told is not None
            assert survived, done.stdout + done.stderr
