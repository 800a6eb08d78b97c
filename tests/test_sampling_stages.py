"""Folders of stages are found, put in order, and refused where they cannot be a cascade."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cascades import SIZES, write_cascade, write_stage
from sampling.stages import find_stages, load, weights_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return write_cascade(tmp_path_factory.mktemp("made") / "cascade")


@pytest.fixture
def cascade(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "cascade"))


def names(*places: Path) -> list[str]:
    return [stage.name for stage in find_stages(places)]


def test_stages_are_found_in_a_folder_or_one_by_one(cascade):
    (cascade / "samples").mkdir()
    assert names(cascade) == list(SIZES)
    assert names(cascade / "sr_1024", cascade / "sr_unet") == ["sr_unet", "sr_1024"]
    assert names(cascade / "sr_unet") == ["sr_unet"]
    exported = cascade / "base_unet" / "export"
    shutil.copytree(cascade / "base_unet", exported)
    assert names(exported, cascade / "sr_unet") == ["base_unet", "sr_unet"], "RUN/export is named after RUN"


def test_keys_are_for_all_stages_or_for_one(cascade):
    words = ["sampler.num_steps=7", "sr_unet.sampler.num_steps=9", "sr_unet.sampler.method=ddim"]
    samplers = [stage.config.sampler for stage in find_stages([cascade], words)]
    assert [sampler.num_steps for sampler in samplers] == [7, 9, 7]
    assert [sampler.method for sampler in samplers] == ["ddpm", "ddim", "ddpm"]


def refusal(*places: Path, words: tuple[str, ...] = ()) -> str:
    with pytest.raises(ValueError) as error:
        find_stages(places, words)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_does_not_chain_is_refused(cascade, tmp_path):
    assert "takes those of 16x16; a stage is missing" in refusal(cascade / "base_unet", cascade / "sr_1024")
    write_stage(cascade / "other", 16, model__lowres=True)
    assert "both make images of 16x16; leave one out" in refusal(cascade)
    shutil.rmtree(cascade / "other")
    said = refusal(cascade, cascade / "sr_unet")
    assert "several stages are named sr_unet; leave out all but one" in said
    assert "sampler.guidance_scale=1" in refusal(cascade, words=("sampler.guidance_scale=2",))
    assert "config.yaml: missing; name a run folder" in refusal(tmp_path / "nowhere")
    assert "'base.sampler.num_steps=2': base is neither a stage (base_unet, sr_1024, sr_unet) nor" in refusal(
        cascade, words=("base.sampler.num_steps=2",)
    )
    (cascade / "sr_unet/config.yaml").write_text("model: [")
    assert f"{cascade / 'sr_unet/config.yaml'}: not a readable config" in refusal(cascade)


def test_weights_by_stage(cascade):
    stages = find_stages([cascade])
    assert weights_of([], stages) == dict.fromkeys(SIZES, "ema")
    assert weights_of(["model", "sr_unet=x.safetensors"], stages)["sr_unet"] == "x.safetensors"
    assert weights_of(["x.safetensors"], stages[:1]) == {"base_unet": "x.safetensors"}
    with pytest.raises(ValueError, match=r"of which stage\? write --weights base_unet=x.safetensors"):
        weights_of(["x.safetensors"], stages)


def test_what_is_loaded_is_what_the_file_holds(cascade):
    (trained,) = find_stages([cascade / "sr_unet"])
    stage, crc = load(trained, "ema", CPU)
    file = cascade / "sr_unet/model.safetensors"
    values = load_file(file)
    assert all(p.equal(values[name]) for name, p in stage.net.model.named_parameters())
    trained.config.model.build().load_state_dict(stage.net.model.state_dict())  # the keys carry over as they are
    name = next(iter(values))
    values[name].view(-1)[0] += 1e-3
    save_file(values, file)
    assert load(trained, "ema", CPU)[1] != crc
    values[name].view(-1)[0] = float("nan")
    save_file(values, file)
    with pytest.raises(ValueError, match=rf"model.safetensors: {name} holds values that are not finite; sample an"):
        load(trained, "ema", CPU)
    del values[name]
    save_file(values, file)
    with pytest.raises(ValueError, match="another architecture"):
        load(trained, "ema", CPU)
    file.unlink()
    with pytest.raises(ValueError, match=r"sr_unet: no whole checkpoint \(training has not written one yet\)"):
        load(trained, "ema", CPU)
    file.write_bytes(b"\x80\x04no tensors")
    with pytest.raises(ValueError, match=r"pickle|not a readable"):
        load(trained, "ema", CPU)


def test_precision_that_the_device_lacks(cascade):
    (trained,) = find_stages([cascade / "sr_unet"], ["engine.precision=fp16"])
    with pytest.raises(ValueError, match=r"engine\.precision=fp16: not on a CPU; use bf16 or fp32"):
        load(trained, "ema", CPU)
