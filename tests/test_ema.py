"""Averages of the weights: what they are, where they are kept, how they come back."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from runs import HOME, Script, empty_config, finish, ranks, tensors, train, words
from training.averages import folder_of, read_manifest
from training.config import load_config
from training.ema import EMA, EMAConfig
from training.engine import EngineConfig, SingleDevice
from training.optim import OptimConfig
from training.profiles import responses

# Four ranks whose averages are shared, against the whole ones.  At the end one rank fails alone.
SHARE = f"""
import os, resource, sys, time
sys.path[:0] = [{str(HOME)!r}, {str(HOME / "tests")!r}]
from pathlib import Path
import torch
import test_ema as here
from training.config import load_config
from training.distributed import Agreed, DistributedConfig, get_rank, process_group
from training.ema import EMA, EMAConfig
from training.engine import DDP
from training.optim import OptimConfig

config, folder = sys.argv[1], Path(sys.argv[2])
model = load_config([config, *here.words(folder, folder)]).model
with process_group(DistributedConfig(), "cpu"):
    engine = DDP(model, here.CPU, OptimConfig(), 0)
    engine.model.to(memory_format=torch.channels_last)
    one, shared = (EMA(engine, EMAConfig(decay=0.9, power=(0.1,), placement=where)) for where in ("device", "sharded"))
    sizes = [average.numel() for average in shared.shadows["ema"].values()]
    everything = sum(weight.numel() for weight in engine.weights().values())
    assert sum(sizes) <= everything / 4 + len(sizes) and (0 in sizes) == (get_rank() == 3)
    for seed in range(3):
        here.draw(engine, seed)
        one.update()
        shared.update()
    before, whole = here.weights(engine), here.averages(one)
    primary = {{name: value for name, value in whole.items() if name.startswith("ema/")}}
    here.assert_equal(here.averages(shared), whole)
    for problem in (None, Agreed("all know")):
        try:
            with shared.applied():
                here.assert_equal({{"ema/" + name: w for name, w in here.weights(engine).items()}}, primary)
                if problem:
                    raise problem
        except Agreed:
            pass
        here.assert_equal(here.weights(engine), before)
        here.assert_equal(here.averages(shared), whole)
    other = EMA(engine, EMAConfig(decay=0.9, power=(0.1,), placement="sharded"))
    for file in other.files():
        other.load(file, lambda name: whole[file + "/" + name].contiguous())
    here.assert_equal(here.averages(other), whole)
    shared.snapshot_every = 5
    for step in range(4, 8):
        shared.snapshot(folder, step)
    if get_rank() == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))
    try:
        shared.snapshot(folder, 10)
        os._exit(9)
    except Agreed as error:
        assert "step_00000010" in str(error) and "could not be written" in str(error) and "File too large" in str(error)
    try:
        with shared.applied():
            (folder / f"inside_{{get_rank()}}").touch()
            if get_rank() == 1:
                raise KeyError
            while not (folder / "left").exists():
                time.sleep(0.01)
            os._exit(0)
    except KeyError:
        (folder / "left").touch()
        while len(list(folder.glob("inside_*"))) < 4:  # others may still be on their way into the block
            time.sleep(0.01)
        os._exit(0)
"""
CPU = EngineConfig(device="cpu")
ALL = {"decay": 0.9, "also": (0.5, 0.99), "power": (0.05, 0.1)}
FILES = ["ema", "ema_decay_0.5", "ema_decay_0.99", "ema_power_0.050", "ema_power_0.100"]
PLACEMENTS = ("device", "cpu", "sharded")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The network of tiny runs."""
    folder = tmp_path_factory.mktemp("config")
    return load_config([str(empty_config(folder)), *words(folder, folder)]).model


@pytest.fixture
def engine(model):
    return SingleDevice(model, CPU, OptimConfig(), seed=0)


def draw(engine: SingleDevice, seed: int) -> None:
    """Other weights."""
    generator = torch.Generator().manual_seed(seed)
    for stored in engine.weights().values():
        stored.normal_(generator=generator)


def weights(engine: SingleDevice) -> dict[str, torch.Tensor]:
    return {name: stored.clone() for name, stored in engine.weights().items()}


def averages(ema: EMA) -> dict[str, torch.Tensor]:
    """Every average by 'file/name', as a checkpoint gets them."""
    return {
        f"{file}/{name}": value.clone()
        for file, (shapes, values, _) in ema.files().items()
        for name, value in zip(shapes, values(), strict=True)
    }


def assert_equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys() and [name for name in one if not torch.equal(one[name], two[name])] == []


def test_the_averages_of_a_known_sequence(engine):
    name, weight = next(iter(engine.weights().items()))
    weight.fill_(3.0)
    ema = EMA(engine, EMAConfig(**ALL))
    expected = dict.fromkeys(decays := {"ema": 0.9, "ema_decay_0.5": 0.5, "ema_decay_0.99": 0.99}, 3.0)
    sequence = [1.0, -2.0, 5.0, 0.25, 7.0, 7.0, 7.0, -1.0]
    for n, value in enumerate(sequence):
        weight.fill_(value)
        ema.update()
        for file, decay in decays.items():
            now = min(decay, (1 + n) / (10 + n))
            expected[file] = now * expected[file] + (1 - now) * value
    for file, length in (("ema_power_0.050", 0.05), ("ema_power_0.100", 0.1)):
        expected[file] = float(responses(np.array([length]), np.array([8]), np.arange(1, 9))[0] @ sequence)
    found = averages(ema)
    assert ema.num_updates == 8 and list(ema.files()) == FILES
    for file, value in expected.items():
        torch.testing.assert_close(found[f"{file}/{name}"], torch.full_like(weight, value))


def test_a_power_average_forgets_the_weights_before_the_first_step(engine):
    ema = EMA(engine, EMAConfig(power=(0.1,)))
    draw(engine, 1)
    ema.update()
    assert all(torch.equal(ema.shadows["ema_power_0.100"][name], w) for name, w in engine.weights().items())


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_the_placement_changes_no_bit(model, placement, layout):
    found = []
    for where in ("device", placement):
        engine = SingleDevice(model, CPU, OptimConfig(), seed=0)
        engine.model.to(memory_format=layout)
        ema = EMA(engine, EMAConfig(**ALL, placement=where))
        for seed in range(4):
            draw(engine, seed)
            ema.update()
        found.append(averages(ema))
    assert_equal(*found)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_the_swap_leaves_every_bit_as_it_was_also_after_an_error(engine, placement):
    ema = EMA(engine, EMAConfig(**ALL, placement=placement))
    draw(engine, 1)
    before, average = weights(engine), averages(ema)
    with pytest.raises(KeyError), ema.applied():
        assert_equal({f"ema/{name}": w for name, w in weights(engine).items()}, {
            name: w for name, w in average.items() if name.startswith("ema/")
        })  # fmt: skip
        assert all(not torch.equal(w, before[name]) for name, w in engine.weights().items())
        raise KeyError
    assert_equal(weights(engine), before)
    assert_equal(averages(ema), average)


@pytest.mark.parametrize(("saved", "loaded"), [("device", "cpu"), ("cpu", "sharded"), ("sharded", "device")])
def test_the_averages_come_back_in_any_placement(engine, tmp_path, saved, loaded):
    ema = EMA(engine, EMAConfig(**ALL, placement=saved))
    for seed in range(3):
        draw(engine, seed)
        ema.update()
    checkpoint(ema, tmp_path)
    other = EMA(engine, EMAConfig(**ALL, placement=loaded))
    assert other.read(tmp_path, ema.num_updates) == [] and other.num_updates == 3
    assert_equal(averages(ema), averages(other))
    draw(engine, 9)
    ema.update()
    other.update()
    assert_equal(averages(ema), averages(other))


def checkpoint(ema: EMA, folder: Path) -> None:
    for file, (shapes, values, _) in ema.files().items():
        save_file(dict(zip(shapes, values(), strict=True)), folder / f"{file}.safetensors")


def test_an_average_that_is_new_or_gone_is_told(engine, tmp_path):
    checkpoint(EMA(engine, EMAConfig(decay=0.9, also=(0.5,), power=(0.05,))), tmp_path)
    ema = EMA(engine, EMAConfig(decay=0.9, also=(0.99,)))
    draw(engine, 1)
    told = ema.read(tmp_path, 7)
    assert [line for line in told if "decay 0.99 is new; it begins with the weights of now" in line] == told[:1]
    assert [line.split(" is not averaged any more")[0] for line in told[1:]] == ["ema_decay_0.5", "ema_power_0.050"]
    assert str(tmp_path) in told[1]
    assert all(torch.equal(ema.shadows["ema_decay_0.99"][name], w) for name, w in engine.weights().items())


def test_a_power_average_cannot_begin_later(engine, tmp_path):
    checkpoint(EMA(engine, EMAConfig(decay=0.9, power=(0.05,))), tmp_path)
    with pytest.raises(ValueError, match=r"ema\.power: .* has no average of length 0\.1, .*another run\.dir"):
        EMA(engine, EMAConfig(decay=0.9, power=(0.05, 0.1))).read(tmp_path, 7)


def test_the_average_itself_must_be_there(engine, tmp_path):
    with pytest.raises(ValueError, match=r"ema\.safetensors: not a readable safetensors file"):
        EMA(engine, EMAConfig()).read(tmp_path, 7)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("ema.also=[0.999,0.9]", "ema.also: 0.9 is averaged twice (ema.decay counts too); name it once"),
        ("ema.also=[0.99,0.99]", "ema.also: 0.99 is averaged twice"),
        ("ema.also=[1.0]", "ema.also.0=1.0: input should be less than 1"),
        ("ema.power=[0.1,0.1]", "ema.power: 0.1 is averaged twice"),
        ("ema.power=[0.3]", "ema.power=[0.3]: 0.3: use a length from 0.001 to 0.288, of at most three decimals"),
        ("ema.power=[0.0505]", "of at most three decimals"),
        ("ema.snapshot_every=100", "ema.power, which names none; use ema.power=[0.05,0.1], or ema.snapshot_every=0"),
        ("ema.snapshot_every=-1", "ema.snapshot_every=-1: input should be greater than or equal to 0"),
        ("ema.placement=gpu", "ema.placement=\"gpu\": input should be 'device', 'cpu' or 'sharded'"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path, word, said):
    with pytest.raises(ValueError) as refusal:
        load_config([str(empty_config(tmp_path)), "ema.decay=0.9", word])
    assert said in str(refusal.value)


def test_ranks_that_share_the_averages_have_those_of_one(tmp_path):
    """On four ranks: slices of unequal sizes, and empty ones."""
    script = tmp_path / "share.py"
    script.write_text(SHARE)
    statuses, text = finish(ranks(tmp_path, 4, [str(empty_config(tmp_path)), str(tmp_path)], str(script)), 60)
    assert statuses == [0] * 4, text
    assert read_manifest(tmp_path / "averages/step_00000005").updates == 3
    assert [path.name for path in (tmp_path / "averages").iterdir()] == ["step_00000005"]


def test_a_run_whose_ranks_share_the_averages_is_that_of_one_device(shards, tmp_path):
    arguments = {"data__val_shards": shards, "log__validate_every": 3, "train__num_steps": 8, "ema__power": [0.1]}
    config = str(empty_config(tmp_path))
    train(tmp_path, [config, *words(shards, tmp_path / "one", **arguments)])
    shared = words(shards, tmp_path / "two", **arguments, ema__placement="sharded")
    statuses, text = finish(ranks(tmp_path, 2, [config, *shared]))
    assert statuses == [0, 0], text
    one, two = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    assert one.keys() == two.keys() and {"ema", "ema_power_0.100"} <= {name.split("/")[0] for name in one}
    for file in ("ema", "ema_power_0.100"):
        found, wanted = (
            np.concatenate([v.ravel() for name, v in run.items() if name.startswith(f"{file}/")]) for run in (two, one)
        )
        assert np.linalg.norm(found - wanted) < 1e-5 * np.linalg.norm(wanted)
    one, two = (
        re.findall(r"validation loss ([\d.]+)", (tmp_path / run / "training.log").read_text()) for run in ("one", "two")
    )
    assert len(one) == 3 and [float(value) for value in two] == pytest.approx([float(value) for value in one], abs=2e-4)


def test_a_run_that_stops_and_continues_has_the_same_averages(shards, tmp_path):
    config, keys = str(empty_config(tmp_path)), {"ema__also": [0.5], "ema__power": [0.1], "ema__snapshot_every": 3}
    train(tmp_path, [config, *words(shards, tmp_path / "whole", train__num_steps=8, **keys)])
    train(tmp_path, [config, *words(shards, tmp_path / "parts", train__num_steps=4, **keys)])
    stale = folder_of(tmp_path / "parts", 6)
    shutil.copytree(folder_of(tmp_path / "parts", 3), stale)  # as of a training that went on and was given up
    shutil.copytree(stale, folder_of(tmp_path / "parts", 7))
    shutil.copytree(stale, stale.with_name("step_00000005.partial"))
    train(tmp_path, [config, *words(shards, tmp_path / "parts", train__num_steps=8, **keys)])
    one, two = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    assert [name for name in one if one[name].tobytes() != two[name].tobytes()] == []
    kept = [
        sorted(path.relative_to(tmp_path / run) for path in (tmp_path / run / "averages").rglob("*"))
        for run in ("whole", "parts")
    ]
    assert kept[0] == kept[1] and len(kept[0]) == 2 * 3
    for file in kept[0]:
        if (tmp_path / "whole" / file).is_file():
            assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes(), file


def test_what_a_continued_run_averages_anew_or_no_more_is_logged(shards, tmp_path):
    config = str(empty_config(tmp_path))
    train(tmp_path, [config, *words(shards, tmp_path / "run", train__num_steps=2, ema__also=[0.5])])
    text = train(tmp_path, [config, *words(shards, tmp_path / "run", train__num_steps=3, ema__also=[0.99])])
    assert "the average of decay 0.99 is new" in text and "ema_decay_0.5 is not averaged any more" in text
    run = Script(tmp_path, "train_single.py", [config, *words(shards, tmp_path / "run", ema__power=[0.1])])
    assert run.wait() == 1 and "has no average of length 0.1" in run.text and "Traceback" not in run.text
