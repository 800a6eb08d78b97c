"""Label maps: which body part each value of a dataset's parse maps means."""

from difflib import get_close_matches
from pathlib import Path

import numpy as np
from PIL import Image

from data.schema import Part

UNKNOWN = 255  # in a label map: a value that its parse maps never hold


def table(labels: dict[int, Part]) -> np.ndarray:
    """A lookup table (256,) uint8 from label to Part; UNKNOWN where labels says nothing."""
    lut = np.full(256, UNKNOWN, np.uint8)
    lut[list(labels)] = list(labels.values())
    lut.flags.writeable = False
    return lut


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

LABEL_MAPS = {"cihp": CIHP, "lip": LIP, "atr": ATR, "cotton": COTTON}


def label_map(name: str) -> np.ndarray:
    """The lookup table (256,) uint8 of the label map with this name.  Raises ValueError naming the known ones."""
    if name in LABEL_MAPS:
        return LABEL_MAPS[name]
    nearest = get_close_matches(name.lower(), LABEL_MAPS, n=1, cutoff=0.4)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(f"label map {name!r} is unknown; known: {', '.join(LABEL_MAPS)}{hint}")


def read_parse(path: Path, lut: np.ndarray) -> np.ndarray:
    """The Part of every pixel, (H, W) uint8, from a PNG of label values: grey, or indices into a palette.

    Raises ValueError naming file and remedy when it is missing or broken, holds colours instead of labels, was
    compressed with loss, or holds a value that the label map does not know.
    """
    try:
        with Image.open(path) as image:
            mode, lossy = image.mode, image.format == "JPEG"
            labels = np.asarray(image)
    except FileNotFoundError:
        raise ValueError(f"{path}: this parse map is missing; put it there, or remove its row or photo") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable parse map ({error}); copy it again") from error
    if mode not in ("P", "L"):
        raise ValueError(
            f"{path}: this parse map has mode {mode}: colours, where label values belong; save the labels "
            "themselves as an 8-bit grey or palette PNG"
        )
    if lossy:
        raise ValueError(f"{path}: JPEG blurs the labels of a parse map; save it as PNG from the original labels")
    parts = lut[labels]
    if (parts == UNKNOWN).any():
        names = [name for name, known in LABEL_MAPS.items() if known is lut]
        values = [int(value) for value in np.unique(labels[parts == UNKNOWN])]
        shown = ", ".join(map(str, values[:8])) + (" ..." if len(values) > 8 else "")
        raise ValueError(
            f"{path}: label value(s) {shown} are not in the label map {names[0] if names else 'given'}; choose the "
            f"map of this dataset with --label-map ({', '.join(LABEL_MAPS)})"
        )
    return parts
