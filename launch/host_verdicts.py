"""Which host is broken and which only slow, from what all of them measured."""

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

SLOW = 0.5  # times the median of the others
ENOUGH_MB_S = 200.0  # reading or writing faster than this holds up no run: nobody is called slow
SKEW_MS = 1000.0
HOT_C = 87.0  # where NVIDIA's data-centre GPUs begin to throttle
USED_GIB = 1.0  # GPU memory that others hold
EVERY = "all hosts"


class Remark(NamedTuple):
    """What is wrong with a host.  error: broken, it must not train; warning: slow, or soon in trouble."""

    level: Literal["error", "warning"]
    host: str
    told: str
    remedy: str

    def __str__(self) -> str:
        host = self.host if self.host.startswith(EVERY) else f"host {self.host}"
        return f"{self.level}: {host}: {self.told}; {self.remedy}"


class World(NamedTuple):
    """What is known of the ranks that answered, and who did not."""

    hosts: dict[int, str]  # rank -> host, in the order of ranks
    facts: dict[int, dict[str, Any]]  # rank -> launch.host_health.measure
    links: dict[int, dict[str, Any]]  # rank -> launch.host_links.measure; a rank that stopped meanwhile is absent
    missing: dict[int, str | None]  # ranks that never answered, with their host where it is known
    absent: tuple[str, ...] = ()  # hosts that should answer and of which nothing is known
    seconds: float = 60.0
    min_gbps: float = 0.0

    def leaders(self) -> dict[str, int]:
        return {host: rank for rank, host in self.hosts.items() if self.facts[rank]["leads"]}

    def of_hosts(self, key: str) -> dict[str, Any]:
        """A fact that one rank of each host tells."""
        told = {host: self.facts[rank].get(key) for host, rank in self.leaders().items()}
        return {host: value for host, value in told.items() if value is not None}


def judge(world: World) -> list[Remark]:
    """Everything that is wrong, errors first; what is the same on all of several hosts is one remark."""
    silent = list(silences(world))
    dead = {remark.host for remark in silent}
    found = [*silent, *failures(world), *differences(world), *gpus(world), *shortages(world), *slowness(world)]
    found += [*folders(world, dead), *links(world, dead), *clocks(world)]
    found = list(dict.fromkeys(found))
    names = set(world.hosts.values())
    alike = Counter((remark.level, remark.told, remark.remedy) for remark in found)
    merged = [
        remark._replace(host=f"{EVERY} ({len(names)})")
        if len(names) > 1 and alike[remark.level, remark.told, remark.remedy] == len(names)
        else remark
        for remark in found
    ]
    return sorted(dict.fromkeys(merged), key=lambda remark: remark.level)


def broken(world: World, remarks: list[Remark]) -> list[str]:
    """The hosts that a scheduler should leave out: those with an error of their own.  None when no other remains."""
    hosts = sorted({remark.host for remark in remarks if remark.level == "error" and not remark.host.startswith(EVERY)})
    return hosts if set(world.hosts.values()) - set(hosts) else []


def silences(world: World) -> Iterator[Remark]:
    away = "see whether it is up and its process runs there (stopped? swapping? a dead disk or driver?)"
    for host in world.absent:
        yield Remark("error", host, f"did not answer within {world.seconds / 2:.0f} s", away)
    for rank, host in world.missing.items():
        if host:
            yield Remark("error", host, f"rank {rank} came and then did not answer within {world.seconds:.0f} s", away)
        elif not world.absent:
            yield Remark("error", f"of rank {rank}", f"did not answer within {world.seconds / 2:.0f} s", away)
    for rank, host in world.hosts.items():
        if rank not in world.links:
            yield Remark("error", host, f"rank {rank} stopped answering while links were measured", away)


def failures(world: World) -> Iterator[Remark]:
    remedies = {
        "config": "give every host the same command and files",
        "run folder": "let this host write there, or choose another run.dir",
        "shards": "let this host read them, or choose another data.shards",
        "gpus": "see nvidia-smi and dmesg there; restart the driver or the host",
    }
    for rank, host in world.hosts.items():
        for step, told in world.facts[rank]["failed"].items():
            problem, _, remedy = told.rpartition("; ") if "; " in told else (told, "", "")
            yield Remark("error", host, f"{step}: {problem}", remedy or remedies.get(step, "see that host"))


def differences(world: World) -> Iterator[Remark]:
    """Against what most ranks have; with as many on both sides, against the first rank."""

    def odd(values: Mapping[int, Any]) -> Iterator[tuple[str, Any, Any]]:
        if values:
            usual, _ = Counter(map(str, values.values())).most_common(1)[0]
            for rank, value in values.items():
                if str(value) != usual:
                    yield world.hosts[rank], value, next(v for v in values.values() if str(v) == usual)

    def of_ranks(key: str) -> dict[int, Any]:
        return {rank: world.facts[rank][key] for rank in world.hosts if world.facts[rank].get(key) is not None}

    for host, value, usual in odd(of_ranks("code")):
        told = f"runs other code than the others (hash {value}, theirs {usual})"
        yield Remark("error", host, told, "copy the same code there, or use a folder that all hosts share")
    for host, value, usual in odd(of_ranks("config")):
        keys = [key for key in usual if value.get(key) != usual[key]]
        told = ", ".join(f"{key}={value.get(key)}, others {usual[key]}" for key in keys[:4])
        yield Remark("error", host, f"has another config ({told})", "start the same command on all hosts")
    for host, value, usual in odd(of_ranks("versions")):
        told = ", ".join(
            f"{key} {value.get(key)}, others {usual[key]}" for key in usual if value.get(key) != usual[key]
        )
        yield Remark("error", host, f"has other versions ({told})", "install the same requirements.txt there")


def gpus(world: World) -> Iterator[Remark]:
    per_host: dict[str, list[dict]] = {host: [] for host in world.hosts.values()}
    for rank, host in world.hosts.items():
        per_host[host] += world.facts[rank].get("devices", [])
        if count := world.facts[rank].get("hidden_gpus"):
            told = f"the driver has {count} GPUs but torch {world.facts[rank]['versions']['torch']} can use none"
            yield Remark("error", host, told, "install a torch built for this driver's CUDA, or update the driver")
    kinds = {host: Counter(d["name"] for d in devices) for host, devices in per_host.items() if devices}
    if kinds:
        usual, _ = Counter(str(sorted(kind.items())) for kind in kinds.values()).most_common(1)[0]
        for host, kind in kinds.items():
            if str(sorted(kind.items())) != usual:
                theirs = next(shown(k) for k in kinds.values() if str(sorted(k.items())) == usual)
                remedy = "a GPU fell off the bus or the job got fewer: see nvidia-smi and the job's request"
                yield Remark("error", host, f"has {shown(kind)}, others {theirs}", remedy)
    for host, devices in per_host.items():
        for device in devices:
            yield from gpu(host, device)


def shown(kind: Counter) -> str:
    return " + ".join(f"{count} x {name}" for name, count in sorted(kind.items()))


def gpu(host: str, device: dict[str, Any]) -> Iterator[Remark]:
    name = f"GPU {device['index']}" if device["kind"] == "cuda" else "the CPU"
    if not device["same"]:
        yield Remark("error", host, f"{name} gives other results for the same product", "take it out of service")
    if device.get("ecc"):
        told = f"{name} has {device['ecc']} ECC errors that were not corrected"
        yield Remark("error", host, told, "drain the host and reset the GPU")
    if device.get("rows_failed"):
        yield Remark("error", host, f"{name} could not remap a bad memory row", "have the GPU replaced")
    if device.get("rows_pending"):
        yield Remark("warning", host, f"{name} waits for a reset to remap memory rows", "reset the GPU when it is idle")
    if device.get("throttle"):
        told = f"{name} is throttled ({', '.join(device['throttle'])})"
        yield Remark("warning", host, told, "see its cooling and power supply: nvidia-smi -q -d PERFORMANCE")
    if (device.get("celsius") or 0) >= HOT_C:
        yield Remark("warning", host, f"{name} is at {device['celsius']} degrees Celsius", "see its cooling")
    if device["kind"] == "cuda" and device["memory_gib"] - device["free_gib"] - device["own_gib"] > USED_GIB + 1.0:
        used = device["memory_gib"] - device["free_gib"] - device["own_gib"]
        remedy = "end the process that holds it: nvidia-smi lists them"
        yield Remark("warning", host, f"{used:.1f} GiB of {name}'s memory are taken", remedy)


def shortages(world: World) -> Iterator[Remark]:
    """Shared memory, RAM, open files and cores against what training will take."""
    for host, rank in world.leaders().items():
        facts = world.facts[rank]
        if "ranks" not in facts or "cores" not in facts:
            continue
        need, have = facts["shm_need_gib"], facts["shm_free_gib"]
        if have is not None and need > have:
            told = f"/dev/shm has {have:.2f} GiB free of {facts['shm_gib']:.2f}, the loaders fill {need:.2f}"
            remedy = "mount it larger (docker run --shm-size), or lower data.prefetch or data.num_workers"
            yield Remark("error", host, told, remedy)
        ram = facts["ranks"] * 2.0 + need
        if facts["free_gib"] < ram:
            told = f"{facts['free_gib']:.1f} GiB of RAM are free, {facts['ranks']} ranks take about {ram:.0f}"
            yield Remark("warning", host, told, "end what else runs there, or ask for more memory")
        soft, hard = facts["open_files"] or (-1, -1)
        if 0 <= soft < facts["open_files_need"]:
            told = f"a process may open {soft} files, a rank needs about {facts['open_files_need']}"
            remedy = "ulimit -n " + (
                f"{hard}" if hard < 0 or hard >= facts["open_files_need"] else "unlimited, as root"
            )
            yield Remark("warning", host, told, remedy)
        cores = set().union(*(world.facts[r].get("cores", []) for r, name in world.hosts.items() if name == host))
        if len(cores) < facts["processes"]:
            told = f"{len(cores)} cores for {facts['processes']} processes (ranks and their loader workers)"
            yield Remark("warning", host, told, "srun --cpus-per-task, or lower data.num_workers")


def slow(values: Mapping[Any, float], enough: float = float("inf")) -> dict[Any, float]:
    """Who has less than half the median of the others, with that median."""
    medians = {who: statistics.median([v for w, v in values.items() if w != who] or [0.0]) for who in values}
    return {who: medians[who] for who, v in values.items() if v < SLOW * medians[who] and v < enough}


def slowness(world: World) -> Iterator[Remark]:
    speeds = {
        (host, device["kind"], device["index"], device["name"]): device["tflops"]
        for rank, host in world.hosts.items()
        for device in world.facts[rank].get("devices", [])
    }
    for (host, kind, index, name), median in slow(speeds).items():
        told = f"{f'GPU {index} ({name})' if kind == 'cuda' else 'the CPU'} computes at "
        told += f"{speeds[host, kind, index, name]:.3g} TFLOP/s, the others' median is {median:.3g}"
        yield Remark("warning", host, told, "see its clocks, cooling and what else runs there")
    for key, verb, place in (("write_mb_s", "writes", "the run folder"), ("read_mb_s", "reads", "shards")):
        values = world.of_hosts(key)
        for host, median in slow(values, ENOUGH_MB_S).items():
            told = f"{verb} {place} at {values[host]:.3g} MB/s, the others' median is {median:.3g}"
            yield Remark("warning", host, told, "see its mount and its network")


def folders(world: World, dead: set[str]) -> Iterator[Remark]:
    """A host is apart when it does not see the others' files, or they do not see its own."""
    leaders = {host: rank for host, rank in world.leaders().items() if "unseen" in world.links.get(rank, {})}
    sees = {host: {h for h in leaders if h not in world.links[rank]["unseen"]} for host, rank in leaders.items()}
    mutual = {host: {h for h in leaders if h in sees[host] and host in sees[h]} for host in leaders}
    if not mutual:
        return
    group = max(mutual.values(), key=len)
    for host in leaders:
        if host not in group and host not in dead:
            told = f"its run folder is not the one that {', '.join(sorted(group)[:3])} see"
            yield Remark("error", host, told, "mount the shared file system there, or choose another run.dir")


def links(world: World, dead: set[str]) -> Iterator[Remark]:
    """Of a failed link the host with most failed links is at fault; of two alike, both."""
    notes = {host: world.links[rank] for host, rank in world.leaders().items() if rank in world.links}
    failed = {(h, peer): told for h, note in notes.items() for peer, told in note.get("link_failed", {}).items()}
    failed = {pair: told for pair, told in failed.items() if not dead.intersection(pair)}
    counts = Counter(host for pair in {frozenset(pair) for pair in failed} for host in pair)
    remedy = "see its cable, NIC and firewall, and NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME"
    guilty = {host for host, count in counts.items() if count == max(counts.values())}
    of_links = {frozenset(pair): (pair, told) for pair, told in failed.items()}  # told once for both ends
    for (host, peer), told in of_links.values():
        for one, other in ((host, peer), (peer, host)):
            if one in guilty:
                yield Remark("error", one, f"exchanges no good data with {other} ({told})", remedy)
    sent = {h: {p: gbps for p, gbps in note.get("sent_gbps", {}).items() if p not in dead} for h, note in notes.items()}
    yield from link_speeds({host: rates for host, rates in sent.items() if rates}, world.min_gbps)
    sums = {rank: note["all_reduce"] for rank, note in world.links.items() if "all_reduce" in note}
    for rank, result in sums.items():
        if not result["right"]:
            yield Remark("error", world.hosts[rank], "an all-reduce gave a wrong sum", "take it out of service")
    if not dead and not failed:
        for rank, note in world.links.items():
            if told := note.get("all_reduce_failed"):
                yield Remark("error", world.hosts[rank], f"an all-reduce over all ranks failed ({told})", remedy)


def link_speeds(sent: dict[str, dict[str, float]], min_gbps: float) -> Iterator[Remark]:
    """A host is as fast as the better of its links, in each direction: the worse one may be its neighbour's fault.

    Between two hosts alone nobody can say whether one sends or the other receives slowly; the sender is named.
    """
    into = {host: [rates[host] for rates in sent.values() if host in rates] for host in sent}
    ways = {"sends": {host: max(rates.values()) for host, rates in sent.items()}}
    if len(sent) > 2:
        ways["receives"] = {host: max(rates) for host, rates in into.items() if rates}
    for verb, rates in ways.items():
        low, others = {h for h, rate in rates.items() if rate < min_gbps}, slow(rates)
        for host, rate in rates.items():
            if host in low:
                remedy = "see its cable, NIC and routes, or lower --min-gbps"
                yield Remark("error", host, f"{verb} at {rate:.3g} Gb/s, below --min-gbps {min_gbps:g}", remedy)
            elif host in others:
                told = f"{verb} at {rate:.3g} Gb/s, the others' median is {others[host]:.3g}"
                yield Remark("warning", host, told, "see its cable, NIC, routes and who else uses the link")


def clocks(world: World) -> Iterator[Remark]:
    for host, rank in world.leaders().items():
        note = world.links.get(rank, {})
        if abs(skew := note.get("clock_ms", 0.0)) - note.get("clock_within_ms", 0.0) > SKEW_MS:
            way = "ahead of" if skew > 0 else "behind"
            told = f"its clock is {abs(skew) / 1000:.1f} s {way} that of {note['clock_of']}"
            yield Remark("warning", host, told, "start chrony or ntpd there: deadlines and munge compare clocks")
