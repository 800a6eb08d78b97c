"""FID's InceptionV3: the network that the published weights belong to, and files that are not those."""

from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation import spaces
from evaluation.spaces import INCEPTION, bilinear_resized, clean_resized, inception_input, inception_space
from model.inception import SIZE, WIDTH, InceptionV3

PARAMETERS = 21_785_568  # torchvision's inception_v3, 27,161,264, without its heads of 3,326,696 and 2,049,000
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Random weights in a file like the published one, whose classifier is not needed."""
    path = tmp_path_factory.mktemp("weights") / INCEPTION
    state = {name: value for name, value in InceptionV3().state_dict().items() if "num_batches" not in name}
    torch.save(state | {"fc.weight": torch.zeros(1008, WIDTH), "fc.bias": torch.zeros(1008)}, path)
    return path


@pytest.fixture
def known(weights, monkeypatch) -> Path:
    """The same, its hash taken for the published one's."""
    inception_space.cache_clear()
    monkeypatch.setattr(spaces, "INCEPTION_SHA256", sha256(weights.read_bytes()).hexdigest()[:8])
    return weights


def test_it_is_the_network_of_the_weights():
    net = InceptionV3()
    assert sum(weight.numel() for weight in net.parameters()) == PARAMETERS
    names = {name.removesuffix(".conv.weight") for name in net.state_dict() if name.endswith("conv.weight")}
    assert len(names) == 94
    of_d = {"branch3x3_1", "branch3x3_2", "branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3", "branch7x7x3_4"}
    assert {name.partition(".")[2] for name in names if name.startswith("Mixed_7a")} == of_d
    assert {"Mixed_5b.branch5x5_2", "Mixed_6e.branch7x7dbl_5", "Mixed_7c.branch3x3dbl_3b"} <= names


def test_pools_of_2015():
    """Averages leave the padding out; the last block takes the maximum."""
    net, ones = InceptionV3(), torch.ones(1, 2048, 8, 8)
    taken = []
    for block in (net.Mixed_5b, net.Mixed_6b, net.Mixed_7b, net.Mixed_7c):
        block.branch_pool.register_forward_hook(lambda module, args, out: taken.append(args[0]))
    x = torch.rand(1, 2048, 8, 8)
    for block, width in ((net.Mixed_5b, 192), (net.Mixed_6b, 768), (net.Mixed_7b, 1280)):
        block(ones[:, :width])
        assert (taken[-1] == 1).all()
        block(x[:, :width])
        assert torch.allclose(taken[-1][..., 3, 3], x[:, :width, 2:5, 2:5].mean((2, 3)))
    net.Mixed_7c(x)
    assert torch.equal(taken[-1][..., 3, 3], x[..., 2:5, 2:5].amax((2, 3)))


def test_features(known):
    images = list(np.random.default_rng(0).integers(0, 256, (2, 40, 30, 3), dtype=np.uint8))
    space = inception_space(known, "clean", CPU)
    found = space.features(images)
    assert found.shape == (2, WIDTH) and (space.frechet, space.kernel) == ("fid", "kid")
    assert np.isfinite(found).all() and not np.array_equal(found[0], found[1])
    other = inception_space(known, "pytorch-fid", CPU).features(images)
    assert np.abs(other - found).max() > 1e-3 * np.abs(found).max(), "it resizes otherwise"


@pytest.mark.parametrize("what", ["missing", "another", "torn", "pickle"])
def test_files_that_are_not_the_weights(known, tmp_path, monkeypatch, what):
    path = tmp_path / INCEPTION
    if what == "another":
        torch.save({"fc.bias": torch.zeros(3)}, path)
    elif what == "torn":
        path.write_bytes(known.read_bytes()[:1000])
    elif what == "pickle":
        torch.save({"Conv2d_1a_3x3.conv.weight": Path("evil")}, path)
    said = {"missing": "cannot be read", "another": "its SHA-256 is"}.get(what, "not the weights of InceptionV3")
    if what in ("torn", "pickle"):
        monkeypatch.setattr(spaces, "INCEPTION_SHA256", sha256(path.read_bytes()).hexdigest()[:8])
    with pytest.raises(ValueError) as refusal:
        inception_space(path, "clean", CPU)
    told = str(refusal.value)
    assert told.startswith(f"--inception-weights {path}: {said}") and INCEPTION in told and "\n" not in told


def test_resizing():
    """Pillow's bicubic filter in floats does not alias; pytorch-fid's bilinear one does."""
    fine = np.tile(np.array([[0, 255], [255, 0]], np.uint8).repeat(3).reshape(2, 2, 3), (300, 300, 1))
    clean, plain = clean_resized([fine], SIZE), bilinear_resized([fine], SIZE)
    assert clean.shape == plain.shape == (1, 3, SIZE, SIZE)
    assert (clean - 127.5).abs().mean() < 6 < (plain - 127.5).abs().mean()
    flat = np.full((20, 10, 3), 51, np.uint8)
    for resize, value in (("clean", (51 - 128) / 128), ("pytorch-fid", 0.4 - 1)):
        assert torch.allclose(inception_input([flat], resize), torch.full((), value), atol=1e-5)
