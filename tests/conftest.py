"""What several tests need."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real photographs: TRYON_TEST_DATA, or shared/data beside the repository.

    Tests that need it are skipped where it is absent, but fail in CI.
    """
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("TRYON_TEST_DATA", beside))
    if not folder.is_dir():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"no real photographs at {folder}")
    return folder
