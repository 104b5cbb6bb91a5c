"""Where the regions of images lie that a net sees."""

import numpy as np
import pytest
from PIL import Image

from deepres.data.decode import Crop


def _ramp(width, height):
    """An image whose pixels tell where they are."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x % 256, y % 256, x // 256], axis=2).astype(np.uint8))


def _region(image, size, box):
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))


def _draws(area_share, aspect_share, left, top):
    crop = Crop("scale_and_aspect", 8)
    draws = np.full(crop.num_draws, 0.75)
    draws[:3], draws[-3:] = (area_share, aspect_share, 0.25), (left, top, 0.75)
    return crop, draws


_MOST = 1 - 2**-53


def test_a_region_may_be_the_whole_image():
    image = _ramp(400, 300)
    crop, draws = _draws(_MOST, _MOST, 0.5, 0.5)
    assert np.array_equal(crop(image, draws), _region(image, 8, (0, 0, 400, 300)))


@pytest.mark.parametrize(("left", "top", "at"), [(0, 0, (0, 0)), (_MOST, 0, (20, 0)), (0, _MOST, (0, 15))])
def test_a_region_may_lie_at_each_edge(left, top, at):
    image = _ramp(40, 30)
    crop, draws = _draws((0.25 - 0.08) / 0.92, _MOST, left, top)
    assert np.array_equal(crop(image, draws), _region(image, 8, (*at, at[0] + 20, at[1] + 15)))


def test_of_an_image_of_which_no_region_has_room_the_middle_is_taken():
    image = _ramp(400, 10)
    crop, draws = _draws(0.5, 0.5, 0.5, 0.5)
    assert np.array_equal(crop(image, draws), Crop("centre", 8, 8)(image, np.empty(0)))


@pytest.mark.parametrize(("width", "height"), [(300, 256), (256, 300)])
def test_a_square_may_lie_at_each_edge(width, height):
    image = _ramp(width, height)
    found = Crop("scale", 224)(image, np.array([0, _MOST, _MOST, 0.75]))
    assert np.array_equal(found, np.asarray(image)[height - 224 :, width - 224 :])
