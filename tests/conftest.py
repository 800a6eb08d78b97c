"""What several tests need."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from data import prepare
from data.estimators.fetch import fetch
from data.schema import IMAGES, JOINTS, POSES, Sample
from data.shards import write_shards
from runs import unavailable

CLUSTER = Path(__file__).parent / "cluster"

FUZZED = {False: "40", True: "300"}  # inputs for each reader, in the fast tier and with --all


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="the slow tests too: whole matrices, journeys, the demo")


def pytest_configure(config: pytest.Config) -> None:
    os.environ.setdefault("TRYON_FUZZ", FUZZED[config.getoption("--all")])
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # started in the background of a script: so would children be
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_itemcollected(item: pytest.Item) -> None:
    """What pytest-xdist keeps together: tests that share what their module prepares, and those of the two hosts, of
    which a machine has one pair."""
    fixtures = item._fixtureinfo.name2fixturedefs.values()
    if CLUSTER in item.path.parents:
        item.add_marker(pytest.mark.xdist_group("cluster"))
    elif any(each.scope == "module" for fixture in fixtures for each in fixture):
        item.add_marker(pytest.mark.xdist_group(item.path.name))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves slow tests out, unless --all or their own name asks for them."""
    if not config.getoption("--all") and not any("::" in word for word in config.args):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("slow")])
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


@pytest.fixture(autouse=True)
def one_thread():
    """The same numbers on any machine, and no two tests fighting for its cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real photographs: TRYON_TEST_DATA, or shared/data beside the repository.

    Tests that need it are skipped where it is absent, but fail in CI.
    """
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("TRYON_TEST_DATA", beside))
    if not folder.is_dir():
        unavailable(f"no real photographs at {folder}")
    return folder


@pytest.fixture(scope="session")
def estimator_weights() -> list[Path]:
    """The weights of data.estimators, fetched once into the user's cache.

    Tests that need them are skipped where they cannot be had, but fail in CI.
    """
    try:
        return fetch()
    except ValueError as error:
        unavailable(str(error))


@pytest.fixture
def random_sample():
    """key, number -> a sample of 16x12 pixels of its own, of whose joints some are invisible."""

    def draw(key: str, number: int = 0) -> Sample:
        rng = np.random.default_rng(number)
        images = (rng.integers(0, 256, (16, 12, 3), dtype=np.uint8) for _ in IMAGES)
        poses = []
        for _ in POSES:
            visible = rng.random((len(JOINTS), 1)) < 0.7
            poses.append(np.float32(np.hstack([rng.random((len(JOINTS), 2)), np.ones_like(visible)]) * visible))
        return Sample(key, *images, *poses)

    return draw


@pytest.fixture
def shard(tmp_path, random_sample) -> Path:
    """The one tar of a folder of three samples a, b, c."""
    write_shards([random_sample(key, i) for i, key in enumerate("abc")], tmp_path / "set")
    return tmp_path / "set/000000.tar"


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    """48 drawn pairs of 32x32 in three shards."""
    return _prepare(tmp_path_factory, "synthetic", "--num", "48", "--seed", "1", "--samples-per-shard", "16")


@pytest.fixture(scope="session")
def photographs(tmp_path_factory, real_data) -> Path:
    """The ten real pairs of cotton at 32x32."""
    source = str(real_data / "cotton")
    return _prepare(
        tmp_path_factory, "viton_hd", "--source", source, "--label-map", "cotton", "--samples-per-shard", "4"
    )


def _prepare(tmp_path_factory, *words: str) -> Path:
    out = tmp_path_factory.mktemp("shards") / "tiny"
    assert prepare.main([*words, "--size", "32", "--out", str(out)]) == 0
    return out
