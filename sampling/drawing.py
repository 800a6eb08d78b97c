"""All pictures of some inputs, shared out over the ranks; what is there already is not drawn again."""

from collections.abc import Sequence

from tqdm import tqdm

from data.dataset import BadSample
from data.schema import Sample
from sampling.devices import Replicas, Work
from sampling.inputs import Inputs, Lowres
from sampling.outputs import SHEET, Output, write_whole
from sampling.sheets import Recorder, figure, images_sheet, pairs_sheet
from sampling.stages import Trained
from sampling.stamps import is_whole, saved
from training.distributed import agreed, all_gather, get_rank, num_ranks


def work_of(ids: Sequence[int], stages: Sequence[Trained], inputs: Inputs, lowres: Lowres | None) -> Work:
    """What these pairs are drawn from.  Raises BadSample for one that is damaged."""
    samples = {
        stage.name: [inputs.sample(i, stage.config.model.image_size) for i in ids]
        for stage in stages
        if stage.config.model.tries_on
    }
    return Work(list(ids), samples, None if lowres is None else [lowres(i) for i in ids])


def draw_all(
    replicas: Replicas, stages: Sequence[Trained], inputs: Inputs, lowres: Lowres | None, output: Output, batch: int,
    seed: int,
) -> int:  # fmt: skip
    """Draws the pictures that are not there yet; returns how many pairs were drawn.

    Every rank takes its share of what is missing.  Raises ValueError on every rank, when all others are drawn, naming
    the pairs whose samples are broken; and when a rank cannot go on, once the others have drawn theirs.
    """
    units = output.units
    mine = range(get_rank(), len(units), num_ranks())
    with agreed():  # names are read from the shards
        mine = [n for n in mine if not output.is_there(units[n])]
    missing = sorted(n for share in all_gather(mine) for n in share)
    mine = [units[n] for n in missing[get_rank() :: num_ranks()]]
    with agreed():
        broken = _draw(mine, replicas, stages, inputs, lowres, output, batch, seed)
        if broken:
            raise ValueError(f"{len(broken)} pictures or shards are missing, all others are drawn: {'; '.join(broken)}")
    return sum(len(units[n]) for n in missing)


def _draw(
    units: list[list[int]], replicas: Replicas, stages: Sequence[Trained], inputs: Inputs, lowres: Lowres | None,
    output: Output, batch: int, seed: int,
) -> list[str]:  # fmt: skip
    """Draws this rank's units; returns why some are missing."""
    together = max(1, batch // max(map(len, units), default=1))
    broken = []
    for start in tqdm(range(0, len(units), together), desc="sampling", unit="batch", disable=None):
        whole = []
        for unit in units[start : start + together]:
            try:
                whole.append((unit, [work_of([i], stages, inputs, lowres) for i in unit]))
            except BadSample as error:
                broken.append(str(error))
        works = [work for _, each in whole for work in each]
        drawn = []
        for first in range(0, len(works), batch):
            pictures = replicas(_joined(works[first : first + batch]), seed)
            drawn += [{name: each[i] for name, each in pictures.items()} for i in range(len(works[first:][:batch]))]
        for unit, _ in whole:
            output.write(unit, drawn[: len(unit)])
            drawn = drawn[len(unit) :]
    return broken


def _joined(works: Sequence[Work]) -> Work:
    return Work(
        [position for work in works for position in work.positions],
        {name: [sample for work in works for sample in work.samples[name]] for name in works[0].samples},
        None if works[0].lowres is None else [image for work in works for image in work.lowres],
    )


def write_sheet(
    inputs: Inputs, lowres: Lowres | None, output: Output, size: tuple[int, int] | None, rows: int,
    grid: tuple[int, int] | None = None,
) -> None:  # fmt: skip
    """A sheet of the first `rows` pairs, or of all persons in all garments of a grid.

    size: at which pairs are read; None where only low-resolution images are.  Raises ValueError when it cannot be
    written.
    """
    num = min(rows, inputs.num)
    if size is None:
        sheet = images_sheet([lowres(i) for i in range(num)], [output.read(i) for i in range(num)])
    elif grid is None:
        samples: list[Sample] = [inputs.sample(i, size) for i in range(num)]
        sheet = pairs_sheet(samples, [output.read(i) for i in range(num)], inputs.paired)
    else:
        persons, garments = grid
        sheet = figure(
            [inputs.sample(i * garments, size).person for i in range(persons)],
            [inputs.sample(j, size).garment for j in range(garments)],
            [[output.read(i * garments + j) for j in range(garments)] for i in range(persons)],
        )
    write_whole(output.out / SHEET, saved(sheet, "png", output.names.stamp("sheet", num)))


def write_animation(
    suffix: str, replicas: Replicas, stages: Sequence[Trained], inputs: Inputs, lowres: Lowres | None, output: Output,
    rows: int, batch: int, seed: int,
) -> None:  # fmt: skip
    """The denoising of the first `rows` pairs side by side, drawn once more by one device, unless it is there.

    Raises ValueError when it cannot be written.
    """
    num = min(rows, inputs.num)
    path, stamp = output.out / f"animation.{suffix}", output.names.stamp("animation", num)
    if is_whole(path, stamp):
        return
    recorder = Recorder(replicas.stages)
    for first in range(0, num, batch):
        replicas(work_of(range(first, min(first + batch, num)), stages, inputs, lowres), seed, on_step=recorder)
    write_whole(path, recorder.animation(suffix, stamp))
