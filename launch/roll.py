"""What a node tells of itself in the roll call, and what differs between nodes.  Standard library only."""

import hashlib
import importlib.metadata
import itertools
import os
import platform
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from training.snapshot import HOME, code_files

MAX_SKEW_S = 10.0  # torchrun counts a node dead whose heartbeats seem 15 s old, and they come every 5 s


class Node(NamedTuple):
    """One node, as JSON between the hosts."""

    host: str  # as it calls itself
    number: int  # among the nodes; the master is 0
    nodes: str  # all of them, the master first
    job: str
    ranks: int  # processes on this node
    python: str
    packages: dict[str, str]  # of requirements.txt
    code: dict[str, str]  # hash of each file
    config: dict[str, str]  # hash of the config file that the command names, or of all that it might mean
    command: list[str]
    clock: float  # Unix time when it was sent

    @property
    def name(self) -> str:
        """As the user calls it."""
        return self.nodes.split()[self.number]


def this_node(command: list[str]) -> Node:
    """This host, as launch/env.sh found it.  Raises ValueError when that was not sourced."""
    try:
        nodes, job, ranks = (os.environ[name] for name in ("TRYON_NODES", "PET_RDZV_ID", "PET_NPROC_PER_NODE"))
        number = int(os.environ["TRYON_NODE_RANK"])
    except (KeyError, ValueError) as error:
        raise ValueError(f"the roll call needs the environment of launch/env.sh; source that first ({error})") from None
    code = {file.relative_to(HOME).as_posix(): _hash(file) for file in code_files()}
    return Node(
        platform.node(), number, nodes, job, int(ranks), platform.python_version(), _packages(), code,
        {name: _hash(file) for name, file in _configs(command).items()}, command, time.time(),
    )  # fmt: skip


def parse(told: Any) -> Node:
    """The node of a JSON object.  Raises ValueError for anything else."""
    hints = get_type_hints(Node)
    if not isinstance(told, dict) or told.keys() != hints.keys():
        raise ValueError("not a node of a roll call")
    for name, hint in hints.items():
        kind = getattr(hint, "__origin__", hint)
        parts = [*told[name], *told[name].values()] if kind is dict and isinstance(told[name], dict) else told[name]
        if not isinstance(told[name], kind) or (kind in (list, dict) and not all(isinstance(p, str) for p in parts)):
            raise ValueError(f"{name} of a node: {told[name]!r}"[:200])
    node = Node(**told)
    if not 0 <= node.number < len(node.nodes.split()):
        raise ValueError(f"node {node.number} of {len(node.nodes.split())}")
    return node


def disagreements(nodes: list[Node], late: dict[int, float] | None = None) -> list[str]:
    """A line for everything in which nodes differ, naming the hosts and the remedy.

    The usual value counts as right, the master's where two are as usual.  late: seconds that each node's clock is
    behind the master's.
    """
    return [*_odd_ones(nodes), *_clocks(nodes, late or {})]


def _odd_ones(nodes: list[Node]) -> Iterator[str]:
    checks: list[tuple[Callable[[Node], Any], Callable[[Any, Any], str]]] = [
        (lambda node: node.command, _other_command),
        (lambda node: node.ranks, lambda odd, usual: (
            f"starts {odd} ranks, {{}} {usual}; give every node the same number of GPUs, or set TRYON_NPROC=N on all")),
        (lambda node: {"python": node.python} | node.packages, _other_packages),
        (lambda node: node.code, lambda odd, usual: (
            f"has other code than {{}}: {_files(odd, usual)}; copy the same project folder to every node")),
        (lambda node: node.config, lambda odd, usual: (
            f"has another config than {{}}: {_files(odd, usual)}; copy the same file to every node")),
    ]  # fmt: skip
    for value_of, told in checks:
        values = [_key(value_of(node)) for node in nodes]
        usual, _ = Counter(values).most_common(1)[0]
        for value, group in itertools.groupby(sorted(zip(values, nodes, strict=True)), key=lambda pair: pair[0]):
            if value != usual:
                odd = [node for _, node in group]
                reference = nodes[values.index(usual)]
                text = told(value_of(odd[0]), value_of(reference)).replace("{}", reference.name, 1)
                yield f"{listed([node.name for node in odd])} {text}"


def _key(value: Any) -> str:
    return repr(sorted(value.items()) if isinstance(value, dict) else value)


def _clocks(nodes: list[Node], late: dict[int, float]) -> Iterator[str]:
    for node in nodes:
        behind = late.get(node.number, 0.0)
        if abs(behind) > MAX_SKEW_S:
            direction = "behind" if behind > 0 else "ahead of"
            yield (
                f"the clock of {node.name} is {abs(behind):.0f} s {direction} that of {nodes[0].name}, and torchrun "
                "takes such a node for dead; set the clocks by NTP"
            )


def _other_command(odd: list[str], usual: list[str]) -> str:
    pairs = itertools.zip_longest(odd, usual, fillvalue="nothing")
    mine, theirs = next((one, two) for one, two in pairs if one != two)
    return f"was started with {mine[:200]} where {{}} has {theirs[:200]}; start the same command on every node"


def _other_packages(odd: dict[str, str], usual: dict[str, str]) -> str:
    names = [name for name in sorted({*odd, *usual}) if odd.get(name) != usual.get(name)]
    mine, theirs = (", ".join(f"{name} {has.get(name, 'absent')}" for name in names[:4]) for has in (odd, usual))
    return f"has {mine}, {{}} {theirs}; install the same packages on every node (requirements.txt)"


def _files(odd: dict[str, str], usual: dict[str, str]) -> str:
    """The first files that differ, or are on one side alone, by name."""
    names = [name for name in sorted({*odd, *usual}) if odd.get(name) != usual.get(name)]
    notes = {False: "", True: " (missing)"}
    told = [name + notes[name not in odd or odd[name] == ABSENT] for name in names[:3]]
    return ", ".join(told) + (f" and {len(names) - 3} more files" if len(names) > 3 else "")


def listed(hosts: list[str]) -> str:
    """'nodeA, nodeB'; of many hosts the first and the last."""
    return ", ".join(hosts) if len(hosts) <= 8 else f"{hosts[0]}, {hosts[1]} ... {hosts[-1]} ({len(hosts)} nodes)"


ABSENT = "absent"


def _hash(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    except OSError:
        return ABSENT


def _configs(command: list[str]) -> dict[str, Path]:
    """The config file that the command names; without one, the project's, of which the script reads its default."""
    named = [word for word in command if "=" not in word and word.endswith((".yaml", ".yml"))]
    if named:
        return {named[0]: Path(named[0]) if Path(named[0]).is_file() else HOME / named[0]}
    return {file.relative_to(HOME).as_posix(): file for file in sorted(HOME.glob("configs/*.yaml"))}


def _packages() -> dict[str, str]:
    """The installed version of each package that the project asks for."""
    asked = (HOME / "requirements.txt").read_text(encoding="utf-8") if (HOME / "requirements.txt").exists() else ""
    versions = {}
    for name in re.findall(r"^([A-Za-z0-9._-]+)", asked, re.MULTILINE):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = ABSENT
    return versions
