import numpy as np
import pytest
from PIL import Image

from data.parts import ATR, CIHP, COTTON, LIP, UNKNOWN, label_map, read_parse
from data.schema import Part


def palette_png(path, labels):
    """A palette PNG whose colours have nothing to do with its labels, as data sets publish them."""
    image = Image.fromarray(np.uint8(labels), "L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette([(37 * i + 90) % 256 for i in range(768)])
    image.save(path)
    return path


def test_label_maps_agree_with_the_published_lists():
    assert [CIHP[5], CIHP[6], CIHP[7], CIHP[10], CIHP[12], CIHP[13]] == [
        Part.UPPER, Part.UPPER, Part.UPPER, Part.NECK, Part.LOWER, Part.HEAD,
    ]  # fmt: skip
    assert (CIHP[14], CIHP[15]) == (ATR[14], ATR[15]) == (Part.LEFT_ARM, Part.RIGHT_ARM)
    assert LIP[10] == Part.UPPER and np.flatnonzero(LIP != CIHP).tolist() == [10]
    assert [ATR[4], ATR[5], ATR[7], ATR[11], ATR[9], ATR[12]] == [
        Part.UPPER, Part.LOWER, Part.UPPER, Part.HEAD, Part.FEET, Part.LEGS,
    ]  # fmt: skip
    assert [int((lut != UNKNOWN).sum()) for lut in (CIHP, LIP, ATR, COTTON)] == [20, 20, 19, 15]


def test_unknown_label_map_names_the_nearest():
    assert label_map("cotton") is COTTON
    with pytest.raises(ValueError, match=r"known: cihp, lip, atr, cotton; did you mean 'cihp'"):
        label_map("CHIP")


def test_palette_index_is_read_not_its_colour(tmp_path):
    labels = [[0, 5, 5], [13, 14, 9]]
    parts = read_parse(palette_png(tmp_path / "a.png", labels), CIHP)
    assert parts.dtype == np.uint8
    assert parts.tolist() == [[Part.BACKGROUND, Part.UPPER, Part.UPPER], [Part.HEAD, Part.LEFT_ARM, Part.LOWER]]


def test_grey_and_palette_read_alike(tmp_path):
    Image.fromarray(np.uint8([[0, 5], [9, 10]]), "L").save(tmp_path / "grey.png")
    palette_png(tmp_path / "palette.png", [[0, 5], [9, 10]])
    assert (read_parse(tmp_path / "grey.png", CIHP) == read_parse(tmp_path / "palette.png", CIHP)).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colours_are_refused(tmp_path, mode):
    path = tmp_path / "colours.png"
    Image.new(mode, (4, 4)).save(path)
    with pytest.raises(ValueError, match=rf"colours.png.*mode {mode}.*palette PNG"):
        read_parse(path, CIHP)


def test_jpeg_is_refused(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "lossy.jpg")
    with pytest.raises(ValueError, match=r"lossy.jpg: JPEG blurs"):
        read_parse(tmp_path / "lossy.jpg", CIHP)


def test_unknown_values_are_named_with_the_map(tmp_path):
    path = palette_png(tmp_path / "x.png", [[0, 5, 33], [41, 5, 5]])
    with pytest.raises(ValueError, match=r"x.png: label value\(s\) 33, 41 are not in the label map cihp.*--label-map"):
        read_parse(path, CIHP)


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(ValueError, match=r"none.png.*missing"):
        read_parse(tmp_path / "none.png", CIHP)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"broken.png: not a readable"):
        read_parse(tmp_path / "broken.png", CIHP)


def test_real_palette_map(real_data):
    parts = read_parse(real_data / "viton_hd/test/image-parse/07445_00.png", CIHP)
    assert (parts == Part.UPPER).sum() == 89218 and (parts == Part.LEGS).sum() == 4764 + 9552
