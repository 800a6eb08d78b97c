"""Label maps: which body part each value, or each colour, of a dataset's parse maps means.

A label map is an array: (256,) uint8, the Part of each value, or (N, 4) uint8 rows (red, green, blue, Part) where
parse maps are stored as colours.  It is always named, never guessed.
"""

import json
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from data.images import load_image
from data.json_files import read_bytes
from data.schema import Part

UNKNOWN = 255  # in a label map: a value that its parse maps never hold
TOLERANCE = 2  # of a colour's channel: some published copies of a palette are off by one


def table(labels: Mapping[int, Part]) -> np.ndarray:
    """A lookup table (256,) uint8 from label to Part; UNKNOWN where labels says nothing."""
    lut = np.full(256, UNKNOWN, np.uint8)
    lut[list(labels)] = list(labels.values())
    lut.flags.writeable = False
    return lut


def colored(lut: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """The label map of parse maps that show label i of the map lut (256,) in the colour colors[i], (N, 3) uint8."""
    return np.column_stack([colors, lut[: len(colors)]])


def voc_colors(count: int) -> np.ndarray:
    """The colours of labels 0 to count - 1 in PASCAL VOC's colour map, which most tools use.  -> (count, 3) uint8"""
    labels = np.arange(count)[:, None]
    colors = np.zeros((count, 3), np.uint8)
    for i in range(3):  # bits 0, 1, 2 of a label are the highest ones of red, green, blue, the next three the next
        colors |= (labels >> (3 * i + np.arange(3)) & 1).astype(np.uint8) << (7 - i)
    return colors


# CIHP (Gong et al. 2018), the labels of VITON-HD: 3 glove, 8 socks, 10 skin of neck and torso, 11 scarf.
_CIHP = {
    **dict.fromkeys([0], Part.BACKGROUND),
    **dict.fromkeys([1, 2, 4, 13], Part.HEAD),  # hat, hair, sunglasses, face
    **dict.fromkeys([10], Part.NECK),
    **dict.fromkeys([5, 6, 7], Part.UPPER),  # upper clothes, dress, coat
    **dict.fromkeys([9, 12], Part.LOWER),  # trousers, skirt
    14: Part.LEFT_ARM,
    15: Part.RIGHT_ARM,
    **dict.fromkeys([16, 17], Part.LEGS),
    **dict.fromkeys([8, 18, 19], Part.FEET),
    **dict.fromkeys([3, 11], Part.OTHER),
}
CIHP = table(_CIHP)

# LIP (Gong et al. 2017): as CIHP, but 10 is a jumpsuit and the neck belongs to the face.
LIP = table({**_CIHP, 10: Part.UPPER})

# ATR (Liang et al. 2015), the labels of DressCode; 18, neck, only in some of its copies.
ATR = table(
    {
        0: Part.BACKGROUND,
        **dict.fromkeys([1, 2, 3, 11], Part.HEAD),  # hat, hair, sunglasses, head
        18: Part.NECK,
        **dict.fromkeys([4, 7], Part.UPPER),  # upper clothes, dress
        **dict.fromkeys([5, 6], Part.LOWER),  # skirt, trousers
        14: Part.LEFT_ARM,
        15: Part.RIGHT_ARM,
        **dict.fromkeys([12, 13], Part.LEGS),
        **dict.fromkeys([9, 10], Part.FEET),
        **dict.fromkeys([8, 16, 17], Part.OTHER),  # belt, bag, scarf
    }
)

# The example photographs of COTTON (Chen et al. 2023), read off the images: no published list.
COTTON = table(
    {
        0: Part.BACKGROUND,
        **dict.fromkeys([1, 2], Part.HEAD),  # hair or hat, face
        3: Part.NECK,
        **dict.fromkeys([4, 5, 6], Part.UPPER),
        7: Part.LOWER,
        8: Part.LEFT_ARM,
        9: Part.RIGHT_ARM,
        **dict.fromkeys([10, 11], Part.LEGS),
        **dict.fromkeys([12, 13], Part.FEET),
        14: Part.OTHER,  # belt, bag
    }
)

# The colours in which the authors of CIHP and LIP show their 20 labels, and VITON-HD its parse maps.
GONG_COLORS = np.uint8([
    (0, 0, 0), (128, 0, 0), (255, 0, 0), (0, 85, 0), (170, 0, 51), (255, 85, 0), (0, 0, 85), (0, 119, 221),
    (85, 85, 0), (0, 85, 85), (85, 51, 0), (52, 86, 128), (0, 128, 0), (0, 0, 255), (51, 170, 221), (0, 255, 255),
    (85, 255, 170), (170, 255, 85), (255, 255, 0), (255, 170, 0),
])  # fmt: skip

LABEL_MAPS = {
    "cihp": CIHP,
    "lip": LIP,
    "atr": ATR,
    "cotton": COTTON,
    "cihp_voc": colored(CIHP, voc_colors(20)),
    "lip_voc": colored(LIP, voc_colors(20)),
    "atr_voc": colored(ATR, voc_colors(19)),
    "cihp_rgb": colored(CIHP, GONG_COLORS),
    "lip_rgb": colored(LIP, GONG_COLORS),
}
PARTS = {part.name.lower(): part for part in Part}


def label_map(name: str) -> np.ndarray:
    """The label map with this name, or that of a YAML or JSON file which names the part of each label:

        0: background                  or, for coloured parse maps,     0,0,0: background
        5: upper                                                        255,85,0: upper

    Parts: background, head, neck, upper, lower, left_arm, right_arm, legs, feet, other; left is the person's left.
    _voc names parse maps in PASCAL VOC's colours, _rgb those in the colours of CIHP's authors.  Raises ValueError
    naming the known ones, or the file, its label and the remedy.
    """
    if name in LABEL_MAPS:
        return LABEL_MAPS[name]
    if Path(name).suffix.lower() in (".yaml", ".yml", ".json"):
        return read_label_map(Path(name))
    nearest = get_close_matches(name.lower(), LABEL_MAPS, n=1, cutoff=0.4)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(f"label map {name!r} is unknown; known: {', '.join(LABEL_MAPS)}, or FILE.yaml or .json{hint}")


def read_label_map(path: Path) -> np.ndarray:
    """The label map of a user's file; label_map shows one."""
    parts = {}
    for label, name in _pairs(path):
        where = f"{path}: label {label[:40]!r}"
        if name not in PARTS:
            raise ValueError(f"{where}: {name[:40]!r} is no part; the parts are {', '.join(PARTS)}")
        numbers = [int(word) if word.strip().isdecimal() else 256 for word in label[:40].split(",")]
        if len(numbers) not in (1, 3) or max(numbers) > 255:
            raise ValueError(f"{where}: expected a label value from 0 to 255, or a colour as 255,85,0")
        if (key := tuple(numbers)) in parts:
            raise ValueError(f"{where}: comes twice; remove one of the two")
        parts[key] = PARTS[name]
    if len({len(key) for key in parts}) != 1 or Part.UPPER not in parts.values():
        raise ValueError(f"{path}: expected either label values or colours, one of them with the part upper")
    if len(next(iter(parts))) == 1:
        return table({key[0]: part for key, part in parts.items()})
    return np.uint8([(*key, part) for key, part in parts.items()])


def _pairs(path: Path) -> list[tuple[str, str]]:
    """(label, part) as the file has them."""
    text = read_bytes(path, "label map", 1_000_000).decode(errors="replace")
    try:
        if path.suffix.lower() == ".json":
            pairs = json.loads(text, object_pairs_hook=list)
        else:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
            pairs = [(key.value, value.value) for key, value in node.value] if isinstance(node, yaml.MappingNode) else 0
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: not readable as a label map ({reason}); write lines as '5: upper'") from None
    if not isinstance(pairs, list) or not all(
        isinstance(pair, tuple) and all(isinstance(word, str) for word in pair) for pair in pairs
    ):
        raise ValueError(f"{path}: no list of labels with the part of each; write lines as '5: upper'")
    return pairs


def read_parse(path: Path, lut: np.ndarray) -> np.ndarray:
    """The Part of every pixel, (H, W) uint8, from a PNG of label values, grey or indices into a palette, or of colours.

    lut is a label map.  Raises ValueError naming file and remedy when it is missing or broken, holds colours where
    the label map has values, was compressed with loss, or holds a value or colour that the label map does not know.
    """
    image = load_image(path, "parse map")
    if image.format in ("JPEG", "MPO"):
        raise ValueError(f"{path}: JPEG blurs the labels of a parse map; save it as PNG from the original labels")
    if lut.ndim == 2:
        return _parts_of_colors(path, image, lut)
    if image.mode not in ("P", "L"):
        raise ValueError(
            f"{path}: this parse map has mode {image.mode}: colours, where label values belong; save the labels "
            "themselves as an 8-bit grey or palette PNG, or name the colours: --label-map cihp_rgb, cihp_voc, or a file"
        )
    labels = np.asarray(image)
    parts = lut[labels]
    if (parts == UNKNOWN).any():
        values = [str(value) for value in np.unique(labels[parts == UNKNOWN])]
        raise _unknown(path, "label value(s)", values, lut)
    return parts


def _parts_of_colors(path: Path, image: Image.Image, lut: np.ndarray) -> np.ndarray:
    """The Part of every pixel, each colour being that of the label map within TOLERANCE."""
    if image.mode not in ("P", "RGB", "RGBA"):
        raise ValueError(
            f"{path}: this parse map has mode {image.mode}, no colours; name the map of its label values with "
            f"--label-map ({', '.join(LABEL_MAPS)})"
        )
    part_of = np.full((256, 256, 256), UNKNOWN, np.uint8)
    for tolerance in (TOLERANCE, 0):
        for *color, part in lut.tolist():
            part_of[tuple(slice(max(0, value - tolerance), value + tolerance + 1) for value in color)] = part
    pixels = np.asarray(image.convert("RGB"))
    parts = part_of[pixels[..., 0], pixels[..., 1], pixels[..., 2]]
    if (parts == UNKNOWN).any():
        values = ["({},{},{})".format(*color) for color in np.unique(pixels[parts == UNKNOWN], axis=0)]
        raise _unknown(path, "colour(s)", values, lut)
    return parts


def _unknown(path: Path, what: str, values: list[str], lut: np.ndarray) -> ValueError:
    names = [name for name, known in LABEL_MAPS.items() if np.array_equal(known, lut)]
    shown = ", ".join(values[:8]) + (" ..." if len(values) > 8 else "")
    return ValueError(
        f"{path}: {what} {shown} are not in the label map {names[0] if names else 'given'}; choose the map of this "
        f"dataset with --label-map ({', '.join(LABEL_MAPS)}, or a file)"
    )
