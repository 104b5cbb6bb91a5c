import contextlib
import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deepres.data.decode import BadImageError, Crop, decode_rgb

RED, GREEN, BLUE = (200, 10, 20), (10, 200, 20), (10, 20, 200)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def quarters(width: int = 48, height: int = 32) -> Image.Image:
    """Red, green, blue and white quarters, in reading order."""
    image = Image.new("RGB", (width, height), (255, 255, 255))
    image.paste(RED, (0, 0, width // 2, height // 2))
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    image.paste(BLUE, (0, height // 2, width // 2, height))
    return image


def corners(image: Image.Image) -> list[tuple[int, ...]]:
    pixels = np.asarray(image)
    height, width, _ = pixels.shape
    return [
        tuple(pixels[y, x].tolist()) for y in (height // 4, -height // 4) for x in (width // 4, -width // 4)
    ]


def assert_quarters(image: Image.Image, tolerance: int) -> None:
    assert image.mode == "RGB"
    for found, expected in zip(corners(image), (RED, GREEN, BLUE, (255, 255, 255)), strict=True):
        assert np.abs(np.subtract(found, expected)).max() <= tolerance


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM"])
def test_every_format_is_told_by_its_content(kind):
    assert_quarters(decode_rgb(encoded(quarters(), kind)), tolerance=8)


@pytest.mark.parametrize(
    ("mode", "tolerance"), [("CMYK", 4), ("P", 60), ("RGBA", 0), ("YCbCr", 4)], ids=lambda v: str(v)
)
def test_other_colour_models_become_rgb(mode, tolerance):
    kind = {"CMYK": "TIFF", "YCbCr": "TIFF"}.get(mode, "PNG")
    assert_quarters(decode_rgb(encoded(quarters().convert(mode), kind)), tolerance)


def test_a_cmyk_jpeg_is_not_inverted():
    assert_quarters(decode_rgb(encoded(quarters().convert("CMYK"), "JPEG", quality=95)), tolerance=12)


def test_a_palette_with_transparency_decodes_without_a_warning():
    image = quarters().convert("P")
    content = encoded(image, "PNG", transparency=bytes(range(256)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_quarters(decode_rgb(content), tolerance=60)


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_grey_is_repeated_over_the_channels(mode):
    image = Image.new("L", (8, 8), 255).convert(mode)
    assert np.asarray(decode_rgb(encoded(image, "PNG"))).tolist() == [[[255] * 3] * 8] * 8


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind):
    values = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    pixels = np.asarray(decode_rgb(encoded(Image.fromarray(values), kind)))
    assert pixels[0, :, 0].tolist() == [0, 0, 1, 128, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1, 128, 255], [0, 1, 128, 255]),
        ([-5, 0, 255, 256], [0, 0, 0, 1]),
        ([0, 32768, 70000], [0, 128, 255]),
    ],
    ids=["8 bits", "above 8 bits", "above 16 bits"],
)
def test_integers_of_32_bits_are_of_8_if_none_is_larger_and_else_of_16(values, expected):
    image = Image.fromarray(np.array([values], dtype=np.int32))
    pixels = np.asarray(decode_rgb(encoded(image, "TIFF")))
    assert pixels[0, :, 0].tolist() == expected


def tiff(values: np.ndarray, *, num_bits: int, photometric: int) -> bytes:
    """Grey values in one strip, each so many bits wide."""
    height, width = values.shape
    data = values.astype("<u2").tobytes()
    if num_bits == 12:  # two of them in three bytes
        pairs = values.reshape(-1, 2).tolist()
        data = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs)
    tags = {256: width, 257: height, 258: num_bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in {**tags, 279: len(data)}.items()]
    header = b"II*\0" + struct.pack("<I", 8 + len(data))
    return header + data + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)


@pytest.mark.parametrize(("num_bits", "photometric"), [(12, 1), (16, 0), (16, 1)])
def test_grey_tiffs_are_scaled_by_their_own_bits_and_inverted_where_white_is_0(num_bits, photometric):
    values = np.arange(8).reshape(2, 4) * (2**num_bits // 8)
    pixels = np.asarray(decode_rgb(tiff(values, num_bits=num_bits, photometric=photometric)))
    expected = values >> (num_bits - 8)
    assert (pixels == (expected if photometric else 255 - expected)[:, :, None]).all()


def test_a_dark_file_of_16_bits_stays_dark():
    assert np.asarray(decode_rgb(b"P5 2 1 65535\n\x00\xff\x00\x80")).max() == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_upright_as_its_exif_data_say(orientation):
    turn = Image.Transpose
    undo = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_90,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_270,
    }
    stored = quarters().transpose(undo[orientation]) if orientation in undo else quarters()
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode_rgb(encoded(stored, "JPEG", exif=exif, quality=95))
    assert image.size == (48, 32)
    assert_quarters(image, tolerance=12)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_data_do_not_spoil_an_image(kind):
    for exif in (b"Exif\0\0garbage", b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff"):
        assert_quarters(decode_rgb(encoded(quarters(), kind, exif=exif)), tolerance=12)
    data = Image.Exif()
    data[0x0112], data[0x011A] = 6, 72.0
    # A resolution that is a text: Pillow reads it, and cannot write it again.
    exif = data.tobytes().replace(b"\x01\x1a\x00\x05", b"\x01\x1a\x00\x02")
    stored = quarters().transpose(Image.Transpose.ROTATE_90)
    assert_quarters(decode_rgb(encoded(stored, kind, exif=exif, quality=95)), tolerance=12)


def bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "empty"),
        (b"this is a text", "not an image of a supported format \\(JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image of a supported format \\(JPEG"),
        (encoded(quarters(), "JPEG")[:-40], "truncated"),
        (encoded(quarters(), "PNG")[:60], "truncated|broken"),
        (bomb(10_000, 10_000), "decompression bomb"),
        (bomb(100_000, 100_000), "decompression bomb"),
        (encoded(Image.new("F", (4, 4)), "TIFF"), "floating-point"),
    ],
    ids=["empty", "text", "eps", "cut jpeg", "cut png", "large", "huge", "float"],
)
def test_what_cannot_be_decoded_is_a_bad_image(content, why):
    with pytest.raises(BadImageError, match=why):
        decode_rgb(content)


@given(data=st.data(), kind=st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"]))
def test_a_damaged_file_is_an_image_or_a_bad_one_but_never_another_error(data, kind):
    content = bytearray(encoded(quarters(16, 16), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BadImageError):
        assert decode_rgb(bytes(content)).mode == "RGB"


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def test_a_centre_crop_of_the_right_size_changes_nothing():
    image = noise(32, 32)
    assert np.array_equal(Crop("centre", 32, 32)(image, np.empty(0)), np.asarray(image))
    wide = noise(40, 32)
    assert np.array_equal(Crop("centre", 32, 32)(wide, np.empty(0)), np.asarray(wide)[:, 4:36])


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (256, 256), (100, 900)])
def test_a_centre_crop_equals_resizing_all_and_cropping_then(width, height):
    # Smooth and far from black and white: Pillow rounds between its two passes, in an order that it chooses.
    image = noise(9, 9).resize((width, height), Image.Resampling.BILINEAR).point(lambda v: 64 + v // 2)
    scale = 256 / min(width, height)
    whole = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    left, top = (whole.width - 224) // 2, (whole.height - 224) // 2
    expected = np.asarray(whole.crop((left, top, left + 224, top + 224))).astype(int)
    assert np.abs(Crop("centre", 224, 256)(image, np.empty(0)) - expected).max() <= 1


@pytest.mark.parametrize(
    ("draw", "shorter_side"), [(0.0, 256), (0.5, 368), (1 - 2**-53, 480)], ids=["least", "middle", "most"]
)
def test_the_shorter_side_is_scaled_to_256_up_to_480(draw, shorter_side):
    # A ramp of one grey level a pixel: its slope in the crop is the scale.
    ramp = Image.fromarray(np.tile(np.arange(240, dtype=np.uint8)[None, :, None], (240, 1, 3)))
    pixels = Crop("scale", 224)(ramp, np.array([draw, 0.0, 0.0, 0.9])).astype(float)
    slope = (pixels[112, 200, 0] - pixels[112, 20, 0]) / 180
    assert slope == pytest.approx(240 / shorter_side, rel=0.02)


@pytest.mark.parametrize("extra", range(8))
def test_every_length_of_the_shorter_side_is_drawn_equally_often(extra):
    """Of 8 to 15, which 256 to 480 are for a crop of 7 pixels."""
    ramp = Image.fromarray(np.tile(np.arange(240, dtype=np.uint8)[None, :, None], (240, 1, 3)))
    pixels = Crop("scale", 7)(ramp, np.array([(extra + 0.5) / 8, 0.0, 0.0, 0.9])).astype(float)
    assert (pixels[3, 5, 0] - pixels[3, 1, 0]) / 4 == pytest.approx(240 / (8 + extra), rel=0.02)


@pytest.mark.parametrize("kind", ["scale", "scale_and_aspect"])
def test_a_random_crop_is_mirrored_for_half_of_the_draws(kind):
    crop = Crop(kind, 24)
    draws = np.random.default_rng(0).random(crop.num_draws)
    left, right = (crop(noise(60, 40), np.append(draws[:-1], last)) for last in (0.49, 0.5))
    assert np.array_equal(left, right[:, ::-1])
    assert not np.array_equal(left, right)


@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    size=st.integers(1, 64),
    kind=st.sampled_from(["centre", "scale", "scale_and_aspect"]),
    seed=st.integers(0, 100),
    extreme=st.sampled_from([None, 0.0, 1 - 2**-53]),
)
def test_any_image_gives_a_crop_of_the_size_asked_for(width, height, size, kind, seed, extreme):
    crop = Crop(kind, size, size)
    draws = np.random.default_rng(seed).random(crop.num_draws)
    draws = draws if extreme is None else np.full_like(draws, extreme)
    pixels = crop(Image.new("RGB", (width, height), RED), draws)
    assert pixels.shape == (size, size, 3)
    assert (pixels == RED).all()


def test_regions_have_8_to_100_percent_of_the_area_and_moderate_aspect_ratios(monkeypatch):
    boxes = []
    crop = Crop("scale_and_aspect", 8)
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, *a, box, **k: boxes.append(box) or resize(self, *a, box=box, **k)
    )
    random = np.random.default_rng(0)
    for _ in range(500):
        crop(Image.new("RGB", (300, 200)), random.random(crop.num_draws))
    sides = np.array([(right - left, bottom - top) for left, top, right, bottom in boxes])
    shares, ratios = sides.prod(1) / 60_000, sides[:, 0] / sides[:, 1]
    assert 0.078 < shares.min() < 0.1
    assert 0.8 < shares.max() <= 1
    assert 0.73 < ratios.min() < 0.77
    assert 1.30 < ratios.max() < 1.36
    assert np.array(boxes).min() >= 0
    assert (np.array(boxes)[:, 2:].max(0) <= (300, 200)).all()
