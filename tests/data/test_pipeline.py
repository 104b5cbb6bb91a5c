import pytest

from deepres.config import DataConfig
from deepres.data.batch import DataError
from deepres.data.decode import Crop
from deepres.data.pipeline import make_pipeline


def _pipeline(**options):
    return make_pipeline(DataConfig(name="image_folder", **options))


@pytest.mark.parametrize(
    ("options", "side"),
    [
        ({}, 256),
        ({"image_size": 112}, 128),
        ({"eval_image_size": 320}, 320),
        ({"eval_image_size": 320, "eval_shorter_side": 360}, 360),
        ({"eval_shorter_side": 224}, 224),
        ({"augmentation": "none"}, 224),
        ({"augmentation": "crop_flip", "eval_image_size": 320}, 320),
    ],
)
def test_the_shorter_side_of_test_images_is_256_for_224_and_else_the_crops(options, side):
    pipeline = _pipeline(**options)
    assert pipeline.crops[1] == Crop(
        "centre", options.get("eval_image_size") or options.get("image_size", 224), side
    )


def test_images_that_are_cropped_when_decoded_are_not_cropped_again():
    assert _pipeline(augmentation="scale").on_device == "none"
    pipeline = _pipeline(augmentation="crop_flip")
    assert (pipeline.crops[0], pipeline.on_device) == (Crop("centre", 224, 224), "crop_flip")


def test_a_larger_test_crop_needs_as_long_a_side():
    with pytest.raises(DataError, match="must be at least the test crop's 320, got 300"):
        _pipeline(eval_image_size=320, eval_shorter_side=300)
