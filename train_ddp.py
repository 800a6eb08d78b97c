"""Trains on any number of GPUs and nodes: torchrun --nproc_per_node=8 train_ddp.py [CONFIG.yaml] [key=value ...]"""

import sys

from training.config import load_config
from training.distributed import agreed, process_group
from training.engine import DDP, SingleDevice
from training.exits import run
from training.loop import train


def main() -> None:
    config = load_config(sys.argv[1:], summary=__doc__)
    with process_group(config.distributed, config.engine.device):
        with agreed():
            engine = engine_of(config.engine.zero_stage)
        train(config, engine)


def engine_of(zero_stage: int | None) -> type[SingleDevice]:
    if zero_stage is None:
        return DDP
    from training.zero import zero  # seconds, and a package that DDP does without

    return zero(zero_stage)


if __name__ == "__main__":
    run(main)
