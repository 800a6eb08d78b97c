"""Tensors to tensors; and, for programs, the whole cascade: `from model import TryOnCascade` (sampling/pipeline.py)."""

from typing import Any


def __getattr__(name: str) -> Any:
    """TryOnCascade, imported when it is asked for: nothing else of this package needs files or photographs."""
    if name == "TryOnCascade":
        from sampling.pipeline import TryOnCascade

        return TryOnCascade
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
