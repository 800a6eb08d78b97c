"""How much is fuzzed: TRYON_FUZZ inputs for each reader [300], the same ones every time."""

import os

from hypothesis import HealthCheck, settings

fuzz = settings(
    max_examples=int(os.environ.get("TRYON_FUZZ", "300")),
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
