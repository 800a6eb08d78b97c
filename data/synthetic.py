"""Synthetic shop photographs with known truth: articulated people in patterned garments, drawn from a seed.

Any person can be rendered in any garment in any pose, at any size: data/synthetic_people.py says who and how,
data/synthetic_garments.py what is worn, this file paints them from back to front.  Every shape is a signed distance:
its edge is antialiased in the image, and decided at the pixel's centre in the parts map.
"""

import math

import numpy as np

from data.schema import JOINTS, Part, Photo
from data.synthetic_garments import HALF_WIDTH, SLEEVE_U, Garment
from data.synthetic_people import TORSO, Person, Pose, along, head_center, joints


def draw_pair(seed: int, index: int, size: tuple[int, int]) -> tuple[Photo, Photo]:
    """The person's photo and the garment's photo: one person in one garment, in two clearly different poses.

    A pure function of (seed, index), both in [0, 2**64); size is (height, width), and changes no drawn decision.
    Raises ValueError for a size under 1, OverflowError for a seed or an index out of range.
    """
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, index], np.uint64)))
    person, garment, pose = Person.sample(rng), Garment.sample(rng), Pose.sample(rng)
    other = Pose.sample(rng)
    while sum(abs(a - b) for arms in zip(pose[:2], other[:2], strict=True) for a, b in zip(*arms, strict=True)) < 0.8:
        other = Pose.sample(rng)
    return render(person, garment, pose, size), render(person, garment, other, size)


def render(person: Person, garment: Garment, pose: Pose, size: tuple[int, int]) -> Photo:
    """The photograph of person in garment in pose, from head to mid-thigh.

    size (height, width) in pixels: the person fills the height, the width only crops or widens the view.
    A keypoint outside the frame is invisible; one hidden by the body or an arm stays visible.
    Raises ValueError for a size under 1.
    """
    if min(size) < 1:
        raise ValueError(f"size is {size}: height and width must be at least 1")
    canvas, j = Canvas(person, pose, size), joints(person, pose)
    sides = (("right", -1, pose.right), ("left", 1, pose.left))
    far = {side: arm.behind or (pose.turn * side > 0.25 and -0.1 < arm.fore < 1) for _, side, arm in sides}
    hair_behind(canvas, j, person, pose)
    for name, side, _ in sides:
        if far[side]:
            draw_sleeved_arm(canvas, j, name, side, person, garment)
    draw_skin(canvas, j, person, pose)
    draw_bottom(canvas, j, person, pose)
    draw_garment(canvas, j, person, garment, pose)
    draw_head(canvas, j, person, pose)
    for name, side, _ in sides:
        if not far[side]:
            draw_sleeved_arm(canvas, j, name, side, person, garment)
    return Photo(canvas.pixels(), canvas.parts, canvas.keypoints(j))


class Canvas:
    """An image and its parts map under the painter's brush, in the person's frame."""

    def __init__(self, person: Person, pose: Pose, size: tuple[int, int]):
        height, width = size
        self.scale = height * pose.zoom  # pixels to the person's unit
        self.origin = (width / 2 + pose.shift * height, 0.04 * height * (1 - pose.zoom))  # pixels
        self.x = ((np.arange(width, dtype=np.float32) + 0.5 - self.origin[0]) / self.scale)[None, :]
        self.y = ((np.arange(height, dtype=np.float32) + 0.5 - self.origin[1]) / self.scale)[:, None]
        self.pixel = 1 / self.scale
        light = 1.03 - 0.10 * self.y - 0.12 * self.x**2
        self.image = (light[..., None] * np.asarray(person.backdrop, np.float32)).astype(np.float32)
        self.parts = np.zeros(size, np.uint8)

    def box(self, points, pad: float) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
        """The pixels around points: their slices, x (1, w) and y (h, 1)."""
        xs, ys = zip(*points, strict=True)
        left, right = np.searchsorted(self.x[0], (min(xs) - pad, max(xs) + pad))
        top, bottom = np.searchsorted(self.y[:, 0], (min(ys) - pad, max(ys) + pad))
        where = (slice(top, bottom), slice(left, right))
        return where, self.x[:, left:right], self.y[top:bottom]

    def paint(self, where, distance: np.ndarray, color, part: Part, light=1.0) -> None:
        """Lay color (times light) where distance is negative; color (3,) or (h, w, 3), light () or (h, w)."""
        color = np.asarray(color, np.float32)
        if not np.isscalar(light):
            color = color * light[..., None]
        cover = np.clip(0.5 - distance / self.pixel, 0, 1)[..., None]
        self.image[where] += (color - self.image[where]) * cover
        self.parts[where][distance < 0] = part

    def shadow(self, where, distance: np.ndarray, strength) -> None:
        """Darken what lies just outside a shape that stands in front of the person."""
        dark = strength * np.exp(-((np.maximum(distance, 0) / 0.016) ** 2)) * (self.parts[where] > 0)
        self.image[where] *= (1 - dark)[..., None]

    def pixels(self) -> np.ndarray:
        """The finished image, (H, W, 3) uint8."""
        return (np.clip(self.image, 0, 1) * 255 + 0.5).astype(np.uint8)

    def keypoints(self, j: dict[str, tuple[float, float]]) -> np.ndarray:
        """The pose, (K, 3) float32 in pixels; x = y = visible = 0 outside the frame."""
        points = np.array([j[name] for name in JOINTS]) * self.scale + self.origin
        height, width = self.parts.shape
        inside = ((points >= 0) & (points < (width, height))).all(1, keepdims=True)
        return np.concatenate([points * inside, inside], 1).astype(np.float32)


def draw_skin(canvas: Canvas, j, person: Person, pose: Pose) -> None:
    """Torso and neck."""
    where, x, y = canvas.box(trunk(j), 0.17)
    x, v, half, top = torso_frame(x, y, j, person, pose)
    length = TORSO * person.height
    d = np.maximum(corner(np.abs(x) - half, top - v * length), (v - 0.95) * length)
    canvas.paint(where, d, person.skin, Part.NECK, 1 - 0.18 * np.clip(x / half, -1, 1) ** 2)
    where, d, t, across = neck_frame(canvas, j, person, pose, 0.0)
    canvas.paint(where, d, person.skin, Part.NECK, 1 - 0.22 * across**2 * np.clip(t / 0.08, 0, 1))


def draw_garment(canvas: Canvas, j, person: Person, garment: Garment, pose: Pose) -> None:
    """Collar and torso of the garment; the sleeves are drawn with the arms."""
    phase = torso_phase(pose.turn)
    if garment.neckline == "high":
        where, d, t, across = neck_frame(canvas, j, person, pose, 0.008)
        color = garment.texture(0.06 * (np.arcsin(across) - phase), -t - 0.03, canvas.pixel)
        canvas.paint(where, np.maximum(d, t - 0.082), color, Part.UPPER, 1 - 0.3 * across**2 - 0.12 * (t > 0.068))
    where, x, y = canvas.box(trunk(j), 0.17)
    x, v, half, top = torso_frame(x, y, j, person, pose)
    length = TORSO * person.height
    wide = half + garment.ease * (0.5 + 1.2 * np.clip(v, 0, 1.4))
    side = np.clip(x / wide, -1, 1)
    u, g = HALF_WIDTH * (np.arcsin(side) - phase), v * TORSO
    armhole = 0.028 * np.clip(1 - v / 0.28, 0, 1.2) if garment.sleeves == "none" else 0.0
    around_neck = np.clip(1 - (g + 0.085) / 0.12, 0, 1)  # the neckline turns with the chest, but rings the neck
    opening = garment.opening(u + HALF_WIDTH * phase * around_neck, g)
    to_hem = (garment.hem - 0.03 * (1 - side**2) - v) * length
    d = corner(np.abs(x) - wide + armhole, top - 0.006 - v * length)
    d = np.maximum(np.maximum(d, -to_hem), -opening)
    light = cloth_light(garment, u, g, side) - 0.16 * (to_hem < 0.014) - 0.14 * (opening < 0.012)
    canvas.shadow(where, d, 0.18)
    color = garment.texture(u, g, canvas.pixel / np.maximum(np.sqrt(1 - side**2), 0.25))
    canvas.paint(where, d, color, Part.UPPER, light)


def trunk(j) -> list[tuple[float, float]]:
    return [j[f"{side}_{joint}"] for side in ("right", "left") for joint in ("shoulder", "hip")]


def neck_frame(canvas: Canvas, j, person: Person, pose: Pose, ease: float):
    """The pixels around the neck, distance to it, length along it from 0.03 over the joint, place across it."""
    base, head = (j["neck"][0], j["neck"][1] - 0.03), head_center(pose, j["neck"])
    where, x, y = canvas.box((base, head), 0.07)
    d, t, across = limb(x, y, base, head, 0.052 * person.width + ease, 0.046 * person.width + ease)
    return where, d, t, -np.clip(across, -1, 1)


def torso_frame(x, y, j, person: Person, pose: Pose):
    """x from the spine; v in torso lengths below the shoulder line; half-width there; height of the shoulders' top."""
    chest, length = j["neck"], TORSO * person.height
    pelvis = (0.5 * (j["right_hip"][0] + j["left_hip"][0]), chest[1] + length)
    v = (y - chest[1]) / length
    bend = np.clip(v, 0, 1)
    x = x - (chest[0] + (pelvis[0] - chest[0]) * bend)
    v = v - (pose.shoulders + (pose.hips - pose.shoulders) * bend) * x / length
    narrow = math.hypot(math.cos(pose.turn), 0.6 * math.sin(pose.turn))
    t = np.clip(v, 0, 1)
    half = person.width * narrow * (HALF_WIDTH - 0.004 * t - person.waist * np.sin(math.pi * t) ** 2)
    slope = np.maximum(np.abs(x) - 0.045, 0)
    top = -0.078 + 0.30 * slope - 0.02 * np.exp(-slope / 0.02)
    return x, v, half, top


def torso_phase(turn: float) -> float:
    """How far the chest has turned around an elliptic torso 0.6 as deep as it is wide, in radians."""
    return math.atan2(0.6 * math.sin(turn), math.cos(turn))


def cloth_light(garment: Garment, u, v, side) -> np.ndarray:
    """Light on cloth: darker to the sides, a little more on the right, with soft folds.  -> (h, w) about 1"""
    phase = 2 * math.pi * garment.phase
    folds = np.sin(28 * u + 22 * v + phase) * np.sin(9 * v - 17 * u + 2 * phase)
    return 1.04 - 0.24 * side**2 - 0.06 * side + 0.06 * folds


def draw_sleeved_arm(canvas: Canvas, j, name: str, side: int, person: Person, garment: Garment) -> None:
    """Arm and hand in skin, then the sleeve over them."""
    shoulder, elbow, wrist = (j[f"{name}_{joint}"] for joint in ("shoulder", "elbow", "wrist"))
    angle = math.atan2(wrist[0] - elbow[0], wrist[1] - elbow[1])
    knuckles = along(wrist, angle - side * 0.12, 0.055)
    tips = along(knuckles, angle - side * 0.35, 0.042)
    thumb = along(wrist, angle - side * 0.75, 0.06)
    where, x, y = canvas.box((shoulder, elbow, wrist, knuckles, tips), 0.1)
    outwards = side * (x - shoulder[0])
    thick = 0.4 + 0.6 * person.width
    d1, t1, s1 = limb(x, y, shoulder, elbow, 0.043 * thick, 0.034 * thick)
    d2, t2, s2 = limb(x, y, elbow, wrist, 0.035 * thick, 0.023 * thick)
    upper_length = math.dist(shoulder, elbow)
    lower = d2 < d1
    t = np.where(lower, upper_length + t2, t1)
    seam = -0.02 - outwards - 0.8 * np.maximum(t - 0.03, 0)  # from the shoulder's tip to the armpit
    d = np.maximum(np.minimum(d1, d2), seam)
    across = np.clip(np.where(lower, s2, s1), -1, 1)
    hand = np.minimum(limb(x, y, wrist, knuckles, 0.021, 0.028)[0], limb(x, y, knuckles, tips, 0.026, 0.015)[0])
    hand = np.minimum(hand, limb(x, y, wrist, thumb, 0.013, 0.010)[0])
    round_off = np.clip(t / 0.1, 0, 1) * across  # the shoulder has the torso's light, not the arm's
    part = Part.LEFT_ARM if side > 0 else Part.RIGHT_ARM
    end = garment.sleeve_length * (upper_length + math.dist(elbow, wrist))
    canvas.shadow(where, np.minimum(d, hand), 0.3 * np.clip(t / 0.12 - 0.4, 0, 1))
    bare = np.minimum(d if garment.sleeves == "none" else np.maximum(d, end - 0.02 - t), hand)
    canvas.paint(where, bare, person.skin, part, 1.0 - 0.2 * round_off**2 - 0.05 * round_off)
    if garment.sleeves == "none":
        return
    loose = garment.ease * (0.4 + 0.9 * np.clip(t / end, 0, 1)) + 0.004
    d = np.maximum(np.maximum(np.minimum(d1, d2) - loose, seam), t - end)
    u = 0.05 * np.arcsin(across) + side * SLEEVE_U
    light = cloth_light(garment, u, t, round_off) * (1 - 0.16 * (t > end - 0.014))
    color = garment.texture(u, t, canvas.pixel / np.maximum(np.sqrt(1 - across**2), 0.25))
    canvas.paint(where, d, color, Part.UPPER, light)


def draw_bottom(canvas: Canvas, j, person: Person, pose: Pose) -> None:
    """Legs in skin, then trousers or a skirt over them."""
    legs = [(j[f"{name}_hip"], j[f"{name}_knee"]) for name in ("right", "left")]
    where, x, y = canvas.box((*legs[0], *legs[1], (0.0, 0.6)), 0.16)
    thick = 0.069 * person.width
    shapes = [limb(x, y, *leg, thick, 0.75 * thick) for leg in legs]
    tx, v, half, _ = torso_frame(x, y, j, person, pose)
    length = TORSO * person.height
    side = np.clip(tx / half, -1, 1)
    seat = np.maximum(np.abs(tx) - half - 0.004, np.maximum(0.70 - v, v - 1.1) * length)
    end = {"trousers": 9.0, "shorts": 1.35, "skirt": 9.0, "miniskirt": 1.4}[person.bottom]
    for d, _, across in shapes:
        canvas.shadow(where, d, 0.25)
        canvas.paint(where, d, person.skin, Part.LEGS, 1 - 0.2 * np.clip(across, -1, 1) ** 2)
    blend = np.clip((v - 0.95) / 0.3, 0, 1)  # from the seat's light to each leg's
    if person.bottom in ("trousers", "shorts"):
        for d, _, across in shapes:
            d = np.maximum(d - 0.006, (v - end) * length)
            light = 1 - 0.25 * (side**2 + (np.clip(across, -1, 1) ** 2 - side**2) * blend)
            canvas.shadow(where, d, 0.25 * blend)
            canvas.paint(where, d, person.bottom_color, Part.LOWER, light)
    else:
        flare = half + 0.006 + 0.12 * np.maximum(v - 0.9, 0)
        seat = np.maximum(np.abs(tx) - flare, np.maximum(0.70 - v, v - end) * length)
        side = np.clip(tx / flare, -1, 1)
    folds = 0.05 * np.sin(40 * tx + 3) * np.clip(v - 0.9, 0, 1)
    canvas.paint(where, seat, person.bottom_color, Part.LOWER, 1 - 0.25 * side**2 + folds)


def head_frame(canvas: Canvas, j, pose: Pose, pad: float):
    """The pixels around the head, and x, y from its centre, upright."""
    center = head_center(pose, j["neck"])
    where, x, y = canvas.box((center,), pad)
    x, y = x - center[0], y - center[1]
    cos, sin = math.cos(pose.roll), math.sin(pose.roll)
    return where, x * cos + y * sin, y * cos - x * sin


def hair_behind(canvas: Canvas, j, person: Person, pose: Pose) -> None:
    """Hair that hangs behind the shoulders."""
    where, x, y = head_frame(canvas, j, pose, 0.3)
    if person.hairstyle == "long":
        d = limb(x, y, (0, -0.01), (0, 0.19), 0.088, 0.095)[0]
    elif person.hairstyle == "bob":
        d = np.maximum(limb(x, y, (0, -0.01), (0, 0.06), 0.088, 0.094)[0], y - 0.105)
    elif person.hairstyle == "bun":
        d = np.hypot(x, y + 0.115) - 0.04
    else:
        return
    canvas.paint(where, d, person.hair, Part.HEAD, 0.85 + 0.06 * np.sin(150 * x))


def draw_head(canvas: Canvas, j, person: Person, pose: Pose) -> None:
    """Ears, face, eyes, brows, nose, mouth, and the hair that frames them."""
    where, x, y = head_frame(canvas, j, pose, 0.15)
    skin = np.array(person.skin, np.float32)

    def spot(azimuth: float, height: float, a: float, b: float, color, radius: float = 0.07, bend: float = 0) -> None:
        cx = radius * math.sin(azimuth + pose.yaw)
        a *= max(math.cos(azimuth + pose.yaw), 0.25)
        canvas.paint(where, oval(x - cx, y - height - bend * (x - cx) ** 2, a, b), color, Part.HEAD)

    for azimuth in (-1.5, 1.5):
        cx = 0.074 * math.sin(azimuth + pose.yaw)
        canvas.paint(where, oval(x - cx, y - 0.005, 0.014, 0.024), 0.88 * skin, Part.HEAD)
    face = oval(x * (1 + 1.6 * np.maximum(y, 0)), y, 0.073, 0.095)
    canvas.shadow(where, face, 0.3)
    canvas.paint(where, face, skin, Part.HEAD, 1.02 - 22 * (x + 0.01) ** 2)
    for azimuth in (-0.45, 0.45):
        spot(azimuth, 0.032, 0.016, 0.011, 0.92 * skin + (0.06, -0.01, -0.01))
        spot(azimuth, -0.011, 0.0165, 0.0085, 0.45 * skin)  # lid and lashes
        spot(azimuth, -0.008, 0.0145, 0.0075, (0.96, 0.96, 0.96))
        spot(azimuth, -0.009, 0.0075, 0.0075, (0.16, 0.11, 0.10))
        spot(azimuth, -0.031, 0.018, 0.0035, 0.6 * np.array(person.hair) + 0.15 * skin, bend=14)
    spot(0.0, 0.022, 0.009, 0.006, 0.84 * skin, 0.078)
    spot(0.0, 0.052, 0.022, 0.0065, skin * (0.82, 0.5, 0.5), bend=-14)
    if person.hairstyle == "bald":
        return
    shift = 0.06 * math.sin(pose.yaw)
    light = 1.0 + 0.08 * np.sin(150 * x) - 1.5 * (y + 0.09)
    cap = oval(x, y + 0.006, 0.081, 0.105)
    line = -0.058 + (18 if person.hairstyle in ("short", "bun") else 9) * (x - shift) ** 2
    canvas.paint(where, np.maximum(cap, y - np.minimum(line, 0.02)), person.hair, Part.HEAD, light)
    if person.hairstyle in ("bob", "long"):
        end = 0.1 if person.hairstyle == "bob" else 0.145
        for side in (-1, 1):
            d = limb(x, y, (side * 0.068, -0.045), (side * 0.080, end - 0.012), 0.018, 0.014)[0]
            canvas.paint(where, d, person.hair, Part.HEAD, 0.95 + 0.06 * np.sin(150 * x) + 0 * y)


def limb(x, y, a, b, radius_a: float, radius_b: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A tapered capsule from a to b: (signed distance, length along it from a, place across it in [-1, 1])."""
    length = math.dist(a, b)
    ux, uy = (b[0] - a[0]) / length, (b[1] - a[1]) / length
    t = (x - a[0]) * ux + (y - a[1]) * uy
    across = (x - a[0]) * uy - (y - a[1]) * ux
    clipped = np.clip(t, 0, length)
    radius = radius_a + (radius_b - radius_a) * clipped / length
    return np.hypot(t - clipped, across) - radius, t, across / radius


def corner(a: np.ndarray, b: np.ndarray, radius: float = 0.035) -> np.ndarray:
    """Signed distance to where a and b are both negative, the corner between them rounded."""
    a, b = a + radius, b + radius
    return np.hypot(np.maximum(a, 0), np.maximum(b, 0)) + np.minimum(np.maximum(a, b), 0) - radius


def oval(x, y, a: float, b: float) -> np.ndarray:
    """Signed distance, exact near a circle, to an ellipse of half-axes a and b."""
    return (np.hypot(x / a, y / b) - 1) * min(a, b)
