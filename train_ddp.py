"""Trains on any number of GPUs and nodes: torchrun --nproc_per_node=8 train_ddp.py [CONFIG.yaml] [key=value ...]"""

import sys

from training.config import load_config
from training.distributed import process_group
from training.engine import DDP
from training.exits import run
from training.loop import train


def main() -> None:
    config = load_config(sys.argv[1:], summary=__doc__)
    with process_group(config.distributed, config.engine.device):
        train(config, DDP)


if __name__ == "__main__":
    run(main)
