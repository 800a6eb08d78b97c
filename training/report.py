"""Compares runs in one page of HTML, which needs nothing but a browser.

    python -m training.report RUN [RUN ...] [--out report.html]

Curves against samples, seconds of training and FLOP; settings that differ; speed and hardware; pictures by step; stops,
restarts and warnings.  A run may be going on, or be damaged: the page says so.
"""

import argparse
from pathlib import Path
from typing import Any

from training.exits import run
from training.flop import num_parameters, training_flop
from training.history import Run, named_apart
from training.report_page import BEGINNING, Work, page


def report(folders: list[Path], out: Path) -> list[Run]:
    """Writes the page, whole or not at all.  -> what it shows

    Raises ValueError for folders that are no runs, when none of them tells a step, and for a page that cannot be
    written, or would stand in a run's folder or in the place of something else.
    """
    places = [folder.resolve() for folder in folders]
    if twice := [folder for i, folder in enumerate(folders) if places[i] in places[:i]]:
        raise ValueError(f"{twice[0]}: named twice; name each run once")
    runs = [Run(folder) for folder in folders]
    if not any(told.lines for told in runs):
        raise ValueError("; ".join(told.remarks[0] for told in runs) + "; name runs that have trained")
    named_apart(runs)
    try:
        _check_place(out, places)
        partial = out.with_name(out.name + ".partial")
        partial.touch()
        try:
            partial.write_text(page(runs, works(runs)), encoding="utf-8")
            partial.replace(out)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(f"--out {out}: cannot be written ({error}); name another file") from error
    return runs


def _check_place(out: Path, places: list[Path]) -> None:
    if out.is_dir():
        raise IsADirectoryError("it is a folder")
    if within := [place for place in places if out.resolve().is_relative_to(place)]:
        raise ValueError(f"--out {out}: lies in the run folder {within[0]}, which is left as it is; name another place")
    if out.exists():
        with out.open("rb") as file:
            if file.read(len(BEGINNING)) != BEGINNING.encode():
                raise ValueError(f"--out {out}: there is a file that is no such page; name another one")


def works(runs: list[Run]) -> list[Work | None]:
    """Parameters and FLOP of each run's network, as far as its configuration is known."""
    counted: dict[Any, Work] = {}
    result: list[Work | None] = []
    for told in runs:
        config = told.config
        if config is None or config.training_size is None:
            result.append(None)
            continue
        key = config.model.model_dump_json(), config.training_size
        if key not in counted:
            counted[key] = Work(num_parameters(config), training_flop(config))
        result.append(counted[key])
    return result


def main() -> None:
    args = parser().parse_args()
    runs = report(args.runs, args.out)
    for told in runs:
        if told.remarks:
            print(f"{told.name}: {'; '.join(told.remarks)}")
    print(f"{args.out}: {len(runs)} run{'s' * (len(runs) > 1)}; open it in a browser")


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a folder that training made")
    result.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE", help="[report.html]")
    return result


if __name__ == "__main__":
    run(main)
