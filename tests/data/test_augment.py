import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepres.data.augment import CONSTANTS, Normalization, add_lighting, crop_and_flip
from deepres.data.sampling import normals, uniforms
from tests.data.opened import open_data


def reference(images: torch.Tensor, draws: np.ndarray, flip: bool) -> torch.Tensor:
    """One image at a time, as the recipe is told."""
    crops = []
    for image, (row_draw, column_draw, flip_draw) in zip(images, draws, strict=True):
        _, height, width = image.shape
        padded = torch.zeros(3, height + 8, width + 8)
        padded[:, 4:-4, 4:-4] = image
        top, left = int(row_draw * 9), int(column_draw * 9)
        crop = padded[:, top : top + height, left : left + width]
        crops.append(crop.flip(-1) if flip and flip_draw < 0.5 else crop)
    return torch.stack(crops)


@given(seed=st.integers(0, 1000), height=st.integers(1, 12), width=st.integers(1, 12), flip=st.booleans())
def test_crops_of_a_whole_batch_equal_those_of_a_loop_over_images(seed, height, width, flip):
    images = torch.randn(9, 3, height, width, generator=torch.Generator().manual_seed(seed))
    draws = uniforms(seed, 0, 0, 9, 3)
    crops = crop_and_flip(images, draws, flip=flip)
    assert torch.equal(crops, reference(images, draws, flip))
    assert crops.is_contiguous()


def test_crops_reach_all_81_places_and_both_sides():
    images = torch.arange(32.0 * 32).reshape(1, 1, 32, 32).expand(4000, 3, 32, 32) + 1
    crops = crop_and_flip(images, uniforms(0, 0, 0, 4000, 3), flip=True)
    assert len({tuple(crop[0, 12, 12:14].tolist()) for crop in crops}) == 2 * 81


def test_statistics_of_channels_are_those_of_all_their_pixels():
    images = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8)
    normalized = Normalization.channel_mean_std(images)(images)
    pixels = images.double()
    expected = (pixels - pixels.mean((0, 2, 3), keepdim=True)) / pixels.std(
        (0, 2, 3), keepdim=True, correction=0
    )
    torch.testing.assert_close(normalized.double(), expected, rtol=1e-5, atol=1e-6)


def test_the_per_pixel_mean_is_that_of_each_place_and_only_subtracted():
    images = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8)
    normalized = Normalization.per_pixel_mean(images)(images)
    pixels = images.double() / 255
    torch.testing.assert_close(normalized.double(), pixels - pixels.mean(0), rtol=1e-5, atol=1e-6)


def test_a_channel_of_one_colour_does_not_become_nan():
    images = torch.full((4, 3, 8, 8), 7, dtype=torch.uint8)
    assert Normalization.channel_mean_std(images)(images).abs().max() == 0


def test_decoded_images_come_out_contiguous_with_imagenets_statistics():
    images = torch.randint(0, 256, (2, 5, 6, 3), dtype=torch.uint8)
    normalized = Normalization.of_constants(*CONSTANTS["imagenet_mean_std"])(images.permute(0, 3, 1, 2))
    assert normalized.is_contiguous()
    red = (images[..., 0].double() / 255 - 0.485) / 0.229
    torch.testing.assert_close(normalized[:, 0].double(), red, rtol=1e-5, atol=1e-6)


@given(seed=st.integers(0, 1000), deviation=st.sampled_from([0.1, 1.0]))
def test_lighting_adds_to_all_pixels_of_an_image_one_colour_along_the_principal_components(seed, deviation):
    pixels = torch.randint(0, 256, (5, 3, 4, 6), generator=torch.Generator().manual_seed(seed))
    mean, std = CONSTANTS["imagenet_mean_std"]
    normalization, drawn = Normalization.of_constants(mean, std), normals(seed, 0, 0, 5)
    lit = add_lighting(normalization(pixels.to(torch.uint8)), drawn, deviation, normalization)
    spread, components = (0.2175, 0.0188, 0.0045), _COMPONENTS
    for image, of_image, numbers in zip(lit, pixels, drawn, strict=True):
        colour = sum(deviation * numbers[k] * spread[k] * components[:, k] for k in range(3))
        for channel in range(3):
            value = of_image[channel] / 255 + colour[channel]
            expected = (value - mean[channel]) / std[channel]
            assert torch.allclose(image[channel], expected.float(), atol=1e-5)


_COMPONENTS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


def test_the_principal_components_are_orthonormal():
    assert np.abs(_COMPONENTS.T @ _COMPONENTS - np.eye(3)).max() < 1e-3


def test_a_source_lights_training_images_alone_and_whole_batches_as_parts():
    options = {"num_images": 40, "image_size": 8, "augmentation": "none", "seed": 3}
    plain, lit, halves = (
        open_data("synthetic", **options, **more)
        for more in (
            {"micro_batch_size": 8},
            {"micro_batch_size": 8, "lighting": 0.1},
            {"micro_batch_size": 4, "lighting": 0.1},
        )
    )
    for one, other in zip(plain.test_batches(), lit.test_batches(), strict=True):
        assert torch.equal(one.images, other.images)
    whole = torch.cat([batch.images for batch in lit.train_batches(1)])
    assert torch.equal(whole, torch.cat([batch.images for batch in halves.train_batches(1)]))
    unlit = torch.cat([batch.images for batch in plain.train_batches(1)])
    shifts = (whole - unlit)[:, :, 4, 4]
    assert len(shifts.round(decimals=4).unique(dim=0)) == len(shifts)
    assert float(shifts.abs().max()) < 1
