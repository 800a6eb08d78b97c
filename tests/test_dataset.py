"""Reading samples by their index: what is damaged is named, never unpickled, never passed on."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import sources
from data.dataset import ShardedDataset
from data.schema import FIELDS, POSES
from data.shard_index import index_shard, place_of, write_index
from tars import flip_byte, members_of, refusal, rewrite


@pytest.mark.parametrize("field", FIELDS)
def test_flipped_byte_is_seen_when_read(shard, field):
    place = place_of(index_shard(shard).rows[1])
    at, size = place.members[FIELDS.index(field)]
    dataset = ShardedDataset(shard.parent)
    flip_byte(shard, place.start + at + size // 2)
    assert refusal(dataset.read, 1).startswith(
        f"{shard}: sample 'b': {'a pose' if field in POSES else field} is damaged"
    )
    assert [dataset.read(i).key for i in (0, 2)] == ["a", "c"]


@pytest.mark.parametrize("data", [b"no picture", None, b"\xff\xd8\xff\xe0 cut off", b"\x80\x04N."])
def test_an_image_that_cannot_be_decoded(shard, data):
    """The checksum is right, the content is not: among them a picture of another size and a pickle."""
    if data is None:
        buffer = io.BytesIO()
        Image.new("RGB", (16, 12)).save(buffer, "JPEG")
        data = buffer.getvalue()
    rewrite(shard, [(n, data if n == "b.garment.jpg" else d) for n, d in members_of(shard)])
    write_index(shard.parent)
    message = refusal(ShardedDataset(shard.parent).read, 1)
    assert message.startswith(f"{shard}: sample 'b': garment cannot be decoded (")


def test_deleted_shard(shard, monkeypatch):
    monkeypatch.setattr(sources, "WAITS_S", (0.01, 0.02))
    dataset = ShardedDataset(shard.parent)
    shard.unlink()
    assert f"{shard}: this shard is missing" in refusal(ShardedDataset, shard.parent)
    assert f"{shard}: cannot be read" in refusal(dataset.read, 0)


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


@pytest.mark.parametrize("damage", ["flipped", "cut off", "pickled", "bare pickle", "empty", "missing", "rows", "text"])
def test_damaged_index_is_refused_and_never_unpickled(shard, monkeypatch, damage):
    monkeypatch.chdir(shard.parent)
    index, rows = shard.with_suffix(".npy"), index_shard(shard).rows
    if damage == "flipped":
        flip_byte(index, index.read_bytes().index(rows.tobytes()) + 1)
    elif damage == "cut off":
        index.write_bytes(index.read_bytes()[:-1])
    elif damage == "pickled":
        np.save(index, np.array([Bomb()] * 3), allow_pickle=True)
    elif damage == "bare pickle":
        np.array([Bomb()] * 3).dump(index)
    elif damage == "empty":
        index.write_bytes(b"")
    elif damage == "missing":
        index.unlink()
    elif damage == "rows":
        np.save(index, rows[:2])
    else:
        np.save(index, np.array(["a", "b", "c"]))
    dataset = ShardedDataset(shard.parent)
    for action in (dataset.read, dataset.key):
        assert refusal(action, 0).startswith(f"{index}: ")
    assert not Path("exploded").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"format": 1},
        {"fields": ["person"]},
        {"image_size": None},
        {"image_size": [16]},
        {"shards": []},
        {"shards": [{"name": "000000.tar"}]},
        {"shards": [{"name": "../000000.tar", "samples": 3, "bytes": 1, "crc": 1}]},
        "[]",
        '{"format": 1',
        "\xff\x00",
    ],
    ids=str,
)
def test_damaged_dataset_json(shard, change):
    path = shard.parent / "dataset.json"
    text = change if isinstance(change, str) else json.dumps(json.loads(path.read_text()) | change)
    path.write_text(text, encoding="latin-1")
    message = refusal(ShardedDataset, shard.parent)
    assert message.startswith(f"{path}: not a shard index") and "python -m data.shards" in message


def test_folders_without_shards(tmp_path):
    assert "no such folder" in refusal(ShardedDataset, tmp_path / "none")
    assert f"{tmp_path / 'dataset.json'}: missing" in refusal(ShardedDataset, tmp_path)
    assert f"{tmp_path}: holds no .tar shard" in refusal(write_index, tmp_path)
