import errno
import logging
import multiprocessing
import os
import random
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torch.utils.data._utils import signal_handling

from deepres.config import DataConfig
from deepres.data import IGNORED_LABEL, DataError, find_data
from deepres.data.image_files import FolderFiles
from deepres.data.image_folder import _dead_workers_named, _tell_unless_the_parent_is_gone, find_image_folder
from tests.data.opened import open_data

# torch's remark on machines with fewer cores than workers.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def batches(source, epoch=0):
    return [*source.train_batches(epoch), *source.test_batches()]


def assert_same(ones, others):
    for one, other in zip(ones, others, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.indices, other.indices)


def opened(root, **options):
    defaults = {"image_size": 24, "micro_batch_size": 4, "seed": 5}
    return open_data("image_folder", root=root, **(defaults | options))


def test_labels_are_the_places_of_the_sorted_class_names(image_folder):
    folder = find_image_folder(image_folder)
    assert folder.class_names == ("cat", "dog", "eel")
    for split, (numbers, labels) in {"train": folder.train, "test": folder.test}.items():
        for number, label in zip(numbers, labels, strict=True):
            assert f"/{split}/{folder.class_names[label]}/" in folder.files.path(number)
    assert (len(folder.train[0]), len(folder.test[0])) == (21, 9)


def test_val_is_the_test_split_where_there_is_one(image_folder):
    (image_folder / "test").rename(image_folder / "val")
    (image_folder / "test").mkdir()
    (image_folder / "test" / "unlabelled.jpg").touch()
    assert find_data(DataConfig(name="image_folder", root=image_folder)).info.num_test == 9


def test_facts_are_known_without_reading_an_image(image_folder, monkeypatch):
    monkeypatch.setattr(Image, "open", None)
    info = find_data(DataConfig(name="image_folder", root=image_folder)).info
    assert (info.num_classes, info.image_size, info.num_train, info.num_test) == (3, 224, 21, 9)


@pytest.mark.parametrize("augmentation", ["none", "crop_flip", "scale", "scale_and_aspect"])
def test_batches_are_the_same_bit_for_bit_with_any_number_of_workers(image_folder, augmentation):
    sources = [opened(image_folder, augmentation=augmentation, num_workers=n) for n in (0, 2)]
    for epoch in (0, 1):
        assert_same(*(batches(source, epoch) for source in sources))
    for source in sources:
        source.close()


@pytest.mark.parametrize("name", ["set.tar", "set.tar.xz", "set.zip"])
def test_archives_give_the_batches_of_the_folder(image_folder, pack, name):
    source = opened(pack(image_folder, name, prefix="set/"), num_workers=2)
    assert_same(batches(source), batches(opened(image_folder)))
    source.close()


@pytest.mark.parametrize("name", ["set.tar", "set.tar.gz", "set.zip"])
def test_spawned_workers_decode_archives_too(image_folder, pack, name):
    before = multiprocessing.get_start_method(allow_none=True)
    torch.multiprocessing.set_start_method("spawn", force=True)
    try:
        source = opened(pack(image_folder, name), num_workers=1)
        assert_same(batches(source), batches(opened(image_folder)))
        source.close()
    finally:
        torch.multiprocessing.set_start_method(before, force=True)


def test_workers_outlive_epochs_and_an_epoch_left_in_the_middle(image_folder):
    source, reference = opened(image_folder, num_workers=2), opened(image_folder)
    abandoned = source.train_batches(0)
    next(abandoned)
    assert_same(source.train_batches(1, start=2), list(reference.train_batches(1))[2:])
    assert_same(source.train_batches(1), reference.train_batches(1))
    with pytest.raises(AssertionError, match="a later iteration has taken over"):
        next(abandoned)
    source.close()


def _children():
    return {child.pid for child in psutil.Process().children()}


def test_workers_live_from_the_first_batch_until_the_source_is_closed(image_folder):
    before = _children()
    source = opened(image_folder, num_workers=1)
    list(source.train_batches(0))
    first = _children()
    list(source.train_batches(1))
    second = _children()
    source.close()
    assert len(first - before) == 1
    assert second == first
    assert _children() == before


def test_a_handler_for_ended_children_stays(image_folder, monkeypatch):
    def handle(_number, _frame): ...

    # As in a process that had no workers so far.
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
    before = signal.signal(signal.SIGCHLD, handle)
    try:
        source = opened(image_folder, num_workers=1)
        next(source.train_batches(0))
        source.close()
        found = signal.getsignal(signal.SIGCHLD)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert found is handle


def test_batches_may_be_taken_in_another_thread_than_the_main_one(image_folder):
    source = opened(image_folder)
    with ThreadPoolExecutor(1) as pool:
        shown = pool.submit(lambda: list(source.train_batches(0))).result()
    assert_same(shown, opened(image_folder).train_batches(0))


@pytest.mark.parametrize(
    ("error", "num_workers", "is_told"),
    [
        (RuntimeError("DataLoader worker (pid 7) exited unexpectedly"), 2, True),
        (EOFError(), 2, True),
        (ConnectionResetError(), 2, True),
        (RuntimeError("unable to write to file </torch_7_1>: No space left on device (28)"), 2, True),
        (EOFError("Caught EOFError in DataLoader worker process 0."), 2, False),
        (RuntimeError("a mistake"), 2, False),
        (EOFError(), 0, False),
    ],
)  # fmt: skip
def test_a_worker_that_died_is_told_apart_from_a_mistake_in_one_that_lives(error, num_workers, is_told):
    with pytest.raises(DataError if is_told else type(error)) as told, _dead_workers_named(num_workers):
        raise error
    assert ("a process that decodes images has died" in str(told.value)) is is_told


@pytest.mark.parametrize(
    ("error", "is_told"), [(ConnectionResetError(), False), (ValueError("a mistake"), True)]
)
def test_a_worker_whose_parent_is_gone_ends_in_silence(capsys, error, is_told):
    _tell_unless_the_parent_is_gone(type(error), error, None)
    assert bool(capsys.readouterr().err) is is_told


@pytest.mark.parametrize(("number", "waits_s"), [(errno.ENOENT, []), (errno.ESTALE, [0.1, 1.0])])
def test_an_image_is_tried_again_after_errors_that_may_pass(image_folder, monkeypatch, number, waits_s):
    reads, waited_s = [], []

    def fail(_files, index):
        reads.append(index)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(FolderFiles, "read", fail)
    monkeypatch.setattr(time, "sleep", waited_s.append)
    (batch,) = opened(image_folder, micro_batch_size=21, max_bad_images=21).train_batches(0)
    assert (batch.labels == IGNORED_LABEL).all()
    assert waited_s == 21 * waits_s
    assert len(reads) == 21 * (1 + len(waits_s))


def test_evaluation_in_the_middle_of_an_epoch_leaves_the_epoch_as_it_was(image_folder):
    source, reference = opened(image_folder, num_workers=1), opened(image_folder)
    epoch = source.train_batches(0)
    seen = [next(epoch)]
    assert_same(source.test_batches(), reference.test_batches())
    assert_same(seen + list(epoch), reference.train_batches(0))
    source.close()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_global_random_numbers_are_left_alone(image_folder, num_workers):
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    source = opened(image_folder, num_workers=num_workers, augmentation="scale_and_aspect")
    batches(source)
    batches(source, epoch=1)
    source.close()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert random.getstate() == before[2]


def rows(some_batches):
    """Index and label of each row."""
    return [
        row
        for batch in some_batches
        for row in zip(batch.indices.tolist(), batch.labels.tolist(), strict=True)
    ]


def spoil(image_folder, split="train"):
    """Three ways to be no image; a PNG with a wrong suffix is not one of them."""
    folder = image_folder / split
    (folder / "cat" / "0.png").write_bytes(b"")
    (folder / "dog" / "1.png").write_text("no image")
    whole = (folder / "eel" / "2.png").read_bytes()
    (folder / "eel" / "2.png").write_bytes(whole[: len(whole) // 2])
    (folder / "eel" / "3.png").rename(folder / "eel" / "3.jpg") if split == "train" else None


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_images_are_logged_once_counted_and_left_without_a_label(image_folder, num_workers, caplog):
    good = dict(rows(opened(image_folder).train_batches(0)))
    spoil(image_folder)
    source = opened(image_folder, num_workers=num_workers, max_bad_images=3, micro_batch_size=3)
    for epoch in range(2):
        bad = []
        for batch in source.train_batches(epoch):
            for image, label, index in zip(batch.images, batch.labels, batch.indices.tolist(), strict=True):
                if label == IGNORED_LABEL:
                    bad.append(index)
                    assert not image.any()
                else:
                    assert index not in good or label == good[index]
        assert sorted(bad) == [0, 8, 16]
    assert source.bad_images.nonzero().flatten().tolist() == [0, 8, 16]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
    messages = sorted(record.getMessage() for record in caplog.records)
    assert len(messages) == 3
    for message, path in zip(messages, ("cat/0.png", "dog/1.png", "eel/2.png"), strict=True):
        assert f"{image_folder}/train/{path} cannot be read and is left out: " in message
    source.close()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_one_bad_image_too_many_stops_with_its_path(image_folder, num_workers):
    spoil(image_folder)
    source = opened(image_folder, num_workers=num_workers, max_bad_images=2)
    epochs = (
        batch for epoch in range(3) for batch in source.train_batches(epoch)
    )  # each drops one image of 21
    with pytest.raises(
        DataError, match=r"3 images cannot be read, of which data.max_bad_images allows 2; the last"
    ):
        list(epochs)
    source.close()


def test_a_name_of_several_lines_is_told_in_one(image_folder, caplog):
    (image_folder / "train" / "cat" / "no\nimage").touch()
    with pytest.raises(DataError, match=r"the last: .*/no image") as error:
        list(opened(image_folder, micro_batch_size=22).train_batches(0))
    (image_folder / "test" / "no\nclass").mkdir()
    with pytest.raises(DataError, match="no class: a class without images") as other:
        find_data(DataConfig(name="image_folder", root=image_folder))
    assert not any("\n" in text for text in (str(error.value), str(other.value), *caplog.messages))


def test_bad_test_images_and_fillers_do_not_count(image_folder):
    spoil(image_folder, "test")
    sources = [
        opened(image_folder, eval_batch_size=2, rank=rank, world_size=2, max_bad_images=3) for rank in (0, 1)
    ]
    shown = [list(source.test_batches()) for source in sources]
    assert [len(part) for part in shown] == [3, 3]
    both = rows(batch for part in shown for batch in part)
    assert sorted(index for index, _ in both) == [-1, *range(9)]
    assert sorted(i for i, label in both if label == IGNORED_LABEL) == [-1, 0, 4, 8]
    assert sum(source.bad_images for source in sources).nonzero().flatten().tolist() == [21, 25, 29]


def test_small_images_pass_unchanged_and_are_cropped_on_the_device(tmp_path):
    random_bytes = np.random.default_rng(0)
    pixels = random_bytes.integers(0, 256, (2, 8, 32, 32, 3), np.uint8)
    for split, images in zip(("train", "test"), pixels, strict=True):
        (tmp_path / split / "a").mkdir(parents=True)
        for i, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / split / "a" / f"{i}.png")
    source = opened(tmp_path, image_size=32, augmentation="none")
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    for split, shown in enumerate((source.train_batches(0), source.test_batches())):
        for batch in shown:
            back = ((batch.images * std + mean) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
            assert torch.equal(back, torch.from_numpy(pixels[split][batch.indices]))
    cropped = next(opened(tmp_path, image_size=32, augmentation="crop_flip").train_batches(0))
    assert (cropped.images == 0).any()  # padding
    assert cropped.images.shape == (4, 3, 32, 32)


@pytest.mark.parametrize(
    ("options", "sides"),
    [
        ({}, (24, 24)),
        ({"eval_image_size": 32}, (24, 32)),
        ({"eval_image_size": 20, "eval_shorter_side": 40}, (24, 20)),
    ],
)
def test_tests_can_use_another_crop_than_training(image_folder, options, sides):
    source = opened(image_folder, **options)
    shapes = [next(shown).images.shape[2:] for shown in (source.train_batches(0), source.test_batches())]
    assert shapes == [(side, side) for side in sides]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda root: (root / "train").rename(root / "x"),
            "found test; data.root must be a folder or an archive",
        ),
        (lambda root: (root / "test").rename(root / "x"), "found train; data.root must be a folder"),
        (
            lambda root: (root / "test" / "dog").rename(root / "test" / "fox"),
            "train and test have different classes; only in train: dog; only in test: fox",
        ),
        (
            lambda root: shutil.copytree(root / "test" / "dog", root / "test" / "fox"),
            "train and test have different classes; only in test: fox",
        ),
        (lambda root: (root / "train" / "new").mkdir(), "train/new: a class without images"),
        (
            lambda root: (root / "train" / "dog" / "notes.TXT").touch(),
            "train/dog/notes.TXT is not an image, by its name: remove it",
        ),
    ],
    ids=["no train", "no test", "other classes", "a class more", "empty class", "stray file"],
)
def test_a_half_complete_folder_says_what_is_wrong(image_folder, change, message):
    change(image_folder)
    with pytest.raises(DataError, match=message):
        find_data(DataConfig(name="image_folder", root=image_folder))


def test_an_empty_folder_says_what_belongs_there(tmp_path):
    with pytest.raises(DataError, match=f"no image folder at {tmp_path}: found no images; data.root must be"):
        find_data(DataConfig(name="image_folder", root=tmp_path))


def test_imagenet_has_a_thousand_classes(image_folder, tmp_path):
    with pytest.raises(DataError, match="expected 1000 classes, found 3"):
        find_data(DataConfig(name="imagenet", root=image_folder))
    for split in ("train", "val"):
        for k in range(1000):
            (tmp_path / "imagenet" / split / f"n{k:08}").mkdir(parents=True)
            (tmp_path / "imagenet" / split / f"n{k:08}" / "0.JPEG").touch()
    info = find_data(DataConfig(name="imagenet", root=tmp_path / "imagenet")).info
    assert (info.num_classes, info.num_train, info.num_test) == (1000, 1000, 1000)


def test_many_workers_for_few_batches_are_no_trouble(image_folder):
    source = opened(image_folder, num_workers=4, micro_batch_size=21)
    assert len(list(source.train_batches(0))) == 1
    source.close()


def test_an_unused_test_split_is_not_looked_at(image_folder, pack):
    (image_folder / "test").rename(image_folder / "val")
    expected = find_image_folder(image_folder)
    (image_folder / "test" / "cat" / "inner").mkdir(parents=True)
    (image_folder / "test" / "dog").mkdir()
    (image_folder / "test" / "dog" / "0.png").touch()
    for root in (image_folder, pack(image_folder, "set.tar")):
        found = find_image_folder(root)
        assert found.class_names == expected.class_names
        assert found.files.names_sha256() == expected.files.names_sha256()


@pytest.mark.parametrize("name", ["", "set.tar", "set.tar.gz", "set.zip"])
def test_a_class_without_images_is_told_in_archives_too(image_folder, pack, name):
    for split in ("train", "test"):
        (image_folder / split / "cow").mkdir()
    root = pack(image_folder, name, prefix="set/") if name else image_folder
    with pytest.raises(DataError, match="cow: a class without images"):
        find_image_folder(root)
