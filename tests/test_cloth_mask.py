import numpy as np
import pytest

import trees
from data.images import read_image
from data.importers.cloth_mask import NO_BACKDROP, UNSURE, find_cloth, read_cloth_mask

REAL = [
    *(f"cotton/cloth/{i}.jpg" for i in range(10)),
    *(f"viton_hd/test/cloth/{i}.jpg" for i in ("06802_00", "07429_00")),
]


@pytest.mark.parametrize("name", REAL)
def test_real_garments_are_whole(real_data, name):
    """Against the masks that came with them: white shirts on white too, which are flagged."""
    path = real_data / name
    image = read_image(path)
    mask, notes = find_cloth(image)
    suffix = "png" if "cotton" in name else "jpg"
    truth = read_cloth_mask(path.parent.with_name("cloth-mask") / f"{path.stem}.{suffix}", image, name)
    assert (mask & truth).sum() / truth.sum() > 0.995, "nothing of it is lost"
    assert (mask & truth).sum() / (mask | truth).sum() > 0.97
    assert notes == ((UNSURE,) if name in ("cotton/cloth/5.jpg", "cotton/cloth/9.jpg") else ())


def test_what_the_background_does_not_reach_is_the_garment():
    """A hole of the background's colour stays, a snake that touches the edge does not hide it."""
    image = np.full((60, 60, 3), 250, np.uint8)
    image[20:40, 20:40] = (200, 10, 10)
    image[25:35, 25:35] = 250
    image[0:15, 30] = (10, 10, 200)
    mask, notes = find_cloth(image)
    expected = np.zeros((60, 60), bool)
    expected[20:40, 20:40] = expected[0:15, 30] = True
    assert (mask == expected).all() and notes == ()


def test_a_winding_background_is_reached_to_its_end():
    """A corridor that turns back at each wall; one pixel opens it to the outside."""
    image = np.full((60, 60, 3), 255, np.uint8)
    image[10:51, 10:51] = 0
    for i, row in enumerate(range(12, 50, 4)):
        image[row, 12:49] = 255
        image[row : row + 5, 48 if i % 2 else 12] = 255
    image[48:51, 12:49] = 0
    image[12, 10:12] = 255
    assert (find_cloth(image)[0] == (image[..., 0] == 0)).all()


def test_a_picture_without_backdrop_is_taken_whole():
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    mask, notes = find_cloth(image)
    assert mask.all() and notes == (NO_BACKDROP,)


def test_masks_that_show_nothing_or_all(tmp_path):
    image = trees.flat_cloth("a")[0]
    trees.save(tmp_path / "m.png", np.full(trees.SIZE, 127, np.uint8))
    with pytest.raises(ValueError, match=r"m.png: no pixel is 128 or more \(row 3\)"):
        read_cloth_mask(tmp_path / "m.png", image, "row 3")
    trees.save(tmp_path / "all.png", np.full(trees.SIZE, 128, np.uint8))
    with pytest.raises(ValueError, match=r"all.png: every pixel is 128 or more \(row 3\): it covers the whole picture"):
        read_cloth_mask(tmp_path / "all.png", image, "row 3")
    with pytest.raises(ValueError, match=r"m.png: not of the size.*\(row 3\)"):
        read_cloth_mask(tmp_path / "m.png", image[1:], "row 3")
