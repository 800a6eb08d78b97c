"""The real photographs as Photos."""

from pathlib import Path

from data.images import read_image
from data.parts import CIHP, COTTON, read_parse
from data.pose_formats import read_pose
from data.schema import Photo


def cotton(folder: Path, number: int) -> Photo:
    cotton = folder / "cotton"
    parts = read_parse(cotton / f"image-parse/{number}.png", COTTON)
    pose = read_pose(cotton / f"openpose_json/{number}_keypoints.json", parts=parts)
    return Photo(read_image(cotton / f"image/{number}.jpg"), parts, pose)


def viton_hd(folder: Path, name: str) -> Photo:
    test = folder / "viton_hd/test"
    parts = read_parse(test / f"image-parse/{name}.png", CIHP)
    pose = read_pose(test / f"openpose-json/{name}_keypoints.json", parts=parts)
    return Photo(read_image(test / f"image/{name}.jpg"), parts, pose)
