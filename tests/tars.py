"""Tars as the tests look into them and break them."""

import io
import tarfile
from pathlib import Path

import pytest


def members_of(tar: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(tar) as archive:
        return [(member.name, archive.extractfile(member).read()) for member in archive]


def rewrite(tar: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(tar, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def flip_byte(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    path.write_bytes(data)


def refusal(action, *args) -> str:
    """The message of the one ValueError that an action ends with: one line that names a remedy."""
    with pytest.raises(ValueError) as caught:
        action(*args)
    message = str(caught.value)
    assert "\n" not in message and any(
        word in message for word in ("python -m data.", "remove", "put the file back")
    ), message
    return message
