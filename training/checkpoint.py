"""Checkpoints: folders that are visible only when they are whole.

    RUN/checkpoints/step_00001000/
        model.safetensors      weights, fp32, by parameter name
        ema.safetensors        their average, by the same names
        optimizer.safetensors  Adam's moments by parameter name
        state.json             step, samples, counters, what the data was
        manifest.json          size of every file above and SHA-256 of each piece of it
    RUN/checkpoints/latest     the name of the newest one

No file holds a pickle, and none knows how many ranks wrote it or which engine.

    python -m training.checkpoint verify RUN     which checkpoints are whole, and what is wrong with the others
    python -m training.checkpoint export RUN     the newest whole one as a folder to sample with
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Thread
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from training.distributed import all_gather, get_rank, local_rank, num_local_ranks, num_ranks, on_main, say, where
from training.export import export
from training.pieces import (
    PIECE,
    STREAMING,
    Content,
    Staging,
    Tensors,
    Writing,
    content_of,
    content_of_text,
    is_pickle,
    num_pieces,
)
from training.publish import (
    REMOVED,
    begin,
    first_of,
    is_there,
    newest_first,
    other_format,
    partial_of,
    problem_with,
    publish,
    remove,
    size_of,
)

TRIES = 3  # to export a checkpoint before training removes it
Count = Annotated[int, Field(ge=0, lt=2**63)]


class CheckpointConfig(BaseModel, extra="forbid", frozen=True):
    every: int = Field(1000, ge=1, description="optimizer steps between checkpoints; the last step writes one too")
    keep: int = Field(3, ge=1, description="newest checkpoints that are kept")
    asynchronous: bool = Field(True, description="training goes on while a checkpoint is written")


@dataclass
class TrainState:
    """Where training stands: everything beside tensors that the next step depends on."""

    __pydantic_config__ = {"extra": "forbid"}

    step: Count = 0  # optimizer steps done
    samples: Count = 0  # samples of the stream consumed: the position of the next one
    ema_updates: Count = 0
    skipped: Count = 0  # steps whose gradient was not finite
    nonfinite_in_row: Count = 0
    window: list[float] = field(default_factory=list)  # sums of what is logged next, so that a restart splits no mean
    optimizer_steps: Count = 0  # of Adam: those with a finite gradient
    loss_scale: dict[str, int | float] = field(default_factory=dict)  # of fp16
    seed: Count = 0
    data: dict[str, str] = field(default_factory=dict)  # fingerprint of each training set, by its place


def folder_of(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step_{step:08d}"


class Saver:
    """Saves the checkpoints of a run, asynchronously when the config says so: save() copies this rank's share of the
    bytes, threads write and hash them while training goes on, and settle() publishes.  Where nothing is gathered from
    other ranks, a thread copies too, beside the next forward and backward pass, until copied() waits for it.

    Every rank calls every method but busy() at the same steps; no thread calls a collective.
    """

    def __init__(self, run_dir: Path, config: CheckpointConfig):
        self.run_dir, self.config = run_dir, config
        self.pending = False  # a save was begun and is not published; the same on all ranks
        self.staging = Staging()
        self.copier = ThreadPoolExecutor(1, "checkpoint")
        self.copying: Future | None = None
        self.warming: Thread | None = None
        self.removing: Thread | None = None
        self.told = False

    def prepare(self, files: dict[str, Tensors]) -> None:
        """Makes the memory ready, in the background, that an asynchronous save of these files will copy into."""
        if self.config.asynchronous and self.warming is None:
            self.warming = self.staging.warm(*_needs(_contents(files, " ")), num_local_ranks())

    def save(self, state: TrainState, files: dict[str, Tensors]) -> None:
        """Begins a checkpoint of these tensors, by file name without its suffix; settles an earlier one first.

        When it returns, state may change, and tensors after copied().  Raises ValueError as settle() does.
        """
        self.close()
        if self.warming is not None:
            self.warming.join()
        self.folder = folder_of(self.run_dir, state.step)
        self.contents = _contents(files, json.dumps(asdict(state), indent=1))
        num, length = _needs(self.contents)
        wanted = num if self.config.asynchronous else min(num, STREAMING)
        enough = self.staging.grow(wanted, length, num_local_ranks()) and self.config.asynchronous
        short = [place for place, each in all_gather((where(), enough)) if not each]
        if self.config.asynchronous and short and not self.told:
            self.told = True
            say(
                f"note: {short[0]}: too little free memory for a copy of the checkpoint "
                f"({num * length / 2**30:.1f} GiB a rank); training waits while it is written"
            )
        partial, sizes = partial_of(self.folder), {name: content.size for name, content in self.contents.items()}
        on_main(lambda: self._try(lambda: begin(partial, sizes)))
        self.writing = Writing(partial, self.staging, (get_rank(), num_ranks()), enough)
        self.pending = True
        if short or any(tensors.collective for tensors in files.values()):
            self._copy()
        else:
            self.copying = self._copy_behind()
        if short:
            self.settle()

    def _copy(self) -> None:
        for name, content in self.contents.items():
            self.writing.add(name, content)
        self.writing.start()

    def _copy_behind(self) -> Future:
        """Copies in a thread; from a GPU in a stream of its own, after what is queued there now."""
        stream = None
        if torch.cuda.is_initialized():
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())

        def copy() -> None:
            with torch.cuda.stream(stream), torch.no_grad():
                self._copy()

        return self.copier.submit(copy)

    def copied(self) -> None:
        """Waits until training may change what is being saved: to be called before the optimizer's step."""
        if self.copying is not None:
            copying, self.copying = self.copying, None
            copying.result()

    def busy(self) -> bool:
        """Whether bytes of this rank are not on the disk yet."""
        return self.pending and ((self.copying is not None and not self.copying.done()) or self.writing.busy())

    def settle(self) -> None:
        """Waits for the bytes of all ranks, publishes the checkpoint, and removes all but the newest `keep` in the
        background.

        Raises ValueError on every rank, naming folder and remedy, when a rank could not write; the checkpoints before
        are as they were.
        """
        if not self.pending:
            return
        self.pending = False
        self.copied()
        told = all_gather((where(), *self.writing.finish()))
        on_main(lambda: self._try(lambda: self._publish(told)))

    def close(self) -> None:
        """Settles, and leaves nothing to be done in the background."""
        self.settle()
        if self.removing is not None:
            self.removing.join()

    def end(self) -> None:
        """No thread of this saver outlives it.  Calls no collective."""
        self.staging.end()
        if self.warming is not None:
            self.warming.join()
        self.copier.shutdown()

    def _publish(self, told: list[tuple[str, str | None, dict[str, dict[int, str]]]]) -> None:
        if problem := next((f"{place}: {problem}" for place, problem, _ in told if problem), None):
            raise OSError(problem)
        digests = {name: {} for name in self.contents}
        for _, _, pieces in told:
            for name, each in pieces.items():
                assert not digests[name].keys() & each.keys(), f"two ranks wrote the same piece of {name}"
                digests[name] |= each
        in_order = {name: [each[i] for i in range(len(each))] for name, each in digests.items()}
        self.removing = Thread(target=remove, args=(publish(self.folder, in_order, self.config.keep),))
        self.removing.start()

    def _try(self, action: Callable[[], None]) -> None:
        """Raises ValueError where the action raises OSError, and leaves nothing half done."""
        try:
            action()
        except OSError as error:
            shutil.rmtree(partial_of(self.folder), ignore_errors=True)
            free = shutil.disk_usage(_existing(self.folder.parent)).free / 2**30
            raise ValueError(
                f"{self.folder}: the checkpoint could not be written ({error}); {free:.1f} GiB are free there. Free "
                "space, lower checkpoint.keep or choose another run.dir; earlier checkpoints are whole"
            ) from error


def _contents(files: dict[str, Tensors], state: str) -> dict[str, Content]:
    """The files of a checkpoint that ranks write, by name."""
    tensors = {f"{name}.safetensors": content_of(each) for name, each in files.items()}
    return tensors | {"state.json": content_of_text(state)}


def _needs(contents: dict[str, Content]) -> tuple[int, int]:
    """(pieces that this rank writes, at most; bytes of the largest)"""
    sizes = [content.size for content in contents.values()]
    return -(-sum(num_pieces(size) for size in sizes) // num_ranks()), min(PIECE, max(sizes))


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.parent)


def find(run_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is whole on every rank, and what was wrong with newer ones.

    Rank 0 names the candidates; the ranks of each host share the hashing.  Raises ValueError, naming folder, formats
    and remedy, rather than fall back behind one of another format, which is not damaged.
    """
    rejected = []
    for folder in on_main(lambda: newest_first(run_dir / "checkpoints")):
        on_main(lambda folder=folder: _check_format(folder, rejected))
        problems = all_gather(problem_with(folder, (local_rank(), num_local_ranks())))
        if not any(problems):
            return folder, rejected
        rank, problem = next((i, p) for i, p in enumerate(problems) if p)
        rejected.append(f"{folder} is not whole for rank {rank}: {problem}")
    return None, rejected


def _check_format(folder: Path, rejected: list[str]) -> None:
    if told := other_format(folder):
        raise ValueError("; ".join([*rejected, f"{folder}: {told}"]))


def read_state(folder: Path) -> TrainState:
    """Raises ValueError naming file and key when it is not what this version writes."""
    try:
        return TypeAdapter(TrainState).validate_json((folder / "state.json").read_bytes(), strict=True)
    except ValidationError as error:
        raise ValueError(
            f"{folder / 'state.json'}: {first_of(error)}; remove this checkpoint, to continue at the one before"
        ) from None
    except OSError as error:
        raise ValueError(f"{folder / 'state.json'}: {error}") from error


@contextmanager
def open_tensors(folder: Path, name: str, shapes: dict[str, tuple[int, ...]]) -> Iterator[Callable[[str], Tensor]]:
    """A function from a tensor's name to its values, on the CPU; nothing is read before it is asked for.

    Raises ValueError when names, shapes or types are others than expected: a checkpoint of another architecture.
    """
    path = folder / f"{name}.safetensors"
    try:
        if is_pickle(path):
            raise ValueError(
                f"{path}: a pickle, as torch.save writes them, which is never loaded: it could run anything; have its "
                "tensors saved as safetensors by whoever made it"
            )
        with safe_open(path, "pt") as file:
            there = {key: _type_of(file.get_slice(key)) for key in file.keys()}  # noqa: SIM118
            wanted = {key: str(list(shape)) for key, shape in shapes.items()}
            for key in sorted(wanted.keys() | there.keys()):
                has, wants = there.get(key, "nothing"), wanted.get(key, "nothing")
                if has != wants:
                    raise ValueError(
                        f"{path}: {key} is {has} there and {wants} in this model: a checkpoint of another "
                        "architecture; use the run's own config.yaml, or another run.dir"
                    )
            yield file.get_tensor
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from error


def _type_of(tensor: Any) -> str:
    """Its shape, and its type unless that is the usual fp32."""
    dtype = tensor.get_dtype()
    return f"{list(tensor.get_shape())}" + ("" if dtype == "F32" else f" of {dtype}")


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0; 1 when the newest checkpoint is damaged or of another format; 2 when the command
    cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m training.checkpoint", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    verify = commands.add_parser("verify", help="reads every byte of every checkpoint")
    exports = commands.add_parser("export", help="the newest whole checkpoint as a folder to sample with")
    for command in (verify, exports):
        command.add_argument("run_dir", type=Path, metavar="RUN", help="a run folder")
    exports.add_argument("--out", type=Path, help="the new folder [RUN/export]")
    exports.add_argument("--weights", default="ema", help="a file of the checkpoint: model, ema, ... [ema]")
    args = parser.parse_args(argv)
    try:
        if args.command == "verify":
            return _verify(args.run_dir)
        return _export(args.run_dir, args.weights, args.out or args.run_dir / "export")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _verify(run_dir: Path) -> int:
    folders = newest_first(run_dir / "checkpoints")
    if not folders:
        raise ValueError(f"{run_dir}: no checkpoint there; name a run folder, which training makes under run.dir")
    problems = []  # of those that are still there
    for folder in folders:
        size, problem = size_of(folder) / 2**30, problem_with(folder, threads=os.cpu_count() or 1)
        print(f"{folder}: {problem or f'whole, {size:.2f} GiB'}")
        problems += [problem] if problem != REMOVED else []
    if not problems:
        raise ValueError(f"{run_dir}: all checkpoints were {REMOVED}; verify again")
    return 1 if problems[0] else 0


def _export(run_dir: Path, weights: str, out: Path) -> int:
    """Looks again when training goes on and removes the checkpoint that is being read."""
    for _ in range(TRIES):
        folders = newest_first(run_dir / "checkpoints")
        try:
            return _export_newest(run_dir, weights, out)
        except ValueError:
            if all(is_there(folder) for folder in folders):
                raise
    raise ValueError(
        f"{run_dir}: {TRIES} times a checkpoint was {REMOVED}; export when training has ended, or continue it with a "
        "higher checkpoint.keep"
    )


def _export_newest(run_dir: Path, weights: str, out: Path) -> int:
    folder, rejected = find(run_dir)
    if folder is None:
        told = f" ({'; '.join(rejected)})" if rejected else ""
        raise ValueError(f"{run_dir}: no whole checkpoint{told}; name a run folder, which training makes under run.dir")
    export(run_dir, folder, asdict(read_state(folder)), weights, out)
    for message in rejected:
        print(f"warning: {message}", file=sys.stderr)
    print(f"{out}: {weights} of {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
