"""Names the slow or broken host, right before training:

    torchrun --nnodes=2 --nproc_per_node=8 ... -m launch.preflight [CONFIG.yaml] [key=value ...] [OPTIONS]
    srun python -m launch.preflight [CONFIG.yaml] [key=value ...] [OPTIONS]        one task a node or a GPU
    TRYON_NODES="hostA hostB" python -m launch.preflight ...                       on each of these hosts

  --seconds N          how long it may take (60); a host that does not answer by then is named
  --min-gbps X         a host whose link carries less, in Gb/s of 10^9 bits, is broken; without it, less than half of
                       the others' median is slow
  --json FILE          everything that was measured
  --exclude-file FILE  the broken hosts, one a line, for sbatch --exclude=FILE.  Written when there are any and others
                       remain, removed otherwise: Slurm refuses an empty list

An error is a broken host: exit status 1 on every rank.  A warning is a slow one: exit status 0.  torchrun then adds its
own account of the failed rank.
"""

import argparse
import faulthandler
import json
import os
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import torch

from launch import host_health, host_links
from launch.host_links import Member
from launch.host_table import table
from launch.host_verdicts import World, broken, judge
from launch.place import Place, find_place, host_name
from training.config import Config, keys, load_config
from training.distributed import DistributedConfig
from training.exits import leave, run
from training.probe import Board, Unreachable

GRACE_S = 3.0  # after --seconds, until whoever still waits gives up
TURN_S = 1.0  # a rank that reports nothing for so long is replaced by the next in line


class Options(NamedTuple):
    seconds: float
    min_gbps: float
    json: Path | None
    exclude_file: Path | None


def main() -> None:
    options, words = read_options(sys.argv[1:])
    place = find_place(os.environ)
    # The last resort, in C: a driver's call can hold Python's interpreter and with it every thread.
    faulthandler.dump_traceback_later(options.seconds + 2 * GRACE_S, exit=True, file=os.open(os.devnull, os.O_WRONLY))
    config, refused = None, None
    try:
        config = load_config(words, summary=__doc__)
    except ValueError as error:
        refused = str(error)
    outcome: list[tuple[int, str]] = []
    check = Check(place, options, config, refused)
    with quiet():
        thread = threading.Thread(target=lambda: outcome.append(check.outcome()), daemon=True)
        thread.start()
        thread.join(options.seconds + GRACE_S)
    status, message = outcome[0] if outcome else check.overdue()
    leave(status, message)


def read_options(argv: list[str]) -> tuple[Options, list[str]]:
    """The options, and the words that are the config's."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, prog="python -m launch.preflight")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--min-gbps", type=float, default=0.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--exclude-file", type=Path)
    found, words = parser.parse_known_args(argv)
    if not 5 <= found.seconds <= 3600:
        raise ValueError(f"--seconds {found.seconds:g}: use 5 to 3600")
    return Options(found.seconds, found.min_gbps, found.json, found.exclude_file), words


@contextmanager
def quiet() -> Iterator[None]:
    """Without what torch's C++ prints when a peer is gone; what is wrong is said in words.  NCCL_DEBUG in the
    environment keeps it."""
    if "NCCL_DEBUG" in os.environ:
        yield
        return
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)


class Check:
    """One rank's part.  The first in line decides who takes part and reports; when it stops, the next does."""

    def __init__(self, place: Place, options: Options, config: Config | None, refused: str | None):
        self.place, self.options, self.config, self.refused = place, options, config, refused
        self.began, self.started, self.host = time.monotonic(), time.time(), host_name()
        self.turn = min(place.rank, 3) * TURN_S
        self.mark: Path | None = None

    def at(self, share: float) -> float:
        """time.monotonic() when this share of --seconds is over."""
        return self.began + share * self.options.seconds

    def outcome(self) -> tuple[int, str]:
        """Exit status, and what to say on the way out."""
        try:
            return self.run()
        except Unreachable as error:
            return self.accuse(str(error))
        except (ValueError, RuntimeError) as error:
            told = host_links.first_line(error) if isinstance(error, RuntimeError) else str(error)
            return 1, f"error: host {self.host}: rank {self.place.rank}: {told}"
        finally:
            if self.mark:
                with suppress(OSError):
                    self.mark.unlink(missing_ok=True)

    def overdue(self) -> tuple[int, str]:
        """Without a deadline one waits for the board alone: its host stopped."""
        return self.accuse(f"stopped answering within {self.options.seconds:g} s")

    def accuse(self, told: str) -> tuple[int, str]:
        """What is known to a rank that has lost the board.  What those around the board found counts for more."""
        path, host = self.options.exclude_file, self.place.address
        told = f"{told}, asked by rank {self.place.rank} on {self.host}"
        line = f"error: host {host}: {told}; see whether its processes run, and the network between the two"
        with suppress(OSError):
            if path and host in self.place.nodes and not (path.exists() and path.stat().st_mtime >= self.started):
                exclude(path, [host], [line])
        return 1, line

    def run(self) -> tuple[int, str]:
        place = self.place
        prefix = f"preflight/{place.attempt}"
        self.board = Board(place.address, place.port, serves=place.serves, prefix=prefix, until=self.at(0.5))
        token = self.board.claim("token", uuid.uuid4().hex[:8])
        leads = self.board.claim(f"leader/{self.host}", place.rank) == place.rank
        self.board.post(f"hello/{place.rank}", self.host)
        facts = self.measure(leads, f".preflight-{self.host}-{token}")
        self.board.post(f"facts/{place.rank}", facts)
        members = self.members()
        if place.rank not in [member.rank for member in members]:
            late = f"took longer than the {self.options.seconds / 2:g} s that it had; see what is slow there"
            return 1, f"error: host {self.host}: rank {place.rank} {late}, or raise --seconds"
        me = Member(place.rank, self.host, leads)
        leaders = {member.host: member.rank for member in members if member.leads}
        there = self.board.read(f"facts/{rank}" for rank in leaders.values())
        marks = {h: f".preflight-{h}-{token}" for h, r in leaders.items() if "write_mb_s" in there[f"facts/{r}"]}
        run_dir = Path(self.config.run.dir) if self.config else None
        until = time.monotonic() + 0.3 * self.options.seconds
        links = host_links.measure(self.board, me, members, marks, run_dir, until, self.link_device())
        self.board.post(f"links/{place.rank}", links)
        status = self.report(members, until + 1.0)
        self.stay(members)
        return status, ""

    def measure(self, leads: bool, mark: str) -> dict[str, Any]:
        if self.config is not None:
            self.mark = Path(self.config.run.dir) / mark if leads else None
        facts = host_health.measure(self.place, self.config, leads, mark, self.at(0.45))
        if self.config is not None:
            facts["config"] = {key: reduce(getattr, key.split("."), self.config) for key, _, _ in keys()}
        else:
            facts["failed"]["config"] = " ".join(str(self.refused).split())
        return facts

    def link_device(self) -> torch.device:
        """As training's backend: NCCL between GPUs, gloo between CPUs."""
        settings = self.config.distributed if self.config else DistributedConfig()
        device = self.config.engine.device if self.config else "auto"
        if device in ("auto", "cuda") and settings.backend != "gloo" and torch.cuda.is_available():
            number = self.place.local_rank if self.place.local_size > 1 else 0
            torch.cuda.set_device(number)
            return torch.device("cuda", number)
        return torch.device("cpu")

    def members(self) -> list[Member]:
        """Who answered in time, as the first to decide saw it: the same list on all ranks."""
        until = self.at(0.5)
        if not self.turn or not self.board.read(["members"], until + self.turn, look_s=0.1):
            facts = self.board.read((f"facts/{rank}" for rank in range(self.place.size)), until)
            hosts = self.board.read(f"hello/{rank}" for rank in range(self.place.size))
            ranks = [r for r in range(self.place.size) if f"facts/{r}" in facts]
            self.board.claim("members", [[r, hosts[f"hello/{r}"], facts[f"facts/{r}"]["leads"]] for r in ranks])
        return [Member(*member) for member in self.board.read(["members"])["members"]]

    def report(self, members: list[Member], until: float) -> int:
        """The exit status, once one of the ranks has told what was found."""
        if self.turn and (told := self.board.read(["status"], until + self.turn, look_s=0.1)):
            return told["status"]
        links = self.board.read((f"links/{member.rank}" for member in members), until)
        if self.board.claim("reporter", self.place.rank) != self.place.rank:
            return self.board.read(["status"], time.monotonic() + GRACE_S).get("status", 1)
        facts = self.board.read(f"facts/{member.rank}" for member in members)
        gone = [rank for rank in range(self.place.size) if rank not in {member.rank for member in members}]
        hosts = self.board.read(f"hello/{rank}" for rank in gone)
        seen = {member.host for member in members} | set(hosts.values())
        world = World(
            hosts={member.rank: member.host for member in members},
            facts={member.rank: facts[f"facts/{member.rank}"] for member in members},
            links={m.rank: links[f"links/{m.rank}"] for m in members if f"links/{m.rank}" in links},
            missing={rank: hosts.get(f"hello/{rank}") for rank in gone},
            absent=tuple(node for node in self.place.nodes if node not in seen) if gone else (),
            seconds=self.options.seconds,
            min_gbps=self.options.min_gbps,
        )
        status = self.tell(world)
        self.board.post("status", status)
        return status

    def tell(self, world: World) -> int:
        """Prints the table and the remarks, writes the files, and returns the exit status."""
        remarks, took = judge(world), time.monotonic() - self.began
        excluded = broken(world, remarks)
        print(f"preflight: {len(world.hosts)} of {self.place.size} ranks answered, {took:.1f} s")
        print(table(world, remarks))
        counts = Counter(remark.level for remark in remarks)
        print("\n".join([*map(str, remarks), "" if counts else "nothing speaks against these hosts"]).strip())
        status = 1 if counts["error"] else 0
        told = {
            "status": status, "seconds": took, "broken": excluded, "remarks": [r._asdict() for r in remarks],
            "ranks": self.place.size, "missing": world.missing, "absent": world.absent, "hosts": world.hosts,
            "facts": world.facts, "links": world.links,
        }  # fmt: skip
        try:
            if self.options.json:
                self.options.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
            if self.options.exclude_file and excluded:
                exclude(self.options.exclude_file, excluded, [str(remark) for remark in remarks])
            elif self.options.exclude_file:
                self.options.exclude_file.unlink(missing_ok=True)
        except OSError as error:
            print(f"error: {error.filename}: cannot be written ({error.strerror}); choose another file")
            status = 1
        if self.config:  # what a rank that stopped left behind
            for path in Path(self.config.run.dir).glob(f".preflight-*-{self.board.claim('token', '')}"):
                with suppress(OSError):
                    path.unlink()
        sys.stdout.flush()
        return status

    def stay(self, members: list[Member]) -> None:
        """Who serves the board leaves last."""
        self.board.post(f"left/{self.place.rank}", True)
        if self.place.serves:
            self.board.read((f"left/{member.rank}" for member in members), time.monotonic() + GRACE_S / 2)


def exclude(path: Path, hosts: list[str], why: list[str]) -> None:
    """Writes the hosts, and before them why beside that file: srun may lose the words of a rank that failed."""
    path.with_name(f"{path.name}.why").write_text("".join(f"{line}\n" for line in why), encoding="utf-8")
    path.write_text("".join(f"{host}\n" for host in hosts), encoding="utf-8")


if __name__ == "__main__":
    run(main)
