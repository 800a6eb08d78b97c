"""data.verify finds what is broken, and nothing else."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data import verify
from data.dataset import ShardedDataset
from data.schema import IMAGES
from data.shards import write_shards


@pytest.fixture
def folder(tmp_path, random_sample) -> Path:
    write_shards((random_sample(f"sample-{i}", i) for i in range(12)), tmp_path / "set", samples_per_shard=4)
    return tmp_path / "set"


def flip(folder: Path, sample_id: int, field: int) -> None:
    name, place = ShardedDataset(folder, checked=False).place(sample_id)
    data = bytearray((folder / name).read_bytes())
    data[place.start + place.members[field][0] + 9] ^= 1
    (folder / name).write_bytes(data)


def listed(path: Path) -> list[tuple[str, str]]:
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    return [(entry["key"], entry["reason"]) for entry in entries]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_whole_set(folder, capsys, workers):
    assert verify.main([str(folder), "--workers", workers]) == 0
    assert "12 samples in 3 shards; broken: 0 shards, 0 samples; odd: 0" in capsys.readouterr().out
    assert (folder / "quarantine.jsonl").read_text() == ""


def test_broken_samples_are_listed(folder, capsys):
    for sample_id, field in ((1, 0), (6, 4), (7, 2)):
        flip(folder, sample_id, field)
    assert verify.main([str(folder), "--workers", "2"]) == 1
    found = listed(folder / "quarantine.jsonl")
    assert [(key, reason.split()[0]) for key, reason in found if key] == [
        ("sample-1", "person"), ("sample-6", "a"), ("sample-7", "garment")
    ]  # fmt: skip
    assert all("is damaged" in reason for key, reason in found if key)
    out = capsys.readouterr().out
    assert "broken: 1 shards, 3 samples" in out, "what is no pose is refused by the index too"
    assert f"broken: {folder / '000001.tar'}: sample 'sample-6'" in out


def test_a_broken_header_is_told_although_our_index_needs_none(folder):
    with tarfile.open(folder / "000000.tar") as archive:
        header = archive.getmembers()[7].offset
    data = bytearray((folder / "000000.tar").read_bytes())
    data[header + 148] ^= 1
    (folder / "000000.tar").write_bytes(data)
    assert ShardedDataset(folder).read(1).key == "sample-1"
    assert verify.main([str(folder)]) == 1
    ((key, reason),) = listed(folder / "quarantine.jsonl")
    assert key == "" and "its structure is damaged" in reason


def test_pairs_that_can_be_none(tmp_path, random_sample, capsys):
    """They decode; a person that hides nothing, an empty garment and a person without joints teach nothing."""
    images = {field: np.full((16, 12, 3), 100 + 30 * i, np.uint8) for i, field in enumerate(IMAGES)}
    images["person"][:8], images["clothing_agnostic"][4:], images["garment"][4:9] = 30, 200, 5
    good = random_sample("good", 1)._replace(**images)
    odd = [
        good._replace(key="bare", clothing_agnostic=good.person),
        good._replace(key="empty", garment=np.full_like(good.garment, 128)),
        good._replace(key="nobody", person_pose=np.zeros_like(good.person_pose)),
    ]
    write_shards([good, *odd], tmp_path / "set")
    assert verify.main([str(tmp_path / "set"), "--out", str(tmp_path / "list")]) == 0
    out = capsys.readouterr().out
    assert "broken: 0 shards, 0 samples; odd: 3" in out and (tmp_path / "list").read_text() == ""
    for key, told in (("bare", "nothing is hidden"), ("empty", "nothing was cut out"), ("nobody", "no visible joint")):
        assert any(f"'{key}'" in line and told in line for line in out.splitlines())


def test_shards_that_are_gone_cut_off_or_unknown(folder, capsys):
    """Each is told, and the rest is looked at all the same."""
    (folder / "000000.tar").unlink()
    whole = (folder / "000001.tar").read_bytes()
    (folder / "000001.tar").write_bytes(whole[:-600])
    (folder / "other.tar").write_bytes(whole)
    flip(folder, 9, 1)
    assert verify.main([str(folder), "--workers", "0"]) == 1
    assert [(key, reason.split()[0]) for key, reason in listed(folder / "quarantine.jsonl")] == [
        ("", "this"), ("", str(len(whole) - 600)), ("sample-9", "clothing_agnostic")
    ]  # fmt: skip
    out = capsys.readouterr().out
    assert "broken: 2 shards, 1 samples; odd: 1" in out and f"odd: {folder / 'other.tar'}: the index does not" in out


def test_a_set_that_cannot_be_opened(tmp_path, capsys):
    assert verify.main([str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
