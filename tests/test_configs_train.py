import pytest

from runs import HOME, TINY, finish, losses, ranks, tensors
from training import loop
from training.config import load_config
from training.engine import SingleDevice
from training.loop import train

CONFIGS = sorted((HOME / "configs").rglob("*.yaml"))
SHRUNK = ("engine.device", "data.num_workers", "train.global_batch", "checkpoint.every", "sampler.num_steps")
SHRUNK += tuple(key for key in TINY if key.startswith("log.") or (key.startswith("model.") and key != "model.lowres"))

TRY_ON = ("model.garment_num_blocks", "model.attention_levels", "model.head_dim")  # what the last stage has not


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(HOME)))
def test_every_config_trains_at_toy_size(path, shards, tmp_path):
    """Validation, preview and checkpoint included."""
    values = {key: TINY[key] for key in SHRUNK} | {"train.num_steps": 2, "train.accumulation": 2}
    if path.stem == "sr_1024":
        values = {key: value for key, value in values.items() if key not in TRY_ON} | {"data.crop_size": [16, 16]}
    values |= {"data.shards": shards, "data.val_shards": shards, "run.dir": tmp_path / "run", "log.preview_every": 2}
    words = [f"{key}={'null' if value is None else value}" for key, value in values.items()]
    config = load_config([str(path), *words])
    assert config.model.lowres == path.stem.startswith("sr_")
    if config.engine.zero_stage is None:
        train(config, SingleDevice)
    else:
        statuses, said = finish(ranks(tmp_path, 2, [str(path), *words]))
        assert statuses == [0, 0], said
    assert len(losses(tmp_path / "run")) == 2 and len(list((tmp_path / "run/previews").iterdir())) == 1
    assert any(value.any() for name, value in tensors(tmp_path / "run").items() if name.startswith("optimizer/exp_avg"))


def test_overfitting_one_batch_sees_the_same_samples_each_step(shards, tmp_path, monkeypatch):
    seen, honest = [], loop.to_device
    monkeypatch.setattr(loop, "to_device", lambda batch, device: seen.append(honest(batch, device)) or seen[-1])
    values = TINY | {"data.shards": str(shards), "run.dir": str(tmp_path / "run"), "train.num_steps": 3}
    values |= {"data.val_shards": None}
    words = [f"{key}={'null' if value is None else value}" for key, value in values.items()]
    train(load_config(["configs/demo.yaml", *words, "train.overfit_one_batch=true"]), SingleDevice)
    assert len(seen) == 3 and all((batch.person == seen[0].person).all() for batch in seen)
    assert (seen[0].draws.noise != seen[1].draws.noise).any(), "with new noise each time"
