"""One value of a training command's configuration, for shell scripts.

    python -m launch.config_value run.dir configs/base_unet.yaml train.num_steps=10

Prints the value; an error in the configuration is one line, and status 1.
"""

import json
import sys
from typing import Any

from training.config import flat, load_config
from training.exits import run


def main() -> None:
    key, *arguments = sys.argv[1:] or ["--help"]
    if key == "--help":
        print(__doc__)
        return
    values: dict[str, Any] = dict(flat(load_config(arguments).model_dump(mode="json")))
    if key not in values:
        raise ValueError(f"{key!r} is no key of a configuration; train_single.py --help lists them")
    value = values[key]
    print(value if isinstance(value, str) else json.dumps(value))


if __name__ == "__main__":
    run(main)
