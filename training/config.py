"""One run's configuration: defaults < YAML file < key=value on the command line.

Each part lives with its owner; this file composes them, reads them and says what is wrong with them.
"""

import argparse
import difflib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import PydanticUndefined
from yaml import YAMLError

from data.mixture import DataConfig
from data.schema import IMAGES
from model.diffusion import DiffusionConfig
from model.losses import LossConfig
from model.networks import NETWORKS, AnyNetworkConfig
from model.parallel_unet import ParallelUNetConfig
from model.sampler import SamplerConfig
from training.checkpoint import CheckpointConfig
from training.distributed import DistributedConfig
from training.ema import EMAConfig
from training.engine import EngineConfig
from training.log import LogConfig
from training.optim import OptimConfig

STAGES = {128: "configs/base_unet.yaml", 256: "configs/sr_unet.yaml", 1024: "configs/sr_1024.yaml"}
HOME = Path(__file__).parent.parent


class RunConfig(BaseModel, extra="forbid", frozen=True):
    dir: str = Field("runs/base_unet", description="the run folder; the same command continues what it holds")


class TrainConfig(BaseModel, extra="forbid", frozen=True):
    num_steps: int = Field(500_000, ge=1, description="optimizer steps of the whole run")
    num_epochs: float | None = Field(None, gt=0, description="passes over the data; replaces num_steps when given")
    global_batch: int = Field(256, ge=1, description="samples of one optimizer step over all ranks")
    micro_batch: int | None = Field(
        None, ge=1, description="samples per device and pass; when given, global_batch follows from it and the ranks"
    )
    accumulation: int = Field(1, ge=1, description="micro-batches of one optimizer step on each rank")
    overfit_one_batch: bool = Field(False, description="train on the first global batch only: a sanity check")
    max_nonfinite: int = Field(10, ge=1, description="steps in a row with a non-finite gradient before the run stops")


class Config(BaseModel, extra="forbid", frozen=True):
    seed: int = Field(0, ge=0, lt=2**63, description="order, noise, timesteps, dropout, augmentation, initial weights")
    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    model: AnyNetworkConfig = ParallelUNetConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    loss: LossConfig = LossConfig()
    sampler: SamplerConfig = SamplerConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    ema: EMAConfig = EMAConfig()
    engine: EngineConfig = EngineConfig()
    distributed: DistributedConfig = DistributedConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()

    @property
    def training_size(self) -> tuple[int, int] | None:
        """(height, width) of what training sees; None: that of the shards, which nobody has looked at."""
        return self.data.crop_size or self.model.image_size

    @property
    def num_images(self) -> int:
        """How many of a sample's images the network is told or shown: of a network without try-on, the person alone."""
        return len(IMAGES) if self.model.tries_on else 1

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        engine, train, depth = self.engine, self.train, len(self.model.channels)
        levels = engine.activation_checkpointing
        if not isinstance(levels, bool) and (unknown := [level for level in levels if level >= depth]):
            raise ValueError(
                f"engine.activation_checkpointing={list(levels)}: the network has no level {unknown[0]}; name some of "
                f"{list(range(depth))}, 0 is the finest, or true for all"
            )
        for told in _against_the_network(self):
            raise ValueError(told)
        if self.optim.name == "adamw8bit" and engine.zero_stage is not None:
            raise ValueError(
                f"optim.name=adamw8bit does not go with engine.zero_stage={engine.zero_stage}, which shares Adam's "
                "moments out; use optim.name=adamw, or engine.zero_stage=null"
            )
        if self.loss.kind != "mse" and self.diffusion.min_snr_gamma is not None:
            raise ValueError(
                f"diffusion.min_snr_gamma={self.diffusion.min_snr_gamma} weighs squared errors, and loss.kind="
                f"{self.loss.kind} has others; use loss.kind=mse, or diffusion.min_snr_gamma=null"
            )
        if (size := self.training_size) and (wrong := self.loss.wrong_size(size)):
            raise ValueError(wrong)
        for key, value, unset in [("micro_batch", train.micro_batch, None), ("accumulation", train.accumulation, 1)]:
            if engine.micro_batch is not None and value != unset:
                raise ValueError(
                    f"engine.micro_batch={engine.micro_batch} and train.{key}={value} both say how a batch is cut; "
                    "leave one out"
                )
        return self


def _against_the_network(config: Config) -> Iterator[str]:
    """What does not go with the stage's network, each with the remedy."""
    model, crop, augment = config.model, config.data.crop_size, config.data.augment
    if model.tries_on:
        if crop:
            yield (
                f"data.crop_size={list(crop)}: a network that sees person and garment must see them whole; use "
                "data.crop_size=null, or model.network=efficient_unet"
            )
        return
    if crop and (wrong := model.wrong_size(crop)):
        yield f"data.crop_size: {wrong}"
    if crop and model.image_size and any(part > side for part, side in zip(crop, model.image_size, strict=True)):
        yield (
            f"data.crop_size={list(crop)}: larger than model.image_size={list(model.image_size)}; use a smaller crop, "
            "or null for whole images"
        )
    if config.sampler.guidance_scale != 1:
        yield (
            f"sampler.guidance_scale={config.sampler.guidance_scale}: {model.network} is told nothing that guidance "
            "could drop; use sampler.guidance_scale=1"
        )
    for key, prob, why in (
        ("person", augment.person.prob, "resampling blurs the detail that this network is to learn, crops shift"),
        ("garment", augment.garment.prob, f"{model.network} sees no garment"),
        ("occlusion", augment.occlusion.prob, f"{model.network} sees no garment"),
    ):
        if prob:
            yield f"data.augment.{key}.prob={prob}: {why}; use data.augment.{key}.prob=0"


def load_config(argv: list[str], default: str = STAGES[128], summary: str = "") -> Config:
    """The configuration that a training script's arguments ask for.

    Raises ValueError naming every unknown key with its nearest known one, and every value that cannot be.
    """
    arguments = parser(summary).parse_intermixed_args(argv)
    files = [word for word in arguments.words if "=" not in word]
    for word in files:
        if not word.endswith((".yaml", ".yml")):
            raise ValueError(f"{word!r}: expected key=value or a config file, CONFIG.yaml")
    if len(files) > 1:
        raise ValueError(f"{len(files)} config files named ({', '.join(files)}); one is read, the rest are key=value")
    if files and arguments.stage:
        raise ValueError(f"-d {arguments.stage} chooses {STAGES[arguments.stage]}, but {files[0]} is named too")
    path = Path(files[0]) if files else HOME / STAGES.get(arguments.stage, default)
    short = {
        "train.micro_batch": arguments.batch,
        "train.num_epochs": arguments.epochs,
        "run.dir": None if arguments.logdir is None else json.dumps(arguments.logdir),  # quoted: 2024 is a name too
        "engine.precision": "bf16" if arguments.use_mix_precision else None,
    }
    overrides = [f"{key}={value}" for key, value in short.items() if value is not None]
    return read_config(path, overrides + [word for word in arguments.words if "=" in word])


def read_config(path: Path, overrides: list[str] | None = None) -> Config:
    """The configuration of a YAML file with key=value overrides."""
    if not path.is_file() and (HOME / path).is_file():
        path = HOME / path
    if not path.is_file():
        known = ", ".join(sorted(f"configs/{file.name}" for file in (HOME / "configs").glob("*.yaml")))
        raise ValueError(f"{path}: no such config file; the project has {known}")
    try:
        merged = OmegaConf.load(path)
        if not isinstance(merged, DictConfig):
            raise ValueError("not a mapping of keys to values")
    except (OmegaConfBaseException, YAMLError, ValueError, OSError) as error:
        raise ValueError(f"{path}: not a readable config ({' '.join(str(error).split())})") from error
    for word in overrides or []:
        if not all(word.partition("=")[0].split(".")):
            raise ValueError(f"{word!r} on the command line: expected key=value, as in optim.lr=2e-4")
        try:
            merged = OmegaConf.merge(merged, OmegaConf.from_dotlist([word]))
        except (OmegaConfBaseException, YAMLError, AttributeError, TypeError) as error:
            raise ValueError(f"{word!r} on the command line: {' '.join(str(error).split())}") from error
    try:
        values = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
    return validate(values, f"{path} with the command line" if overrides else str(path))


def validate(values: Any, origin: str) -> Config:
    """Plain values -> Config, in strict JSON types: a number is no string, true is no number, infinity none either."""
    for key, value in flat(values):
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{origin}: {key}={json.dumps(value)}: input should be a finite number")
    try:
        return Config.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        told = dict.fromkeys(_explain(problem) for problem in error.errors())
        raise ValueError("\n".join(f"{origin}: {line}" for line in told)) from None


def save_config(config: Config, path: Path) -> None:
    """Writes the resolved configuration as YAML, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(OmegaConf.to_yaml(OmegaConf.create(config.model_dump(mode="json"))), encoding="utf-8")
    partial.replace(path)


def keys(
    model: type[BaseModel] = Config, prefix: str = "", network: str = "parallel_unet"
) -> Iterator[tuple[str, Any, str]]:
    """(dotted key, default, description) of every key, with those of one network."""
    for name, field in model.model_fields.items():
        part = NETWORKS[network] if (model, name) == (Config, "model") else field.annotation
        if isinstance(part, type) and issubclass(part, BaseModel):
            yield from keys(part, f"{prefix}{name}.")
        else:
            default = None if field.default is PydanticUndefined else field.default
            yield f"{prefix}{name}", default, field.description or ""


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """The keys in which two configurations differ, with both values."""
    before, after = (dict(flat(config.model_dump(mode="json"))) for config in (old, new))
    return {key: (before[key], after[key]) for key in after if before[key] != after[key]}


def flat(values: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of nested mappings."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def parser(summary: str) -> argparse.ArgumentParser:
    known = "\n".join(f"  {key + '=' + _shown(default):44} {text}" for key, default, text in keys())
    other = ", ".join(key for key, _, _ in keys(network="efficient_unet") if key.startswith("model."))
    result = argparse.ArgumentParser(
        usage="%(prog)s [CONFIG.yaml] [key=value ...] [-b N] [-e N] [-d 128|256|1024] [--use_mix_precision] "
        "[--logdir DIR]",
        description=summary,
        epilog=f"every key with its default:\n{known}\n\nmodel.network=efficient_unet has only {other}; "
        "configs/sr_1024.yaml gives them",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("words", nargs="*", metavar="CONFIG.yaml | key=value", help="see the keys below")
    result.add_argument("-b", dest="batch", type=int, metavar="N", help="batch per GPU: train.micro_batch")
    result.add_argument("-e", dest="epochs", type=float, metavar="N", help="epochs: train.num_epochs")
    result.add_argument("-d", dest="stage", type=int, choices=STAGES, help="which UNet: its config in configs/")
    result.add_argument("--use_mix_precision", action="store_true", help="engine.precision=bf16")
    result.add_argument("--logdir", metavar="DIR", help="run.dir")
    return result


def _shown(value: Any) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool | tuple) else str(value)


def _explain(problem: Any) -> str:
    shards = problem["loc"][:2] == ("data", "shards")
    if shards and problem["type"] != "value_error":  # pydantic says it for each kind that it may be
        return f"data.shards={json.dumps(problem['input'], default=str)}: should be a folder, a URL, or a list of them"
    (first, *rest), network = problem["loc"] or ("",), "parallel_unet"
    if first == "model" and rest:  # pydantic says first which of the networks it is
        network, *rest = rest
    key = ".".join(str(part) for part in (first, *rest))
    if problem["type"] == "union_tag_invalid":
        return f"model.network={problem['ctx']['tag']}: should be one of {', '.join(NETWORKS)}"
    if problem["type"] == "extra_forbidden":
        known = [name for name, _, _ in keys(network=network)] + list(Config.model_fields)
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        near = near or [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]][:1]
        return f"unknown key {key!r}" + (f"; the nearest is {near[0]!r}" if near else "; --help lists all keys")
    message = problem["msg"].removeprefix("Value error, ")
    value = "" if isinstance(problem["input"], dict) else f"={json.dumps(problem['input'], default=str)}"
    if message[1:2].islower() and not any(letter.isupper() for letter in message.split()[0][1:]):
        message = message[:1].lower() + message[1:]
    return f"{key}{value}: {message}" if key else message
