"""Says what is wrong with a run before GPU hours are spent, on a machine that needs no GPU.

    python -m launch.doctor configs/base_unet.yaml --nodes 2 --gpus-per-node 8 --gpu h100
    python -m launch.doctor configs/base_unet.yaml --gpu h100 --slurm slurm/base_unet.sh

One line a check: what, figure, and ok, warning or error; the remedy names file and key.  Exit status 0 when nothing is
wrong but warnings, 1 after errors (with --strict after warnings too), 2 when the command itself is.
"""

import argparse
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from data.dataset import ShardedDataset
from data.loader import Layout
from data.mixture import Mixture
from data.pipes import Pipes
from launch.deadlines import check_signal, check_waits
from launch.duration import (
    best_speed,
    check_time,
    checkpoint_bytes,
    checkpoint_seconds,
    restart_seconds,
    snapshots_to_come,
)
from launch.findings import Finding, refused, shown, verdict, write_json
from launch.gpus import find_gpu
from launch.memory import GIB, MemoryModel, check_host, check_memory
from launch.rehearsal import dry_run, missing_positions, real_step
from launch.slurm_script import SlurmScript, check_script, read_slurm_script
from training.config import STAGES, Config, load_config
from training.config import parser as config_parser
from training.fit import accumulation_of
from training.start import cut_batch, open_data

SAMPLED = 16  # shards of which a sample is read


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    options, rest = _options(argv)
    findings = []
    for finding in examine(options, rest):
        findings.append(finding)
        print(shown(finding), flush=True)
    print(verdict(findings))
    if options.json:
        write_json(findings, options.json)
    worst = {finding.status for finding in findings}
    return int("error" in worst or (options.strict and "warning" in worst))


def examine(options: argparse.Namespace, words: list[str]) -> Iterator[Finding]:
    """Every check in turn; words are a training script's arguments."""
    script: SlurmScript | None = options.slurm
    arguments = config_parser("").parse_intermixed_args(words)
    default = script.config if script else Path(STAGES[128])
    named = [word for word in arguments.words if "=" not in word]
    path = Path(named[0] if named else STAGES.get(arguments.stage, default))
    try:
        config = load_config([*(script.words if script else []), *words], default=str(default))
    except ValueError as error:
        for line in str(error).splitlines():
            yield refused("config", ValueError(line))
        return
    yield Finding("config", f"{path} with {config.run.dir} as run folder")
    failed = False
    for finding in _examine(config, path, script, options):
        failed = failed or finding.status == "error"
        yield finding
    if options.skip_step:
        return
    if failed:
        yield Finding("one real step", "not made: an earlier check failed")
        return
    yield from _step(config)


def _examine(config: Config, path: Path, script: SlurmScript | None, options: argparse.Namespace) -> Iterator[Finding]:
    nodes, gpus = options.nodes or 1, options.gpus_per_node or 1
    if script:
        yield from check_script(script, path, config.data.num_workers)
        asked = {"nodes": (options.nodes, script.nodes), "gpus-per-node": (options.gpus_per_node, script.gpus_per_node)}
        for name, (here, there) in asked.items():
            if here is not None and here != there:
                told = f"--{name} {here} here, {there} in {script.path}"
                yield Finding("layout", told, "error", f"leave --{name} out, or change the script")
        nodes, gpus = script.nodes, script.gpus_per_node or gpus
    yield from _check_packages(config)
    num_ranks = nodes * gpus
    try:
        train = cut_batch(config.train, num_ranks, num_ranks)
        accumulation = accumulation_of(config.model_copy(update={"train": train}), num_ranks)
    except ValueError as error:
        yield refused("global batch", error)
        yield Finding("memory, time", "not estimated: they need a batch that divides")
        return
    config = config.model_copy(update={"train": train})
    layout = Layout(train.global_batch, num_ranks=num_ranks, num_micro_batches=accumulation)
    micro = "micro-batch" if accumulation == 1 else "micro-batches"
    told = f"{train.global_batch} = {nodes} x {gpus} GPUs x {accumulation} {micro} of {layout.micro_batch}"
    told += " at most" * (config.engine.micro_batch == "auto")
    yield Finding("global batch", told)
    try:
        config, dataset, held_out = open_data(config)
        if isinstance(dataset, Pipes):
            yield Finding("shards", "a pipe: read without order, never looked into before training", "warning",
                          "use a folder, or an https://, s3:// or gs:// URL")  # fmt: skip
        else:
            yield from _check_data(config, dataset, held_out)
    except ValueError as error:
        yield refused("shards", error)
    if config.model.image_size is None:
        yield Finding("memory, time", "not estimated: model.image_size=null asks the shards for it")
        return
    memory = MemoryModel(config, num_ranks)
    yield from check_memory(memory, layout, options.gpu)
    checkpoint = checkpoint_bytes(config, memory.num_parameters)
    yield from check_host(memory, gpus, checkpoint)
    yield _check_disk(config, checkpoint, 4.0 * memory.num_parameters)
    checkpoint_s = checkpoint_seconds(checkpoint, options.disk_mb_per_s)
    restart_s = restart_seconds(checkpoint, options.disk_mb_per_s)
    speed = best_speed(config, num_ranks, options.samples_per_s, options.gpu)
    yield from check_time(config, speed, num_ranks, options.price_per_gpu_hour, script, restart_s)
    step_s = train.global_batch / speed.samples_per_s if speed else None
    yield from check_waits(config.distributed, step_s, checkpoint_s)
    if script:
        yield from check_signal(script, step_s, checkpoint_s, restart_s)
    yield _rehearsed(config, layout)


def _check_packages(config: Config) -> Iterator[Finding]:
    """Those that the config needs and not every run has, looked for where the doctor runs, without importing them."""
    stage, needed = config.engine.zero_stage, {}
    if stage is not None:
        needed["deepspeed"] = f"engine.zero_stage={stage}", "engine.zero_stage=null"
    if config.optim.name == "adamw8bit":
        needed["bitsandbytes"] = "optim.name=adamw8bit", "optim.name=adamw"
    if config.log.wandb != "off":
        needed["wandb"] = f"log.wandb={config.log.wandb}", "log.wandb=off"
    for package, (key, without) in needed.items():
        if importlib.util.find_spec(package):
            yield Finding("packages", f"{package}, for {key}, is here, where the doctor runs")
        else:
            told = f"{package}, for {key}, is not here, where the doctor runs"
            yield Finding("packages", told, "error", f"pip install {package}, here and on every node; or use {without}")


def _check_data(config: Config, dataset: Mixture, held_out: ShardedDataset | None) -> Iterator[Finding]:
    for key, data in (*(("data.shards", part) for part in dataset.parts), ("data.val_shards", held_out)):
        if data is None:
            yield Finding("held-out shards", f"{key}=null: no validation loss")
            continue
        try:
            _read_some(data)
        except (ValueError, OSError) as error:
            yield refused("shards", ValueError(f"{key}: {error}"))
            continue
        size = "x".join(map(str, data.image_size))
        shards = f"{len(data.shards)} shard{'s' * (len(data.shards) > 1)}"
        told = f"{len(data):,} samples of {size} in {shards} of {data.folder}"
        if key == "data.shards":
            epochs = config.train.num_steps * config.train.global_batch * dataset.share(data) / len(data)
            yield Finding(
                "shards", f"{told}: {epochs:,.3g} epochs" if epochs < 1e3 else f"{told}: {epochs:,.0f} epochs"
            )
        elif data.fingerprint in {part.fingerprint for part in dataset.parts}:
            told = f"{data.folder} holds the training samples themselves"
            yield Finding("held-out shards", told, "warning", "name other shards as data.val_shards")
        else:
            yield Finding("held-out shards", told)


def _read_some(dataset: ShardedDataset) -> None:
    """Reads the first sample of some shards and the very last one.  Raises ValueError when one is damaged."""
    firsts = dataset.first_id[:-1]
    for sample_id in [*firsts[:: max(1, len(firsts) // SAMPLED)], len(dataset) - 1]:
        dataset.read(int(sample_id))


def _check_disk(config: Config, checkpoint: float, average: float) -> Finding:
    """checkpoint, average: bytes of one."""
    folder = Path(config.run.dir).absolute()
    there = len(list(folder.glob("checkpoints/step_*")))
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        return Finding("disk", f"{folder} cannot be written", "error", "choose another run.dir (--logdir)")
    missing = max(1, config.checkpoint.keep + 1 - there)
    size, free = checkpoint / GIB, shutil.disk_usage(folder).free / GIB
    num, lengths = snapshots_to_come(config), len(config.ema.power)
    stored = num * lengths * average / GIB
    files = f" with {len(config.ema.profiles())} averages" if len(config.ema.profiles()) > 1 else ""
    told = f"{missing * size:,.1f} GiB for {missing} checkpoints of {size:,.1f}{files}, "
    if num:
        told += f"{stored:,.1f} for {num} x {lengths} stored averages of {average / GIB:,.1f}, "
    told += f"{free:,.1f} GiB free in {folder}"
    if missing * size + stored <= free:
        return Finding("disk", told)
    fewer = " raise ema.snapshot_every," * bool(num)
    return Finding("disk", told, "error", f"choose another run.dir, lower checkpoint.keep,{fewer} or free space there")


def _rehearsed(config: Config, layout: Layout) -> Finding:
    if wrong := missing_positions(layout):
        return Finding("dry run", f"stream position {wrong[0]} is not taken exactly once", "error", "report this fault")
    try:
        dry_run(config, layout.num_ranks)
    except ValueError as error:
        return refused("dry run", error)
    last = f"the last of {layout.num_ranks} ranks" if layout.num_ranks > 1 else "only rank"
    zero = "" if config.engine.zero_stage is None else "; DeepSpeed's ZeRO itself is not rehearsed"
    return Finding("dry run", f"a DDP step of a toy network as the first and {last}{zero}")


def _step(config: Config) -> Iterator[Finding]:
    try:
        real_step(config)
    except ValueError as error:
        yield refused("one real step", error)
        return
    yield Finding("one real step", "toy network, your shards: step, validation, preview, checkpoint")


def _options(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The doctor's own options, and the words that are a training script's."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.doctor",
        usage="%(prog)s [CONFIG.yaml] [key=value ...] [options]",
        description=__doc__.partition("\n")[0],
        epilog="CONFIG.yaml, key=value, -b, -e, -d, --use_mix_precision and --logdir are those of the training scripts",
        allow_abbrev=False,
    )
    parser.add_argument("--nodes", type=_count, metavar="N", help="machines of the run; default: 1, or --slurm's")
    parser.add_argument("--gpus-per-node", type=_count, metavar="N", help="GPUs of each; default: 1, or --slurm's")
    parser.add_argument("--gpu", type=_gpu, metavar="NAME", help="which GPU, such as h100; launch/gpus.py knows them")
    parser.add_argument("--slurm", type=_script, metavar="FILE", help="the batch script, such as slurm/base_unet.sh")
    parser.add_argument("--samples-per-s", type=_amount, metavar="X", help="the speed of all GPUs together, if known")
    parser.add_argument("--price-per-gpu-hour", type=_amount, metavar="Y", help="for the cost, in any currency")
    parser.add_argument("--disk-mb-per-s", type=_amount, default=200.0, metavar="X", help="of run.dir; default 200")
    parser.add_argument("--skip-step", action="store_true", help="make no real step on the CPU")
    parser.add_argument("--strict", action="store_true", help="exit status 1 after warnings too")
    parser.add_argument("--json", type=_new_file, metavar="FILE", help="write the lines there too, as JSON")
    return parser.parse_known_args(argv)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return int(text)


def _amount(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return value


def _gpu(name: str) -> str:
    try:
        find_gpu(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return name


def _script(text: str) -> SlurmScript:
    try:
        return read_slurm_script(Path(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _new_file(text: str) -> Path:
    if not Path(text).absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: its folder does not exist")
    return Path(text)


if __name__ == "__main__":
    sys.exit(main())
