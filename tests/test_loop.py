"""The whole loop on one device, in this process: which samples it takes, what it saves, and what it looks at."""

import time

import pytest
import torch

from runs import empty_config, tensors, words
from training import loop, pieces
from training.checkpoint import folder_of, open_tensors
from training.config import load_config
from training.engine import SingleDevice
from training.loop import train


@pytest.fixture
def configured(shards, tmp_path):
    return lambda **changes: load_config([str(empty_config(tmp_path)), *words(shards, tmp_path / "run", **changes)])


def test_another_global_batch_goes_on_where_the_samples_ended(configured, monkeypatch):
    seen, honest = [], loop.to_device
    monkeypatch.setattr(
        loop, "to_device", lambda batch, device: seen.extend(batch.position.tolist()) or honest(batch, device)
    )
    train(configured(train__num_steps=3, train__global_batch=4), SingleDevice)
    train(configured(train__num_steps=5, train__global_batch=6), SingleDevice)
    assert seen == list(range(3 * 4 + 2 * 6))


def test_a_checkpoint_holds_the_weights_of_its_step_however_long_it_is_copied(configured, monkeypatch, tmp_path):
    """Each file is copied once the next step is done, or when it does not come."""
    add, after = pieces.Writing.add, []

    def add_late(*args) -> None:
        done, end = len(after), time.monotonic() + 0.3
        while len(after) == done and time.monotonic() < end:
            time.sleep(0.01)
        add(*args)

    monkeypatch.setattr(pieces.Writing, "add", add_late)

    class Watched(SingleDevice):
        def step(self, lr):
            norm = super().step(lr)
            after.append({name: stored.clone() for name, stored in self.weights().items()})
            return norm

    train(configured(train__num_steps=3, checkpoint__every=1), Watched)
    shapes = {name: tuple(value.shape) for name, value in after[0].items()}
    for step, weights in enumerate(after, 1):
        with open_tensors(folder_of(tmp_path / "run", step), "model", shapes) as get:
            assert all(torch.equal(get(name), value) for name, value in weights.items()), step


def test_what_is_validated_is_the_average(configured, monkeypatch, shards, tmp_path):
    seen = []

    def look(net, *rest):
        seen.append({f"ema/{name}": p.detach().numpy().copy() for name, p in net.model.named_parameters()})
        return 0.0, 0

    monkeypatch.setattr(loop, "validation_loss", look)
    train(configured(train__num_steps=3, log__validate_every=3, data__val_shards=shards), SingleDevice)
    there = tensors(tmp_path / "run")
    assert len(seen) == 1 and all((there[name] == value).all() for name, value in seen[0].items())
    assert any((there[name] != there[name.replace("ema/", "model/")]).any() for name in seen[0])
