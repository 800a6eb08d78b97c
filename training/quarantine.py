"""Broken samples that training met: what is written of them, and when there are too many."""

import json
from pathlib import Path

from data.loader import Replaced
from training.distributed import Agreed, all_gather, on_main

SOON = 50  # broken samples that can be no chance, when they are more than twice as many as may be of those read


class Quarantine:
    """The broken samples of a run, the same on all ranks.

    A spare took the place of each (data/loader.py).  RUN/quarantine.jsonl lists them, each once.  num_samples: of the
    training data, where it is known.
    """

    def __init__(self, run_dir: Path, num_samples: int | None, max_bad: float):
        self.path, self.num_samples, self.max_bad = run_dir / "quarantine.jsonl", num_samples, max_bad
        self.fresh: list[Replaced] = []  # of this rank, since all ranks last spoke of it
        self.known: set[tuple[str, str]] = set(on_main(self._read))

    def _read(self) -> list[tuple[str, str]]:
        """What earlier starts wrote; a line that a kill cut off goes."""
        if not self.path.is_file():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        if len(whole) < len(lines):
            self.path.write_text("".join(whole), encoding="utf-8")
        return [(entry["shard"], entry["key"]) for entry in map(json.loads, whole)]

    def add(self, replaced: list[Replaced]) -> None:
        """Broken samples that the loader of this rank replaced."""
        self.fresh += replaced

    def settle(self, samples_read: int) -> list[Replaced]:
        """The broken samples that are new to the run.  Every rank calls, when any has some.

        Raises the same ValueError on all ranks when they are more than max_bad of all samples, or so many of the
        first ones that they will be.
        """
        met = {(bad.shard, bad.key): bad for share in all_gather(self.fresh) for bad in share}
        self.fresh = []
        new = [bad for name, bad in sorted(met.items()) if name not in self.known]
        self.known |= met.keys()
        on_main(lambda: self._write(new))
        too_many = len(self.known) > max(SOON, 2 * self.max_bad * samples_read)
        if self.num_samples is not None:
            too_many |= len(self.known) > self.max_bad * self.num_samples
        if too_many:
            shown = "; ".join(f"{bad.shard}: sample {bad.key!r}: {bad.reason}" for bad in new[:3])
            raise Agreed(
                f"{len(self.known)} broken samples among the first {samples_read}, of {self.num_samples or 'many'}, "
                f"are more than data.max_bad={self.max_bad} allows: {shown or 'all known'}; all in {self.path}; look "
                "with python -m data.verify, prepare them again with python -m data.prepare, or raise data.max_bad"
            )
        return new

    def _write(self, new: list[Replaced]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            for bad in new:
                file.write(json.dumps(bad._asdict()) + "\n")
