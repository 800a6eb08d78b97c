"""What hosts measure together: the shared folder, clocks, every link of a ring of hosts, and one whole all-reduce."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from launch.host_health import bounded, unseen
from training.probe import Board, Group, Unreachable

PINGS = 5
BITS = 8e-9  # bytes/s to Gb/s


class Member(NamedTuple):
    """A rank that answered."""

    rank: int
    host: str
    leads: bool


def measure(
    board: Board, me: Member, members: list[Member], marks: dict[str, str], run_dir: Path | None, until: float,
    device: torch.device,
) -> dict[str, Any]:  # fmt: skip
    """Notes of this rank, JSON.  A leader looks at the run folder, its clock and its links; all join the all-reduce.

    clock_ms: ahead of the first member's; sent_gbps: to each neighbour; link_failed: why, by neighbour.
    """
    notes: dict[str, Any] = {}
    leaders = [member for member in members if member.leads]
    began = time.monotonic()
    share = (until - began) / 4
    if me.leads and len(leaders) > 1:
        if run_dir is not None and me.host in marks:
            notes["unseen"] = bounded(lambda: unseen(run_dir, marks, began + share / 2), began + share)
        notes |= clock(board, me, leaders, began + share)
        ring(board, me, leaders, notes, began + 3 * share, device)
    if len(members) > 1:
        numbers = [member.rank for member in members]

        def reduce() -> tuple[float, bool]:
            seconds = max(1.0, until - time.monotonic())
            group = Group(board, "all", numbers.index(me.rank), len(numbers), device=device, seconds=seconds)
            return group.all_reduce_measured()

        try:
            rate, right = bounded(reduce, until)
            notes["all_reduce"] = {"gbps": rate * BITS, "right": right}
        except (RuntimeError, TimeoutError, Unreachable) as error:
            notes["all_reduce_failed"] = first_line(error)
    return notes


def clock(board: Board, me: Member, leaders: list[Member], until: float) -> dict[str, Any]:
    """How far this clock is ahead of the first leader's, from the ping with the shortest way there and back.

    Cristian 1989: the other's reading belongs to the middle of the ping, give or take half of it.
    """
    first, *others = leaders
    if me == first:
        for other in others:
            for ping in range(PINGS):
                name = f"clock/{other.rank}/{ping}"
                if board.read([name], min(until, time.monotonic() + 2), look_s=0.0005):
                    board.post(f"{name}/answer", time.time())
        return {"clock_ms": 0.0, "clock_within_ms": 0.0, "clock_of": me.host}
    best = None
    for ping in range(PINGS):
        name = f"clock/{me.rank}/{ping}"
        sent, began = time.time(), time.perf_counter()
        board.post(name, "?")
        answer = board.read([f"{name}/answer"], until, look_s=0.0005)
        took = time.perf_counter() - began
        if answer and (best is None or took < best[0]):
            best = took, sent + took / 2 - answer[f"{name}/answer"]
    return {"clock_ms": 1e3 * best[1], "clock_within_ms": 5e2 * best[0], "clock_of": first.host} if best else {}


def edges(num: int) -> list[tuple[int, int]]:
    """The links of a ring of `num` hosts in an order in which neighbours never wait in a circle."""
    if num < 3:
        return [(0, 1)] if num == 2 else []
    return [(i, (i + 1) % num) for parity in (0, 1) for i in range(parity, num, 2)]


def ring(
    board: Board, me: Member, leaders: list[Member], notes: dict[str, Any], until: float, device: torch.device
) -> None:
    """Fills sent_gbps, wrong data and failures in, link by link, both directions of each in turn."""
    notes |= {"sent_gbps": {}, "link_failed": {}}
    mine = [(i, j) for i, j in edges(len(leaders)) if me in (leaders[i], leaders[j])]
    for number, (i, j) in enumerate(mine):
        place = 0 if me == leaders[i] else 1
        peer = leaders[j] if place == 0 else leaders[i]
        end = time.monotonic() + (until - time.monotonic()) / (len(mine) - number)
        try:
            rate, right = bounded(exchange(board, f"link/{i}/{j}", place, end, device), end)
            notes["sent_gbps"][peer.host] = rate * BITS
            if not right:
                notes["link_failed"][peer.host] = "what arrives is not what was sent"
        except (RuntimeError, TimeoutError, Unreachable) as error:
            notes["link_failed"][peer.host] = first_line(error)


def exchange(
    board: Board, name: str, place: int, until: float, device: torch.device
) -> Callable[[], tuple[float, bool]]:
    def action() -> tuple[float, bool]:
        seconds = max(1.0, until - time.monotonic())
        group = Group(board, name, place, 2, device=device, seconds=seconds)
        if place == 1:
            group.answer(0)
        result = group.send_measured(1 - place)
        if place == 0:
            group.answer(1)
        return result

    return action


def first_line(error: BaseException) -> str:
    """What gloo or NCCL says, without places in their source and without stack frames."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return re.sub(r"\[/\S+\] ?", "", line)[:160]
