"""The hosts as a table, a line each."""

from collections import Counter
from typing import Any

from launch.host_verdicts import Remark, World

HEADER = ("host", "GPUs", "ECC", "throttle", "free GiB", "shm GiB", "write MB/s", "read MB/s", "clock ms", "TFLOP/s",
          "link Gb/s", "verdict")  # fmt: skip


def table(world: World, remarks: list[Remark]) -> str:
    """One line a host, '-' for what nobody could tell, and what the all-reduce over all ranks showed.

    TFLOP/s of its slowest device; Gb/s of its slower direction (of two hosts: what it sends); ECC errors of all GPUs.
    """
    names = [*dict.fromkeys([*world.hosts.values(), *(h for h in world.missing.values() if h), *world.absent])]
    rows = [HEADER, *(row(world, remarks, host) for host in names)]
    widths = [max(len(line[i]) for line in rows) for i in range(len(HEADER))]
    left = (0, 1, len(HEADER) - 1)
    lines = [
        "  ".join(
            f"{cell:<{w}}" if i in left else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(r, widths, strict=True))
        )
        for r in rows
    ]
    return "\n".join([*(line.rstrip() for line in lines), *all_reduce(world)])


def row(world: World, remarks: list[Remark], host: str) -> tuple[str, ...]:
    ranks = [rank for rank, name in world.hosts.items() if name == host]
    leader = world.facts.get(world.leaders().get(host, -1), {})
    note = world.links.get(world.leaders().get(host, -1), {})
    devices = [device for rank in ranks for device in world.facts[rank].get("devices", [])]
    cards = [device for device in devices if device["kind"] == "cuda"]
    names = Counter(card["name"].removeprefix("NVIDIA ") for card in cards)
    errors = [card["ecc"] for card in cards if card.get("ecc") is not None]
    reasons = [card["throttle"] for card in cards if card.get("throttle") is not None]
    others = {name for name in world.hosts.values() if name != host}
    into = [world.links.get(world.leaders().get(o, -1), {}).get("sent_gbps", {}).get(host) for o in others]
    into = into if len(others) > 1 else []  # between two hosts, what one receives is what the other sends
    ways = [max(rates) for rates in (list(note.get("sent_gbps", {}).values()), [r for r in into if r]) if rates]
    return (
        host,
        " + ".join(f"{count} {name}" for name, count in names.items()) or ("0" if devices else "-"),
        str(sum(errors)) if errors else "-",
        (",".join(sorted(set().union(*reasons))) or "no") if reasons else "-",
        number(leader.get("free_gib")),
        number(leader.get("shm_free_gib")),
        number(leader.get("write_mb_s")),
        number(leader.get("read_mb_s")),
        number(note.get("clock_ms"), digits=1),
        number(min((device["tflops"] for device in devices), default=None)),
        number(min(ways, default=None)),
        verdict(remarks, host),
    )


def number(value: Any, digits: int | None = None) -> str:
    if value is None:
        return "-"
    if digits is not None:
        return f"{value:.{digits}f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def verdict(remarks: list[Remark], host: str) -> str:
    levels = {remark.level for remark in remarks if remark.host == host}
    slow = any("median" in remark.told for remark in remarks if remark.host == host)
    return "BROKEN" if "error" in levels else "slow" if slow else "warning" if levels else "ok"


def all_reduce(world: World) -> list[str]:
    results = [note["all_reduce"] for note in world.links.values() if "all_reduce" in note]
    if not results or len(results) < len(world.hosts):
        return []
    slowest = min(result["gbps"] for result in results)
    right = "the sum is right" if all(result["right"] for result in results) else "THE SUM IS WRONG"
    return [f"all-reduce over {len(results)} ranks: {number(slowest)} Gb/s a link, {right}"]
