"""Trains on all GPUs of one box in one process (nn.DataParallel): python train_dp.py [CONFIG.yaml] [key=value ...]"""

import sys

from training.config import load_config
from training.engine import DataParallel
from training.exits import run
from training.loop import train


def main() -> None:
    train(load_config(sys.argv[1:], summary=__doc__), DataParallel)


if __name__ == "__main__":
    run(main)
