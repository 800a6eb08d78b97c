"""Drawn data sets in every layout that users bring: pictures with exact masks and joints, in each layout's formats.

Pictures are PNG, which every importer takes in the place of JPEG, so that what comes out can be compared to the bit.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from skimage.measure import find_contours

from data.agnostic import clothing_agnostic
from data.preprocess import cut_out, soft_alpha
from data.schema import Part, Photo
from data.synthetic import draw_pair

SIZE = (128, 96)
# One label for each Part.
TO_CIHP = np.uint8([0, 13, 10, 5, 9, 14, 15, 16, 18, 11])
TO_ATR = np.uint8([0, 11, 18, 4, 6, 14, 15, 12, 9, 16])
BODY_25 = [*range(8), *range(9, 19)]
COCO_17 = [0, 15, 14, 17, 16, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10]  # of the 18 joints, without the neck
COLORS = {"a": (200, 30, 30), "b": (30, 200, 30), "c": (30, 30, 200)}  # of the garments that lie flat
NAMES = tuple(COLORS)


def photos(index: int, size: tuple[int, int] = SIZE) -> tuple[Photo, Photo]:
    """One person in one garment, in two poses."""
    return draw_pair(7, index, size)


def save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def write_json(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def body_25(path: Path, pose: np.ndarray) -> None:
    joints = np.zeros((25, 3))
    joints[BODY_25] = pose
    write_json(path, {"version": 1.3, "people": [{"pose_keypoints_2d": joints.ravel().tolist()}]})


def flat_cloth(name: str, size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """A square of the name's colour on white, and its mask (H, W) bool."""
    height, width = size
    mask = np.zeros(size, bool)
    mask[height // 4 : 3 * height // 4, width // 6 : 5 * width // 6] = True
    return np.where(mask[..., None], np.uint8(COLORS[name]), np.uint8(255)), mask


def viton_hd(root: Path, names=NAMES, parse="image-parse-v3", pose="openpose_json") -> Path:
    """Each person, and a cloth of the same name; the folders of persons are filled in another order than cloth."""
    for i, name in enumerate(names):
        photo = photos(i)[0]
        save(root / f"image/{name}.png", photo.image)
        save(root / f"{parse}/{name}.png", TO_CIHP[photo.parts])
        body_25(root / f"{pose}/{name}_keypoints.json", photo.pose)
    for name in reversed(names):
        cloth, mask = flat_cloth(name)
        grey = np.uint8(255) * mask
        grey[SIZE[0] // 4 - 1] = 90  # a grey edge
        save(root / f"cloth/{name}.png", cloth)
        save(root / f"cloth-mask/{name}.png", grey)
    return root


def dresscode(root: Path, categories=("upper_body", "lower_body", "dresses")) -> Path:
    """Two persons a category, 000000 and 000001 of the first, with keypoints in 384x512 coordinates."""
    number = 0
    for category in categories:
        folder, rows = root / category, []
        for name in ("a", "b"):
            photo, identity = photos(number)[0], f"{number:06d}"
            save(folder / f"images/{identity}_0.png", photo.image)
            save(folder / f"images/{identity}_1.png", flat_cloth(name)[0])
            save(folder / f"label_maps/{identity}_4.png", TO_ATR[photo.parts])
            scale = (384 / SIZE[1], 512 / SIZE[0])
            joints = [[*(row[:2] * scale).tolist(), 0, 0] if row[2] else [-1, -1, 0, 0] for row in photo.pose]
            write_json(folder / f"keypoints/{identity}_2.json", {"keypoints": joints})
            rows.append(f"{identity}_0.jpg\t{identity}_1.jpg")
            number += 1
        (folder / "train_pairs.txt").write_text("\n".join(rows) + "\n")
        (folder / "test_pairs_unpaired.txt").write_text(f"{rows[0][:12]}\t{rows[1][13:]}\n")
    return root


def images_of(index: int) -> dict[str, np.ndarray]:
    """All images of a pair of photographs, (H, W, 3) uint8; the garment's mask in grey."""
    person, garment = photos(index)
    worn = garment.parts == Part.UPPER
    return {
        "person": person.image,
        "clothing_agnostic": clothing_agnostic(person),
        "garment": garment.image,
        "cut": cut_out(garment.image, soft_alpha(worn)),
        "mask": np.repeat(np.uint8(255 * worn)[..., None], 3, axis=2),
    }


def coco_17(path: Path, pose: np.ndarray) -> None:
    """A flat list of 34 numbers."""
    write_json(path, pose[COCO_17, :2].ravel().tolist())


def pairs(root: Path, kinds=("ip", "ia", "ic", "jp", "jg"), names=NAMES) -> Path:
    """The folders of two-photo pairs that kinds names."""
    folder_of = {"ip": "person", "ia": "clothing_agnostic", "ic": "cut", "ig": "garment", "ig_mask": "mask"}
    for i, name in enumerate(names):
        images, poses = images_of(i), dict(zip(("jp", "jg"), photos(i), strict=True))
        for kind in kinds:
            if kind in poses:
                coco_17(root / kind / f"{name}.json", poses[kind].pose)
            else:
                save(root / kind / f"{name}.png", images[folder_of[kind]])
    return root


def csv(root: Path, names=NAMES) -> Path:
    """The CSV layout: images/, poses/ with 18 [x, y] each, and metadata/train.csv.  -> the CSV file"""
    rows = ["person_image,ca_image,garment_image,person_pose,garment_pose"]
    for i, name in enumerate(names):
        images, row = images_of(i), []
        for folder, kind in (("person", "person"), ("ca_images", "clothing_agnostic"), ("garment", "cut")):
            save(root / "images" / folder / f"{name}.png", images[kind])
            row.append(f"{folder}/{name}.png")
        for folder, photo in zip(("person_poses", "garment_poses"), photos(i), strict=True):
            write_json(root / "poses" / folder / f"{name}.json", photo.pose[:, :2].tolist())
            row.append(f"{folder}/{name}.json")
        rows.append(",".join(row))
    path = root / "metadata/train.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n")
    return path


def raw_photos(root: Path, num_groups: int = 2) -> Path:
    """photos/pN/gN/{1,2}.png, and beside them, under the same names, openpose/, parse/ (CIHP) and polygons/."""
    for i in range(num_groups):
        for number, photo in enumerate(photos(i), start=1):
            path = f"p{i}/g{i}/{number}"
            save(root / f"photos/{path}.png", photo.image)
            save(root / f"parse/{path}.png", TO_CIHP[photo.parts])
            body_25(root / f"openpose/{path}_keypoints.json", photo.pose)
            labelme(root / f"polygons/{path}.json", photo)
    return root


def labelme(path: Path, photo: Photo) -> None:
    """The garment's outlines, as labelme writes them."""
    padded = np.pad(photo.parts == Part.UPPER, 1)
    outlines = [(contour[:, ::-1] - 1).tolist() for contour in find_contours(padded.astype(float), 0.5)]
    shapes = [{"label": "shirt", "shape_type": "polygon", "points": points} for points in outlines if len(points) > 8]
    height, width = photo.parts.shape
    write_json(path, {"shapes": shapes, "imageHeight": height, "imageWidth": width})
