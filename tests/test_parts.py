import json

import numpy as np
import pytest
from PIL import Image

from data.parts import (
    ATR,
    CIHP,
    COTTON,
    GONG_COLORS,
    LABEL_MAPS,
    LIP,
    PARTS,
    UNKNOWN,
    label_map,
    read_parse,
    voc_colors,
)
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
    with pytest.raises(
        ValueError, match=r"known: cihp, lip, atr, cotton, .* or FILE.yaml or .json; did you mean 'cihp'"
    ):
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
    with pytest.raises(
        ValueError, match=rf"colours.png.*mode {mode}.*palette PNG, or name the colours: --label-map cihp_rgb"
    ):
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


def test_sixteen_bits_and_nonsense_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 5, np.uint16)).save(tmp_path / "deep.png")
    for lut in (CIHP, LABEL_MAPS["cihp_voc"]):
        with pytest.raises(ValueError, match=r"deep.png: this parse map has mode I"):
            read_parse(tmp_path / "deep.png", lut)


def test_voc_colours_are_the_published_ones():
    assert voc_colors(20)[[1, 5, 9, 14, 19]].tolist() == [
        [128, 0, 0], [128, 0, 128], [192, 0, 0], [64, 128, 128], [128, 192, 0],
    ]  # fmt: skip
    assert len({tuple(color) for color in voc_colors(256).tolist()}) == 256


@pytest.mark.parametrize(("name", "lut"), [("cihp", CIHP), ("lip", LIP), ("atr", ATR)])
def test_named_colours_mean_what_their_labels_mean(tmp_path, name, lut):
    labels = np.arange(20 if name != "atr" else 19, dtype=np.uint8)[None].repeat(3, 0)
    palettes = {f"{name}_voc": voc_colors(20)} | ({f"{name}_rgb": GONG_COLORS} if name != "atr" else {})
    for colors, palette in palettes.items():
        Image.fromarray(palette[labels]).save(tmp_path / "a.png")
        assert (read_parse(tmp_path / "a.png", label_map(colors)) == lut[labels]).all()


def test_colours_that_no_label_has_are_named(tmp_path):
    picture = voc_colors(20)[np.uint8([[0, 5], [5, 9]])]
    picture[1, 1] = (9, 99, 199)
    Image.fromarray(picture).save(tmp_path / "a.png")
    with pytest.raises(
        ValueError, match=r"a.png: colour\(s\) \(9,99,199\) are not in the label map cihp_voc.*--label-map"
    ):
        read_parse(tmp_path / "a.png", label_map("cihp_voc"))


def test_real_colours(tmp_path, real_data):
    """A palette PNG saved as colours, whose bright values are 254 in VITON-HD."""
    path = real_data / "viton_hd/test/image-parse/07445_00.png"
    Image.open(path).convert("RGB").save(tmp_path / "rgb.png")
    assert (read_parse(tmp_path / "rgb.png", label_map("cihp_rgb")) == read_parse(path, CIHP)).all()


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_label_map_of_ones_own(tmp_path, suffix):
    path = tmp_path / f"mine.{suffix}"
    own = {"0": "background", "7": "upper", "200": "left_arm"}
    path.write_text(
        json.dumps(own, indent=1) if suffix == "json" else "# mine\n" + "\n".join(map(": ".join, own.items()))
    )
    lut = label_map(str(path))
    assert (lut[0], lut[7], lut[200], lut[1]) == (Part.BACKGROUND, Part.UPPER, Part.LEFT_ARM, UNKNOWN)
    parts = read_parse(palette_png(tmp_path / "a.png", [[0, 7, 200]]), lut)
    assert parts.tolist() == [[Part.BACKGROUND, Part.UPPER, Part.LEFT_ARM]]
    path.write_text(json.dumps({"0,0,0": "background", "255, 85, 0": "upper", "255,87,0": "lower"}))
    Image.fromarray(np.uint8([[(0, 0, 0), (255, 85, 0), (254, 84, 1), (255, 87, 0)]])).save(tmp_path / "rgb.png")
    parts = read_parse(tmp_path / "rgb.png", label_map(str(path)))
    assert parts.tolist() == [[Part.BACKGROUND, Part.UPPER, Part.UPPER, Part.LOWER]], "exact colours come first"


def test_every_part_has_a_name():
    assert {part.name.lower(): part for part in Part} == PARTS and len(PARTS) == 10


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "5: shirt", r"label '5': 'shirt' is no part; the parts are background, head"),
        ("a.yaml", "5: upper\n5: lower", r"label '5': comes twice"),
        ("a.json", '{"5": "upper", "5": "lower"}', r"label '5': comes twice"),
        ("a.yaml", "256: upper", r"label '256': expected a label value from 0 to 255"),
        ("a.yaml", "-1: upper", r"label '-1': expected"),
        ("a.yaml", "1,2: upper", r"label '1,2': expected"),
        ("a.yaml", "shirt: upper", r"label 'shirt': expected"),
        ("a.yaml", "1: upper\n1,2,3: lower", r"either label values or colours"),
        ("a.yaml", "1: lower", r"one of them with the part upper"),
        ("a.yaml", "", r"write lines as '5: upper'"),
        ("a.json", "{}", r"expected either label values or colours"),
        ("a.yaml", "- upper", r"write lines as '5: upper'"),
        ("a.json", '{"5": 3}', r"write lines as '5: upper'"),
        ("a.json", '[["5", "upper"]]', r"write lines as '5: upper'"),
        ("a.yaml", "5: [upper]", r"write lines as '5: upper'"),
        ("a.yaml", "5: upper\n  x: y: z", r"not readable as a label map"),
        ("a.yaml", "5: !!python/object/apply:os.system [ls]", r"write lines as '5: upper'"),
        ("a.yaml", "[" * 5000, r"not readable as a label map"),
        ("a.json", "[" * 100_000, r"not readable as a label map"),
    ],
)
def test_mistakes_in_ones_own_label_map(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name}.*{message}") as error:
        label_map(str(tmp_path / name))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"none.yaml: this label map is missing"):
        label_map("none.yaml")


def test_real_palette_map(real_data):
    parts = read_parse(real_data / "viton_hd/test/image-parse/07445_00.png", CIHP)
    assert (parts == Part.UPPER).sum() == 89218 and (parts == Part.LEGS).sum() == 4764 + 9552
