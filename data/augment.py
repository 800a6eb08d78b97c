"""Augmentation: what training sees of a sample at one position of the stream, drawn from (seed, position) alone."""

import math

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter
from pydantic import BaseModel, Field

from data.agnostic import GRAY
from data.pose import normalise
from data.randomness import Purpose, keyed_rng
from data.schema import JOINTS, Sample

# Mirrored, a left elbow is a right elbow.
MIRRORED_JOINTS = np.array(
    [
        JOINTS.index(name.replace("left", "?").replace("right", "left").replace("?", "right"))
        for name in JOINTS
    ]
)  # fmt: skip
KINDS, DRAWS_EACH = 5, 6  # flip, person, garment, color, occlusion: numbers of their own, so that none moves another's
YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])  # from RGB (NTSC)
FLAT, RIM, PAINT = 5, 8, 64  # how far from GRAY JPEG takes a gray area's middle and its edge, and where paint begins
IS_FLAT, IS_RIM, IS_FULL, IS_ANY = (
    [255 * (low <= value <= high) for value in range(256)]
    for low, high in ((0, FLAT), (0, RIM), (255, 255), (1, 255))
)  # fmt: skip
FADE = [255 * min(max(value - RIM, 0), PAINT - RIM) // (PAINT - RIM) for value in range(256)]
SLIMNESS = (0.15, 0.5)  # width of an occluding bar, in its lengths


class GeometryConfig(BaseModel, extra="forbid", frozen=True):
    prob: float = Field(0.0, ge=0, le=1, description="probability of scaling, turning and shifting, all in one")
    scale: float = Field(0.1, ge=0, le=0.5, description="0.1: from 1 / 1.1 to 1.1 of the size")
    rotation: float = Field(5.0, ge=0, le=180, description="up to so many degrees either way")
    shift: float = Field(0.05, ge=0, le=1, description="up to this fraction of height and of width either way")


class ColorConfig(BaseModel, extra="forbid", frozen=True):
    prob: float = Field(0.0, ge=0, le=1, description="probability of one change of colours for garment and person")
    brightness: float = Field(0.2, ge=0, lt=1, description="0.2: from 0.8 to 1.2 times as bright")
    contrast: float = Field(0.2, ge=0, lt=1, description="0.2: from 0.8 to 1.2 times the distance from gray")
    saturation: float = Field(0.2, ge=0, le=1, description="0.2: from 0.8 to 1.2 times as colourful")
    hue: float = Field(5.0, ge=0, le=180, description="hues turn up to so many degrees either way")


class OcclusionConfig(BaseModel, extra="forbid", frozen=True):
    prob: float = Field(0.0, ge=0, le=1, description="probability of a gray bar across the garment")
    size: float = Field(0.4, gt=0, le=1, description="longest side of the bar, as a fraction of the garment's size")


class AugmentConfig(BaseModel, extra="forbid", frozen=True):
    """Everything is off until its probability is raised."""

    flip_prob: float = Field(0.0, ge=0, le=1, description="probability of mirroring a whole sample")
    person: GeometryConfig = GeometryConfig()  # person, clothing-agnostic person and pose as one
    garment: GeometryConfig = GeometryConfig()  # garment and its pose
    color: ColorConfig = ColorConfig()  # person, clothing-agnostic person and garment alike
    occlusion: OcclusionConfig = OcclusionConfig()  # garment

    def is_off(self) -> bool:
        return not (self.flip_prob or self.person.prob or self.garment.prob or self.color.prob or self.occlusion.prob)


NO_AUGMENTATION = AugmentConfig()


def augment(sample: Sample, seed: int, position: int, config: AugmentConfig) -> Sample:
    """The sample as training sees it at this position of the stream; itself where nothing is drawn.

    In this order: mirror, colours, geometry, occlusion.
    """
    if config.is_off():
        return sample
    flip, person, garment, color, occlusion = keyed_rng(seed, position, Purpose.AUGMENT).random((KINDS, DRAWS_EACH))
    if flip[0] < config.flip_prob:
        sample = mirror(sample)
    if color[0] < config.color.prob:
        matrix = color_matrix(config.color, *(2 * color[1:5] - 1))
        sample = sample._replace(
            person=recolor(sample.person, matrix),
            clothing_agnostic=recolor(sample.clothing_agnostic, matrix, keep_gray=True),
            garment=recolor(sample.garment, matrix, keep_gray=True),
        )
    if person[0] < config.person.prob:
        affine = affine_matrix(config.person, sample.person.shape[:2], *(2 * person[1:5] - 1))
        sample = sample._replace(
            person=warp(sample.person, affine),
            clothing_agnostic=warp(sample.clothing_agnostic, affine),
            person_pose=warp_pose(sample.person_pose, affine, sample.person.shape[:2]),
        )
    if garment[0] < config.garment.prob:
        affine = affine_matrix(config.garment, sample.garment.shape[:2], *(2 * garment[1:5] - 1))
        sample = sample._replace(
            garment=warp(sample.garment, affine, fill=GRAY),
            garment_pose=warp_pose(sample.garment_pose, affine, sample.garment.shape[:2]),
        )
    if occlusion[0] < config.occlusion.prob:
        sample = sample._replace(garment=occlude(sample.garment, config.occlusion, *occlusion[1:]))
    return sample


def mirror_pose(pose: np.ndarray) -> np.ndarray:
    """The pose (K, 3), x in [0, 1], in the mirrored image; invisible joints stay at 0."""
    mirrored = pose[MIRRORED_JOINTS].copy()
    mirrored[:, 0] = (1 - mirrored[:, 0]) * mirrored[:, 2]
    return mirrored


def mirror(sample: Sample) -> Sample:
    """The mirror image of a whole sample: images, poses and the names of joints."""
    return Sample(
        key=sample.key,
        person=sample.person[:, ::-1],
        clothing_agnostic=sample.clothing_agnostic[:, ::-1],
        garment=sample.garment[:, ::-1],
        person_pose=mirror_pose(sample.person_pose),
        garment_pose=mirror_pose(sample.garment_pose),
    )


def affine_matrix(
    config: GeometryConfig, size: tuple[int, int], scale: float, turn: float, down: float, right: float
) -> np.ndarray:
    """Where a pixel of an image of size (height, width) goes, (2, 3) float64 over (x, y, 1); the draws are in [-1, 1].

    The image is scaled and turned about its middle, then shifted.
    """
    height, width = size
    zoom, angle = (1 + config.scale) ** scale, math.radians(config.rotation * turn)
    cos, sin = zoom * math.cos(angle), zoom * math.sin(angle)
    turned = np.array([[cos, -sin], [sin, cos]])
    middle = np.array([width / 2, height / 2])
    offset = middle + config.shift * np.array([right * width, down * height]) - turned @ middle
    return np.column_stack([turned, offset])


def warp(image: np.ndarray, affine: np.ndarray, fill: int | None = None) -> np.ndarray:
    """The image (H, W, 3) uint8 moved within its frame, resampled once by a bicubic filter.

    What comes in from outside is fill, or without one repeats the image's edge, as data.framing.fit does.
    """
    height, width = image.shape[:2]
    back = np.linalg.inv(np.vstack([affine, [0, 0, 1]]))[:2]
    left = top = 0
    if fill is None:
        seen = back @ np.array([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]])
        left, top = (max(0, 1 - math.floor(first)) for first in seen.min(1))
        right, bottom = (
            max(0, math.ceil(last) + 1 - side) for last, side in zip(seen.max(1), (width, height), strict=True)
        )
        image = np.pad(image, ((top, bottom), (left, right), (0, 0)), mode="edge")
    back[:, 2] += (left, top)
    affine_back, bicubic, gray = Image.Transform.AFFINE, Image.Resampling.BICUBIC, (fill or 0,) * 3
    moved = Image.fromarray(image).transform(
        (width, height), affine_back, back.ravel().tolist(), bicubic, fillcolor=gray
    )
    return np.asarray(moved)


def warp_pose(pose: np.ndarray, affine: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The pose (K, 3) that goes with the warped image; a joint that leaves the frame becomes invisible."""
    height, width = size
    visible = pose[:, 2:]
    moved = np.hstack([pose[:, :2] * (width, height), visible]) @ affine.T  # an invisible joint is 0, and stays so
    return normalise(np.hstack([moved, visible]), size)


def color_matrix(
    config: ColorConfig, brightness: float, contrast: float, saturation: float, hue: float
) -> tuple[float, ...]:
    """One change of colours, (3, 4) in rows over (R, G, B, 1); the draws are in [-1, 1].

    Contrast, saturation and hue leave GRAY where it is.
    """
    angle, chroma = math.radians(config.hue * hue), 1 + config.saturation * saturation
    turned = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    in_yiq = np.eye(3)
    in_yiq[1:, 1:] = chroma * turned
    light, contrasted = 1 + config.brightness * brightness, 1 + config.contrast * contrast
    linear = light * contrasted * np.linalg.inv(YIQ) @ in_yiq @ YIQ
    return tuple(np.column_stack([linear, [light * (1 - contrasted) * GRAY] * 3]).ravel().tolist())


def recolor(image: np.ndarray, matrix: tuple[float, ...], keep_gray: bool = False) -> np.ndarray:
    """The image (H, W, 3) uint8 in other colours.

    keep_gray: gray areas stay as they are, to the bit: they are no colour, but say that nothing is there.
    """
    if not image.size:  # one that the stage has no use for
        return image
    before = Image.fromarray(image)
    after = before.convert("RGB", matrix)
    return np.asarray(Image.composite(after, before, content(before)) if keep_gray else after)


def content(image: Image.Image) -> Image.Image:
    """255 where the image shows something, 0 in its gray areas, and between where it fades into one ("L").

    A gray area has a core of 3 x 3 pixels that are FLAT, around which what is within RIM of GRAY belongs to it.  So
    single gray pixels of a photograph are content, and what JPEG does to the edge of a gray area is not.
    """
    off = off_gray(image)
    core = off.point(IS_FLAT).filter(ImageFilter.BoxBlur(1)).point(IS_FULL)
    gray = ImageChops.darker(core.filter(ImageFilter.BoxBlur(4)).point(IS_ANY), off.point(IS_RIM))
    touching = gray.filter(ImageFilter.BoxBlur(1)).point(IS_ANY)
    return ImageChops.lighter(ImageChops.invert(touching), off.point(FADE))


def off_gray(image: Image.Image) -> Image.Image:
    """How far each pixel is from GRAY, in the channel that is farthest ("L")."""
    red, green, blue = ImageChops.difference(image, Image.new("RGB", image.size, (GRAY,) * 3)).split()
    return ImageChops.lighter(ImageChops.lighter(red, green), blue)


def occlude(
    image: np.ndarray, config: OcclusionConfig, x: float, y: float, turn: float, length: float, slimness: float
) -> np.ndarray:
    """The garment (H, W, 3) uint8 with a gray bar across it, as an arm or a bag leaves it; the draws are in [0, 1)."""
    hidden = Image.fromarray(image)
    box = off_gray(hidden).point(IS_RIM).point(lambda value: 255 - value).getbbox()
    if box is None:
        return image
    left, top, right, bottom = box
    middle = np.array([left + x * (right - left), top + y * (bottom - top)])
    half = config.size * max(right - left, bottom - top) * (1 + length) / 4
    along = half * np.array([math.cos(math.pi * turn), math.sin(math.pi * turn)])
    across = np.interp(slimness, (0, 1), SLIMNESS) * np.array([-along[1], along[0]])
    corners = [middle + i * along + j * across for i, j in ((1, 1), (1, -1), (-1, -1), (-1, 1))]
    ImageDraw.Draw(hidden).polygon([tuple(corner) for corner in corners], fill=(GRAY,) * 3)
    return np.asarray(hidden)
