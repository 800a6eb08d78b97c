"""What a cascade draws for its evaluation: pictures of pairs of shards, in files that sampling continues."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.sources import Drawn
from evaluation.telling import forget
from sampling.devices import Replicas, pick_devices
from sampling.drawing import draw_all
from sampling.inputs import Lowres, ShardPairs, held_out_of, own_size
from sampling.outputs import Files, Names, about, claim, make_folder
from sampling.stages import MODEL, Trained, file_of, weights_of
from sampling.stamps import SUFFIXES
from training import checkpoint
from training.distributed import agreed, on_main, say

PICTURES = "pictures"
ALL = 2**62  # pairs


class Asked(NamedTuple):
    """Options that what is drawn depends on."""

    shards: str | None = None
    pairs: int | None = None  # None: all
    unpaired: bool = False
    masks: Path | None = None
    seed: int = 0
    batch: int = 16
    weights: Sequence[str] = ()
    dp: bool = False
    one_at_a_time: bool = False
    overwrite: bool = False


def draw(
    stages: list[Trained], asked: Asked, out: Path, check: Callable[[Drawn], object]
) -> tuple[Drawn, dict[str, Any]]:
    """Draws what is missing in OUT/pictures.  -> (the pictures, what they were drawn with)

    check: called by every rank with the pictures before any is drawn; raises ValueError where they cannot be measured.
    Raises ValueError, on every rank, for what is wrong with data, options, weights or the folder.
    """
    last = stages[-1].config.model.image_size
    with agreed():
        devices = pick_devices(stages, asked.dp)
        inputs, lowres = _inputs(stages, asked, last)
        make_folder(out)
        make_folder(out / PICTURES)
        weights = weights_of(asked.weights, stages)
    files = {}
    for stage in stages:
        with agreed():  # the ranks look for a checkpoint together: no rank may refuse something else in here
            files[stage.name] = file_of(stage.folder, weights[stage.name])
    with agreed():
        made = {stage.name: _made(stage, weights[stage.name], files[stage.name]) for stage in stages}
    replicas = Replicas(stages, {name: str(file) for name, file in files.items()}, devices, asked.one_at_a_time)
    given = inputs.about | (lowres.about if lowres else {})
    facts = about(stages, replicas.crcs, asked.seed, given, {"format": "png", "all_stages": False})
    with agreed():
        names = Names(inputs.key, inputs.num, [stages[-1].name], SUFFIXES["png"], facts)
        output = Files(out / PICTURES, names, [stages[-1].name], quality=0)
        source = Drawn(inputs, output, last, asked.masks)
    check(source)
    on_main(lambda: _claim(output, out, facts, asked.overwrite))
    drawn = draw_all(replicas, stages, inputs, lowres, output, asked.batch, asked.seed)
    say(f"{out / PICTURES}: {inputs.num} pictures, {drawn} of them new")
    made = {name: each | {"crc": replicas.crcs[name]} for name, each in made.items()}
    return source, {"seed": asked.seed, "stages": made}


def _claim(output: Files, out: Path, facts: dict[str, Any], overwrite: bool) -> None:
    """The pictures' folder is for these pictures; numbers of those that are overwritten go with them."""
    claim(output, facts, overwrite)
    if overwrite:
        forget(out)


def _inputs(stages: list[Trained], asked: Asked, last: tuple[int, int]) -> tuple[ShardPairs, Lowres | None]:
    first = stages[0]
    sizes = [stage.config.model.image_size for stage in stages if stage.config.model.tries_on]
    wants_image = first.config.model.lowres
    sizes += [last, own_size(first)] if wants_image else [last]
    shards = asked.shards or held_out_of(stages)
    if shards is None:
        raise ValueError(
            f"{first.folder / 'config.yaml'}: data.val_shards names no held-out pairs; name some: --shards"
        )
    inputs = ShardPairs(shards, list(dict.fromkeys(sizes)), asked.pairs or ALL, asked.unpaired)
    if wants_image:
        say("note: the low-resolution input is the person's picture, downsampled, not a previous stage's result")
    return inputs, Lowres(first, inputs, None) if wants_image else None


def _made(stage: Trained, weights: str, file: Path) -> dict[str, Any]:
    """Weights and sampler of a stage, in words and numbers; file: that the weights are in."""
    ema, sampler = stage.config.ema, stage.config.sampler
    exported = file == stage.folder / MODEL
    of_run = not exported and not weights.endswith(".safetensors")
    lengths = {name: f"{profile._fields[0]} {profile[0]:g}" for name, profile in ema.profiles().items()}  # decay 0.9999
    return {
        "weights": f"export {stage.folder}" if exported else weights,
        "ema": lengths.get(weights) if not exported else None,
        "step": checkpoint.read_state(file.parent).step if of_run else None,
        "steps": sampler.num_steps,
        "sampler": sampler.method,
        "guidance_scale": sampler.guidance_scale,
    }
