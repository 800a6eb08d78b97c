"""Two photographs of one person in one garment, in folders by kind; what a folder is missing for is made.

    {train,val}/ip/NAME.jpg   the person        ia/NAME.jpg   without the garment      jp/NAME.json   the pose
    {train,val}/ig/NAME.jpg   the other photo   ig_mask/NAME  its garment's mask       jg/NAME.json   its pose
    {train,val}/ic/NAME.jpg   the garment cut out of it

Files belong together by name.
"""

from functools import partial
from pathlib import Path

from data.estimators import Estimators
from data.importers.files import picture, require, stems
from data.importers.given import Given, load
from data.importers.job import Job, JobList, Made
from data.preprocess import Preparation

POSE_SUFFIXES = (".json", ".txt")


def list_jobs(source: Path, how: Preparation, estimators: Estimators, split: str = "train") -> JobList:
    """One job for each name of a split, sorted.  source holds ip/, or {train,val}/ip/.

    Raises ValueError naming the folder that is missing.
    """
    folder = source if (source / "ip").is_dir() else source / split
    if not (folder / "ip").is_dir():
        raise ValueError(f"{folder / 'ip'}: no such folder; --source is the folder above ip/, or above {split}/")
    have = {path.name for path in folder.iterdir() if path.is_dir()}
    if not have & {"ic", "ig"}:
        raise ValueError(f"{folder}: has neither ic/ nor ig/; put the garments, or their photographs, there")
    names = sorted(stems(folder / "ip") | stems(folder / "ic") | stems(folder / "ig"))
    if not names:
        raise ValueError(f"{folder / 'ip'}: holds no photograph; check --source and --split")
    return JobList(names, partial(_job, folder, frozenset(have), how, estimators))


def _job(folder: Path, have: frozenset[str], how: Preparation, estimators: Estimators, name: str) -> Job:
    return Job(name, name, name, f"sample {name}", partial(load_pair, name, folder, have, how, estimators))


def load_pair(name: str, folder: Path, have: frozenset[str], how: Preparation, estimators: Estimators) -> Made:
    """The sample of one name.  Raises ValueError naming the file and the remedy."""

    def image(kind: str) -> Path | None:
        return picture(folder / kind, name) if kind in have else None

    def pose(kind: str) -> Path | None:
        paths = [folder / kind / f"{name}{suffix}" for suffix in POSE_SUFFIXES]
        return next((path for path in paths if path.is_file()), paths[0]) if kind in have else None

    cut = image("ic")
    given = Given(
        person=picture(folder / "ip", name),
        garment=cut or image("ig"),
        kind="cut" if cut else "worn",
        clothing_agnostic=image("ia"),
        garment_mask=None if cut else image("ig_mask"),
        person_pose=pose("jp"),
        garment_pose=pose("jg"),
    )
    for path in given:
        if isinstance(path, Path):
            require(path, f"sample {name}")
    return load(name, given, how, estimators)
