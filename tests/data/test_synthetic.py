import pytest
import torch

from deepres.data.synthetic import SyntheticImages

CPU = torch.device("cpu")


def test_an_image_depends_on_the_seed_and_its_index_alone():
    make = SyntheticImages(10, 20, seed=3, device=CPU)
    images, labels = make(torch.tensor([7, 1, 7, 12]))
    again, _ = SyntheticImages(10, 20, seed=3, device=CPU)(torch.tensor([12]))
    other, _ = SyntheticImages(10, 20, seed=4, device=CPU)(torch.tensor([12]))
    assert images.shape == (4, 3, 20, 20)
    assert images.dtype == torch.uint8
    assert labels.tolist() == [7, 1, 7, 2]
    assert torch.equal(images[0], images[2])
    assert torch.equal(images[3], again[0])
    assert not torch.equal(other, again)


def test_images_of_a_class_share_a_picture_but_are_all_different():
    images, labels = SyntheticImages(4, 32, seed=0, device=CPU)(torch.arange(4000))
    assert len({image.numpy().tobytes() for image in images}) == 4000
    pictures = torch.stack([images[labels == label].float().mean(0) for label in range(4)])
    nearest = torch.cdist(images.float().flatten(1), pictures.flatten(1)).argmin(1)
    assert torch.equal(nearest, labels)


@pytest.mark.parametrize(("divide", "std"), [(True, 1.0), (False, 52.3 / 255)])
def test_the_normalisation_is_that_of_the_distribution(divide, std):
    images, _ = SyntheticImages(500, 16, seed=0, device=CPU)(torch.arange(2000))
    normalized = SyntheticImages.normalization(divide_by_std=divide)(images)
    assert normalized.mean().abs() < 0.02
    assert normalized.std() == pytest.approx(std, rel=0.02)


def test_images_are_made_at_any_index_of_a_large_set():
    make = SyntheticImages(1000, 224, seed=0, device=CPU)
    images, labels = make(torch.tensor([1_281_166, 0]))
    assert images.shape == (2, 3, 224, 224)
    assert labels.tolist() == [166, 0]


def test_sizes_that_the_grid_does_not_divide_work():
    for size in (1, 3, 5, 33):
        images, _ = SyntheticImages(2, size, seed=0, device=CPU)(torch.arange(3))
        assert images.shape == (3, 3, size, size)
