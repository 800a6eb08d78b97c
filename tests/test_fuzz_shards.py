"""Whatever stands in a tar, indexing it ends with an index or a ValueError, and nothing is written.

TRYON_FUZZ: how many inputs of each kind.
"""

import contextlib
import io
import tarfile
from functools import cache

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data.decode import decode_image, decode_pose
from data.schema import FIELDS, JOINTS, Sample
from data.shard_index import SUFFIXES, index_shard
from data.shards import encode_sample
from fuzzing import fuzz

KEYS = st.sampled_from(["a", "b", "IMG.1", "x" * 120, "../../x", "/etc/x", ".", "", "%2F", "a\\b", "été", "./c"])
NAMES = st.builds(lambda key, field, end: f"{key}.{field}.{end}", KEYS, st.sampled_from([*FIELDS, "other"]),
                  st.sampled_from(["jpg", "npy", "json", "pkl", ""]))  # fmt: skip
TYPES = st.sampled_from([tarfile.REGTYPE] * 8 + [tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])


EDITS = st.tuples(st.integers(0, 14), st.integers(0, 511), st.binary(min_size=1, max_size=12))
STARTS = st.sampled_from(
    [b"", b"\xff\xd8\xff", b"\x93NUMPY\x01\x00", b"[[", b"\x89PNG\r\n\x1a\n", b"RIFF", b"\x80\x04"]
)


def archive(members: list[tuple[str, bytes, bytes]], kind: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for name, kind_of_member, data in members:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind_of_member, len(data) if kind_of_member == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def refuse_or_index(data: bytes, tmp_path) -> None:
    path = tmp_path / "fuzzed.tar"
    path.write_bytes(data)
    try:
        rows, keys = index_shard(path)
        assert len(rows) == len(keys) > 0
    except ValueError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
    assert [entry.name for entry in tmp_path.iterdir()] == ["fuzzed.tar"]


@cache
def whole() -> bytes:
    """A good shard of three samples."""
    image, pose = np.full((8, 8, 3), 90, np.uint8), np.zeros((len(JOINTS), 3), np.float32)
    encoded = [encode_sample(Sample(key, image, image, image, pose, pose)) for key in "abc"]
    members = [
        (f"{sample['__key__']}.{name}", tarfile.REGTYPE, data)
        for sample in encoded for name, data in sample.items() if name != "__key__"
    ]  # fmt: skip
    return archive(members, tarfile.GNU_FORMAT)


@fuzz
@given(edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
       end=st.floats(0, 1) | st.just(1.0))  # fmt: skip
def test_a_good_tar_with_wrong_bytes(tmp_path, edits, end):
    data = bytearray(whole())
    for place, value in edits:
        data[int(place * len(data))] = value
    refuse_or_index(bytes(data[: int(end * len(data))]), tmp_path)


@fuzz
@given(headers=st.lists(EDITS, min_size=1, max_size=3))
def test_headers_with_a_right_checksum_and_wrong_fields(tmp_path, headers):
    """Sizes, types and names of anything, which a checksum of the header lets pass."""
    data = bytearray(whole())
    with tarfile.open(fileobj=io.BytesIO(whole())) as tar:
        places = [member.offset for member in tar]
    for which, at, value in headers:
        start = places[which]
        header = bytearray(data[start : start + 512])
        header[at : at + len(value)] = value
        header = header[:512]
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        data[start : start + 512] = header
    refuse_or_index(bytes(data), tmp_path)


@fuzz
@given(members=st.lists(st.tuples(NAMES, TYPES, st.binary(max_size=40)), max_size=12),
       kind=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))  # fmt: skip
def test_tars_of_any_members(tmp_path, members, kind):
    refuse_or_index(archive(members, kind), tmp_path)


@fuzz
@given(data=st.binary(max_size=2000))
def test_bytes_that_are_no_tar(tmp_path, data):
    refuse_or_index(data, tmp_path)


@fuzz
@given(start=STARTS, rest=st.binary(max_size=300))
def test_members_of_any_bytes(start, rest):
    for decode in (decode_pose, lambda data: decode_image(data, (8, 8))):
        with contextlib.suppress(ValueError):
            decode(start + rest)


def test_every_field_has_its_suffixes():
    assert set(SUFFIXES) == set(FIELDS)
