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
from data.shards import FIELDS, IMAGES, encode_sample, escape_key, index_shard, main, write_index, write_shards

KEYS = ("plain", "001.front", "50%.x", "a/b/../c", "été 衣服 🧥", "__x__", "%2E", "UPPER\\lower", "k" * 120)


@pytest.fixture
def shard(tmp_path, random_sample) -> Path:
    """The one tar of a folder of three samples a, b, c."""
    write_shards([random_sample(key, i) for i, key in enumerate("abc")], tmp_path / "set")
    return tmp_path / "set/000000.tar"


def members_of(tar: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(tar) as archive:
        return [(member.name, archive.extractfile(member).read()) for member in archive]


def rewrite(tar: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(tar, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def flip_byte(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    path.write_bytes(data)


def refusal(action, *args) -> str:
    """The message of the one ValueError that an action ends with: one line that names a remedy."""
    with pytest.raises(ValueError) as caught:
        action(*args)
    message = str(caught.value)
    assert "\n" not in message and ("python -m data." in message or "remove" in message), message
    return message


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
    assert [row["key"].decode() for row in rows] == ["a", "b", "c"] and len(expected) == 3 * len(FIELDS)
    for row in rows:
        for i, field in enumerate(FIELDS):
            offset, size, crc = (int(row[name][i]) for name in ("offset", "size", "crc"))
            assert (offset, size) == expected[f"{row['key'].decode()}.{field}"]
            assert zlib.crc32(raw[offset : offset + size]) == crc
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
        (lambda m: m.insert(6, m[5]), "sample 'b' has clothing_agnostic twice"),
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


@pytest.mark.parametrize("field", FIELDS)
def test_flipped_byte_is_seen_when_read(shard, field):
    row = index_shard(shard)[1]
    i = FIELDS.index(field)
    dataset = ShardedDataset(shard.parent)
    flip_byte(shard, int(row["offset"][i]) + int(row["size"][i]) // 2)
    assert refusal(dataset.read, 1).startswith(f"{shard}: sample 'b': {field} is damaged")
    assert [dataset.read(i).key for i in (0, 2)] == ["a", "c"]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("person.jpg", b"no picture"),
        ("garment.jpg", None),
        ("person_pose.json", b"{}"),
        ("person_pose.json", b"[[0, 0, 0]]"),
        ("person_pose.json", json.dumps([[float("nan")] * 3] * 18).encode()),
        ("garment_pose.json", json.dumps([[0.5, 0.5, 0.9]] * 18).encode()),
        ("garment_pose.json", json.dumps([[300, 200, 1]] * 18).encode()),
        ("garment_pose.json", json.dumps([[-0.1, 0.5, 1]] * 18).encode()),
    ],
)
def test_what_cannot_be_decoded(shard, name, data):
    """The checksum is right, the content is not: of another size, in pixels, with confidences instead of visible."""
    if data is None:
        buffer = io.BytesIO()
        Image.new("RGB", (16, 12)).save(buffer, "JPEG")
        data = buffer.getvalue()
    rewrite(shard, [(n, data if n == f"b.{name}" else d) for n, d in members_of(shard)])
    write_index(shard.parent)
    message = refusal(ShardedDataset(shard.parent).read, 1)
    assert message.startswith(f"{shard}: sample 'b': {name.partition('.')[0]} cannot be decoded (")


def test_first_image_unreadable(shard):
    rewrite(shard, [(n, b"no picture" if n == "a.person.jpg" else d) for n, d in members_of(shard)])
    assert refusal(write_index, shard.parent).startswith(f"{shard}: sample 'a': person is no readable image")


def test_deleted_shard(shard):
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
    index, rows = shard.with_suffix(".npy"), index_shard(shard)
    if damage == "flipped":
        flip_byte(index, index.read_bytes().index(rows.tobytes()) + 1)  # in a key, which no other checksum covers
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
        {"format": 2},
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
        patch.setattr("data.shards.index_shard", disk_full)
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


def test_command_line(shard, monkeypatch):
    before = ShardedDataset(shard.parent).fingerprint
    (shard.parent / "dataset.json").unlink()
    monkeypatch.setattr(sys, "argv", ["data.shards", str(shard.parent)])
    main()
    assert ShardedDataset(shard.parent).fingerprint == before
    shard.write_bytes(shard.read_bytes()[:3000])
    with pytest.raises(SystemExit) as caught:
        main()
    assert str(caught.value).startswith(f"error: {shard}: ") and "\n" not in str(caught.value)
