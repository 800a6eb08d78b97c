import io
import time
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from data.images import MAX_PIXELS, read_image

RED = np.broadcast_to(np.uint8([200, 30, 30]), (16, 16, 3))


def bomb(side):
    """A tiny PNG that says it has side x side pixels."""
    file = io.BytesIO()
    Image.new("1", (8, 8)).save(file, "PNG")
    data = bytearray(file.getvalue())
    data[16:24] = side.to_bytes(4, "big") * 2
    chunk = bytes(data[12:29])
    data[29:33] = zlib.crc32(chunk).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
@pytest.mark.parametrize(
    ("orientation", "red"), [(1, "left"), (2, "right"), (3, "right"), (6, "top"), (8, "bottom")], ids=str
)
def test_an_image_is_rgb_and_upright(tmp_path, name, orientation, red):
    picture = np.zeros((24, 32, 3), np.uint8)
    picture[:, :16] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture).save(tmp_path / name, exif=exif, **({"quality": 100} if name == "a.jpg" else {}))
    read = read_image(tmp_path / name)
    assert read.dtype == np.uint8 and read.shape == ((24, 32, 3) if red in ("left", "right") else (32, 24, 3))
    halves = {"left": read[:, :12], "right": read[:, -12:], "top": read[:12], "bottom": read[-12:]}
    for side, half in halves.items():
        if side == red:
            assert np.abs(half.astype(int) - (255, 0, 0)).max() < 20
        elif {side, red} in ({"left", "right"}, {"top", "bottom"}):
            assert half.max() < 20


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "YCbCr", "RGBA", "LA"])
def test_other_modes_become_rgb(tmp_path, mode):
    image = Image.fromarray(RED.copy()).convert("L").convert(mode) if mode == "LA" else Image.fromarray(RED.copy())
    suffix = "tif" if mode in ("CMYK", "YCbCr") else "png"
    image.convert(mode).save(tmp_path / f"a.{suffix}")
    read = read_image(tmp_path / f"a.{suffix}")
    expected = np.asarray(image.convert(mode).convert("RGB"))
    assert read.shape == (16, 16, 3) and np.abs(read.astype(int) - expected).max() <= 2


def test_a_cmyk_jpeg_keeps_its_colours(tmp_path):
    Image.fromarray(RED.copy()).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - RED).max() < 12


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(tmp_path, mode):
    image = Image.new("RGBA", (16, 16), (200, 30, 30, 255))
    image.paste((0, 0, 0, 0), (0, 0, 8, 16))  # black, if the alpha channel were only dropped
    if mode == "P":
        image = image.convert("P", palette=Image.Palette.ADAPTIVE)
        image.info["transparency"] = image.getpixel((0, 0))
    image.convert(mode).save(tmp_path / "a.png", **({"transparency": image.getpixel((0, 0))} if mode == "P" else {}))
    read = read_image(tmp_path / "a.png")
    assert (read[:, :8] == 255).all() and (read[:, 8:] < 210).all()


def test_colours_are_turned_from_the_profile_to_srgb(tmp_path):
    lab = ImageCms.createProfile("LAB")
    wide = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(RED.copy()).save(tmp_path / "srgb.png", icc_profile=wide)
    assert np.abs(read_image(tmp_path / "srgb.png").astype(int) - RED).max() <= 1
    # The same primaries with red and green exchanged: what such a file calls red is green.
    swapped = wide.replace(b"rXYZ", b"tXYZ").replace(b"gXYZ", b"rXYZ").replace(b"tXYZ", b"gXYZ")
    Image.fromarray(RED.copy()).save(tmp_path / "swapped.png", icc_profile=swapped)
    red, green, blue = read_image(tmp_path / "swapped.png")[0, 0].astype(int)
    assert green > red + 60
    Image.fromarray(RED.copy()).convert("RGBA").save(tmp_path / "swapped_rgba.png", icc_profile=swapped)
    assert read_image(tmp_path / "swapped_rgba.png")[0, 0].tolist() == [red, green, blue]
    for name, profile in (("lab", ImageCms.ImageCmsProfile(lab).tobytes()), ("broken", b"no profile")):
        Image.fromarray(RED.copy()).save(tmp_path / f"{name}.png", icc_profile=profile)
        assert (read_image(tmp_path / f"{name}.png") == RED).all(), "an unusable profile is passed over"


def test_the_content_counts_and_not_the_name(tmp_path):
    Image.fromarray(RED.copy()).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert (read_image(tmp_path / "a.jpg") == RED).all()


@pytest.mark.parametrize("side", [10_000, 30_000])
@pytest.mark.filterwarnings("ignore:Image size")
def test_a_decompression_bomb_is_refused_at_once(tmp_path, side, monkeypatch):
    assert side**2 > MAX_PIXELS
    (tmp_path / "bomb.png").write_bytes(bomb(side))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: pytest.fail("its pixels are decoded"))
    start = time.monotonic()
    with pytest.raises(
        ValueError, match=r"bomb.png: not taken as image: .*pixels are (far )?more than 80,000,000; make it sma"
    ):
        read_image(tmp_path / "bomb.png")
    assert time.monotonic() - start < 1


def test_what_is_missing_broken_or_cut_off_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none.jpg.*missing"):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(ValueError, match=r"this image is missing"):
        read_image(tmp_path)
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "a.jpg").write_text("not found")
    for name in ("empty.jpg", "a.jpg"):
        with pytest.raises(ValueError, match=rf"{name}: not a readable image.*copy it again"):
            read_image(tmp_path / name)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for name in ("b.jpg", "b.png", "b.webp"):
        Image.fromarray(noise).save(tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=rf"{name}: not a readable image"):
            read_image(tmp_path / name)
    for name, picture in (("deep.png", np.zeros((8, 8), np.uint16)), ("float.tif", np.zeros((8, 8), np.float32))):
        Image.fromarray(picture).save(tmp_path / name)
        with pytest.raises(ValueError, match=rf"{name}.*8 bits"):
            read_image(tmp_path / name)


def test_a_program_is_no_photograph(tmp_path):
    """PostScript, which Pillow would have run by Ghostscript."""
    Image.fromarray(RED.copy()).save(tmp_path / "a.eps")
    with pytest.raises(ValueError, match=r"a.eps.*it is EPS; save it as JPEG"):
        read_image(tmp_path / "a.eps")


@pytest.mark.filterwarnings("ignore")
def test_any_damage_is_one_readable_line(tmp_path):
    """Bytes of real files changed at random: read, or refused by ValueError."""
    rng, refused = np.random.default_rng(0), 0
    for suffix in ("png", "jpg", "webp", "bmp", "tif", "gif"):
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save(tmp_path / f"a.{suffix}")
        whole = (tmp_path / f"a.{suffix}").read_bytes()
        for _ in range(60):
            data = bytearray(whole)
            for place in rng.integers(0, min(len(data), 400), 4):
                data[place] = rng.integers(256)
            (tmp_path / f"b.{suffix}").write_bytes(data[: rng.integers(1, len(data) + 400)])
            try:
                assert read_image(tmp_path / f"b.{suffix}").dtype == np.uint8
            except ValueError as error:
                refused += 1
                assert f"b.{suffix}" in str(error) and "\n" not in str(error)
    assert 100 < refused < 360
