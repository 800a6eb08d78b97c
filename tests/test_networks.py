"""The key model.network says which keys the model has; messages and --help name keys, never what tells them apart."""

import pytest

from launch import doctor
from model.efficient_unet import EfficientUNetConfig
from model.parallel_unet import ParallelUNetConfig
from runs import HOME, empty_config
from training.config import Config, keys, load_config, read_config, save_config, validate

EFFICIENT = ["model.network=efficient_unet", "sampler.guidance_scale=1.0"]


def test_without_the_key_it_is_the_parallel_unet():
    """As configs were before there was another network."""
    values = Config().model_dump(mode="json")
    del values["model"]["network"]
    assert type(validate(values, "an old run").model) is ParallelUNetConfig


def test_the_last_stage_is_the_efficient_unet(tmp_path):
    config = load_config(["-d", "1024"])
    assert config.model == EfficientUNetConfig() and (config.training_size, config.num_images) == ((256, 256), 1)
    save_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("model.network=unet", "model.network=unet: should be one of parallel_unet, efficient_unet, concat_unet"),
        ("model.network=[1]", "model.network=[1]: should be one of parallel_unet, efficient_unet, concat_unet"),
        ("model=5", "model=5: input should be an object"),
        ("model.chanels=[8]", "unknown key 'model.chanels'; the nearest is 'model.channels'"),
        ("model.channels=[8, wide]", 'model.channels.1="wide"'),
        ("data.crop_size=[16, 16]", "data.crop_size=[16, 16]: a network that sees person and garment must see them"),
    ],
)
def test_wrong_keys_of_the_parallel_unet(tmp_path, word, said):
    with pytest.raises(ValueError) as refusal:
        load_config([str(empty_config(tmp_path)), word])
    assert str(refusal.value).splitlines() == [str(refusal.value)] and said in str(refusal.value)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("model.attention_levels=[1]", "unknown key 'model.attention_levels'; the nearest is 'model.channels'"),
        ("model.lowres=false", "model.lowres=false: input should be True"),
        ("data.crop_size=[264, 256]", "data.crop_size: (264, 256) is halved 4 times; use multiples of 16"),
        ("model.lowres_factor=3", "model: image_size: (1024, 1024) does not divide by lowres_factor=3"),
        ("data.crop_size=[2048, 256]", "data.crop_size=[2048, 256]: larger than model.image_size=[1024, 1024]"),
        ("data.crop_size=[0, 256]", "data.crop_size.0=0: input should be greater than 0"),
        ("sampler.guidance_scale=2", "sampler.guidance_scale=2.0: efficient_unet is told nothing that guidance could"),
        ("data.augment.person.prob=0.1", "data.augment.person.prob=0.1: resampling blurs"),
        ("data.augment.garment.prob=0.1", "data.augment.garment.prob=0.1: efficient_unet sees no garment"),
        ("data.augment.occlusion.prob=1", "use data.augment.occlusion.prob=0"),
        ("engine.activation_checkpointing=[4]", "the network has no level 4"),
    ],
)
def test_wrong_keys_of_the_efficient_unet(tmp_path, word, said):
    with pytest.raises(ValueError) as refusal:
        load_config([str(empty_config(tmp_path)), *EFFICIENT, word])
    assert str(refusal.value).splitlines() == [str(refusal.value)] and said in str(refusal.value)


def test_every_network_is_known_by_its_keys():
    for network in ("parallel_unet", "efficient_unet"):
        config = load_config(["-d", "1024"]) if network == "efficient_unet" else Config()
        assert {f"model.{name}" for name in type(config.model).model_fields} == {
            key for key, _, _ in keys(network=network) if key.startswith("model.")
        }
    assert (HOME / "slurm/sr_1024.sh").resolve() == HOME / "slurm/base_unet.sh"


def test_the_doctor_examines_and_rehearses_the_last_stage(shards, tmp_path, capsys):
    """One real step of the toy on crops of the run's own shards included."""
    told = ["data.crop_size=[16, 16]", "model.image_size=[32, 32]", f"data.shards={shards}", "train.global_batch=4"]
    told += ["model.channels=[8, 16]", "model.num_blocks=[1, 1]", "engine.device=cpu"]
    words = [*told, f"run.dir={tmp_path / 'run'}", f"data.val_shards={shards}"]
    status = doctor.main([str(HOME / "configs/sr_1024.yaml"), *words, "--gpu", "h100"])
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert "a DDP step of a toy network" in printed and "toy network, your shards" in printed
