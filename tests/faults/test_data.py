"""Bad images, dying workers, full shared memory, malicious data: a right label, skipped and counted, or one error."""

import io
import os
import pickle
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from deepres.data import DataError
from deepres.data.cifar import find_cifar
from deepres.data.cifar_layout import CIFAR10
from deepres.train import main
from tests.data.opened import open_data
from tests.faults.forks import RUN
from tests.faults.launched import end_all, output_of, processes_of, start, wait_for
from tests.faults.test_damage import Canary
from tests.faults.test_disk import needs_mount
from tests.processes import ROOT, TRAIN, environment, metrics, torchrun

COLOURS = {"a": (200, 20, 30), "b": (30, 20, 200)}


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def bomb(side: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def odd_files(colour: tuple[int, int, int]) -> dict[str, tuple[bytes, bool]]:
    """By name: an image file, and whether it can be decoded."""
    plain = Image.new("RGB", (16, 16), colour)
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = np.full((16, 16), 256 * colour[0], np.uint16)
    return {
        "truncated.jpg": (encoded(plain.resize((64, 64)), "JPEG")[:300], False),
        "empty.jpg": (b"", False),
        "png.jpg": (encoded(plain, "PNG"), True),
        "cmyk.jpg": (encoded(plain.convert("CMYK"), "JPEG"), True),
        "palette.png": (encoded(plain.convert("P"), "PNG"), True),
        "sixteen.png": (encoded(Image.fromarray(grey), "PNG"), True),
        "rotated.jpg": (encoded(plain, "JPEG", exif=exif), True),
        "bomb.png": (bomb(60_000), False),
        "text.jpg": (b"this is no image", False),
    }


@pytest.fixture
def folder(tmp_path):
    """Two classes of one colour each, with one of each odd file among the training images."""
    for split in ("train", "val"):
        for label, colour in COLOURS.items():
            (tmp_path / "images" / split / label).mkdir(parents=True)
            files = {f"{k}.png": (encoded(Image.new("RGB", (16, 16), colour), "PNG"), True) for k in range(8)}
            if split == "train":
                files |= odd_files(colour)
            for name, (content, _) in files.items():
                (tmp_path / "images" / split / label / name).write_bytes(content)
    return tmp_path / "images"


def on_images(root: Path, *more: str) -> list[str]:
    return ["data.name=image_folder", f"data.root={root}", "data.image_size=8", "data.num_images=null", *more]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_odd_images_have_the_right_label_or_are_skipped_and_counted(folder, table, num_workers):
    data = open_data(
        "image_folder",
        root=folder,
        image_size=8,
        micro_batch_size=1,
        num_workers=num_workers,
        max_bad_images=8,
    )
    seen = {}
    for batch in data.train_batches(0):
        seen[int(batch.indices[0])] = (int(batch.labels[0]), batch.images[0].mean((1, 2)))
    names = sorted(path for path in folder.glob("train/*/*"))
    assert len(seen) == len(names) == 34
    num_bad = 0
    for index, path in enumerate(names):
        label, means = seen[index]
        good = odd_files(COLOURS[path.parent.name]).get(path.name, (b"", True))[1]
        is_red = bool(means[0] > means[2])
        has_colour = path.name == "sixteen.png" or is_red == (path.parent.name == "a")
        right = (label == "ab".index(path.parent.name) and has_colour) if good else label == -100
        num_bad += not good
        if path.name in odd_files((0, 0, 0)):
            table.add(f"image: {path.name}", right)
        assert right, path
    assert data.bad_images.sum() == num_bad == 8
    data.close()


def test_a_run_counts_what_it_skipped_and_stops_where_that_is_too_much(folder, tmp_path, capsys):
    short = ("train.epochs=1", "train.save_every=null", "train.resume=never", "train.global_batch_size=34")
    enough = on_images(folder, "data.max_bad_images=8", *short)
    assert main([*RUN, f"train.run_dir={tmp_path / 'a'}", *enough]) == 0
    (summary,) = metrics(tmp_path / "a", "summary")
    assert summary["bad_images"] == 8
    assert (
        main([*RUN, f"train.run_dir={tmp_path / 'b'}", *on_images(folder, "data.max_bad_images=7", *short)])
        == 2
    )
    assert "8 images cannot be read, of which data.max_bad_images allows 7" in capsys.readouterr().err


@pytest.mark.multi_process
def test_an_image_that_several_processes_skipped_is_counted_once(folder, tmp_path):
    short = ("train.epochs=3", "train.save_every=null", "train.resume=never", "train.global_batch_size=34")
    arguments = [
        *RUN,
        f"train.run_dir={tmp_path / 'run'}",
        *on_images(folder, "data.max_bad_images=8", *short),
    ]
    done = torchrun(ROOT / TRAIN, *arguments)
    assert done.returncode == 0, done.stderr
    assert "8 images could not be read and were skipped" in done.stdout
    assert metrics(tmp_path / "run", "summary")[0]["bad_images"] == 8


@pytest.mark.slow
@pytest.mark.parametrize("moment_s", [0.0, 0.1, 0.2, 0.3])
def test_a_killed_worker_is_one_error(folder, tmp_path, table, moment_s):
    run_dir = tmp_path / "run"
    more = ("data.num_workers=2", "data.max_bad_images=8", "train.epochs=4000", "train.save_every=null")
    process = start("python", run_dir, *on_images(folder, *more))
    try:
        wait_for(
            lambda: (run_dir / "metrics.jsonl").exists() and len(processes_of(run_dir)) >= 3, 100, "workers"
        )
        workers = psutil.Process(process.pid).children()
        time.sleep(moment_s)
        os.kill(workers[-1].pid, signal.SIGKILL)
        status = process.wait(60)
    finally:
        end_all(run_dir)
    text = output_of(run_dir)
    survived = status == 2 and text.count("error: ") == 1 and "Traceback" not in text
    table.add("a DataLoader worker killed", survived)
    assert survived, text
    assert "a process that decodes images has died" in text


@pytest.mark.slow
@needs_mount
def test_full_shared_memory_is_one_error(folder, tmp_path, table):
    more = ("data.num_workers=2", "data.max_bad_images=8", "train.epochs=1", "data.image_size=64")
    command = [
        sys.executable,
        TRAIN,
        *RUN,
        f"train.run_dir={tmp_path / 'run'}",
        *on_images(folder, *more),
    ]
    mount = 'mount -t tmpfs -o size=64k tmpfs /dev/shm; exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", mount, "bash", *command], cwd=ROOT, env=environment(),
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    survived = done.returncode == 2 and done.stderr.count("error: ") == 1 and "/dev/shm" in done.stderr
    table.add("full /dev/shm", survived)
    assert survived, done.stderr


def test_malicious_data_and_configs_are_refused_and_not_run(tmp_path, capsys, table):
    canary = tmp_path / "canary"
    root = tmp_path / "cifar-10-batches-py"
    root.mkdir()
    padding = {"padding": bytes(40_000_000)}
    for name in (
        "data_batch_1",
        "data_batch_2",
        "data_batch_3",
        "data_batch_4",
        "data_batch_5",
        "test_batch",
    ):
        (root / name).write_bytes(pickle.dumps({"data": Canary(canary), **padding}, 2))
    with pytest.raises(DataError, match="refused: the pickle asks for") as error:
        find_cifar(CIFAR10, tmp_path)
    table.add(
        "malicious pickle as CIFAR batch", not canary.exists() and "nothing was run" in str(error.value)
    )
    for tag in ("apply", "new"):
        text = f"model: !!python/object/{tag}:os.system ['touch {canary}']"
        (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
        refused = main(["--config", str(tmp_path / "config.yaml")]) == 2
        table.add(
            "malicious YAML", refused and not canary.exists() and "Traceback" not in capsys.readouterr().err
        )
        assert refused
    assert not canary.exists()


@pytest.mark.parametrize("name", ["../outside.png", "/outside.png", "link"])
@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_archives_that_lead_outside_are_refused(tmp_path, table, name, kind):
    path, content = tmp_path / f"images.{kind}", encoded(Image.new("RGB", (8, 8)), "PNG")
    where = f"train/a/{name}" if name == "link" else name
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            info = zipfile.ZipInfo(where)
            info.external_attr = (0o120777 if name == "link" else 0o100644) << 16
            archive.writestr(info, "/etc/passwd" if name == "link" else content)
    else:
        with tarfile.open(path, f"w:{kind.removeprefix('tar').removeprefix('.')}") as archive:
            info = tarfile.TarInfo(where)
            info.size = len(content)
            if name == "link":
                info.type, info.linkname, info.size = tarfile.SYMTYPE, "/etc/passwd", 0
            archive.addfile(info, io.BytesIO(content))
    with pytest.raises(DataError, match="refused"):
        open_data("image_folder", root=path, image_size=8, micro_batch_size=1)
    survived = not (tmp_path / "outside.png").exists() and not Path("/outside.png").exists()
    table.add("archive with ../, absolute name or link", survived)
    assert survived
