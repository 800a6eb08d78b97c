"""Pictures as files: names that no two pairs share, stamps that tell whose they are, and nothing lost of one's own."""

import io
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sampling.outputs import ABOUT, Files, Names, Shards, claim, make_folder, write_whole
from sampling.photos import joined
from sampling.stamps import encoded, saved, stamp_of

STAGES = ["small", "large"]
PICTURE = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
PICTURES = dict.fromkeys(STAGES, PICTURE)


def output(out: Path, keys: str = "abc", kind: str = "png", **facts):
    """For pairs of one letter each, and facts."""
    names = Names(lambda i: keys[i], len(keys), STAGES, "jpg" if kind == "jpg" else "png", facts)
    return Shards(out, names, STAGES) if kind == "tar" else Files(out, names, STAGES, 95)


def draw(out: Path, keys: str, kind: str, overwrite: bool = False, **facts) -> int:
    """How many units are new."""
    where = output(out, keys, kind, **facts)
    claim(where, facts, overwrite)
    missing = [unit for unit in where.units if not where.is_there(unit)]
    for unit in missing:
        where.write(unit, [PICTURES] * len(unit))
    return len(missing)


def files(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}


def test_no_two_pairs_share_a_name():
    parts = ["A", "A_", "A__B", "_B", "B__C", "B", "__", "_", "A.B", "a/b", "%5F", "A%5F%5FB", "C"]
    names = {joined(person, garment) for person in parts for garment in parts}
    assert len(names) == len(parts) ** 2 and not any("/" in name or "." in name for name in names)
    assert joined("00001_00", "00002_00") == "00001_00__00002_00"
    for suffix, key, name in [
        ("png", "sheet", "%73heet"),
        ("png", "animation", "%61nimation"),
        ("jpg", "sheet", "sheet"),
        ("png", "shirt", "shirt"),
        ("png", "x", "%78"),
    ]:
        assert Names(lambda i, key=key: key, 1, ["x.png"], suffix, {})[0] == name


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif"])
def test_a_stamp_in_every_format(suffix):
    frames = [Image.fromarray(PICTURE), Image.fromarray(255 - PICTURE)]
    data = encoded(PICTURE, suffix, 95, "ab12") if suffix == "jpg" else saved(frames[0], suffix, "ab12")
    assert stamp_of(io.BytesIO(data)) == "ab12"
    if suffix != "jpg":
        moving = saved(frames[0], suffix, "cd34", save_all=True, append_images=frames[1:], duration=[9, 9], loop=0)
        assert stamp_of(io.BytesIO(moving)) == "cd34" and Image.open(io.BytesIO(moving)).n_frames == 2
    plain = io.BytesIO()
    frames[0].save(plain, "JPEG" if suffix == "jpg" else suffix.upper())
    assert stamp_of(plain) is None and stamp_of(io.BytesIO(b"no picture")) is None


@pytest.mark.parametrize("kind", ["png", "jpg", "tar"])
def test_only_one_s_own_pictures_are_there(tmp_path, kind):
    """They are known by what they were made of, not by their names."""
    assert draw(tmp_path, "abc", kind, seed=0) == (1 if kind == "tar" else 3)
    assert draw(tmp_path, "abc", kind, seed=0) == 0
    assert not any(map(output(tmp_path, "abc", kind, seed=1).is_there, output(tmp_path, "abc", kind).units))
    assert draw(tmp_path, "acb", kind, seed=0) == (1 if kind == "tar" else 2), "b is another pair now"
    assert (output(tmp_path, "acb", kind).read(2)[..., 0].std() > 0) and draw(tmp_path, "acb", kind, seed=0) == 0


@pytest.mark.parametrize("kind", ["png", "jpg", "tar"])
def test_overwriting_leaves_nothing_of_other_options(tmp_path, kind):
    draw(tmp_path, "abc", kind, seed=0)
    write_whole(tmp_path / "animation.gif", saved(Image.fromarray(PICTURE), "gif", "ab12"))
    (tmp_path / "mine").mkdir()
    own = {"mine/d.png", "d.jpg"}
    for name in own:
        Image.fromarray(PICTURE).save(tmp_path / name)
    draw(tmp_path / "other", "abc", "png")  # a folder of pictures in this one
    others = {name for name in files(tmp_path) if name.startswith("other")}
    draw(tmp_path, "a", kind, overwrite=True, seed=1)
    pictures = {"000000.tar"} if kind == "tar" else {f"a.{kind}", f"small/a.{kind}"}
    assert files(tmp_path) == {ABOUT} | pictures | own | others
    assert draw(tmp_path, "abc", kind, seed=1) == (1 if kind == "tar" else 2)


@pytest.mark.parametrize(("name", "kind"), [("b.png", "png"), ("small/c.jpg", "jpg"), ("000000.tar", "tar"),
                                            ("sheet.png", "jpg")])  # fmt: skip
def test_files_of_one_s_own_are_not_replaced(tmp_path, name, kind):
    own = tmp_path / name
    own.parent.mkdir(exist_ok=True)
    own.write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"is there already.*choose another --out, or replace it \(1 files\) with"):
        draw(tmp_path, "abc", kind)
    assert files(tmp_path) == {name} and own.read_bytes() == b"mine"
    draw(tmp_path, "abc", kind, overwrite=True)
    assert name == "sheet.png" or own.read_bytes() != b"mine"
    (tmp_path / "else").mkdir()
    (tmp_path / "else/notes.txt").write_text("")
    assert draw(tmp_path / "else", "abc", kind) > 0, "others do not matter"


@pytest.mark.parametrize("text", ["[]", "3", "{", "\xff", "[" * 100_000])
def test_a_damaged_account(tmp_path, text):
    (tmp_path / ABOUT).write_bytes(text.encode("latin1"))
    with pytest.raises(ValueError, match=r"sampling\.json: not readable .*; choose another --out, or use --overwrite"):
        draw(tmp_path, "abc", "png")
    assert draw(tmp_path, "abc", "png", overwrite=True) == 3


def test_what_killed_processes_left_half_written(tmp_path):
    (tmp_path / "a.png").mkdir()  # which nothing can take the place of
    with pytest.raises(ValueError, match=r"a\.png: cannot be written .*; free space, or choose another --out"):
        write_whole(tmp_path / "a.png", b"")
    assert not files(tmp_path), "nothing is left of what failed"
    mine, host = f"{socket.gethostname()}.{os.getpid()}.partial", socket.gethostname()
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    (tmp_path / "small").mkdir()
    stay = {mine, "notes.partial", f"elsewhere.{process.pid}.partial", f"small/{host}.{os.getppid()}.partial"}
    for name in stay | {f"{host}.{process.pid}.partial", f"small/{host}.{process.pid}.partial"}:
        (tmp_path / name).write_bytes(b"")
    make_folder(tmp_path)
    assert files(tmp_path) == stay
