"""What a Slurm batch script asks for, and whether that fits a run.

The keys and formats are those of sbatch(1): --time, --signal=[{R|B}:]SIGNAL[@SECONDS], --gpus-per-node=[TYPE:]N.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from launch.findings import Finding

SHORT = {"N": "nodes", "t": "time", "c": "cpus-per-task", "n": "ntasks"}
UNLIMITED = ("0", "infinite", "unlimited")
SIGNAL_S = 60  # of --signal without @SECONDS


class SlurmScript(NamedTuple):
    """The #SBATCH lines of a script, by long option without dashes; a flag's value is ''."""

    path: Path
    options: dict[str, str]
    ignored: list[str]  # #SBATCH lines after the first command, which Slurm does not read
    text: str

    @property
    def nodes(self) -> int:
        return self._count("nodes", 1)

    @property
    def gpus_per_node(self) -> int:
        """0: the script asks for none, or not a node."""
        gpus = self.options.get("gpus-per-node") or self.options.get("gres", "").removeprefix("gpu")
        number = gpus.rpartition(":")[2]
        return int(number) if number.isdigit() else 0

    @property
    def cpus_per_task(self) -> int:
        return self._count("cpus-per-task", 1)

    @property
    def time_s(self) -> int | None:
        """Seconds of one job; None: no limit, or the partition's own."""
        value = self.options.get("time", "")
        return None if not value or value.lower() in UNLIMITED else _seconds(self.path, value)

    @property
    def signal(self) -> tuple[str, str, int]:
        """('B', 'USR2', 300): to whom, which, how many seconds before the end; which is '' where there is none."""
        match = re.fullmatch(r"(?:([RB]+):)?(?:SIG)?(\w+)(?:@(\d+))?", self.options.get("signal", ""))
        if not match:
            return "", "", 0
        return match[1] or "", match[2].upper(), int(match[3] or SIGNAL_S)

    @property
    def config(self) -> Path:
        """What it trains when no config is named: its default_config=, else the config of its own name."""
        match = re.search(r"^default_config=(\S+)", self.text, re.MULTILINE)
        return Path(match[1] if match else f"configs/{self.path.stem}.yaml")

    @property
    def words(self) -> list[str]:
        """The key=value that it trains with before those of its command line: `train KEY=VALUE "$@"`."""
        match = re.search(r"^train (.*)$", self.text, re.MULTILINE)
        return [word for word in match[1].split() if "=" in word] if match else []

    def _count(self, option: str, default: int) -> int:
        value = self.options.get(option, str(default)).partition("-")[0]  # nodes may be a range
        if not value.isdigit() or int(value) < 1:
            raise ValueError(f"{self.path}: #SBATCH --{option}={value}: not a number; give a plain one")
        return int(value)


def read_slurm_script(path: Path) -> SlurmScript:
    """Raises ValueError when there is no such script, or nothing in it is meant for Slurm."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--slurm {path}: not a readable script ({error}); name one of slurm/") from error
    options: dict[str, str] = {}
    ignored, commands = [], False
    for line in text.splitlines():
        words = line.split()
        if not words or not words[0].startswith("#"):
            commands = commands or bool(words)
        elif words[0] == "#SBATCH" and commands:
            ignored.append(line.strip())
        elif words[0] == "#SBATCH":
            options |= dict(_options(line.partition("#SBATCH")[2].partition(" #")[0]))
    if not options:
        raise ValueError(f"--slurm {path}: no #SBATCH lines before its first command; name a batch script of slurm/")
    return SlurmScript(path, options, ignored, text)


def _options(line: str) -> Iterator[tuple[str, str]]:
    for match in re.finditer(r"--([a-z-]+)(?:[= ]\s*([^\s-]\S*))?|-([A-Za-z])\s*([^\s-]\S*)?", line):
        long, value, short, short_value = match.groups()
        name = long or SHORT.get(short, short)
        yield name, (value or short_value or "").strip("\"'")


def _seconds(path: Path, value: str) -> int:
    """Of 'M', 'M:S', 'H:M:S', 'D-H', 'D-H:M' and 'D-H:M:S'."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", value)
    if not match:
        raise ValueError(f"{path}: #SBATCH --time={value}: not a time; use D-HH:MM:SS")
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is not None:
        units = (3600, 60, 1)
    else:
        units = {1: (60,), 2: (60, 1), 3: (3600, 60, 1)}[len(numbers)]
    return 86400 * int(days or 0) + sum(n * unit for n, unit in zip(numbers, units, strict=False))


def check_script(script: SlurmScript, config_path: Path, num_workers: int) -> Iterator[Finding]:
    """What in the script works against a run of this config; one line when nothing does."""
    found = list(_problems(script, config_path, num_workers))
    told = f"{script.path}: {script.nodes} x {script.gpus_per_node} GPUs, {script.options.get('time', 'no')} time limit"
    yield from found or [Finding("slurm script", told)]


def _problems(script: SlurmScript, config_path: Path, num_workers: int) -> Iterator[Finding]:
    def problem(status: str, figure: str, remedy: str) -> Finding:
        return Finding("slurm script", figure, status, f"{remedy} in {script.path}")

    if script.ignored:
        yield problem("warning", f"Slurm does not read {script.ignored[0]!r}", "move it above the first command")
    if script.options.get("ntasks-per-node") != "1":
        told = script.options.get("ntasks-per-node", "not given")
        yield problem(
            "error",
            f"--ntasks-per-node is {told}; torchrun starts the ranks of a node itself",
            "use --ntasks-per-node=1",
        )
    if not script.gpus_per_node:
        yield problem("error", "no --gpus-per-node", "add #SBATCH --gpus-per-node=N")
    whom, which, seconds = script.signal
    if which != "USR2":
        yield problem("error", "no USR2 before the time is over: no checkpoint then", "add #SBATCH --signal=B:USR2@300")
    elif "B" not in whom:
        told = f"--signal={script.options['signal']} would go to torchrun and end it, not to the batch shell"
        yield problem("error", told, f"use --signal=B:USR2@{seconds}")
    if "requeue" not in script.options:
        yield problem("warning", "no --requeue: the job does not continue by itself", "add #SBATCH --requeue")
    if script.options.get("open-mode") != "append":
        yield problem("warning", "a requeued job overwrites the log before it", "add #SBATCH --open-mode=append")
    if not script.options.get("time"):
        yield problem("warning", "no --time: the partition's default ends the job", "add #SBATCH --time=D-HH:MM:SS")
    wanted = script.gpus_per_node * (1 + num_workers)
    if script.cpus_per_task < wanted:
        told = (
            f"--cpus-per-task={script.cpus_per_task} for {script.gpus_per_node} GPUs x (1 + data.num_workers="
            f"{num_workers}) processes"
        )
        yield problem("warning", told, f"use --cpus-per-task={wanted}, or a lower data.num_workers;")
    if script.config.name != config_path.name:
        told = f"{script.path} trains {script.config} unless it is told otherwise"
        yield problem("warning", told, f"sbatch {script.path} {config_path}, or another default_config=")
