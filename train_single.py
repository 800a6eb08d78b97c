"""Trains on one device: python train_single.py [CONFIG.yaml] [key=value ...]"""

import sys

from training.config import load_config
from training.engine import SingleDevice
from training.exits import run
from training.loop import train


def main() -> None:
    train(load_config(sys.argv[1:], summary=__doc__), SingleDevice)


if __name__ == "__main__":
    run(main)
