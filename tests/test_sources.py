"""Remote shards: the same samples as from a folder, one copy a host however many processes ask; no fault of a network
is a fault of a sample."""

import multiprocessing
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from data import sources
from data.dataset import BadSample, ShardedDataset
from data.loader import Layout, Stream, batches, rank_positions
from data.order import ShuffledOrder
from data.shard_index import place_of
from data.shards import write_shards
from data.sources import Folder, Unreachable
from model.diffusion import DiffusionConfig
from training.draws import TrainingDraws

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


class Server(ThreadingHTTPServer):
    """A web server of a folder that knows byte ranges, counts requests, and can be made to fail."""

    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.asked: list[tuple[str, str]] = []  # (file, range)
        self.failures = 0  # answers 503 so many times
        self.ranges = True
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "") if self.server.ranges else ""
        self.server.asked.append((self.path[1:], wanted))
        if self.server.failures:
            self.server.failures -= 1
            self.send_error(503)
            return
        path = Path(self.directory) / self.path[1:]
        if not wanted or not path.is_file():
            super().do_GET()
            return
        data = path.read_bytes()
        start, end = (int(text) if text else len(data) - 1 for text in wanted.removeprefix("bytes=").split("-"))
        part = data[start : end + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(data)}")
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def folder(tmp_path, random_sample) -> Path:
    write_shards((random_sample(f"sample-{i}", i) for i in range(23)), tmp_path / "set", samples_per_shard=5)
    return tmp_path / "set"


@pytest.fixture
def server(folder) -> Iterator[Server]:
    with Server(folder) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(sources, "WAITS_S", (0.01, 0.02, 0.04))


def same(one: ShardedDataset, other: ShardedDataset) -> bool:
    pairs = ((one.read(i), other.read(i)) for i in range(len(one)))
    return all(a.key == b.key and all(map(np.array_equal, a[1:], b[1:])) for a, b in pairs)


def wait_for(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "this never came true"
        time.sleep(0.02)


def tars(cache: Path) -> list[Path]:
    return sorted(cache.glob("*/*.tar"))


def test_a_url_gives_the_samples_of_its_folder(folder, server, tmp_path):
    local, remote = ShardedDataset(folder), ShardedDataset(server.url, cache=tmp_path / "cache")
    assert remote.fingerprint == local.fingerprint and same(remote, local)
    wait_for(lambda: len(tars(tmp_path / "cache")) == 5)
    asked = len(server.asked)
    assert same(remote, local) and len(server.asked) == asked, "now from the cache alone"
    again = ShardedDataset(server.url, cache=tmp_path / "cache")
    assert same(again, local)
    assert [path for path, _ in server.asked[asked:]] == ["dataset.json"]


def test_the_first_sample_does_not_wait_for_its_shard(server, tmp_path):
    remote = ShardedDataset(server.url, cache=tmp_path / "cache", cache_gb=0)
    remote.read(7)
    place = place_of(remote._rows(1)[2])
    asked = [(path, wanted) for path, wanted in server.asked if path.endswith(".tar")]
    assert asked == [("000001.tar", f"bytes={place.start}-{place.end - 1}")]


def _read_all(url: str, cache: Path, num_workers: int, results) -> None:
    dataset = ShardedDataset(url, cache=cache)
    draws = TrainingDraws(0, (16, 12), 2, DiffusionConfig())
    stream = Stream(dataset, ShuffledOrder(dataset.shard_sizes, 0, 2), draws)
    read = batches(stream, rank_positions(Layout(4), 0, 12), num_workers=num_workers)
    results.put([batch.person.sum().item() for batch in read])


def test_ranks_and_workers_share_one_copy(folder, server, tmp_path):
    """Three processes with two forked workers each: the same stream, and each shard is fetched once."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    ranks = [context.Process(target=_read_all, args=(server.url, tmp_path / "cache", 2, results)) for _ in range(3)]
    for rank in ranks:
        rank.start()
    streams = [results.get(timeout=60) for _ in ranks]
    for rank in ranks:
        rank.join()
    _read_all(str(folder), tmp_path, 0, results)
    assert streams == [results.get()] * 3
    whole = [path for path, wanted in server.asked if path.endswith(".tar") and not wanted]
    assert len(whole) == len(set(whole)), "no shard was copied twice"
    assert not list((tmp_path / "cache").glob("*/*.partial"))


def test_a_full_cache_drops_what_was_used_longest_ago(folder, server, tmp_path):
    cache, size = tmp_path / "cache", (folder / "000000.tar").stat().st_size
    remote = ShardedDataset(server.url, cache=cache, cache_gb=2.5 * size / 1e9)
    for shard in range(4):
        remote.read(5 * shard)
        wait_for(lambda shard=shard: f"00000{shard}.tar" in [path.name for path in tars(cache)])
        remote.read(5 * shard)
        time.sleep(0.02)
    assert [path.name for path in tars(cache)] == ["000002.tar", "000003.tar"]
    assert same(remote, ShardedDataset(folder))


def test_a_copy_never_stands_for_a_shard_that_was_made_anew(folder, server, tmp_path, random_sample):
    remote = ShardedDataset(server.url, cache=tmp_path / "cache")
    remote.read(0)
    wait_for(lambda: tars(tmp_path / "cache"))
    moved = folder.rename(tmp_path / "old")
    write_shards((random_sample(f"sample-{i}", 100 + i) for i in range(23)), folder, samples_per_shard=5)
    new = ShardedDataset(server.url, cache=tmp_path / "cache")
    assert new.fingerprint != ShardedDataset(moved).fingerprint and same(new, ShardedDataset(folder))


def test_a_passing_failure_is_waited_out(folder, server, tmp_path):
    remote = ShardedDataset(server.url, cache=tmp_path / "cache", cache_gb=0)
    server.failures = 3
    assert remote.read(3).key == "sample-3" and server.failures == 0


def test_a_lasting_failure_is_no_fault_of_a_sample(folder, server, tmp_path):
    remote = ShardedDataset(server.url, cache=tmp_path / "cache", cache_gb=0)
    remote.read(6)
    server.failures = 10**6
    with pytest.raises(Unreachable) as caught:
        remote.read(7)
    assert str(caught.value).startswith(f"{server.url}/000001.tar: cannot be read (") and "after 4 tries" in str(
        caught.value
    )
    server.failures = 0
    (folder / "000001.tar").unlink()
    with pytest.raises(Unreachable, match=r"000001.tar: cannot be read .* after 3 tries"):
        remote.read(7)


def test_a_damaged_copy_is_read_from_the_service(folder, server, tmp_path):
    remote = ShardedDataset(server.url, cache=tmp_path / "cache")
    remote.read(0)
    wait_for(lambda: tars(tmp_path / "cache"))
    (copy,) = tars(tmp_path / "cache")
    copy.write_bytes(bytes(copy.stat().st_size))
    assert same(remote, ShardedDataset(folder))
    data = bytearray((folder / "000000.tar").read_bytes())
    data[place_of(remote._rows(0)[1]).start + 700] ^= 1
    (folder / "000000.tar").write_bytes(data)
    with pytest.raises(BadSample):
        remote.read(1)


def test_a_server_without_ranges(folder, server, tmp_path):
    server.ranges = False
    assert same(ShardedDataset(server.url, cache=tmp_path / "cache", cache_gb=0), ShardedDataset(folder))


def test_what_cannot_be_opened(tmp_path, server, monkeypatch):
    with pytest.raises(ValueError, match=r"none/dataset.json: cannot be read"):
        ShardedDataset(f"{server.url}/none", cache=tmp_path / "cache")
    for place in ("nothing://x", "az://x/y", "ftp://x/y", "sftp://x/y"):
        with pytest.raises(ValueError, match=r"is not read; use a folder, https://, s3:// or gs://"):
            ShardedDataset(place, cache=tmp_path / "cache")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"data.cache=.*cannot be written"):
        ShardedDataset(server.url, cache=tmp_path / "file" / "cache")


def test_a_local_disk_that_recovers(folder, monkeypatch):
    """An error that a read meets for a while, as a network disk gives it."""
    dataset, real, failures = ShardedDataset(folder), Folder._read, [OSError(5, "Input/output error")] * 3

    def failing(self, *args):
        if failures:
            raise failures.pop()
        return real(self, *args)

    monkeypatch.setattr(Folder, "_read", failing)
    assert dataset.read(4).key == "sample-4" and not failures
    failures += [OSError(5, "Input/output error")] * 9
    with pytest.raises(Unreachable, match=r"000000.tar: cannot be read .*Input/output error.*after 4 tries"):
        dataset.read(4)


def test_a_shard_cut_off_under_a_running_job(folder):
    dataset = ShardedDataset(folder)
    dataset.read(4)
    with (folder / "000000.tar").open("r+b") as file:
        file.truncate(3000)
    with pytest.raises(Unreachable, match=r"000000.tar: cannot be read .the file ends before byte"):
        dataset.read(4)
