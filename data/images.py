"""Photographs from files, as a viewer shows them."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "TIFF", "GIF")  # no PostScript, which would be run
SHALLOW = "save it with 8 bits a channel"
MAX_PIXELS = 80_000_000  # 10,000 x 8,000: a larger one is no photograph, or a trap


def read_image(path: Path) -> np.ndarray:
    """The photograph as a viewer shows it.  -> (H, W, 3) uint8 RGB

    Upright by its EXIF orientation, its colours turned from its profile to sRGB, what is transparent laid on white.
    Raises ValueError naming file and remedy when it is missing, broken, cut off, of another format (whatever its
    name ends in), larger than MAX_PIXELS, or has 16 or 32 bits a channel.
    """
    return as_seen(load_image(path, "image"), path)


def as_seen(image: Image.Image, path: Path | str) -> np.ndarray:
    """A decoded image as read_image shows it; path is for messages."""
    if image.mode[0] in "IF" or _is_deep(image):
        raise ValueError(f"{path}: has {image.mode if image.mode[0] in 'IF' else '16-bit'} pixels; {SHALLOW}")
    try:
        return np.array(to_srgb(_opaque(ImageOps.exif_transpose(image))))
    except Exception as error:
        raise _unreadable(path, "image", error) from error


def load_image(path: Path, what: str) -> Image.Image:
    """The decoded image, as its file stores it; what it is, for messages.  Raises ValueError as read_image does."""
    if not Path(path).is_file():
        raise ValueError(f"{path}: this {what} is missing; put it there, or remove its row or photo")
    try:
        with Image.open(path) as image:
            if image.format not in FORMATS:
                problem = f"it is {image.format}; save it as JPEG or PNG"
            elif image.mode[0] not in "IF" and _is_deep(image):
                problem = f"has 16-bit pixels; {SHALLOW}"
            elif image.width * image.height > MAX_PIXELS:
                problem = f"{image.width}x{image.height} pixels are more than {MAX_PIXELS:,}; make it smaller"
            else:
                image.load()
                return image
    except Image.DecompressionBombError:  # refused by Pillow itself, before its size can be asked for
        problem = f"its pixels are far more than {MAX_PIXELS:,}; make it smaller"
    except Exception as error:  # Pillow's decoders raise whatever a broken file makes them stumble over
        raise _unreadable(path, what, error) from error
    raise ValueError(f"{path}: not taken as {what}: {problem}")


def _is_deep(image: Image.Image) -> bool:
    """Whether a file that is not decoded yet has 16 bits a channel, which Pillow would cut to 8 without a word."""
    return image.format in ("PNG", "TIFF") and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def _unreadable(path: Path, what: str, error: Exception) -> ValueError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"{path}: not a readable {what} ({reason}); copy it again")


def _opaque(image: Image.Image) -> Image.Image:
    """The image on white where it is transparent; as it is where nothing is."""
    if not image.has_transparency_data:
        return image
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image.convert("RGBA"))
    white.info = image.info
    return white.convert("RGB")


def to_srgb(image: Image.Image) -> Image.Image:
    """The image in RGB, its colours turned from its profile to sRGB; an unusable profile is passed over."""
    profile = image.info.get("icc_profile")
    if profile and image.mode in ("RGB", "CMYK", "L"):
        try:
            own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            return ImageCms.profileToProfile(image, own, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
            pass
    return image.convert("RGB")
