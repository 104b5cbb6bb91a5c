import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepres.config import DataConfig
from deepres.data import IGNORED_LABEL, DataError, find_data, opening
from deepres.data.cifar_layout import CIFAR10
from deepres.data.sampling import shuffled, uniforms
from tests.data.opened import open_data


def synthetic(**options):
    defaults = {"image_size": 8, "num_images": 48, "micro_batch_size": 4, "augmentation": "crop_flip"}
    return open_data("synthetic", **(defaults | options))


def by_index(batches):
    return {
        index: (image, int(label))
        for batch in batches
        for image, label, index in zip(batch.images, batch.labels, batch.indices.tolist(), strict=True)
        if index >= 0
    }


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_facts_agree_with_the_batches(name):
    if name == "digits":
        pytest.importorskip("sklearn")
    options = {"num_images": 1000} if name == "synthetic" else {}
    info = find_data(DataConfig(name=name, **options)).info
    source = open_data(name, micro_batch_size=100, eval_batch_size=77, **options)
    assert source.info == info
    train, test = list(source.train_batches(0)), list(source.test_batches())
    assert len(train) == source.num_train_batches == info.num_train // 100
    assert len(test) == source.num_test_batches == -(-info.num_test // 77)
    assert sum(len(batch.labels) for batch in test) == info.num_test
    for batch in train[:1] + test[:1]:
        assert batch.images.shape[1:] == (3, info.image_size, info.image_size)
        assert batch.images.dtype == torch.float32
        assert batch.labels.max() < info.num_classes
    assert not source.bad_images.any()
    source.close()


@settings(deadline=None, max_examples=30)
@given(
    factors=st.sampled_from([(12, 1, 1), (6, 2, 1), (3, 2, 2), (4, 1, 3), (1, 12, 1), (1, 3, 4), (2, 3, 2)]),
    epoch=st.integers(0, 5),
)
def test_a_steps_images_are_the_same_bit_for_bit_however_the_batch_is_factored(factors, epoch):
    micro, accumulation, world = factors
    expected = [by_index([batch]) for batch in synthetic(micro_batch_size=12).train_batches(epoch)]
    ranks = [
        list(
            synthetic(
                micro_batch_size=micro, accumulation=accumulation, rank=rank, world_size=world
            ).train_batches(epoch)
        )
        for rank in range(world)
    ]
    for step, images in enumerate(expected):
        parts = [b for part in ranks for b in part[step * accumulation : (step + 1) * accumulation]]
        found = by_index(parts)
        assert found.keys() == images.keys()
        for index, (image, label) in images.items():
            assert torch.equal(found[index][0], image)
            assert found[index][1] == label


@pytest.mark.parametrize("start", [0, 1, 5, 12])
def test_an_epoch_entered_in_the_middle_goes_on_bit_for_bit(start):
    whole = list(synthetic().train_batches(2))
    resumed = list(synthetic().train_batches(2, start=start))
    assert len(resumed) == 12 - start
    for one, other in zip(resumed, whole[start:], strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.indices, other.indices)


def test_epochs_and_seeds_differ_in_order_and_augmentation():
    first = {key: list(synthetic(seed=key[0]).train_batches(key[1])) for key in [(0, 0), (0, 1), (1, 0)]}
    orders = {tuple(torch.cat([batch.indices for batch in batches]).tolist()) for batches in first.values()}
    assert len(orders) == 3
    same_image = [by_index(first[0, epoch])[7][0] for epoch in (0, 1)]
    assert not torch.equal(*same_image)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_ranks_evaluate_each_image_once_in_equally_many_batches(world):
    sources = [
        synthetic(num_images=65, eval_batch_size=4, rank=rank, world_size=world) for rank in range(world)
    ]
    shown = [list(source.test_batches()) for source in sources]
    assert {len(part) for part in shown} == {sources[0].num_test_batches}
    indices = torch.cat([batch.indices for part in shown for batch in part])
    labels = torch.cat([batch.labels for part in shown for batch in part])
    assert sorted(indices[indices >= 0].tolist()) == list(range(13))
    assert torch.equal(labels == IGNORED_LABEL, indices < 0)
    alone = by_index(synthetic(num_images=65).test_batches())
    for part in shown:
        for index, (image, label) in by_index(part).items():
            assert torch.equal(image, alone[index][0])
            assert label == alone[index][1]
        for batch in part:
            assert not batch.images[batch.indices < 0].any()


def test_test_images_are_not_training_images():
    source = synthetic(augmentation="none")
    train = {image.numpy().tobytes() for image, _ in by_index(source.train_batches(0)).values()}
    test = {image.numpy().tobytes() for image, _ in by_index(source.test_batches()).values()}
    assert not train & test


def test_global_random_numbers_are_left_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    source = synthetic()
    list(source.train_batches(0))
    list(source.test_batches())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert random.getstate() == before[2]


def test_a_linear_model_learns_the_synthetic_images():
    source = synthetic(num_images=2000, micro_batch_size=50, image_size=16, augmentation="none")
    model = torch.nn.Linear(3 * 16 * 16, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for epoch in range(2):
        for batch in source.train_batches(epoch):
            loss = torch.nn.functional.cross_entropy(model(batch.images.flatten(1)), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[0] > 1.5
    assert sum(losses[-10:]) / 10 < 0.5


@pytest.fixture
def cifar10(tiny_cifar, monkeypatch):
    monkeypatch.setitem(opening._CIFARS, tiny_cifar.cifar.name, tiny_cifar.cifar)
    return tiny_cifar


@pytest.mark.parametrize("normalize", ["mean_std", "per_pixel_mean", "imagenet_mean_std", "half"])
def test_cifars_batches_are_its_images_normalised_shuffled_padded_and_cropped(cifar10, normalize):
    name = cifar10.cifar.name
    source = open_data(name, root=cifar10.root, micro_batch_size=5, normalize=normalize, seed=3)
    pixels = cifar10.images["train"].astype(np.float64)
    if normalize == "mean_std":
        axes = (0, 2, 3)
        mean, std = pixels.mean(axes)[:, None, None], pixels.std(axes)[:, None, None]
    elif normalize == "imagenet_mean_std":
        mean = 255 * np.array([0.485, 0.456, 0.406])[:, None, None]
        std = 255 * np.array([0.229, 0.224, 0.225])[:, None, None]
    else:
        mean, std = (pixels.mean(0), 255.0) if normalize == "per_pixel_mean" else (127.5, 127.5)
    order, draws = shuffled(20, seed=3, epoch=4), uniforms(3, 4, 0, 20, 3)
    rows = [row for batch in source.train_batches(4) for row in zip(batch.images, batch.labels, strict=True)]
    for position, (image, label) in enumerate(rows):
        index = order[position]
        padded = np.zeros((3, 40, 40))
        padded[:, 4:36, 4:36] = (pixels[index] - mean) / std
        top, left = (draws[position, :2] * 9).astype(int)
        crop = padded[:, top : top + 32, left : left + 32]
        expected = crop[:, :, ::-1] if draws[position, 2] < 0.5 else crop
        np.testing.assert_allclose(image.numpy(), expected, rtol=1e-5, atol=1e-5)
        assert int(label) == cifar10.labels["train"][index]
    for batch in source.test_batches():
        expected = (cifar10.images["test"][batch.indices] - mean) / std
        np.testing.assert_allclose(batch.images.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_full_sized_cifar_files_are_inspected_without_reading_them(tmp_path):
    layout = CIFAR10.layouts[0]
    (tmp_path / layout.folder).mkdir()
    for name in (*layout.train, layout.test):
        with (tmp_path / layout.folder / name).open("wb") as file:
            file.truncate(30_730_000)  # holes: no bytes on the disk
    info = find_data(DataConfig(name="cifar10", root=tmp_path)).info
    assert (info.num_train, info.num_test, info.num_classes, info.image_size) == (50_000, 10_000, 10, 32)


def test_another_number_of_classes_than_is_asked_for_is_an_error():
    pytest.importorskip("sklearn")
    with pytest.raises(DataError, match=r"digits has 10 classes, got data\.num_classes=100"):
        find_data(DataConfig(name="digits", num_classes=100))


@pytest.mark.parametrize("name", ["cifar10", "image_folder"])
def test_a_place_that_the_system_refuses_is_an_error(name, tmp_path):
    with pytest.raises(DataError, match=r"x: cannot be read: \[Errno 36\] File name too long"):
        find_data(DataConfig(name=name, root=tmp_path / ("x" * 300)))


def test_a_set_with_fewer_images_than_a_step_takes_is_refused_before_and_when_it_is_opened():
    found = find_data(DataConfig(name="synthetic", num_images=9))
    found.check_batch(9)
    for look in (lambda: found.check_batch(10), lambda: found.open(micro_batch_size=5, accumulation=2)):
        with pytest.raises(DataError, match="has 9 training images, fewer than the 10 of one step"):
            look()


def test_test_images_smaller_than_their_crop_are_an_error(image_folder):
    message = r"eval_shorter_side must be at least the test crop's 224, got 200"
    with pytest.raises(DataError, match=message):
        find_data(DataConfig(name="image_folder", root=image_folder, eval_shorter_side=200))


def test_image_files_from_minus_one_to_one(image_folder):
    options = {"root": image_folder, "micro_batch_size": 2, "image_size": 32}
    theirs, ours = (
        next(iter(open_data("image_folder", normalize=name, **options).test_batches())).images
        for name in ("half", None)
    )
    red = (ours[:, 0] * 0.229 + 0.485 - 0.5) / 0.5
    torch.testing.assert_close(theirs[:, 0], red, rtol=1e-5, atol=1e-5)


def test_a_set_smaller_than_one_step_is_an_error():
    with pytest.raises(DataError, match="synthetic has 48 training images, fewer than the 50 of one step"):
        synthetic(micro_batch_size=5, accumulation=5, world_size=2)
