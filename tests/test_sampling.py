"""sample.py: the same pictures whoever draws them, drawn once, refused where they would be mixed up."""

import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

import sample
from cascades import SIZES, write_cascade
from data.dataset import ShardedDataset
from runs import Script, finish, ranks
from sampling.devices import Replicas, Work
from sampling.drawing import work_of, write_animation
from sampling.inputs import ShardPairs
from sampling.outputs import Files, Names
from sampling.stages import find_stages, weights_of
from training.sheet import GAP

NUM = 5


@pytest.fixture(scope="module")
def cascade(shards, tmp_path_factory) -> Path:
    """A folder of three stages."""
    return write_cascade(tmp_path_factory.mktemp("cascade") / "cascade", shards)


@pytest.fixture(scope="module")
def alone(cascade, tmp_path_factory) -> Path:
    """What one process draws, all stages, two pairs at a time."""
    out = tmp_path_factory.mktemp("alone")
    call(*words(cascade, out, "--batch", "2", "--all-stages", "--animation", "webp"))
    return out


def call(*words: str) -> None:
    """sample.py in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["sample.py", *words])
        sample.main()


def words(cascade: Path, out: Path, *more: str) -> list[str]:
    return [str(cascade), "--out", str(out), "--pairs", str(NUM), *more]


def drawn(out: Path, suffix: str = "png") -> dict[str, np.ndarray]:
    """Every picture by its name."""
    files = sorted(path for path in out.glob(f"*.{suffix}") if path.stem not in ("sheet", "animation"))
    return {path.stem: np.asarray(Image.open(path).convert("RGB")).astype(int) for path in files}


def assert_same(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> None:
    assert one.keys() == two.keys() and len(one) == NUM
    assert max(np.abs(one[name] - two[name]).max() for name in one) <= 1


def test_the_pictures_are_of_the_network_and_differ(alone):
    pictures = list(drawn(alone).values())
    assert all(each.shape == (32, 32, 3) and each.std() > 20 for each in pictures)
    assert np.abs(pictures[0] - pictures[1]).mean() > 20
    assert sorted(path.name for path in alone.iterdir() if path.is_dir()) == ["base_unet", "sr_unet"]
    assert next(iter(drawn(alone / "base_unet").values())).shape == (8, 8, 3)


@pytest.mark.parametrize("batch", [1, 5])
def test_any_batch(cascade, alone, tmp_path, batch):
    call(*words(cascade, tmp_path / "out", "--batch", str(batch)))
    assert_same(drawn(alone), drawn(tmp_path / "out"))


def test_two_ranks(cascade, alone, tmp_path):
    statuses, text = finish(ranks(tmp_path, 2, words(cascade, tmp_path / "out", "--batch", "1"), "sample.py"))
    assert statuses == [0, 0] and "5 images, 5 of them new" in text, text
    assert_same(drawn(alone), drawn(tmp_path / "out"))


def test_a_rank_that_cannot_go_on(cascade, alone, tmp_path):
    """The others draw theirs, and all end with its reason."""
    outs = [tmp_path / "out", tmp_path / "full"]
    blocked = outs[1] / f"{sorted(drawn(alone))[1]}.png"  # rank 1's first picture
    blocked.mkdir(parents=True)
    each = [words(cascade, out, "--batch", "1", "--stop", "base_unet") for out in outs]
    statuses, text = finish(ranks(tmp_path, 2, each, "sample.py"))
    assert statuses == [1, 1] and "Traceback" not in text and "lost contact" not in text
    assert f"{blocked}: cannot be written" in text and "rank 1] " in text
    assert len(drawn(outs[0])) == 3 and not drawn_files(outs[1])[1:]


def test_replicas_share_a_batch(cascade, alone):
    stages = find_stages([cascade], [])
    replicas = Replicas(stages, weights_of([], stages), [torch.device("cpu")] * 2)
    inputs = ShardPairs(stages[0].config.data.val_shards, [(8, 8), (16, 16)], NUM)
    images = replicas(work_of(range(NUM), stages, inputs, None), seed=0)["sr_1024"]
    assert_same(drawn(alone), {inputs.key(i): image.astype(int) for i, image in enumerate(images)})
    assert all(stage.net is not None for stage in replicas.stages)
    sizes = [len(Work(list(range(NUM)), {}).share(i, 2).positions) for i in range(2)]
    assert sizes == [3, 2] and replicas.cascades[0].stages[0].net is not replicas.cascades[1].stages[0].net


def test_the_second_stage_takes_the_first_s_images(cascade, alone, tmp_path):
    small = [str(alone / "base_unet" / f"{name}.png") for name in drawn(alone)]
    call(*words(cascade, tmp_path / "out", "--start", "sr_unet", "--image", *small))
    assert_same(drawn(alone), drawn(tmp_path / "out"))
    middle = [str(alone / "sr_unet" / f"{name}.png") for name in drawn(alone)]
    call(*words(cascade, tmp_path / "last", "--start", "sr_1024", "--image", *middle))
    assert_same(drawn(alone), drawn(tmp_path / "last"))
    call(*words(cascade, tmp_path / "first", "--stop", "base_unet"))
    assert_same(drawn(alone / "base_unet"), drawn(tmp_path / "first"))


def test_killed_and_started_again(cascade, alone, tmp_path, capsys):
    out = tmp_path / "out"
    every = [*words(cascade, out, "--batch", "1"), "--pairs", "8"]
    first = Script(tmp_path, "sample.py", every)
    end = time.monotonic() + 60
    while len(drawn_files(out)) < 2:
        assert first.process.is_alive() and time.monotonic() < end, first.text
        time.sleep(0.002)
    first.kill()
    first.process.join()
    before = {path: path.stat().st_mtime_ns for path in drawn_files(out)}
    assert 1 < len(before) < 8, "it was not killed in the middle"
    damaged = next(iter(before))
    damaged.write_bytes(damaged.read_bytes()[:-40])
    call(*every)
    assert f"8 images, {8 - len(before) + 1} of them new" in capsys.readouterr().err
    assert all((path.stat().st_mtime_ns == then) == (path != damaged) for path, then in before.items())
    assert_same(drawn(alone), {name: picture for name, picture in drawn(out).items() if name in drawn(alone)})


def test_the_same_command_again_draws_nothing(cascade, alone, tmp_path, capsys):
    out = Path(shutil.copytree(alone, tmp_path / "out"))
    before = (out / "animation.webp").stat().st_mtime_ns
    call(*words(cascade, out, "--all-stages", "--animation", "webp"))
    assert "0 of them new" in capsys.readouterr().err
    assert (out / "animation.webp").stat().st_mtime_ns == before
    (out / "sheet.png").unlink()
    (out / "sheet.png").mkdir()
    with pytest.raises(ValueError, match=r"sheet\.png: cannot be written"):
        call(*words(cascade, out, "--all-stages"))


def drawn_files(out: Path) -> list[Path]:
    return [path for path in out.glob("*.png") if path.stem != "sheet"]


def test_other_options_are_refused_or_overwrite(cascade, alone, tmp_path, capsys):
    out = Path(shutil.copytree(alone, tmp_path / "out"))
    before = {path: path.read_bytes() for path in out.glob("*.png")}
    more = ("--all-stages", "--seed", "7", "sr_unet.sampler.num_steps=2")
    with pytest.raises(ValueError) as refusal:
        call(*words(cascade, out, *more))
    said = "its pictures were made with other options (seed was 0, now 7; stages.sr_unet.sampler.num_steps was 3, now 2"
    assert said in str(refusal.value) and "choose another --out, or replace them with --overwrite" in str(refusal.value)
    with pytest.raises(ValueError, match=r"stages\.base_unet\.model\.head_dim was 8, now 4"):
        call(*words(cascade, out, "--all-stages", "base_unet.model.head_dim=4"))
    assert {path: path.read_bytes() for path in out.glob("*.png")} == before
    call(*words(cascade, out, "--overwrite", *more, "--pairs", "2"))
    assert "2 of them new" in capsys.readouterr().err and len(drawn(out)) == len(drawn(out / "base_unet")) == 2
    call(*words(cascade, out, *more))
    assert f"{NUM - 2} of them new" in capsys.readouterr().err
    assert all(path.read_bytes() != old for path, old in before.items())
    facts = json.loads((out / "sampling.json").read_text())
    assert facts["form"] == {"format": "png", "all_stages": True}, "quality is of JPEG"
    sampler = facts["stages"]
    assert [sampler[name]["sampler"]["num_steps"] for name in SIZES] == [3, 2, 3]


def test_jpeg_and_webdataset_hold_the_same_pictures(cascade, alone, tmp_path, capsys):
    call(*words(cascade, tmp_path / "jpeg", "--format", "jpeg", "--quality", "99"))
    assert max(np.abs(a - drawn(alone)[name]).mean() for name, a in drawn(tmp_path / "jpeg", "jpg").items()) < 4
    tars = words(cascade, tmp_path / "tars", "--format", "webdataset", "--all-stages")
    call(*tars)
    read = webdataset.WebDataset(str(tmp_path / "tars/000000.tar"), shardshuffle=False).decode("rgb8")
    samples = {sample["__key__"]: sample for sample in read}
    assert_same(drawn(alone), {key: sample["png"].astype(int) for key, sample in samples.items()})
    assert_same(drawn(alone / "base_unet"), {key: each["base_unet.png"].astype(int) for key, each in samples.items()})
    capsys.readouterr()
    call(*tars)
    assert "0 of them new" in capsys.readouterr().err


def test_a_grid_of_persons_and_garments(cascade, shards, tmp_path):
    call(*words(cascade, tmp_path / "out", "--grid", "3x2", "--stop", "base_unet"))
    assert len(drawn(tmp_path / "out")) == 6
    keys = [ShardedDataset(shards).key(i) for i in range(5)]
    assert f"{keys[2]}__{keys[4]}" in drawn(tmp_path / "out")
    sheet = Image.open(tmp_path / "out/sheet.png")
    assert sheet.width > 3 * 8 and sheet.height > 4 * 8, "persons down, garments across"


def test_the_denoising_moves(alone):
    animation = Image.open(alone / "animation.webp")
    assert animation.n_frames == 3 * 3, "three stages of three steps"
    assert animation.width == NUM * (32 + GAP) - GAP, "of all batches"


def test_the_denoising_is_drawn_in_batches(cascade, tmp_path):
    sizes = []

    class Watched(Replicas):
        def __call__(self, work, *args, **options):
            sizes.append(len(work.positions))
            return super().__call__(work, *args, **options)

    stages = find_stages([cascade / "base_unet"], [])
    replicas = Watched(stages, weights_of([], stages), [torch.device("cpu")])
    inputs = ShardPairs(stages[0].config.data.val_shards, [(8, 8)], NUM)
    output = Files(tmp_path, Names(inputs.key, NUM, ["base_unet"], "png", {}), ["base_unet"], 95)
    for rows, drawn_in in ((4, [2, 2]), (4, []), (3, [2, 1])):
        write_animation("gif", replicas, stages, inputs, None, output, rows, 2, 0)
        assert sizes == drawn_in
        sizes.clear()


def test_a_broken_sample_is_named_when_all_others_are_drawn(cascade, shards, tmp_path):
    shards = Path(shutil.copytree(shards, tmp_path / "shards"))
    data = bytearray((shards / "000000.tar").read_bytes())
    data[2000] ^= 1
    (shards / "000000.tar").write_bytes(data)
    with pytest.raises(ValueError, match=r"1 pictures or shards are missing, all others are drawn: .* is damaged"):
        call(*words(cascade, tmp_path / "out", "--shards", str(shards), "--stop", "base_unet"))
    assert len(drawn(tmp_path / "out")) == NUM - 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--start", "sr"], "start=sr: no such stage; there are base_unet, sr_unet, sr_1024"),
        (["--start", "sr_unet", "--stop", "base_unet"], "comes after"),
        (["--image", "SHARDS"], "--image: base_unet makes images from noise; start at a later stage with --start"),
        (["--person", "x.jpg"], "--person and --garment belong together"),
        (["--grid", "45x5"], "needs 45 pairs for the persons and 5 others for the garments, there are 48"),
        (["--grid", "2x2", "--unpaired"], "--grid and --unpaired exclude each other"),
        (["--shards", "nowhere"], "nowhere: no such folder"),
        (["--weights", "x.safetensors"], "of which stage? write --weights base_unet=x.safetensors"),
        (["--weights", "sr_unet=x.safetensors"], "x.safetensors: not a readable safetensors file"),
        (["sr_unet.sampler.steps=3"], "unknown key 'sampler.steps'; the nearest is 'sampler.num_steps'"),
        (["sampler.guidance_interval=[0.2,0.1]"], "guidance_interval"),
        (["nowhere"], "nowhere/config.yaml: missing; name a run folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_refused(cascade, tmp_path, more, said):
    more = [str(cascade / "base_unet/config.yaml") if word == "SHARDS" else word for word in more]
    with pytest.raises(ValueError) as refusal:
        call(*words(cascade, tmp_path / "out", *more))
    assert said in str(refusal.value) and not drawn(tmp_path / "out")


def test_an_unpaired_garment_keeps_its_own_pose(shards):
    own, size = ShardedDataset(shards), (32, 32)
    pairs = ShardPairs(str(shards), [size], 3, unpaired=True)
    for i in range(3):
        sample, person, garment = pairs.sample(i, size), own.read(i), own.read((i + 1) % 3)
        for field in ("person", "clothing_agnostic", "person_pose"):
            assert np.array_equal(getattr(sample, field), getattr(person, field))
        for field in ("garment", "garment_pose"):
            assert np.array_equal(getattr(sample, field), getattr(garment, field))
        assert not np.array_equal(person.garment_pose, garment.garment_pose)
