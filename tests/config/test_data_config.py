import pytest
from pydantic import ValidationError

from deepres.config import DataConfig


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cifar", {}, "Input should be 'cifar10', 'cifar100', .* 'digits' or 'synthetic'"),
        ("cifar10", {"image_size": 64}, r"images of cifar10 are 32×32: leave data\.image_size unset, got 64"),
        ("digits", {"num_images": 100}, "num_images is for the synthetic set alone, got 100 for digits"),
        ("imagenet", {"download": True}, "download is for cifar10 and cifar100 alone, got true for imagenet"),
        ("image_folder", {"verify": True}, "verify is for cifar10 and cifar100 alone, got true for image_f"),
        (
            "digits",
            {"augmentation": "scale"},
            "augmentation=scale is for image files; digits takes none, crop",
        ),
        (
            "synthetic",
            {"eval_image_size": 9},
            "eval_image_size and .* are for image files, not for synthetic",
        ),
        ("cifar10", {"eval_shorter_side": 9}, "eval_image_size and .* are for image files, not for cifar10"),
        *(
            (
                "imagenet",
                {"normalize": statistics},
                f"normalize of image files must be imagenet_mean_std or half, got {statistics}",
            )
            for statistics in ("mean_std", "per_pixel_mean")
        ),
    ],
)
def test_what_does_not_fit_the_set_is_told(name, options, message):
    with pytest.raises(ValidationError, match=message):
        DataConfig(name=name, **options)


def test_what_is_unset_is_the_sets_own():
    cifar, images = DataConfig(name="cifar10"), DataConfig(name="imagenet", image_size=192)
    assert (cifar.chosen_augmentation, cifar.chosen_image_size) == ("crop_flip", 32)
    assert (images.chosen_augmentation, images.chosen_image_size) == ("scale", 192)
    assert (cifar.chosen_normalize, images.chosen_normalize) == ("mean_std", "imagenet_mean_std")
    assert DataConfig(name="cifar10", augmentation="none", image_size=32).chosen_augmentation == "none"
