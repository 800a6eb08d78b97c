"""What lowers the memory of a run, in the order in which it is worth trying."""

from typing import Any, NamedTuple

from training.config import Config


class Lever(NamedTuple):
    """A key and the value that lowers memory."""

    part: str
    key: str
    value: Any

    @property
    def word(self) -> str:
        """As on the command line."""
        value = str(self.value).lower() if isinstance(self.value, bool) else self.value
        return f"{self.part}.{self.key}={value}"


Levers = tuple[Lever, ...]

LEAN = Lever("engine", "lean_norms", True)  # faster, too
RECOMPUTE = Lever("engine", "activation_checkpointing", True)  # a third slower
SHARE = Lever("engine", "zero_stage", 2)
SHARE_ALL = Lever("engine", "zero_stage", 3)
OFFLOAD = Lever("engine", "offload", "optimizer")  # the host's memory and its bus
EIGHT_BITS = Lever("optim", "name", "adamw8bit")  # nearly the same curve
AVERAGE_ON_HOST = Lever("ema", "placement", "cpu")


def pulled(config: Config, levers: Levers) -> Config:
    """The config with these levers pulled."""
    for lever in levers:
        part = getattr(config, lever.part).model_copy(update={lever.key: lever.value})
        config = config.model_copy(update={lever.part: part})
    return config


def levers_for(config: Config, num_ranks: int) -> tuple[list[Levers], list[Levers]]:
    """Sets of levers that are not pulled yet, each list from the least to the most: those that lower activations, and,
    with all of these, those that lower what lives through the run.
    """

    def left(*levers: Lever) -> Levers:
        return tuple(lever for lever in levers if getattr(getattr(config, lever.part), lever.key) != lever.value)

    lean = (LEAN,) if config.engine.precision != "fp32" else ()
    cheap = list(dict.fromkeys([left(*lean), left(RECOMPUTE), left(RECOMPUTE, *lean)]))
    both, stage = cheap[-1], config.engine.zero_stage or 0
    if num_ranks > 1 and config.optim.name == "adamw":
        ladder = [(SHARE,), (SHARE_ALL,), (SHARE_ALL, OFFLOAD), (SHARE_ALL, OFFLOAD, AVERAGE_ON_HOST)]
        ladder = [step for step in ladder if step[0].value >= stage]
    elif stage:
        ladder = [(OFFLOAD,), (OFFLOAD, AVERAGE_ON_HOST)]
    else:
        ladder = [(EIGHT_BITS,), (EIGHT_BITS, AVERAGE_ON_HOST)]
        if config.optim.name == "adamw":
            ladder.append((SHARE, OFFLOAD, AVERAGE_ON_HOST))
    return cheap, [both + left(*step) for step in ladder]
