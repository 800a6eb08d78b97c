"""Folders of stages are found, put in order, and refused where they cannot be a cascade."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cascades import SIZES, write_cascade, write_stage
from sampling import devices
from sampling.devices import Replicas
from sampling.stages import find_stages, load, weights_of
from training.engine import EngineConfig, lay_out

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


def test_keys_for_all_go_to_the_stages_that_can_use_them(cascade):
    words = ["sampler.guidance_scale=3", "sampler.tile_rows=8"]
    samplers = [stage.config.sampler for stage in find_stages([cascade], words)]
    assert [sampler.guidance_scale for sampler in samplers] == [3, 3, 1]
    assert [sampler.tile_rows for sampler in samplers] == [None, None, 8]
    last = cascade / "sr_1024"
    assert "could drop; use sampler.guidance_scale=1" in refusal(last, words=("sampler.guidance_scale=3",))
    assert "needs the whole image" in refusal(cascade / "base_unet", words=("sampler.tile_rows=8",))
    assert "needs the whole image" in refusal(cascade, words=("base_unet.sampler.tile_rows=8",))


def test_a_run_folder_may_be_named_as_a_part_of_a_config_is(cascade, tmp_path):
    (tmp_path / "run").symlink_to(cascade / "base_unet")
    (stage,) = find_stages([tmp_path / "run"], ["sampler.guidance_scale=3", "run.dir=elsewhere"])
    assert stage.config.sampler.guidance_scale == 3 and stage.config.run.dir == "elsewhere"


def test_a_stage_s_name_with_a_dot(cascade):
    (cascade / "sr_unet").rename(cascade / "sr_unet.v2")
    found = find_stages([cascade], ["sr_unet.v2.sampler.num_steps=9"])
    assert [stage.config.sampler.num_steps for stage in found] == [3, 9, 3]


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
    said = refusal(cascade, words=("sr_1024.sampler.guidance_scale=2",))
    assert "use sr_1024.sampler.guidance_scale=1" in said
    assert "config.yaml: missing; name a run folder" in refusal(tmp_path / "nowhere")
    assert "'base.sampler.num_steps=2': base is neither a stage (base_unet, sr_1024, sr_unet) nor" in refusal(
        cascade, words=("base.sampler.num_steps=2",)
    )
    (cascade / "sr_unet/config.yaml").write_text("model: [")
    assert f"{cascade / 'sr_unet/config.yaml'}: not a readable config" in refusal(cascade)


def test_weights_by_stage(cascade):
    stages = find_stages([cascade])
    assert weights_of([], stages) == dict.fromkeys(SIZES, "ema")
    assert weights_of(["x.safetensors"], stages[:1]) == {"base_unet": "x.safetensors"}
    for word, said in (
        ("x.safetensors", "of which stage? write --weights base_unet=x.safetensors"),
        ("sr_unett=model", "there is no stage sr_unett; there are base_unet, sr_unet, sr_1024"),
        ("sr_unet=model", "sr_unet is an exported folder, with model.safetensors alone; leave it out"),
        ("model", "base_unet is an exported folder"),
        ("sr_unet=", "names no weights"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            weights_of([word], stages)
    for name in ("base_unet", "sr_unet", "sr_1024"):
        (cascade / name / "model.safetensors").unlink()
    chosen = weights_of(["model", "sr_unet=a=b/x.safetensors"], stages)
    assert chosen == {"base_unet": "model", "sr_unet": "a=b/x.safetensors", "sr_1024": "model"}


def test_what_is_loaded_is_what_the_file_holds(cascade):
    (trained,) = find_stages([cascade / "sr_unet"])
    state = torch.get_rng_state()
    stage, crc = load(trained, "ema", CPU)
    assert torch.get_rng_state().equal(state), "no weights are drawn that are read then"
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
    with pytest.raises(
        ValueError, match=r"sr_unet: no whole checkpoint \(.*\), and no model.safetensors, which an exported"
    ):
        load(trained, "ema", CPU)
    file.write_bytes(b"\x80\x04no tensors")
    with pytest.raises(ValueError, match=r"pickle|not a readable"):
        load(trained, "ema", CPU)


def test_the_host_holds_one_stage_at_a_time(cascade, monkeypatch):
    """Replicas on devices without memory: what is loaded has left the host before the next stage is."""
    stages, there, made = find_stages([cascade]), [], []

    def watched(*args):
        there.append([p.device.type for net in made for p in net.parameters()])
        stage, crc = load(*args)
        made.append(stage.net)
        return stage, crc

    monkeypatch.setattr(devices, "load", watched)
    replicas = Replicas(stages, weights_of([], stages), [torch.device("meta")] * 2)
    assert all(set(each) <= {"meta"} for each in there) and len(there) == 3 and there[2]
    one, two = (cascade.stages for cascade in replicas.cascades)
    assert all(a.net is not b.net and a.name == b.name for a, b in zip(one, two, strict=True))


def test_backends_are_set_as_in_training(cascade):
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    try:
        for word, tf32 in (
            ("seed=0", False),
            ("engine.precision=bf16", True),
            ("sr_unet.engine.precision=bf16", False),
        ):
            stages = find_stages([cascade], [word])
            Replicas(stages, weights_of([], stages), [CPU])
            assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32) == (True, tf32)
    finally:
        torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = before
    for engine, device, last in (({}, "cuda", True), ({"channels_last": False}, "cuda", False), ({}, "cpu", False)):
        net = torch.nn.Conv2d(8, 8, 3)
        lay_out(net, EngineConfig(**engine), torch.device(device))
        assert net.weight.is_contiguous(memory_format=torch.channels_last) == last


def test_precision_that_the_device_lacks(cascade):
    (trained,) = find_stages([cascade / "sr_unet"], ["engine.precision=fp16"])
    with pytest.raises(ValueError, match=r"engine\.precision=fp16: not on a CPU; use bf16 or fp32"):
        load(trained, "ema", CPU)
