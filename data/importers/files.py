"""The files of a data set: found by name, whatever their format, and named when they are missing."""

from pathlib import Path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
REMEDY = "put it there, or remove the sample from its list or folders"


def stems(folder: Path) -> set[str]:
    """The names, without suffix, of the pictures in a folder, hidden ones left out; none where there is no folder."""
    if not folder.is_dir():
        return set()
    return {
        path.stem
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    }


def picture(folder: Path, stem: str) -> Path:
    """The image with this name, whatever its format; NAME.jpg when there is none, for the message.

    Raises ValueError when there are two.
    """
    paths = [folder / f"{stem}{suffix}" for suffix in (*IMAGE_SUFFIXES, *map(str.upper, IMAGE_SUFFIXES))]
    there = [path for path in paths if path.is_file()]
    for other in there[1:]:
        if not other.samefile(there[0]):  # as A.jpg and A.JPG are where a disk takes them for the same
            raise ValueError(f"{there[0]}: there is {other.name} too, and nothing says which is meant; remove one")
    return there[0] if there else paths[0]


def require(path: Path, place: str, remedy: str = REMEDY) -> None:
    """Raises ValueError naming file, place in a list, and remedy when there is no such file."""
    if path.is_file():
        return
    spellings = (path.name.lower(), path.name.upper(), path.stem + path.suffix.swapcase())
    other = next((name for name in spellings if path.with_name(name).is_file()), None)
    hint = f"; there is a {other}, but upper and lower case differ" if other else ""
    raise ValueError(f"{path}: missing ({place}){hint}; {remedy}")
