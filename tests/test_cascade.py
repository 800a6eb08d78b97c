"""Stages that chain, that keep range and colour, start and stop anywhere, and are on the device one at a time."""

import re

import pytest
import torch
from torch import Tensor, nn

from model.cascade import Cascade, Stage, between, in_order
from model.conditions import Conditions
from model.diffusion import DiffusionConfig, Schedule, target_of, upsample
from model.efficient_unet import EfficientUNetConfig
from model.parallel_unet import ParallelUNetConfig
from model.sampler import SamplerConfig
from training.draws import SamplingNoise
from training.engine import Autocast

CPU = torch.device("cpu")
BASE = ParallelUNetConfig(
    image_size=(8, 8), channels=(4, 8), num_blocks=(1, 1), attention_levels=(1,), head_dim=8, emb_dim=16
)
SR = BASE.model_copy(update={"image_size": (16, 16), "lowres": True})
LAST = EfficientUNetConfig(image_size=(64, 64), channels=(4, 8), num_blocks=(1, 1), emb_dim=16)
MODELS = {"base_unet": BASE, "sr_unet": SR, "sr_1024": LAST}
STEP = 2 / 255  # of 8 bits, in [-1, 1]


class Repeating(nn.Module):
    """Answers, as its stage's prediction, that the image is the low-resolution one; the first, that it is the garment.

    off: maps that image to a wrong one.
    """

    def __init__(self, prediction: str, off=lambda image: image):
        super().__init__()
        self.prediction, self.off = prediction, off

    def remember(self, cond: Conditions) -> Conditions:
        return cond

    def forward(self, zt: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        schedule = Schedule()
        x0 = self.off(cond.garment if cond.lowres is None else cond.lowres)
        alpha, sigma = schedule.alpha_sigma(t)
        answer = target_of(self.prediction, x0, t, (zt - alpha * x0) / sigma, schedule)
        return torch.stack([answer, answer], 1) if cond.with_null else answer


def stage(name: str, net: nn.Module | None = None, prediction: str = "v", **sampler) -> Stage:
    model = MODELS[name]
    how = SamplerConfig(
        **{"num_steps": 4, "keep_color": False, "guidance_scale": 2.0 if model.tries_on else 1.0} | sampler
    )
    return Stage(name, net or Repeating(prediction), model, DiffusionConfig(prediction=prediction), how)


def trained(name: str, **sampler) -> Stage:
    """A stage with a network of its own, whose random weights are nowhere 0."""
    net = MODELS[name].build().eval()
    for parameter in net.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return stage(name, Autocast(net, CPU, "fp32"), **sampler)


def conditions(num: int) -> dict[str, Conditions]:
    def of(size: tuple[int, int]) -> Conditions:
        images = [upsample(colours, size) for colours in torch.rand(2, num, 3, 4, 4) * 2 - 1]
        return Conditions(*images, torch.rand(num, 18, 3), torch.rand(num, 18, 3), torch.zeros(num, 2))

    return {"base_unet": of((8, 8)), "sr_unet": of((16, 16))}


def noise_of(positions: list[int], seed: int = 0):
    return lambda stage: SamplingNoise(seed, positions, stage.model.image_size, CPU)


def colour(image: Tensor) -> Tensor:
    """(B, 3)"""
    return image.mean((2, 3))


@pytest.mark.parametrize("prediction", ["noise", "v", "x0"])
@pytest.mark.parametrize("method", ["ddpm", "dpmpp_2m"])
def test_range_and_colour_survive_all_stages(prediction, method):
    """Of stages that repeat what they are given, every image is the first one, upsampled."""
    told = conditions(5)
    stages = [stage(name, prediction=prediction, method=method) for name in MODELS]
    images = Cascade(stages, CPU)(told, noise_of(list(range(5))))
    assert list(images) == list(MODELS) and torch.allclose(
        images["base_unet"], told["base_unet"].garment, atol=STEP / 2
    )
    previous = images["base_unet"]
    for name in ("sr_unet", "sr_1024"):
        assert images[name].shape == (5, 3, *MODELS[name].image_size) and images[name].abs().max() <= 1
        assert torch.allclose(images[name], upsample(previous, MODELS[name].image_size), atol=STEP / 2)
        assert torch.allclose(colour(images[name]), colour(previous), atol=STEP / 2)
        previous = images[name]


@pytest.mark.parametrize("wrong", ["base_unet", "sr_unet", "sr_1024"])
def test_a_stage_of_another_range_shows_in_the_colours(wrong):
    """What the test above must notice: a stage that works in [0, 1]."""
    stages = [stage(n, Repeating("v", lambda x: (x + 1) / 2) if n == wrong else None) for n in MODELS]
    images = Cascade(stages, CPU)(told := conditions(2), noise_of([0, 1]))
    assert (colour(images["sr_1024"]) - colour(told["base_unet"].garment)).abs().max() > 10 * STEP


def test_start_and_stop_anywhere():
    """The rest of a cascade makes of a stage's image what the whole one makes of it."""
    cascade, told = Cascade([trained(name) for name in reversed(MODELS)], CPU), conditions(2)
    whole = cascade(told, noise_of([3, 4]))
    assert list(whole) == list(MODELS)
    first = cascade(told, noise_of([3, 4]), stop="base_unet")
    assert list(first) == ["base_unet"] and torch.equal(first["base_unet"], whole["base_unet"])
    rest = cascade(told, noise_of([3, 4]), start="sr_unet", image=first["base_unet"])
    assert list(rest) == ["sr_unet", "sr_1024"] and all(torch.equal(rest[name], whole[name]) for name in rest)
    last = cascade({}, noise_of([3, 4]), start="sr_1024", image=rest["sr_unet"])
    assert torch.equal(last["sr_1024"], whole["sr_1024"])
    middle = cascade(told, noise_of([3, 4]), start="sr_unet", stop="sr_unet", image=first["base_unet"])
    assert list(middle) == ["sr_unet"] and torch.equal(middle["sr_unet"], whole["sr_unet"])
    alone = Cascade([trained("sr_unet")], CPU)(told, noise_of([3, 4]), image=first["base_unet"])
    assert list(alone) == ["sr_unet"]


def test_a_picture_does_not_depend_on_its_batch():
    cascade = Cascade([trained(name, noise_aug_level=0.2) for name in MODELS], CPU)
    told = conditions(3)
    together = cascade(told, noise_of([7, 8, 9]))
    alone = {name: Conditions(*(value[1:2] for value in cond[:5])) for name, cond in told.items()}
    for name, image in cascade(alone, noise_of([8])).items():
        assert (image - together[name][1:2]).abs().max() <= 1e-4, name
        assert (together[name][1] - together[name][2]).abs().max() > 0.1
    other = cascade(told, noise_of([7, 8, 9], seed=1))
    assert all((other[name] - together[name]).abs().max() > 0.1 for name in MODELS)


def test_stages_have_their_own_samplers():
    """Steps, and the level of noise on the conditions, that of the low-resolution image among them."""
    seen, steps = {}, []

    class Noting(Repeating):
        def forward(self, zt, t, cond):
            seen.setdefault(zt.shape[-1], []).append(cond)
            return super().forward(zt, t, cond)

    levels = {"base_unet": 0.0, "sr_unet": 0.25, "sr_1024": 0.5}
    stages = [stage(n, Noting("v"), noise_aug_level=levels[n], num_steps=i + 2) for i, n in enumerate(MODELS)]
    told = conditions(1)
    images = Cascade(stages, CPU)(told, noise_of([0]), on_step=lambda stage, step: steps.append((stage.name, step.x0)))
    assert [len(calls) for calls in seen.values()] == [2, 3, 4]
    for name, calls in zip(MODELS, seen.values(), strict=True):
        assert calls[0].noise_aug_level.shape == (1, MODELS[name].num_aug_levels)
        assert (calls[0].noise_aug_level == levels[name]).all()
    assert torch.equal(seen[8][0].garment, told["base_unet"].garment)
    assert not torch.allclose(seen[64][0].lowres, upsample(images["sr_unet"], (64, 64)), atol=0.3)
    assert [name for name, _ in steps] == ["base_unet"] * 2 + ["sr_unet"] * 3 + ["sr_1024"] * 4
    assert torch.equal(steps[-1][1], images["sr_1024"])


class Moving(Repeating):
    """Knows where it was sent, and how often."""

    def __init__(self):
        super().__init__("v")
        self.places = []

    def to(self, device):
        if not self.places or self.places[-1] != str(device):
            self.places.append(str(device))
        return super().to(device)


def test_one_network_at_a_time_is_on_the_device():
    """The device is cpu:0, which torch tells from cpu.  A network stays there until another one is needed."""
    stages = [stage(name, Moving()) for name in MODELS]
    cascade, told, there = Cascade(stages, torch.device("cpu", 0), one_at_a_time=True), conditions(1), []

    def look(running, step):
        there.append([each.name for each in stages if each.net.places[-1] == "cpu:0"] == [running.name])

    images = cascade(told, noise_of([0]), on_step=look)
    assert len(there) == 12 and all(there)
    assert [each.net.places for each in stages] == [["cpu", "cpu:0", "cpu"]] * 2 + [["cpu", "cpu:0"]]
    for _ in range(3):
        cascade(told, noise_of([0]), start="sr_unet", stop="sr_unet", image=images["base_unet"])
    assert stages[1].net.places == ["cpu", "cpu:0", "cpu", "cpu:0"]

    stages = [stage(name, Moving()) for name in MODELS]
    Cascade(stages, torch.device("cpu", 0))(told, noise_of([0]))
    assert [each.net.places for each in stages] == [["cpu:0"]] * 3


def test_rows_reach_the_network_that_is_computed_in_tiles():
    whole = Cascade([last := trained("sr_1024")], CPU)({}, noise_of([0]), image=torch.zeros(1, 3, 16, 16))
    tiled = last._replace(sampler=last.sampler.model_copy(update={"tile_rows": 16}))
    told = []
    last.net.model.set_tile_rows = told.append
    images = Cascade([tiled], CPU)({}, noise_of([0]), image=torch.zeros(1, 3, 16, 16))
    assert told == [16] and torch.equal(images["sr_1024"], whole["sr_1024"])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_are_named_at_once(name, value):
    stages = {each: trained(each) for each in MODELS}
    stages[name].net.model.head.bias.data[0] = value
    steps = []
    with pytest.raises(ValueError, match=f"^{name}: .* not finite; its weights are broken: choose another checkpoint"):
        Cascade(stages.values(), CPU)(conditions(1), noise_of([0]), on_step=lambda stage, _: steps.append(stage.name))
    assert name not in steps


def changed(name: str, to: str = "", **model) -> Stage:
    """A stage of another model, perhaps under another name."""
    one = stage(name)
    return one._replace(name=to or name, model=one.model.model_copy(update=model))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "a cascade of no stages"),
        ([stage("base_unet"), stage("base_unet")], "two stages are named base_unet"),
        ([stage("base_unet"), changed("base_unet", "other")], "base_unet and other: both make images of 8x8; leave"),
        ([stage("base_unet"), stage("sr_1024")], "base_unet and sr_1024: .* 8x8, but sr_1024, .* takes those of 16x16"),
        ([stage("base_unet"), changed("sr_unet", lowres=False)], "sr_unet has model.lowres=false"),
        ([stage("base_unet"), changed("sr_unet", image_size=(16, 24))], "takes those of 8x12; a stage is missing"),
        ([stage("base_unet"), changed("sr_unet", image_size=None)], "sr_unet: model.image_size is null"),
        ([stage("sr_1024", guidance_scale=2)], "sr_1024: .* use sr_1024.sampler.guidance_scale=1"),
        ([stage("sr_unet", tile_rows=8)], "sr_unet: .* use sr_unet.sampler.tile_rows=null"),
    ],
)
def test_stages_that_do_not_chain_are_named(stages, message):
    for order in (stages, stages[::-1]):
        with pytest.raises(ValueError, match=message if order is stages else None):
            Cascade(order, CPU)


def test_stages_are_put_in_order():
    stages = in_order(map(stage, ("sr_1024", "base_unet", "sr_unet")))
    names = lambda *words: [each.name for each in between(stages, *words)]  # noqa: E731
    assert names() == list(MODELS) and names("sr_unet") == ["sr_unet", "sr_1024"]
    assert names(None, "sr_unet") == ["base_unet", "sr_unet"] and names("sr_unet", "sr_unet") == ["sr_unet"]
    for words, message in [
        (("nothing",), "start=nothing: no such stage; there are base_unet, sr_unet, sr_1024"),
        ((None, "x"), "stop=x: no such stage"),
        (("sr_1024", "base_unet"), "start=sr_1024 comes after stop=base_unet"),
    ]:
        with pytest.raises(ValueError, match=message):
            names(*words)


@pytest.mark.parametrize(
    ("start", "image", "message"),
    [
        ("base_unet", torch.zeros(1, 3, 8, 8), "base_unet takes no image"),
        ("sr_unet", None, "sr_unet sharpens an image of 8x8; give one, or add the stage that makes it"),
        ("sr_unet", torch.zeros(1, 3, 16, 16), r"sr_unet sharpens .* 8x8, not (1, 3, 16, 16); resize it"),
        ("sr_unet", torch.full((1, 3, 8, 8), 200.0), r"values from 200 to 200; scale it to [-1, 1]"),
        ("sr_unet", torch.full((1, 3, 8, 8), float("nan")), r"values from nan to nan; scale it to [-1, 1]"),
        ("sr_unet", torch.zeros(2, 3, 8, 8), r"of [1, 2] pairs; give as many of each"),
    ],
)
def test_an_image_that_does_not_fit_is_refused(start, image, message):
    cascade = Cascade([stage(name) for name in MODELS], CPU)
    with pytest.raises(ValueError, match=re.escape(message).replace(r"\.\*", ".*")):
        cascade(conditions(1), noise_of([0]), image=image, start=start)


def test_conditions_that_do_not_fit_are_refused():
    cascade, told = Cascade([stage(name) for name in MODELS], CPU), conditions(1)
    with pytest.raises(ValueError, match="sr_unet tries on, but there are no conditions for it"):
        cascade({"base_unet": told["base_unet"]}, noise_of([0]))
    with pytest.raises(ValueError, match="sr_unet: conditions of 8x8, the network's images are 16x16"):
        cascade({"base_unet": told["base_unet"], "sr_unet": told["base_unet"]}, noise_of([0]))
