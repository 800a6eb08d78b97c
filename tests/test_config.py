import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from model.efficient_unet import EFFICIENT_UNET
from model.parallel_unet import BASE_UNET, SR_UNET
from runs import HOME
from training import config as owner
from training.config import Config, differences, keys, load_config, read_config, save_config

CONFIGS = sorted((HOME / "configs").glob("*.yaml"))


@pytest.fixture
def yaml(tmp_path):
    """text -> the path of a YAML file that holds it."""

    def write(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(yaml):
    path = yaml("seed: 3\noptim:\n  lr: 1e-4\n  warmup_steps: 7\n")
    config = load_config([str(path), "optim.warmup_steps=9", "optim.betas=[0.5, 0.6]"])
    assert (config.seed, config.optim.lr, config.optim.warmup_steps) == (3, 1e-4, 9)
    assert config.optim.betas == (0.5, 0.6) and config.train.global_batch == Config().train.global_batch


def test_numbers_as_people_write_them_are_numbers(yaml):
    path = yaml("optim: {lr: 1e-4, eps: 1E-8}\nema: {decay: 0}\n")
    config = load_config([str(path), "optim.weight_decay=2e-2"])
    assert (config.optim.lr, config.optim.eps, config.optim.weight_decay, config.ema.decay) == (1e-4, 1e-8, 0.02, 0.0)


@pytest.mark.parametrize(
    "word, said",
    [
        ("optim.lrr=1", "unknown key 'optim.lrr'; the nearest is 'optim.lr'"),
        ("trian.num_steps=5", "unknown key 'trian'; the nearest is 'train'"),
        ("num_steps=5", "the nearest is 'train.num_steps'"),
        ("optimizer.lr=5", "the nearest is 'optim'"),
        ("train.num_steps=ten", 'train.num_steps="ten": input should be a valid integer'),
        ("train.num_steps=1.5", "train.num_steps=1.5"),
        ("train.num_steps=true", "train.num_steps=true"),
        ("train.num_steps=", "train.num_steps="),
        ("train.num_steps='5'", 'train.num_steps="5"'),
        ("train.num_steps=[5]", "train.num_steps=[5]"),
        ("optim.lr=true", "optim.lr=true"),
        ("optim.lr=fast", 'optim.lr="fast"'),
        ("optim.lr=0", "optim.lr=0: input should be greater than 0"),
        ("optim.lr=.inf", "optim.lr=Infinity"),
        ("optim.lr=.nan", "optim.lr=NaN"),
        ("optim.betas=[0.9]", "optim.betas"),
        ("train.overfit_one_batch=1", "train.overfit_one_batch=1"),
        ("ema.decay=1", "ema.decay=1: input should be less than 1"),
        ("seed=-1", "seed=-1"),
        ("engine.precision=fp8", "engine.precision=\"fp8\": input should be 'fp32', 'bf16' or 'fp16'"),
        ("run.dir=7", "run.dir=7"),
        ("model.channels=[8, wide]", 'model.channels.1="wide"'),
        ("model.num_blocks=[1]", "model: num_blocks: (1,) has 1 entries"),
        ("train=5", "train=5"),
        ("=5", "'=5'"),
        ("train..num_steps=5", "'train..num_steps=5' on the command line: expected key=value"),
        ("train.num_steps.more=5", "train.num_steps"),
        ("run.dir=${nowhere}", "nowhere"),
        ("train.num_steps=[1", "train.num_steps"),
    ],
)
def test_what_cannot_be_is_refused_by_its_key(yaml, word, said):
    with pytest.raises(ValueError) as refusal:
        load_config([str(yaml("{}")), word])
    assert said in str(refusal.value) and len(str(refusal.value)) < 300
    assert "run.yaml" in str(refusal.value) or "command line" in str(refusal.value)


def test_all_problems_of_a_file_come_at_once(yaml):
    with pytest.raises(ValueError) as refusal:
        read_config(yaml("optim: {lrr: 1}\ntrain: {num_steps: 0}\n"))
    lines = str(refusal.value).splitlines()
    assert len(lines) == 2 and all("run.yaml: " in line for line in lines)


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", "5", "seed: 1\nseed: 2\n", "a: \x00"])
def test_a_file_that_is_no_config_is_named(yaml, text):
    with pytest.raises(ValueError, match=r"run\.yaml: not a readable config"):
        read_config(yaml(text))


def test_an_empty_file_is_all_defaults(yaml):
    assert read_config(yaml("")) == Config()


def test_a_missing_file_names_those_there_are(tmp_path):
    with pytest.raises(ValueError, match=r"none\.yaml: no such config file; the project has .*configs/demo\.yaml"):
        load_config([str(tmp_path / "none.yaml")])
    with pytest.raises(ValueError, match="2 config files named"):
        load_config(["a.yaml", "b.yaml"])
    with pytest.raises(ValueError, match="-d 128 chooses"):
        load_config(["-d", "128", "a.yaml"])


def test_short_flags_mean_what_they_meant(yaml):
    path = str(yaml("{}"))
    config = load_config([path, "-b", "3", "-e", "1.5", "--use_mix_precision", "--logdir", "2024", "seed=4"])
    assert (config.train.micro_batch, config.train.num_epochs, config.run.dir) == (3, 1.5, "2024")
    assert config.engine.precision == "bf16" and config.seed == 4
    assert load_config(["-b", "3", path, "seed=4", "--logdir", r"C:\runs\a: b"]).run.dir == r"C:\runs\a: b"
    assert load_config([]).model.image_size == load_config(["-d", "128"]).model.image_size == (128, 128)
    for stage in (256, 1024):
        assert load_config(["-d", str(stage), "run.dir=x"]).model.image_size == (stage, stage)
    with pytest.raises(ValueError, match=r"train\.micro_batch=0"):
        load_config([path, "-b", "0"])


def test_help_lists_every_key_with_its_default_in_every_script():
    for script in ("train_single.py", "train_dp.py", "train_ddp.py"):
        source = (HOME / script).read_text()
        assert "load_config(sys.argv[1:], summary=__doc__)" in source, "all three read the same command line"
    helped = subprocess.run([sys.executable, "train_ddp.py", "--help"], cwd=HOME, capture_output=True, text=True)
    assert helped.returncode == 0 and "torchrun --nproc_per_node" in helped.stdout
    rows = dict(re.findall(r"^  ([a-z_.]+)=(.*?)  ", helped.stdout, re.MULTILINE))
    for key, default, description in keys():
        assert key in rows and description and f"  {description}" in helped.stdout, key
        assert rows[key].strip() in (str(default), json.dumps(default)), key
    for flag in ("-b N", "-e N", "-d {128,256,1024}", "--use_mix_precision", "--logdir DIR"):
        assert flag in helped.stdout


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_of_the_project_is_valid_and_saved_as_it_is(path, tmp_path):
    config = load_config([str(path), "run.dir='1e-4'", "data.val_shards='null'", "optim.lr=1e-5"])
    save_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == config
    assert config.run.dir == "1e-4" and config.data.val_shards == "null"


def test_differences_name_the_key_and_both_values():
    one, other = (load_config(["configs/demo.yaml", f"optim.lr={lr}"]) for lr in (1.0, 5.0))
    assert differences(one, other) == {"optim.lr": (1.0, 5.0)}


def test_the_paper_recipe():
    config = load_config([], default=owner.STAGES[128])
    train, optim = config.train, config.optim
    assert (train.global_batch, train.num_steps, optim.warmup_steps, optim.lr) == (256, 500_000, 10_000, 1e-4)
    assert config.diffusion.cond_drop_prob == 0.1


@pytest.mark.parametrize(
    ("name", "model"), [("base_unet", BASE_UNET), ("sr_unet", SR_UNET), ("sr_1024", EFFICIENT_UNET)]
)
def test_the_stages_configs_are_the_papers_networks(name, model):
    assert read_config(HOME / f"configs/{name}.yaml").model == model
