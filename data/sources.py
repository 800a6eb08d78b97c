"""Where shards lie: a folder, or a URL with a cache on this host.  Both read bytes at an offset.

What fails for a while (a busy disk, a network, a storage service) is tried again; it is no fault of any sample.
"""

import getpass
import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO, TypeVar

import fsspec
from fsspec.spec import AbstractFileSystem

try:
    import aiohttp
except ImportError:  # only https:// needs it
    aiohttp = None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

T = TypeVar("T")
OPEN_SHARDS = 64  # file handles a process keeps
WAITS_S = (0.1, 0.5, 2, 8, 20)  # between tries
LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)  # tried twice only
PACKAGES = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
SMALL = 2**20  # bytes of free space that an index may need
TIMEOUT_S = 30  # without a byte from a server


class Unreachable(ValueError):
    """Bytes that could not be had after all tries: of a disk or a network, not of a sample."""


def persistently(action: Callable[[], T], what: str) -> T:
    """What action returns, tried again with growing waits while it raises OSError or the like.  Raises Unreachable."""
    for tries, wait_s in enumerate((*WAITS_S, None), start=1):
        try:
            return action()
        except (OSError, EOFError, TimeoutError) as error:
            if wait_s is None or (isinstance(error, LASTING) and tries > 2):
                raise Unreachable(
                    f"{what}: cannot be read ({str(error) or type(error).__name__}), after {tries} tries; check the "
                    "disk or the network, put the file back, and start the same command again"
                ) from error
            time.sleep(wait_s)
    raise AssertionError


def open_source(place: str | Path, cache: Path | None = None, cache_gb: float = 100) -> "Folder | Remote":
    """place: a folder, or a URL of https, s3 or gs."""
    if "://" in str(place):
        return Remote(str(place), cache or Path(tempfile.gettempdir()) / f"tryon-shards-{getpass.getuser()}", cache_gb)
    return Folder(Path(place))


class Folder:
    """A folder of this host, or one that it mounts."""

    def __init__(self, folder: Path):
        self.place = folder
        self._open()

    def _open(self) -> None:
        self._file = lru_cache(maxsize=OPEN_SHARDS)(self._open_file)

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "_file"}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._open()

    def name(self, file: str) -> str:
        """The file as a message calls it."""
        return str(self.place / file)

    def path(self, file: str) -> Path:
        """A local copy of a small file."""
        return self.place / file

    def size(self, file: str) -> int:
        return (self.place / file).stat().st_size

    def read(self, file: str, offset: int, size: int) -> bytes:
        """Raises Unreachable after several tries."""
        try:
            return self._read(file, offset, size)
        except (OSError, EOFError):
            return persistently(lambda: self._read(file, offset, size), self.name(file))

    again = read  # bytes that were not as expected

    def expect(self, files: list[str]) -> None:
        """These are read soon."""

    def _open_file(self, file: str) -> BinaryIO:
        return self.path(file).open("rb", buffering=0)

    def _read(self, file: str, offset: int, size: int) -> bytes:
        try:
            return read_at(self._file(file), size, offset)
        except OSError:
            self._file.cache_clear()  # a handle of a network disk may have gone stale
            raise


def read_at(file: BinaryIO, size: int, offset: int) -> bytes:
    """The bytes at an offset, without moving the file's position, which a forked worker shares with its parent.

    Raises EOFError when the file ends before.  Windows has no pread, and does not fork either.
    """
    if hasattr(os, "pread"):
        data = os.pread(file.fileno(), size, offset)
    else:
        file.seek(offset)
        data = file.read(size)
    if len(data) < size:
        raise EOFError(f"the file ends before byte {offset + size}")
    return data


class Remote(Folder):
    """Shards of a storage service.

    A sample is read by itself until its shard has been copied to the cache, which goes on in the background: the first
    batch does not wait for whole shards.  All processes of a host share one cache: a lock makes one of them copy a
    shard, and a copy has its name only when it is whole.  A cache larger than cache_gb loses what was used longest ago.
    """

    def __init__(self, url: str, cache: Path, cache_gb: float):
        self.url = url.rstrip("/")
        self.limit = int(cache_gb * 1e9)
        protocol = url.partition("://")[0]
        if protocol not in PACKAGES:
            raise ValueError(f"{url}: {protocol}:// is not read; use a folder, https://, s3:// or gs://")
        try:
            fsspec.get_filesystem_class(protocol)
        except ImportError:
            package = PACKAGES[protocol]
            raise ValueError(f"{url}: reading {protocol}:// needs a package: pip install {package}") from None
        super().__init__(cache)
        self._connect()
        about = self.fresh("dataset.json")
        # Of its own for each state of the data set: a copy never stands for a shard that was made anew.
        self.place = cache / hashlib.sha256(self.url.encode() + about).hexdigest()[:16]
        try:
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.place.mkdir(exist_ok=True)
            mine = self.place / f"dataset.json.{os.getpid()}"
            mine.write_bytes(about)
            mine.replace(self.place / "dataset.json")  # whole for the processes that read it meanwhile
        except OSError as error:
            raise ValueError(f"data.cache={cache}: cannot be written ({error}); name another folder") from error

    def _connect(self) -> None:
        """To nothing yet."""
        self._owner, self._fs, self._wanted, self._asked = 0, None, None, set()

    def __getstate__(self) -> dict:
        own = ("_owner", "_fs", "_wanted", "_asked")
        return {name: value for name, value in super().__getstate__().items() if name not in own}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._connect()

    def name(self, file: str) -> str:
        return f"{self.url}/{file}"

    def path(self, file: str) -> Path:
        """The copy of a small file in the cache, made at once when it is not there."""
        if not (self.place / file).is_file():
            try:
                self._ask(lambda service: self._copy(service, file), file)
            except Unreachable as error:
                if shutil.disk_usage(self.place).free < SMALL:
                    told = f"{self.place}: the disk is full; free space, or name another data.cache"
                    raise Unreachable(told) from error
                raise
        return self.place / file

    def fresh(self, file: str) -> bytes:
        """A small file as it is now."""
        return self._ask(lambda service: service.cat_file(self.name(file)), file)

    def size(self, file: str) -> int:
        return self._ask(lambda service: service.size(self.name(file)), file)

    def read(self, file: str, offset: int, size: int) -> bytes:
        if (self.place / file).is_file():
            try:
                return self._read(file, offset, size)
            except (OSError, EOFError):
                pass  # removed between the two lines, or cut off: the service has it
        self.expect([file])
        return self.again(file, offset, size)

    def again(self, file: str, offset: int, size: int) -> bytes:
        """From the service itself, whatever the cache holds."""

        def ranged(service: AbstractFileSystem) -> bytes:
            data = service.cat_file(self.name(file), start=offset, end=offset + size)
            if len(data) > size:  # a server that knows no ranges sends the whole file
                data = data[offset : offset + size]
            if len(data) < size:
                raise EOFError(f"the file ends before byte {offset + size}")
            return data

        return self._ask(ranged, file)

    def expect(self, files: list[str]) -> None:
        for file in files if self.limit > 0 else ():
            if file not in self._asked and not (self.place / file).is_file():
                self._service()  # of this process, and with it the thread that copies
                self._asked.add(file)
                self._wanted.put(file)

    def _ask(self, action: Callable[[AbstractFileSystem], T], file: str) -> T:
        def once() -> T:
            try:
                return action(self._service())
            except (OSError, EOFError):
                raise
            except Exception as error:  # each service has errors of its own
                raise OSError(f"{type(error).__name__}: {error}") from error

        return persistently(once, self.name(file))

    def _service(self) -> AbstractFileSystem:
        """The connection of this process: neither it nor the thread that copies outlives a fork."""
        if self._owner != os.getpid():
            self._connect()
            protocol = self.url.partition("://")[0]
            self._fs = fsspec.filesystem(protocol, skip_instance_cache=True, **_options(protocol))
            self._wanted, self._owner = SimpleQueue(), os.getpid()
            threading.Thread(target=self._copy_wanted, daemon=True).start()
        return self._fs

    def _copy_wanted(self) -> None:
        while True:
            file = self._wanted.get()
            try:
                self._copy(self._fs, file)
            except Exception as error:  # samples are read one by one meanwhile, and say what is wrong if it stays
                print(f"{self.name(file)}: not copied to the cache yet ({error})", flush=True)
            self._asked.discard(file)

    def _copy(self, service: AbstractFileSystem, file: str) -> None:
        """Copies a file; of a shard that another process of this host is copying, nothing."""
        partial, is_shard = self.place / f"{file}.partial", file.endswith(".tar")
        with (self.place / f"{file}.lock").open("w") as lock:
            if fcntl is not None:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | (fcntl.LOCK_NB if is_shard else 0))
                except BlockingIOError:
                    return
            if (self.place / file).is_file():
                return
            if is_shard:
                self._make_room(service.size(self.name(file)))
            try:
                service.get_file(self.name(file), str(partial))
                partial.replace(self.place / file)
            finally:
                partial.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        """Removes the shards that were opened longest ago; a process that reads one keeps it until it is done."""
        shards = []
        for path in self.place.parent.glob("*/*.tar"):
            try:
                found = path.stat()
            except FileNotFoundError:
                continue
            shards.append((found.st_mtime, found.st_size, path))
        total = sum(size for _, size, _ in shards)
        for _, held, path in sorted(shards):
            if total + size <= self.limit:
                return
            path.unlink(missing_ok=True)
            total -= held

    def _open_file(self, file: str) -> BinaryIO:
        opened = super()._open_file(file)
        os.utime(self.place / file)
        return opened


def _options(protocol: str) -> dict:
    """How long a service may be silent; everything else comes from fsspec's own configuration and the environment."""
    if protocol in ("http", "https"):
        silence = aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT_S, sock_read=TIMEOUT_S)
        return {"client_kwargs": {"timeout": silence}}
    if protocol == "s3":
        return {"config_kwargs": {"connect_timeout": TIMEOUT_S, "read_timeout": TIMEOUT_S}}
    return {}
