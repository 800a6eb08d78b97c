"""The project as a user has it who has followed README up to some command: a copy with shards, runs and photographs.

Its configs are those of the project with small networks, few steps and little data, so that a command runs as the docs
write it, in seconds.
"""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import trees
from data import prepare
from runs import HOME, Script

PHOTOGRAPHS = {"anna.jpg": "image/0.jpg", "ben.jpg": "image/1.jpg", "shirt.jpg": "image/2.jpg"}  # of cotton
SMALL = {"channels": [8, 8, 8, 16], "num_blocks": [1, 1, 1, 1], "emb_dim": 16}
SIZES = {"base_unet": 32, "sr_unet": 64, "sr_1024": 128}  # of the stages' images, and the last one's of shards


def make(folder: Path, cotton: Path | None) -> Path:
    """A workspace; without real photographs it has none, and what needs them cannot run in it."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(listed, cwd=HOME, text=True).splitlines():
        if not name.startswith("tests/") and (HOME / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(HOME / name, folder / name, follow_symlinks=False)
    (folder / ".venv").symlink_to(HOME / ".venv")
    for path in folder.glob("configs/**/*.yaml"):
        path.write_text(yaml.safe_dump(at_toy_size(path.stem, yaml.safe_load(path.read_text()))))
    for split in ("train", "test"):
        trees.viton_hd(folder / "zalando-hd-resized" / split)
    if cotton:
        for name, source in PHOTOGRAPHS.items():
            shutil.copy(cotton / source, folder / name)
        for i in range(44):  # so many that a twentieth of the people is somebody
            (folder / f"my_photos/p{i // 2}/g{i // 2}").mkdir(parents=True, exist_ok=True)
            shutil.copy(cotton / f"image/{i % 10}.jpg", folder / f"my_photos/p{i // 2}/g{i // 2}/{i}.jpg")
    return folder


def furnish(folder: Path) -> Path:
    """Adds what earlier commands leave: shards, trained runs and pictures."""
    for seed, split in enumerate(("train", "val")):
        for name, size in ((split, SIZES["sr_1024"]), (f"demo/{split}", 48)):
            words = ["--num", "16", "--seed", str(seed), "--size", str(size), "--out", str(folder / "shards" / name)]
            assert prepare.main(["synthetic", *words]) == 0
    for stage in SIZES:
        call(folder, "train_single.py", f"configs/{stage}.yaml", f"run.dir=runs/cascade/{stage}")
        shutil.copytree(folder / f"runs/cascade/{stage}", folder / f"runs/{stage}")
    for name in ("one", "two", "three"):
        shutil.copytree(folder / "runs/base_unet", folder / f"runs/{name}")
    averages = ["ema.power=[0.05,0.1]", "ema.snapshot_every=2"]
    call(folder, "train_single.py", "configs/base_unet.yaml", "run.dir=runs/post_hoc", *averages)
    call(folder, "training/ema.py", "reconstruct", "runs/post_hoc", "--length", "0.07")
    call(folder, "sample.py", "runs/one", "--out", "results")
    masks = folder / "test/garment_mask"
    masks.mkdir(parents=True)
    shutil.copytree(folder / "results", folder / "test/image")
    for path in (folder / "results").glob("*.png"):
        trees.save(masks / path.name, np.pad(np.full((16, 16), 255, np.uint8), 8))
    shutil.rmtree(folder / "told")
    return folder


def at_toy_size(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """The config with a network, a batch and steps that take seconds, and shards that `furnish` makes."""
    model, data = config["model"], config["data"]
    if name != "demo":  # whose network is small, and large enough for its checkpoint's memory to take a while
        model |= SMALL
        model.pop("garment_num_blocks", None)
        if model.get("network") != "efficient_unet":
            model |= {"attention_levels": [len(SMALL["channels"]) - 1], "head_dim": 8}
    if name != "demo":
        data |= {"shards": "shards/train", "val_shards": "shards/val", "resize": "lanczos"}
        model["image_size"] = [SIZES.get(name, 32)] * 2
    if name == "sr_1024":
        model["lowres_factor"], data["crop_size"] = 2, [32, 32]
        del data["resize"]
    config["sampler"]["num_steps"] = 2
    config["train"] |= {"num_steps": 4, "global_batch": 4 if name == "demo" else 16, "accumulation": 1}
    config["optim"]["warmup_steps"] = 2
    config["checkpoint"] = {"every": 2}
    config["log"] = {"every": 1, "validate_every": 2, "num_validation": 4, "preview_every": 4, "num_previews": 2}
    config["log"]["preview_steps"] = 2
    return config


def call(folder: Path, script: str, *words: str) -> None:
    run = Script(folder / "told", script, list(words), where=folder)
    assert run.wait() == 0, f"{script} {' '.join(words)}\n{run.text}"
