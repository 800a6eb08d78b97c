"""JSON that somebody else wrote."""

import json
from pathlib import Path
from typing import Any

MAX_BYTES = 32_000_000  # an annotation may carry its photograph inside


def read_json(path: Path, what: str, max_bytes: int = MAX_BYTES) -> Any:
    """The document of a file in UTF-8, 16 or 32, whose numbers may be NaN or infinite; what it is, for messages.

    Raises ValueError naming file and remedy when it is missing, too large, nested too deeply, or no JSON.
    """
    data = read_bytes(path, what, max_bytes)
    try:
        return json.loads(data)
    except RecursionError:
        reason = "nested too deeply"
    except ValueError as error:
        reason = str(error)
    raise ValueError(f"{path}: not readable as JSON ({reason}); write this {what} again")


def read_bytes(path: Path, what: str, max_bytes: int = MAX_BYTES) -> bytes:
    """The whole file.  Raises ValueError when it is missing, no plain file, unreadable or larger than max_bytes."""
    if not Path(path).is_file():
        raise ValueError(f"{path}: this {what} is missing; put it there, or remove its row or photo")
    try:
        with Path(path).open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise ValueError(f"{path}: this {what} cannot be read ({error.strerror}); copy it again") from error
    if len(data) > max_bytes:
        raise ValueError(f"{path}: more than {max_bytes // 1_000_000} MB, too large for a {what}; check the file")
    return data
