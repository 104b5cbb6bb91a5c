"""Turns the bytes of an image file into pixels of the size that a network takes.

Crops are resized with Pillow's bicubic filter, directly from their region of the original.
"""

import contextlib
import io
import struct
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # no EPS: Pillow would start Ghostscript
_MODES_16_BITS = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
"""TIFF tags."""
_PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    ArithmeticError,
    AttributeError,
    MemoryError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)

_NUM_ATTEMPTS = 10


class BadImageError(Exception):
    """The bytes are not an image that can be decoded."""


def decode_rgb(content: bytes) -> Image.Image:
    """Decodes an image file by its content, whatever its name.

    Grey, palette, CMYK and 16-bit images become 8-bit RGB; transparency is dropped; EXIF orientation is applied; of
    several frames the first is taken. A TIFF's 32-bit integers do not imply a range: they are taken for 8-bit values
    if none is above 255, else for 16-bit values.

    Raises:
        BadImageError: it is not JPEG, PNG, WebP, GIF, BMP, TIFF or PNM, or it is damaged, or it has more pixels than
            Pillow considers safe.
    """
    if not content:
        raise BadImageError("the file is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's warnings about odd metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image: Image.Image = Image.open(io.BytesIO(content), formats=_FORMATS)
            image.load()
            with contextlib.suppress(*_PILLOW_ERRORS):  # damaged EXIF data do not affect the pixels
                ImageOps.exif_transpose(image, in_place=True)
            if image.mode in _MODES_16_BITS:
                return Image.fromarray(_grey_of_8_bits(image)).convert("RGB")
            if image.mode == "F":
                raise BadImageError("pixels are floating-point numbers of unknown range")
            if image.mode == "P":
                image = image.convert("RGBA")
            return image.convert("RGB")
        except UnidentifiedImageError:
            raise BadImageError(f"not an image of a supported format ({', '.join(_FORMATS)})") from None
        except _PILLOW_ERRORS as error:
            raise BadImageError(f"{type(error).__name__}: {error}") from error


def _grey_of_8_bits(image: Image.Image) -> npt.NDArray[np.uint8]:
    values = np.asarray(image).clip(0, 65535)
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    num_bits = min(16, tags.get(_BITS_PER_SAMPLE, (16,))[0])
    if image.mode == "I" and tags and values.max() <= 255:
        num_bits = 8
    grey: npt.NDArray[np.uint8] = (values >> (num_bits - 8)).astype(np.uint8)
    return ~grey if tags.get(_PHOTOMETRIC) == 0 else grey  # 0: white is 0


@dataclass(frozen=True)
class Crop:
    """Crops an image of any size to `size`² pixels.

    Attributes:
        kind: `centre`: the shorter side is scaled to `shorter_side`, and the centre is cropped.
            `scale`: the shorter side is scaled to a random length in [256, 480] (for `size` 224, else in
            proportion), and a random square is cropped and mirrored with probability 1/2 (Simonyan and Zisserman
            2015; the paper's for ImageNet).
            `scale_and_aspect`: a random region of 8 to 100 % of the area and 3/4 to 4/3 aspect ratio is scaled to
            the square and mirrored with probability 1/2 (Szegedy et al., CVPR 2015; details as in
            `fb.resnet.torch`).
        size: height and width of the result.
        shorter_side: for `centre`.
    """

    kind: Literal["centre", "scale", "scale_and_aspect"]
    size: int
    shorter_side: int = 0

    @property
    def num_draws(self) -> int:
        """Random numbers needed per image."""
        return {"centre": 0, "scale": 4, "scale_and_aspect": 3 * _NUM_ATTEMPTS + 3}[self.kind]

    def __call__(self, image: Image.Image, draws: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
        """Crops.

        Args:
            image: RGB.
            draws: (`num_draws`,) in [0, 1).

        Returns:
            (`size`, `size`, 3) uint8.
        """
        if self.kind == "centre":
            return self._centre(image, self.shorter_side)
        if self.kind == "scale":
            shortest, longest = round(self.size * 256 / 224), round(self.size * 480 / 224)
            shorter_side = shortest + int(draws[0] * (longest - shortest + 1))
            width, height = _scaled(image, shorter_side)
            left = int(draws[1] * (width - self.size + 1))
            top = int(draws[2] * (height - self.size + 1))
            pixels = self._cut(image, (width, height), left, top)
        else:
            pixels = self._scale_and_aspect(image, draws)
        return pixels[:, ::-1] if draws[-1] < 0.5 else pixels

    def _centre(self, image: Image.Image, shorter_side: int) -> npt.NDArray[np.uint8]:
        width, height = _scaled(image, shorter_side)
        return self._cut(image, (width, height), (width - self.size) // 2, (height - self.size) // 2)

    def _cut(self, image: Image.Image, scaled: tuple[int, int], left: int, top: int) -> npt.NDArray[np.uint8]:
        """The crop of the image resized to `scaled`, without resizing all of it."""
        width, height = scaled
        x_scale, y_scale = image.width / width, image.height / height
        box = (left * x_scale, top * y_scale, (left + self.size) * x_scale, (top + self.size) * y_scale)
        box = (box[0], box[1], min(box[2], image.width), min(box[3], image.height))
        return self._resized(image, box)

    def _scale_and_aspect(self, image: Image.Image, draws: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
        for attempt in range(_NUM_ATTEMPTS):
            area_share, aspect_share, turn = draws[3 * attempt : 3 * attempt + 3]
            area = (0.08 + 0.92 * area_share) * image.width * image.height
            aspect = 3 / 4 + (4 / 3 - 3 / 4) * aspect_share
            sides = max(1, round((area * aspect) ** 0.5)), max(1, round((area / aspect) ** 0.5))
            width, height = sides if turn < 0.5 else sides[::-1]
            if width <= image.width and height <= image.height:
                left = int(draws[-3] * (image.width - width + 1))
                top = int(draws[-2] * (image.height - height + 1))
                return self._resized(image, (left, top, left + width, top + height))
        return self._centre(image, self.size)

    def _resized(self, image: Image.Image, box: tuple[float, float, float, float]) -> npt.NDArray[np.uint8]:
        return np.asarray(image.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box))


def _scaled(image: Image.Image, shorter_side: int) -> tuple[int, int]:
    """Width and height with the shorter side scaled to `shorter_side`."""
    factor = shorter_side / min(image.width, image.height)
    return max(shorter_side, round(image.width * factor)), max(shorter_side, round(image.height * factor))
