"""Images of any kind become the same pixels whoever decodes them, or a refusal."""

import io
import warnings

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from data import decode
from data.decode import decode_image, decode_smaller

SIZE = (24, 16)


def encoded(image: Image.Image, kind: str = "JPEG", **settings) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


@pytest.fixture
def picture() -> Image.Image:
    """Smooth, so that JPEG keeps it: the left is dark, the top is red."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    return Image.fromarray(np.uint8(np.stack([255 - 9 * y, 12 * x, 80 + 3 * x], -1)))


@pytest.mark.parametrize("settings", [{}, {"subsampling": 0}, {"progressive": True}, {"quality": 30}])
def test_libjpeg_and_pillow_give_the_same_pixels(picture, monkeypatch, settings):
    data = encoded(picture, **settings)
    fast = decode_image(data, SIZE)
    monkeypatch.setattr(decode, "simplejpeg", None)
    assert np.array_equal(fast, decode_image(data, SIZE))


def test_real_photographs(real_data, monkeypatch):
    for path in sorted((real_data / "cotton/image").glob("*.jpg"))[:3]:
        data = path.read_bytes()
        with Image.open(path) as image:
            expected = np.asarray(image)
        out = np.empty_like(expected)
        assert decode_image(data, expected.shape[:2], out) is out and np.array_equal(out, expected)


def test_other_kinds_of_images(picture):
    truth = np.asarray(picture).astype(int)
    turned = Image.Exif()
    turned[0x0112] = 6  # a viewer turns it clockwise by 90 degrees
    sideways = picture.transpose(Image.Transpose.ROTATE_90)
    kinds = {
        "PNG called .jpg": (encoded(picture, "PNG"), 0),
        "WebP": (encoded(picture, "WEBP", lossless=True), 0),
        "palette": (encoded(picture.quantize(256), "PNG"), 24),
        "CMYK": (encoded(picture.convert("CMYK"), quality=95), 60),  # without a colour profile: roughly
        "EXIF rotated": (encoded(sideways, exif=turned, quality=95, subsampling=0), 12),
        "grey": (encoded(picture.convert("L"), "PNG"), 255),
    }
    for name, (data, tolerance) in kinds.items():
        out = np.full((*SIZE, 3), 7, np.uint8)
        assert decode_image(data, SIZE, out) is out, name
        assert np.abs(out - truth).max() <= tolerance, name
    grey = decode_image(kinds["grey"][0], SIZE)
    assert (grey[..., 0] == grey[..., 2]).all()


def bomb() -> bytes:
    """A PNG that says it has 30,000 x 30,000 pixels, in a few hundred bytes."""
    data = bytearray(encoded(Image.new("L", (8, 8)), "PNG"))
    data[16:24] = (30000).to_bytes(4, "big") * 2
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (encoded(Image.new("RGB", (16, 23))), "23x16 pixels, not 24x16"),
        (encoded(Image.new("RGB", (17, 24)), "PNG"), "24x17 pixels, not 24x16"),
        (encoded(Image.new("I;16", (16, 24)), "PNG"), "I;16 pixels, not 8 bits"),
        (encoded(Image.new("F", (16, 24)), "TIFF"), "F pixels, not 8 bits"),
        (encoded(Image.new("RGB", (16, 24)))[:300], ""),
        (encoded(Image.effect_noise((16, 24), 60).convert("RGB"), "PNG")[:300], ""),
        (bomb(), ""),
        (b"", ""),
        (b"\x80\x04\x95 a pickle", ""),
        (b"\xff\xd8", ""),
    ],
)
def test_what_is_refused(data, told):
    with warnings.catch_warnings(), pytest.raises(ValueError, match=told or None):
        warnings.simplefilter("error")
        decode_image(data, SIZE)


def test_a_larger_jpeg_is_decoded_smaller(picture):
    large = picture.resize((160, 240), Image.Resampling.BICUBIC)
    smaller = decode_smaller(encoded(large), SIZE)
    assert SIZE[0] <= smaller.shape[0] < 240 and SIZE[1] <= smaller.shape[1] < 160
    assert smaller.shape == simplejpeg.decode_jpeg(encoded(large), min_height=24, min_width=16, min_factor=1).shape
    for data in (encoded(large, "PNG"), encoded(large)[:50]):
        with pytest.raises(ValueError):
            decode_smaller(data, SIZE)
