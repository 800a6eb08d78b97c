"""What a check of the machines needs of torch.distributed: notes with deadlines, and measured links.

A run has one process group, and who waits in it for a dead host waits long.  Here nothing waits longer than it is told
to: notes lie on a TCPStore, and a group of its own joins the ranks that are measured together.
"""

import datetime
import json
import os
import socket
import time
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

SIZES = tuple(2**power for power in (16, 19, 22, 25, 28))  # bytes, until one takes ENOUGH_S
ENOUGH_S = 0.1
LARGEST_ON_CPU = 2**25  # bytes
LOOK_S = 0.02  # between looks at the board
CONNECT_S = 1.5


class Unreachable(Exception):
    """The host of the board gives no answer."""


class Board:
    """Notes that ranks leave for each other, as JSON.  One rank serves it, or torchrun's agent does."""

    def __init__(self, address: str, port: int, *, serves: bool, prefix: str, until: float):
        """until: time.monotonic() by which it must be reached.

        Raises Unreachable when it is not, ValueError when it cannot be served.
        """
        self.address, self.port, self.prefix = address, port, prefix
        if serves:
            try:
                self.server = _store(address, port, serves=True)
            except RuntimeError as error:
                told = str(error).splitlines()[0]
                raise ValueError(
                    f"port {port} cannot be opened ({told}); choose a free one with MASTER_PORT"
                ) from error
            self.port = self.server.port
        self.store = self._connect(until)

    def _connect(self, until: float) -> dist.Store:
        """A connection of its own: calls on one connection wait for each other.

        On a host under load one in ten of torch's connections stalls until its timeout, so that is short.
        """
        while True:
            try:
                socket.create_connection((self.address, self.port), CONNECT_S).close()  # torch would print stack frames
                return _store(self.address, self.port, serves=False)
            except (OSError, RuntimeError) as error:
                if time.monotonic() > until:
                    told = getattr(error, "strerror", None) or str(error).splitlines()[0]
                    raise Unreachable(f"gives no answer at port {self.port} ({told})") from error
                time.sleep(0.1)

    def another(self, prefix: str, until: float) -> dist.Store:
        """The board for a group, which waits on a connection of its own."""
        return dist.PrefixStore(f"{self.prefix}/{prefix}", self._connect(until))

    def post(self, name: str, value: Any) -> None:
        self.store.set(f"{self.prefix}/{name}", json.dumps(value))

    def claim(self, name: str, value: Any) -> Any:
        """The value that the first rank to ask gave this name: the same on all ranks."""
        return json.loads(self.store.compare_set(f"{self.prefix}/{name}", "", json.dumps(value)))

    def read(self, names: Iterable[str], until: float = 0.0, look_s: float = LOOK_S) -> dict[str, Any]:
        """The notes of these names that are there, once all are or at `until`."""
        keys = {f"{self.prefix}/{name}": name for name in names}
        while keys and not self.store.check(list(keys)) and time.monotonic() < until:
            time.sleep(look_s)
        return {name: json.loads(self.store.get(key)) for key, name in keys.items() if self.store.check([key])}


def _store(address: str, port: int, *, serves: bool) -> dist.TCPStore:
    limit = datetime.timedelta(seconds=CONNECT_S)
    return dist.TCPStore(address, port, None, serves, limit, wait_for_workers=False)


class Group:
    """Some ranks, joined over gloo or NCCL.  gloo gives up after `seconds`; NCCL must be waited for in a thread."""

    def __init__(self, board: Board, name: str, place: int, size: int, *, device: torch.device, seconds: float):
        self.place, self.size, self.device, self.seconds = place, size, device, seconds
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")  # its watchdog would end the process
        store = board.another(name, time.monotonic() + seconds)
        store.set_timeout(datetime.timedelta(seconds=seconds))
        kind = dist.ProcessGroupNCCL if device.type == "cuda" else dist.ProcessGroupGloo
        self.group = kind(store, place, size, datetime.timedelta(seconds=seconds))
        self.sizes = [size for size in SIZES if device.type == "cuda" or size <= LARGEST_ON_CPU]

    def send_measured(self, to: int) -> tuple[float, bool]:
        """Bytes/s to a member that calls `answer`, and whether all arrived as sent.

        The best of two transfers of the largest size that was tried; the clock stops at the answer.
        """
        rate, right, started = 0.0, True, time.perf_counter()
        for size in self.sizes:
            data, best = self._pattern(size), float("inf")
            for _ in range(2):
                self._send(self._number(size), to)
                self._receive_number(to)  # it has made room
                began = time.perf_counter()
                self._send(data, to)
                self._receive_number(to)  # it has all
                best = min(best, time.perf_counter() - began)
                right = self._receive_number(to) > 0 and right
            rate = size / best
            if best > ENOUGH_S or time.perf_counter() - started > self.seconds / 10:
                break
        self._send(self._number(0), to)
        return rate, right

    def answer(self, sender: int) -> None:
        """Takes what `send_measured` sends and tells it whether it came whole."""
        while size := self._receive_number(sender):
            wanted, data = self._pattern(size), torch.zeros(size, dtype=torch.uint8, device=self.device)
            self._send(self._number(1), sender)
            self.group.recv([data], sender, 0).wait()
            self._send(self._number(1), sender)
            self._send(self._number(int(torch.equal(data, wanted))), sender)

    def all_reduce_measured(self) -> tuple[float, bool]:
        """Bytes/s over each member's link, 2 (n - 1) / n of the tensor per all-reduce as NCCL's tests count them, and
        whether the sum was exact."""
        rate, right, started = 0.0, True, time.perf_counter()
        for size in self.sizes:
            part = self._pattern(size // 4).float()
            total = part * self.size + self.size * (self.size - 1) / 2  # whole numbers below 2^24: exact in fp32
            best = float("inf")
            for _ in range(2):
                mine = part + self.place
                mine[0].item()  # a GPU is waited for before the clock starts, and before it stops
                began = time.perf_counter()
                self.group.allreduce([mine]).wait()
                mine[0].item()
                best = min(best, time.perf_counter() - began)
                right = torch.equal(mine, total) and right
            slowest = torch.tensor([best, time.perf_counter() - started], device=self.device)
            self.group.allreduce([slowest], dist.ReduceOp.MAX).wait()  # all stop at the same size
            best, total_s = slowest.tolist()
            rate = 2 * (self.size - 1) / self.size * size / best
            if best > ENOUGH_S or total_s > self.seconds / 10:
                break
        return rate, right

    def _pattern(self, size: int) -> Tensor:
        return torch.arange(251, dtype=torch.uint8, device=self.device).repeat(size // 251 + 1)[:size]

    def _number(self, value: int) -> Tensor:
        return torch.tensor([value], device=self.device)

    def _send(self, tensor: Tensor, to: int) -> None:
        self.group.send([tensor], to, 0).wait()

    def _receive_number(self, sender: int) -> int:
        number = self._number(0)
        self.group.recv([number], sender, 0).wait()
        return int(number.item())
