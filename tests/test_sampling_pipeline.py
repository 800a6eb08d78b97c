"""The cascade as a library: one picture or many, and what is refused.  tests/journeys runs the lines of the docs."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cascades import write_cascade
from model import TryOnCascade

BLANK = Image.new("RGB", (200, 200), "white")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_cascade(tmp_path_factory.mktemp("pipeline") / "cascade")


@pytest.fixture
def photos(real_data, estimator_weights, tmp_path) -> dict[str, Path]:
    """Small copies, which are read and estimated faster."""
    files = {"anna": "image/4.jpg", "ben": "image/3.jpg", "shirt": "image/6.jpg", "flat": "cloth/3.jpg"}
    for name, file in files.items():
        Image.open(real_data / "cotton" / file).resize((384, 512)).save(tmp_path / f"{name}.png")
    return {name: tmp_path / f"{name}.png" for name in files}


def test_one_picture_or_many(folder, photos):
    cascade = TryOnCascade.from_pretrained(folder, device="cpu", overrides=["sampler.num_steps=2"])
    flat = {"garment": photos["flat"], "garment_kind": "flat"}
    one = cascade(person=photos["anna"], **flat)
    assert one.size == (32, 32) and np.asarray(one).std() > 20
    with Image.open(photos["anna"]) as anna:
        anna.load()
    both = cascade(person=[anna, photos["ben"]], **flat, return_all=True, batch=1)
    assert {name: [each.size[0] for each in images] for name, images in both.items()} == {
        "base_unet": [8, 8], "sr_unet": [16, 16], "sr_1024": [32, 32],
    }  # fmt: skip
    assert np.abs(np.asarray(both["sr_1024"][0], int) - np.asarray(one, int)).max() <= 1
    (small,) = cascade(person=[photos["anna"]], **flat, stop="base_unet")
    assert small.size == (8, 8)
    later = cascade(person=anna, **flat, start="sr_unet", stop="sr_unet", image=both["base_unet"][0])
    assert np.abs(np.asarray(later, int) - np.asarray(both["sr_unet"][0], int)).max() <= 1
    other = cascade(person=anna, **flat, seed=1)
    assert np.abs(np.asarray(other, int) - np.asarray(one, int)).max() > 20
    two = TryOnCascade.from_pretrained(folder, device=["cpu", "cpu"], overrides=["sampler.num_steps=2"])
    shared = two(person=[photos["anna"], photos["ben"]], **flat)
    assert (
        max(np.abs(np.asarray(a, int) - np.asarray(b, int)).max() for a, b in zip(shared, both["sr_1024"], strict=True))
        <= 1
    )


def test_what_is_refused(folder, photos):
    with pytest.raises(ValueError, match=r"config.yaml: missing; name a run folder"):
        TryOnCascade.from_pretrained(folder / "nowhere")
    cascade = TryOnCascade.from_pretrained(folder, device="cpu", precision="fp32")
    pair = {"person": photos["anna"], "garment": photos["flat"], "garment_kind": "flat"}
    for keys, said in [
        ({"stop": "sr"}, "stop=sr: no such stage; there are base_unet, sr_unet, sr_1024"),
        ({"image": photos["anna"]}, "base_unet is a first stage and takes no low-resolution image"),
        ({"start": "sr_unet", "image": photos["anna"]}, "wants the proportions of 8x8; crop the image"),
        ({"person": [photos["anna"]] * 2, "garment": [photos["flat"]] * 3}, "2 persons and 3 garments"),
        ({"garment_kind": "Flat"}, "garment_kind='Flat': no such kind; there are worn, flat"),
        ({"rule": "papr"}, "rule='papr': no such rule; there are paper, viton_hd"),
        ({"batch": 0}, "batch=0: expected a whole number from 1"),
        ({"seed": -1}, "seed=-1: expected a whole number from 0"),
        ({"seed": 2**70}, "expected a whole number from 0 to 2**64 - 1"),
        ({"image": []}, "image: an empty list; give at least one"),
        ({"person": None}, "person: expected a path, a PIL image, or an array (H, W, 3) of uint8, not NoneType"),
        ({"person": np.zeros((200, 200))}, "not an array of float64, (200, 200)"),
        ({"start": "sr_unet", "image": [BLANK] * 2}, "image: 2 images for 1 pictures; give one for each"),
        ({"start": "sr_unet", "image": Image.new("RGB", (8, 12))}, "an image in memory: 12x8 pixels, sr_unet wants"),
        ({"garment": BLANK, "garment_kind": "worn"}, 'if the garment lies flat, say so with garment_kind="flat"'),
    ]:
        with pytest.raises(ValueError, match=re.escape(said)):
            cascade(**(pair | keys))


def test_what_is_no_cascade(folder):
    for keys, said in [
        ({"device": "gpu"}, "device='gpu': no such device; use auto, cpu"),
        ({"device": []}, "device: an empty list"),
        ({"device": "cuda:99"}, "device"),
        ({"weights": "model"}, "weights=model: "),
    ]:
        with pytest.raises(ValueError, match=re.escape(said)) as refusal:
            TryOnCascade.from_pretrained(folder, **keys)
        assert "--" not in str(refusal.value)


def test_arrays_and_a_start_without_an_image(folder, photos):
    cascade = TryOnCascade.from_pretrained([folder], device="cpu", overrides="sampler.num_steps=1")
    pair = {"garment": photos["flat"], "garment_kind": "flat", "start": "sr_unet", "stop": "sr_unet"}
    one = cascade(person=photos["anna"], **pair)
    assert [note for note in cascade.notes if "the low-resolution input is the person's picture" in note]
    assert np.array_equal(one, cascade(person=np.asarray(Image.open(photos["anna"])), **pair))
