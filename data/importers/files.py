"""The files of a data set: found by name, whatever their format, and named when they are missing."""

from pathlib import Path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
REMEDY = "put it there, or remove the sample from its list or folders"


def stems(folder: Path) -> set[str]:
    """The names, without suffix, of the pictures in a folder; none where there is no folder."""
    if not folder.is_dir():
        return set()
    return {path.stem for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES}


def picture(folder: Path, stem: str) -> Path:
    """The image with this name, whatever its format; NAME.jpg when there is none, for the message."""
    paths = [folder / f"{stem}{suffix}" for suffix in (*IMAGE_SUFFIXES, *map(str.upper, IMAGE_SUFFIXES))]
    return next((path for path in paths if path.is_file()), paths[0])


def require(path: Path, place: str, remedy: str = REMEDY) -> None:
    """Raises ValueError naming file, place in a list, and remedy when there is no such file."""
    if path.is_file():
        return
    spellings = (path.name.lower(), path.name.upper(), path.stem + path.suffix.swapcase())
    other = next((name for name in spellings if path.with_name(name).is_file()), None)
    hint = f"; there is a {other}, but upper and lower case differ" if other else ""
    raise ValueError(f"{path}: missing ({place}){hint}; {remedy}")
