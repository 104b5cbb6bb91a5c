import dataclasses
import os

import numpy as np
import pytest
import torch

from deepres.data import DataError
from deepres.data.cifar import find_cifar, inspect_cifar, read_cifar
from deepres.data.cifar_layout import CIFAR10, CIFAR100


def remove(root, folder):
    for path in (root / folder).iterdir():
        path.unlink()
    (root / folder).rmdir()


@pytest.mark.parametrize("kind", ["binary", "python"])
@pytest.mark.parametrize("inside", [False, True], ids=["parent", "itself"])
def test_both_layouts_give_the_same_images_in_the_same_order(tiny_cifar, kind, inside):
    cifar, root = tiny_cifar.cifar, tiny_cifar.root
    binary, python = cifar.layouts
    if kind == "python":
        remove(root, binary.folder)
    mine = python if kind == "python" else binary
    layout, folder = find_cifar(cifar, root / mine.folder if inside else root)
    assert (layout, folder) == (mine, root / mine.folder)
    info = inspect_cifar(cifar, layout, folder)
    assert (info.num_train, info.num_test) == (20, 10)
    assert info.class_names == tuple(f"class_{label}" for label in range(cifar.num_classes))
    for split in ("train", "test"):
        images, labels = read_cifar(cifar, layout, folder, split)
        assert torch.equal(images, torch.from_numpy(tiny_cifar.images[split]))
        assert torch.equal(labels, torch.from_numpy(tiny_cifar.labels[split]))


def test_the_official_sizes_are_those_of_60000_images():
    assert (CIFAR10.record_bytes, CIFAR100.record_bytes) == (3073, 3074)
    assert {(c.num_train_images, c.num_test_images) for c in (CIFAR10, CIFAR100)} == {(50_000, 10_000)}


def test_nothing_found_names_the_place_and_the_ways_out(tmp_path):
    with pytest.raises(DataError) as error:
        find_cifar(CIFAR10, tmp_path)
    assert str(error.value) == (
        f"no CIFAR-10 at {tmp_path}: found nothing; set data.root to the folder that holds cifar-10-batches-bin "
        "or cifar-10-batches-py, or data.download=true"
    )


def test_a_folder_of_other_things_is_told_by_their_names(tmp_path):
    for name in "abcdef":
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=f"no CIFAR-100 at {tmp_path}: found a, b, c, d and 2 more; "):
        find_cifar(CIFAR100, tmp_path)
    with pytest.raises(DataError, match="there is no such folder"):
        find_cifar(CIFAR10, tmp_path / "absent")
    with pytest.raises(DataError, match="it is a file"):
        find_cifar(CIFAR10, tmp_path / "a")


@pytest.mark.parametrize("index", [0, 1], ids=["binary", "python"])
def test_a_half_complete_folder_names_what_is_missing(tiny_cifar, index):
    cifar, root = tiny_cifar.cifar, tiny_cifar.root
    layout = cifar.layouts[index]
    remove(root, cifar.layouts[1 - index].folder)
    (root / layout.folder / layout.test).unlink()
    with pytest.raises(DataError) as error:
        find_cifar(cifar, root)
    total = len(layout.train) + 1
    assert (
        f"{root / layout.folder} is incomplete: {layout.test} missing; found {total - 1} of {total}"
        in str(error.value)
    )


def test_an_empty_folder_of_the_right_name_is_incomplete(tmp_path):
    (tmp_path / "cifar-10-batches-bin").mkdir()
    with pytest.raises(DataError, match=r"is incomplete: .* missing; found 0 of 6 files"):
        find_cifar(CIFAR10, tmp_path)


def test_complete_python_files_are_taken_where_the_binary_ones_are_not(tiny_cifar):
    binary, python = tiny_cifar.cifar.layouts
    (tiny_cifar.root / binary.folder / binary.test).unlink()
    assert find_cifar(tiny_cifar.cifar, tiny_cifar.root)[0] is python


def test_of_two_incomplete_layouts_the_first_is_told(tiny_cifar):
    for layout in tiny_cifar.cifar.layouts:
        (tiny_cifar.root / layout.folder / layout.test).unlink()
    binary = tiny_cifar.cifar.layouts[0]
    with pytest.raises(DataError, match=f"{binary.folder} is incomplete: {binary.test} missing"):
        find_cifar(tiny_cifar.cifar, tiny_cifar.root)


def test_names_that_are_not_one_for_each_class_are_none(tiny_cifar):
    binary = tiny_cifar.cifar.layouts[0]
    path = tiny_cifar.root / binary.folder / binary.names
    path.write_text("cat\ndog\n", encoding="utf-8")
    assert inspect_cifar(tiny_cifar.cifar, binary, path.parent).class_names == ()


@pytest.mark.parametrize("change", [-1, 1])
def test_a_binary_file_one_byte_off_is_told_with_both_sizes(tiny_cifar, change):
    cifar, root = tiny_cifar.cifar, tiny_cifar.root
    layout = cifar.layouts[0]
    remove(root, cifar.layouts[1].folder)
    path = root / layout.folder / layout.train[0]
    expected = path.stat().st_size
    os.truncate(path, expected + change)
    with pytest.raises(
        DataError, match=f"{layout.train[0]}: expected {expected} bytes, found {expected + change}"
    ):
        find_cifar(cifar, root)
    with pytest.raises(DataError, match=f"expected {expected} bytes, found {expected + change}"):
        read_cifar(cifar, layout, root / layout.folder, "train")


def test_a_binary_file_that_cannot_be_read_is_told(tiny_cifar):
    layout = tiny_cifar.cifar.layouts[0]
    (tiny_cifar.root / layout.folder / layout.test).unlink()
    with pytest.raises(DataError, match=f"{layout.test}: cannot be read: .*No such file"):
        read_cifar(tiny_cifar.cifar, layout, tiny_cifar.root / layout.folder, "test")


def test_a_cut_off_python_file_is_told(tiny_cifar):
    cifar, root = tiny_cifar.cifar, tiny_cifar.root
    layout = cifar.layouts[1]
    remove(root, cifar.layouts[0].folder)
    path = root / layout.folder / layout.train[0]
    size = path.stat().st_size
    os.truncate(path, size - 1)
    with pytest.raises(DataError, match=f"{layout.train[0]}: a broken or cut off pickle"):
        find_cifar(cifar, root)
    os.truncate(path, 1000)
    with pytest.raises(DataError, match=f"{layout.train[0]}: expected more than .* bytes, found 1000"):
        find_cifar(cifar, root)


@pytest.mark.parametrize(
    "kind", ["images", "labels", "labels are text", "label too large", "huge label", "ignored label"]
)
def test_a_python_file_without_the_right_content_is_told(tiny_cifar, python2_pickle, kind):
    cifar, root = tiny_cifar.cifar, tiny_cifar.root
    layout = cifar.layouts[1]
    remove(root, cifar.layouts[0].folder)
    batch = {cifar.label_key: [0] * 10, "data": tiny_cifar.images["test"].reshape(10, 3072)}
    key, value, message = {
        "images": (
            "data",
            batch["data"].reshape(3072, 10),
            r"expected images of shape \(10, 3072\), found shape",
        ),
        "labels": (cifar.label_key, [0] * 9, f"expected 10 integers under '{cifar.label_key}'"),
        "labels are text": (cifar.label_key, ["0"] * 10, "expected 10 integers"),
        "label too large": (
            cifar.label_key,
            [0] * 9 + [cifar.num_classes],
            f"0 … {cifar.num_classes}; .* damaged",
        ),
        "huge label": (cifar.label_key, [0] * 9 + [2**31 - 1], "damaged"),
        "ignored label": (cifar.label_key, [0] * 9 + [-100], r"found -100 … 0; the file is damaged"),
    }[kind]
    (root / layout.folder / layout.test).write_bytes(python2_pickle(batch | {key: value}))
    with pytest.raises(DataError, match=f"{layout.test}: .*{message}"):
        find_cifar(cifar, root)


def test_a_binary_label_that_does_not_exist_is_told(tiny_cifar):
    cifar = tiny_cifar.cifar
    layout = cifar.layouts[0]
    path = tiny_cifar.root / layout.folder / layout.test
    content = np.fromfile(path, np.uint8)
    content[cifar.labels_per_record - 1] = 200
    content.tofile(path)
    with pytest.raises(
        DataError, match=r"labels of CIFAR-10+ are 0 … 99?, found \d+ … 200; the file is damaged"
    ):
        read_cifar(cifar, layout, path.parent, "test")


def test_verification_compares_the_official_checksums_of_the_python_files(tiny_cifar):
    cifar, root = tiny_cifar.cifar, tiny_cifar.root
    python = cifar.layouts[1]
    with pytest.raises(
        DataError, match=f"{python.train[0]}: wrong checksum: MD5 [0-9a-f]{{32}}, expected the"
    ):
        find_cifar(cifar, root, verify=True)
    from deepres.data.download import file_md5

    known = {name: file_md5(root / python.folder / name) for name in (*python.train, python.test)}
    own = dataclasses.replace(cifar, layouts=(cifar.layouts[0], dataclasses.replace(python, md5=known)))
    assert find_cifar(own, root, verify=True)[0].kind == "python"


def test_verification_of_binary_files_alone_says_that_it_cannot(tiny_cifar):
    remove(tiny_cifar.root, tiny_cifar.cifar.layouts[1].folder)
    with pytest.raises(DataError, match="python files, which alone have published checksums"):
        find_cifar(tiny_cifar.cifar, tiny_cifar.root, verify=True)
