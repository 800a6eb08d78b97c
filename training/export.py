"""A checkpoint's weights as a folder to sample with: model.safetensors, config.yaml and a model card, README.md."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError, safe_open
from yaml import YAMLError

from training.pieces import hash_of
from training.publish import FileFacts, Manifest, flush, partial_of, read_manifest

OPTIMIZER = "optimizer"
TITLES = {
    "parallel_unet": "Parallel-UNet of Zhu et al. 2023 (arXiv 2306.08276)",
    "efficient_unet": "Efficient-UNet of Saharia et al. 2022 (arXiv 2205.11487) without attention",
    "concat_unet": "UNet with the garment concatenated, ablation 1 of Zhu et al. 2023 (arXiv 2306.08276)",
}

CARD = """---
tags: [virtual-try-on, diffusion, arxiv:2306.08276]
---
# TryOnDiffusion, {stage} {size}

{what}: {weights} of step {step}, fp32, in `model.safetensors`.

| | |
|---|---|
| network | {network}, {parameters:,} parameters |
| image size (height x width) | {size} |
| predicts | {prediction} |
| optimizer steps | {step:,} |
| training samples seen | {samples:,} |
| averaged | {averaged} |
{data}
| seed | {seed} |
| code | git {git}{changed}; SHA-256 of its Python files {code} |
| torch | {torch} |
| trained on | {devices} |

`config.yaml` is the whole configuration of the run.

## Use

From the project's folder, with the path of this one as FOLDER:

```python
from pathlib import Path

from safetensors.torch import load_file

from training.config import read_config

folder = Path("FOLDER")
config = read_config(folder / "config.yaml")
net = config.model.build()
net.load_state_dict(load_file(folder / "model.safetensors"))
```

`model.sampler.sample` makes images with it, and `python sample.py FOLDER --shards SHARDS` from shards.
"""


def export(run_dir: Path, folder: Path, state: dict[str, Any], weights: str, out: Path) -> None:
    """Writes `out` from a whole checkpoint, whole or not at all.

    weights: a file of the checkpoint, without its suffix.  Raises ValueError when it has no such weights, when `out` is
    there already, and for what cannot be read or written.
    """
    partial = partial_of(out)
    try:
        manifest = read_manifest(folder)
        known = [Path(name).stem for name in manifest.files if name.endswith(".safetensors")]
        known = [name for name in known if name != OPTIMIZER]
        if weights not in known:
            raise ValueError(f"--weights {weights}: {folder} has {', '.join(known)}")
        if out.exists():
            raise ValueError(f"{out}: is there already; remove it, or name another folder with --out")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            model = partial / "model.safetensors"
            shutil.copyfile(folder / f"{weights}.safetensors", model)
            if not _is_copy(model, manifest, manifest.files[f"{weights}.safetensors"]):
                raise ValueError(f"{out}: did not get the bytes of {folder}; test the disk, and export again")
            shutil.copyfile(run_dir / "config.yaml", partial / "config.yaml")
            card = CARD.format(**_facts(run_dir, model, state, weights))
            (partial / "README.md").write_text(card, encoding="utf-8")
            for path in (*partial.iterdir(), partial):
                flush(path)
            partial.replace(out)
            flush(out.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        told = str(error).replace(partial.name, out.name)  # where it is made is nothing to look for
        raise ValueError(f"{out}: could not be written ({told}); name another folder with --out") from error


def _is_copy(copy: Path, manifest: Manifest, facts: FileFacts) -> bool:
    begins = (i * manifest.piece for i in range(len(facts.sha256)))
    return facts.sha256 == [hash_of(copy, begin, min(begin + manifest.piece, facts.size)) for begin in begins]


def _facts(run_dir: Path, model: Path, state: dict[str, Any], weights: str) -> dict[str, Any]:
    """What the model card says."""
    config, start = _config(run_dir / "config.yaml"), _last_start(run_dir / "environment.jsonl")
    with safe_open(model, "pt") as file:
        parameters = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    raw = weights == "model"
    told = {
        "what": "The weights as trained" if raw else "An average of the weights",
        "weights": f"`{weights}`",
        "parameters": parameters,
        "averaged": "no" if raw else f"{state['ema_updates']:,} updates; ema: {config['ema']}",
        "data": "\n".join(f"| data | {place}, fingerprint {told} |" for place, told in state["data"].items()),
        "git": start.get("git") or "unknown",
        "changed": f" and {n} changed files" if (n := len(start.get("changed_files", []))) else "",
        "code": start.get("code", "unknown"),
        "torch": start.get("packages", {}).get("torch", "unknown"),
        "devices": ", ".join(dict.fromkeys(start.get("devices", ["unknown"]))),
    }
    return state | config | told


def _config(path: Path) -> dict[str, str]:
    """What the model card says of the configuration."""
    try:
        config = OmegaConf.to_container(OmegaConf.load(path))
        return {
            "stage": "super-resolution UNet" if config["model"]["lowres"] else "base UNet",
            "network": TITLES[config["model"].get("network", "parallel_unet")],
            "size": "x".join(str(side) for side in config["model"]["image_size"]),
            "prediction": config["diffusion"]["prediction"],
            "ema": json.dumps(config["ema"]),
        }
    except (OmegaConfBaseException, YAMLError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the configuration of a run ({' '.join(str(error).split())})") from error


def _last_start(path: Path) -> dict[str, Any]:
    """What RUN/environment.jsonl says of the last start; empty where it says nothing."""
    try:
        told = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
        return told if isinstance(told, dict) else {}
    except (OSError, ValueError, IndexError):
        return {}
