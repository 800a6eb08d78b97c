"""Every command that README and docs show, found in their text, as it runs at toy size, or why it does not run here."""

import re
from pathlib import Path
from typing import NamedTuple

HOME = Path(__file__).resolve().parents[2]
PAGES = [HOME / "README.md", *sorted((HOME / "docs").glob("*.md"))]
QUOTES = ("faults.md",)  # whose code spans are what programs said
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
STARTERS = ("python", "bash", "torchrun", "sbatch", "source", "pip", "tensorboard", "touch")
INLINE = re.compile(rf"`((?:{'|'.join(STARTERS)}) [^`\n]+)`")


class Command(NamedTuple):
    page: str
    text: str  # as the page shows it, without comments
    python: bool = False  # a script for Python, not for bash

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.text.split())}"


# What a reader puts in: placeholders, and numbers of what a laptop has fewer of.  The first that is found counts.
PUT_IN = [
    (r"ema reconstruct RUN", "ema reconstruct runs/post_hoc"),
    (r"sample\.py RUN --weights RUN/averages/ema_power_0\.120_step_00500000", "sample.py runs/post_hoc --weights "
     "runs/post_hoc/averages/ema_power_0.070_step_00000004"),
    (r"sample\.py RUN --weights ema_power", "sample.py runs/post_hoc --weights ema_power"),
    (r"training\.report RUN RUN", "training.report runs/one runs/two"),
    (r"export RUN --out FOLDER", "export runs/one --out exported"),
    (r"\bRUN(_DIR)?\b", "runs/one"),
    (r" \[CONFIG\.yaml\] \[key=value \.\.\.\]", ""),
    (r"prepare LAYOUT", "prepare synthetic --num 4 --size 32 --out shards/new"),
    (r"(shards|verify) FOLDER", r"\1 shards/val"),
    (r"CONFIG\.yaml --gpu NAME --nodes N --gpus-per-node M",
     "configs/base_unet.yaml --gpu h100 --nodes 2 --gpus-per-node 8"),
    (r"--length 0\.12", "--length 0.09"),
    (r"launch\.doctor$", "launch.doctor configs/base_unet.yaml"),
    (r"sample\.py \.\.\.", "sample.py runs/one"),
    (r"--nproc_per_node=8", "--nproc_per_node=2"),
    (r"ema\.snapshot_every=31250", "ema.snapshot_every=2 run.dir=runs/new"),
    (r"train\.num_steps=200 ", "train.num_steps=3 "),
    (r"--lr-sweep", "--lr-sweep --steps 10"),
]  # fmt: skip

EXCEPTED = [  # (what is found in the command, why it is not run here)
    ("tests/run.sh", "this is what it runs"),
    ("sbatch", "needs Slurm: tests/cluster/test_slurm.py submits the job scripts"),
    ("nnodes=2", "needs two nodes: tests/cluster/test_torchrun.py"),
    ("launch/env.sh HOST", "needs two nodes: tests/cluster/test_torchrun.py"),
    ("launch/cluster.sh", "needs hosts behind ssh: tests/cluster/test_cluster_sh.py"),
    ("inception-weights", "weights that cannot be had from a package index: tests/test_inception.py"),
    ("-m benchmarks", "measures for minutes to hours: its results are committed"),
    ("estimators.fetch --packages FOLDER", "needs packages copied by hand: tests/test_estimators_fetch.py"),
    (r"torchrun \.\.\.", "a part of a command"),
    ("data.prepare$", "a part of a command"),
]


def commands() -> list[Command]:
    """In the order of the pages, each once."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for language, block in FENCED.findall(text):
            if language == "python":
                found.append(Command(page.name, block, python=True))
            elif language == "bash":
                found += [Command(page.name, command) for command in _of_block(block)]
        if page.name not in QUOTES:
            found += [Command(page.name, span) for span in INLINE.findall(FENCED.sub("", text))]
    return list(dict.fromkeys(found))


def _of_block(block: str) -> list[str]:
    """The commands of a block: of a line and those it is continued on, or of a loop."""
    lines = [re.sub(r"(^|\s+)#.*", "", line) for line in block.splitlines()]
    pieces = [piece for piece in re.split(r"(?<!\\)\n(?!  |done)", "\n".join(lines)) if piece.strip()]
    return [piece.replace("\\\n", "") for piece in pieces]


def exception(command: Command) -> str | None:
    """Why it is not run here."""
    return next((why for part, why in EXCEPTED if re.search(part, command.text)), None)


def at_toy_size(text: str) -> str:
    for pattern, value in PUT_IN:
        text = re.sub(pattern, value, text)
    return text
