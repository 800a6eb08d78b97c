"""Shards are plain WebDataset tars, the index says what they hold, and nothing that is broken goes unnoticed."""

import io
import json
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from data.dataset import ShardedDataset
from data.schema import FIELDS, IMAGES
from data.shard_index import ROW, index_shard, place_of, write_index
from data.shards import encode_sample, escape_key, main, write_shards
from tars import members_of, refusal, rewrite

KEYS = ("plain", "001.front", "50%.x", "a/b/../c", "été 衣服 🧥", "__x__", "%2E", "UPPER\\lower", "k" * 120)


def test_plain_webdataset_reads_the_same_bytes(tmp_path, random_sample):
    samples = [random_sample(key, i) for i, key in enumerate(KEYS)]
    assert write_shards(iter(samples), tmp_path / "set", samples_per_shard=4) == len(KEYS)
    tars = sorted(map(str, (tmp_path / "set").glob("*.tar")))
    assert len(tars) == 3
    dataset = ShardedDataset(tmp_path / "set")
    read = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert len(read) == len(dataset) == len(KEYS)
    for i, (plain, sample) in enumerate(zip(read, samples, strict=True)):
        expected = encode_sample(sample)
        assert plain["__key__"] == escape_key(sample.key) == expected["__key__"]
        assert {name: plain[name] for name in expected} == expected
        ours = dataset.read(i)
        assert ours.key == dataset.key(i) == sample.key
        for field in IMAGES:
            assert np.array_equal(getattr(ours, field), Image.open(io.BytesIO(expected[f"{field}.jpg"])))
        assert np.allclose(ours.person_pose, sample.person_pose, atol=1e-5)
        assert np.allclose(ours.garment_pose, sample.garment_pose, atol=1e-5)


def test_colours_and_sides_survive(tmp_path, random_sample):
    """Red stays red (no BGR), the left stays left, and every field comes back as itself."""
    paint = {"person": (250, 20, 10), "clothing_agnostic": (20, 240, 30), "garment": (10, 30, 245)}
    images = {field: np.full((16, 12, 3), color, np.uint8) for field, color in paint.items()}
    images["person"][:, :4] = 128
    write_shards([random_sample("x")._replace(**images)], tmp_path / "set")
    sample = ShardedDataset(tmp_path / "set").read(0)
    for field, image in images.items():
        assert np.abs(getattr(sample, field)[:, [0, 10]].astype(int) - image[:, [0, 10]]).max() < 12


def test_index_equals_contents(shard):
    rows, raw, expected = np.load(shard.with_suffix(".npy"), allow_pickle=False), shard.read_bytes(), {}
    with tarfile.open(shard) as archive:
        for member in archive:
            expected[member.name.rpartition(".")[0]] = (member.offset_data, member.size)
    assert len(expected) == 3 * len(FIELDS) and rows.dtype == ROW and ROW.itemsize == 46
    for key, row in zip("abc", rows, strict=True):
        place = place_of(row)
        members = []
        for field, (at, size) in zip(FIELDS, place.members, strict=True):
            offset = place.start + at
            assert (offset, size) == expected[f"{key}.{field}"] and offset + size <= place.end
            members.append(raw[offset : offset + size])
        assert place.crcs == [*map(zlib.crc32, members[:3]), zlib.crc32(members[3] + members[4])]
    about = json.loads((shard.parent / "dataset.json").read_text())
    assert about["image_size"] == [16, 12] and about["shards"][0]["bytes"] == len(raw)


@pytest.mark.parametrize("name", ["50%d of it", "s3:bucket", "with space"])
def test_names_of_folders_are_no_patterns_and_no_urls(tmp_path, monkeypatch, random_sample, name):
    monkeypatch.chdir(tmp_path)
    write_shards([random_sample("a")], Path(name) / "out")
    assert len(ShardedDataset(tmp_path / name / "out")) == 1


def test_tars_of_other_tools(shard):
    """With other fields, in any order of a sample's members, and named ./KEY.FIELD.EXT, as `tar -c .` writes them."""
    before = ShardedDataset(shard.parent)
    samples = [before.read(i) for i in range(3)]
    members = sorted(members_of(shard), key=lambda member: (member[0][0], member[0][::-1]))
    members.insert(1, ("a.caption.txt", b"a shirt"))
    rewrite(shard, [(f"./{name}", data) for name, data in members])
    write_index(shard.parent)
    after = ShardedDataset(shard.parent)
    assert [after.key(i) for i in range(3)] == ["a", "b", "c"] and before.fingerprint != after.fingerprint
    assert all(np.array_equal(x, y) for x, y in zip(after.read(2)[1:], samples[2][1:], strict=True))


def test_cut_off_anywhere(shard):
    """Whatever is missing at the end, above all when the cut falls between two members, where tarfile sees no fault."""
    whole = shard.read_bytes()
    with tarfile.open(shard) as archive:
        archive.getmembers()
        end = archive.offset  # of the last member
    for size in sorted({*range(0, end + 512, 512), *range(100, end, 1001)}):
        shard.write_bytes(whole[:size])
        assert str(shard) in refusal(index_shard, shard)
        assert "bytes, but its index says" in refusal(ShardedDataset, shard.parent)


@pytest.mark.parametrize("how", ["flipped", "zeroed"])
def test_broken_header_anywhere(shard, how):
    whole = shard.read_bytes()
    with tarfile.open(shard) as archive:
        headers = [member.offset for member in archive]
    for header in headers:
        broken = bytes(512) if how == "zeroed" else bytes([whole[header] ^ 1]) + whole[header + 1 : header + 512]
        shard.write_bytes(whole[:header] + broken + whole[header + 512 :])
        assert str(shard) in refusal(index_shard, shard)


def swap(members):
    members[2], members[7] = members[7], members[2]


def split(members):
    members.insert(9, members.pop(2))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (swap, "'a' do not stand together"),
        (split, "'a' do not stand together"),
        (lambda m: m.pop(6), "sample 'b' has no "),
        (lambda m: m.insert(6, m[5]), "sample 'b' has person twice"),
        (lambda m: m.extend(m[:5]), "sample 'a' do not stand together"),
        (lambda m: m.append(("../../x.person.jpg", m[2][1])), "'../../x.person.jpg' is not a plain file"),
        (lambda m: m.append(("/etc/x.person.jpg", m[2][1])), "'/etc/x.person.jpg' is not a plain file"),
        (lambda m: m.append((".person.jpg", m[2][1])), "'.person.jpg' is not a plain file"),
        (lambda m: m.clear(), "holds no sample"),
    ],
)
def test_wrong_members(shard, damage, told):
    members = members_of(shard)
    damage(members)
    rewrite(shard, members)
    before = (shard.parent / "dataset.json").read_bytes()
    message = refusal(write_index, shard.parent)
    assert message.startswith(f"{shard}: ") and told in message
    assert (shard.parent / "dataset.json").read_bytes() == before, "a refused index replaces none"


def test_links_are_not_followed(shard):
    members = members_of(shard)
    with tarfile.open(shard, "w") as archive:
        link = tarfile.TarInfo(members[0][0])
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    assert "is not a plain file" in refusal(index_shard, shard)


def test_the_same_key_in_two_shards(tmp_path, random_sample):
    write_shards([random_sample(key) for key in "ab"], tmp_path / "set", samples_per_shard=1)
    (tmp_path / "set/000001.tar").write_bytes((tmp_path / "set/000000.tar").read_bytes())
    assert "sample 'a' is in 000000.tar too" in refusal(write_index, tmp_path / "set")


def npy(value: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, value)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("suffix", "data"),
    [
        ("json", b"{}"),
        ("json", b"[[0, 0, 0]]"),
        ("json", b"[" * 10**5),
        ("json", json.dumps([[float("nan")] * 3] * 18).encode()),
        ("json", json.dumps([[0.5, 0.5, 0.9]] * 18).encode()),
        ("json", json.dumps([[300, 200, 1]] * 18).encode()),
        ("json", json.dumps([[-0.1, 0.5, 1]] * 18).encode()),
        ("npy", npy(np.full((18, 3), np.nan, np.float32))),
        ("npy", npy(np.full((18, 3), 2, np.float32))),
        ("npy", npy(np.zeros((17, 3), np.float32))),
        ("npy", npy(np.zeros((18, 3), np.float32))[:-1]),
        ("npy", b"\x93NUMPY"),
        ("npy", np.array([{}] * 54, object).dumps()),
    ],
)
def test_a_pose_that_is_none_is_refused_by_the_index(shard, suffix, data):
    """Of another size, in pixels, with confidences instead of visible, or a pickle: no training would see it."""
    members = [(f"b.person_pose.{suffix}", data) if n == "b.person_pose.npy" else (n, d) for n, d in members_of(shard)]
    rewrite(shard, members)
    assert refusal(write_index, shard.parent).startswith(f"{shard}: sample 'b': person_pose cannot be decoded (")


def test_poses_as_json(shard):
    """As other tools may write them."""
    before = ShardedDataset(shard.parent).read(1)
    rows = json.dumps(before.person_pose.tolist()).encode()
    rewrite(shard, [("b.person_pose.json", rows) if n == "b.person_pose.npy" else (n, d) for n, d in members_of(shard)])
    write_index(shard.parent)
    assert np.array_equal(ShardedDataset(shard.parent).read(1).person_pose, before.person_pose)


@pytest.mark.parametrize(("key", "other"), [("IMG.1", "IMG.2"), ("a.person", "a.b.c"), ("x" * 150, "x" * 151)])
def test_keys_with_dots_and_long_ones(shard, key, other):
    """WebDataset would cut them at the first dot, and merge two samples into one."""
    names = {"a": key, "b": other, "c": "c"}
    rewrite(shard, [(names[n[0]] + n[1:], d) for n, d in members_of(shard)])
    write_index(shard.parent)
    dataset = ShardedDataset(shard.parent)
    assert [dataset.read(i).key for i in range(3)] == [dataset.key(i) for i in range(3)] == [key, other, "c"]


@pytest.mark.parametrize(
    ("name", "told"), [("person.pkl", "'b.person.pkl' is none of .jpg"), ("person.jpg", "is empty")]
)
def test_pickles_and_empty_members(shard, name, told):
    members = [(f"b.{name}", b"") if n == "b.person.jpg" else (n, d) for n, d in members_of(shard)]
    rewrite(shard, members)
    assert told in refusal(index_shard, shard)


def test_a_member_that_leaves_the_folder_is_never_written(shard):
    rewrite(shard, [*members_of(shard), ("../../evil.txt", b"x")])
    write_index(shard.parent)
    assert len(ShardedDataset(shard.parent)) == 3
    assert not list(shard.parents[2].glob("evil*"))


def test_first_image_unreadable(shard):
    rewrite(shard, [(n, b"no picture" if n == "a.person.jpg" else d) for n, d in members_of(shard)])
    assert refusal(write_index, shard.parent).startswith(f"{shard}: sample 'a': person is no readable image")


def test_a_failed_write_leaves_nothing_that_looks_valid(tmp_path, random_sample, monkeypatch):
    out = tmp_path / "set"

    def failing():
        yield random_sample("a")
        raise KeyboardInterrupt

    def disk_full(tar):
        raise OSError("no space left on device")

    with pytest.raises(KeyboardInterrupt):
        write_shards(failing(), out)
    assert "two samples have the key 'a'" in str(refusal_of_write([random_sample("a")] * 2, out))
    assert "empty key" in str(refusal_of_write([random_sample("")], out))
    assert not out.exists()
    for folder in tmp_path.iterdir():
        refusal(ShardedDataset, folder)
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr("data.shard_index.index_shard", disk_full)
        write_shards([random_sample("a")], out)
    assert not out.exists()
    assert "gave no sample" in str(refusal_of_write([], out)) and list(tmp_path.iterdir()) == []
    assert write_shards([random_sample("a")], out) == 1 and list(tmp_path.iterdir()) == [out]


def refusal_of_write(samples, out: Path) -> ValueError:
    with pytest.raises(ValueError) as caught:
        write_shards(samples, out)
    assert str(caught.value).startswith(f"{out}: ")
    return caught.value


def test_an_existing_out_is_untouched(tmp_path, random_sample):
    out = tmp_path / "set"
    out.mkdir()
    (out / "precious").write_text("data")
    assert "exists already" in str(refusal_of_write([random_sample("a")], out))
    assert [path.name for path in tmp_path.rglob("*")] == ["set", "precious"]


def test_shards_are_a_function_of_the_samples(tmp_path, random_sample):
    for name in ("one", "two"):
        write_shards([random_sample("a", 1), random_sample("b", 2)], tmp_path / name)
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two


def test_command_line(shard, monkeypatch, capsys):
    before = ShardedDataset(shard.parent).fingerprint
    (shard.parent / "dataset.json").unlink()
    monkeypatch.setattr(sys, "argv", ["data.shards", str(shard.parent)])
    main()
    assert "3 samples; read every byte of them: python -m data.verify" in capsys.readouterr().out
    assert ShardedDataset(shard.parent).fingerprint == before
    shard.write_bytes(shard.read_bytes()[:3000])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {shard}: ")
