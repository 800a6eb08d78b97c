"""The bytes of a checkpoint's files: laid out, cut into pieces, copied, written and hashed by threads.

Each file is one ordinary .safetensors file (https://github.com/huggingface/safetensors, "Format").  Its header follows
from names and shapes alone, so that every rank knows the place of every byte and writes its own pieces of the file.
Pieces begin at multiples of PIECE: no page of a network file system is written by two hosts.
"""

import contextlib
import hashlib
import json
import math
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from io import RawIOBase
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import psutil
import torch
from torch import Tensor

PIECE = 64 * 2**20  # bytes
CHUNK = 2**20  # bytes that are hashed and written while the processor's cache holds them
THREADS = 2  # of a rank that write
STREAMING = 3  # buffers of a rank that writes as it copies: one is filled while two are written
STAGING_SHARE = 0.5  # of a host's free memory that copies of a checkpoint may take
VISIBLE_S = 30  # until another host sees a file that rank 0 made
PICKLES = re.compile(rb"PK\x03\x04|\x80[\x02-\x05]")  # torch.save of today, and pickles of protocol 2 to 5


class Tensors(NamedTuple):
    """One file of a checkpoint, which all ranks read along: the values come whole, one after the other."""

    shapes: dict[str, tuple[int, ...]]  # by name, in the order of the file
    values: Callable[[], Iterator[Tensor]]  # fp32, in that order
    collective: bool = False  # whether the ranks gather them together


def header_of(shapes: dict[str, tuple[int, ...]]) -> bytes:
    """The first bytes of the file that holds fp32 tensors of these shapes, a multiple of 8 of them."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class Content(NamedTuple):
    """The bytes of a file, which all ranks read along."""

    size: int
    parts: Callable[[], Iterator[Tensor]]  # uint8, one after the other


def content_of(tensors: Tensors) -> Content:
    """A .safetensors file."""
    header = header_of(tensors.shapes)

    def parts() -> Iterator[Tensor]:
        yield _as_bytes(header)
        for value, shape in zip(tensors.values(), tensors.shapes.values(), strict=True):
            assert value.dtype == torch.float32 and tuple(value.shape) == tuple(shape), (
                value.dtype,
                value.shape,
                shape,
            )
            yield value.detach().reshape(-1).view(torch.uint8)

    return Content(len(header) + sum(4 * math.prod(shape) for shape in tensors.shapes.values()), parts)


def content_of_text(text: str) -> Content:
    return Content(len(text.encode()), lambda: iter([_as_bytes(text.encode())]))


def _as_bytes(raw: bytes) -> Tensor:
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8)


def num_pieces(size: int) -> int:
    return -(-size // PIECE)


class Staging:
    """Buffers of one piece each, which are kept from save to save: memory that was never used before is slow.  Pinned
    where there is a GPU to copy from."""

    def __init__(self):
        self.num, self.length, self.ended = 0, 0, False
        self._empty()

    def _empty(self) -> None:
        self.free: queue.SimpleQueue[Tensor] = queue.SimpleQueue()
        self.take = self.free.get  # waits until a buffer is free
        self.give = self.free.put

    def grow(self, num: int, length: int, sharers: int) -> bool:
        """Has so many buffers of so many bytes, if the host's free memory allows it to each rank that shares it.

        -> whether it does; if not there are a few, to write piece after piece.  Only while all buffers are free.
        """
        if length > self.length:
            self.num, self.length = 0, length
            self._empty()
        room = STAGING_SHARE * psutil.virtual_memory().available / sharers
        fits = (num - self.num) * self.length <= room
        while self.num < (num if fits else min(num, STREAMING)) and not self.ended:
            self.give(_buffer(self.length).fill_(0))
            self.num += 1
        return self.num >= num

    def warm(self, num: int, length: int, sharers: int) -> Thread:
        """The same in the background, in a thread to be joined before anything else is asked for.

        Not a daemon: Python ends those inside torch's C++, which aborts the process with status 134.
        """
        thread = Thread(target=lambda: (_give_way(), self.grow(num, length, sharers)))
        thread.start()
        return thread

    def end(self) -> None:
        """What still grows in the background stops at the next buffer."""
        self.ended = True


class Writing:
    """This rank's pieces of one checkpoint, on their way to the disk."""

    def __init__(self, folder: Path, staging: Staging, share: tuple[int, int], at_once: bool):
        """share: (rank, number of ranks).  at_once: there is a buffer for each piece, so that all are copied before one
        is written, by threads that leave the processor to whoever else wants it."""
        self.folder, self.staging, self.share, self.at_once = folder, staging, share, at_once
        self.num_pieces = 0  # of the files so far: the ranks take turns
        self.held: list[Callable[[], None]] = []
        self.jobs: list[Future] = []
        self.digests: dict[str, dict[int, str]] = {}  # by file and piece
        self.error: OSError | None = None
        self.executor = ThreadPoolExecutor(THREADS, "checkpoint", _give_way if at_once else None)

    def add(self, name: str, content: Content) -> None:
        """Copies this rank's pieces of a file that has its size already.  Every rank calls, for the same files."""
        size, offset, buffer = content.size, 0, None
        mine = {i for i in range(num_pieces(size)) if (self.num_pieces + i) % self.share[1] == self.share[0]}
        self.num_pieces += num_pieces(size)
        self.digests[name] = {}
        for part in content.parts():
            while len(part):
                piece, start = divmod(offset, PIECE)
                length = min(PIECE - start, len(part))
                if piece in mine:
                    buffer = self.staging.take() if start == 0 else buffer
                    buffer[start : start + length].copy_(part[:length], non_blocking=True)
                    if start + length == PIECE or offset + length == size:
                        self.held.append(partial(self._write, name, piece, buffer, start + length))
                        if not self.at_once:
                            self.start()
                offset, part = offset + length, part[length:]
        assert offset == size, f"{name}: {offset} bytes, not {size}"

    def start(self) -> None:
        """Writes what is copied."""
        if torch.cuda.is_initialized():
            torch.cuda.current_stream().synchronize()
        self.jobs += [self.executor.submit(job) for job in self.held]
        self.held.clear()

    def busy(self) -> bool:
        return not all(job.done() for job in self.jobs)

    def finish(self) -> tuple[str | None, dict[str, dict[int, str]]]:
        """Waits.  -> (why it could not be written, SHA-256 of this rank's pieces by file)"""
        self.executor.shutdown()
        for job in self.jobs:
            job.result()
        return None if self.error is None else str(self.error), self.digests

    def _write(self, name: str, piece: int, buffer: Tensor, length: int) -> None:
        """One piece, to the disk and not only to its cache.  After an error nothing more is written."""
        try:
            if self.error is None:
                with _open(self.folder / name) as raw:
                    raw.seek(piece * PIECE)
                    self.digests[name][piece] = _write_hashed(raw, buffer.numpy()[:length].data)
                    os.fsync(raw.fileno())
        except OSError as error:
            self.error = error
        finally:
            self.staging.give(buffer)


def _buffer(length: int) -> Tensor:
    with contextlib.suppress(RuntimeError):  # so much memory cannot be pinned
        return torch.empty(length, dtype=torch.uint8, pin_memory=torch.cuda.is_initialized())
    return torch.empty(length, dtype=torch.uint8)


def _open(path: Path) -> RawIOBase:
    """The file for writing.  On another host than that which made it, it may take a while to be seen."""
    end = time.monotonic() + VISIBLE_S
    while True:
        try:
            return path.open("r+b", buffering=0)
        except FileNotFoundError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def _write_hashed(raw: RawIOBase, data: memoryview) -> str:
    digest = hashlib.sha256()
    while data:
        chunk = data[:CHUNK]
        written = raw.write(chunk)
        digest.update(chunk[:written])
        data = data[written:]
    return digest.hexdigest()


def _give_way() -> None:
    """This thread gets a third of the time of others that want the same core.  (Linux alone can.)"""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 5)


def hash_of(file: Path, begin: int, end: int) -> str:
    """SHA-256 of these bytes of a file."""
    digest = hashlib.sha256()
    with file.open("rb", buffering=0) as raw:
        raw.seek(begin)
        while begin < end and (chunk := raw.read(min(CHUNK, end - begin))):
            digest.update(chunk)
            begin += len(chunk)
    return digest.hexdigest()


def is_pickle(file: Path) -> bool:
    """Whether a file starts as those of torch.save and pickle do."""
    with file.open("rb") as raw:
        return PICKLES.match(raw.read(4)) is not None
