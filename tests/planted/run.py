"""Planted faults: puts each fault of faults.yaml into a copy of the repository and runs the tests that must catch it.

    python tests/planted/run.py [NUMBER ...] [--repo DIR] [--json FILE]

Exit status 0; 1 if a fault is missed; 2 if the faults or their tests do not fit the repository.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import yaml

HERE = Path(__file__).resolve().parent
SECONDS = 300  # for the tests of one fault


class Fault(NamedTuple):
    fault: str  # what the user would suffer
    area: str
    file: str
    old: str  # occurs once in the file
    new: str  # what stands there with the fault
    caught_by: list[str]  # tests that fail then, each of them


def copy_repository(repo: Path, home: Path) -> None:
    """Copies the files of a checkout that git tracks, and the untracked ones that it does not ignore."""
    listed = ["git", "ls-files", "-coz", "--exclude-standard"]
    names = subprocess.run(listed, cwd=repo, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in names:
        if (repo / name).is_file():
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(repo / name, home / name, follow_symlinks=False)


def outcomes(home: Path, tests: list[str], seconds: float) -> dict[str, str]:
    """How each test ended: failed, passed, skipped, timeout, or not found, as slow ones are.

    A test that is named without its parameters has failed if one of its cases has.
    """
    report = home.parent / "report.xml"
    report.unlink(missing_ok=True)
    options = ["-q", "-p", "no:cacheprovider", "-m", "not slow", f"--junitxml={report}"]
    command = [sys.executable, "-m", "pytest", *options, *tests]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(command, cwd=home, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                          start_new_session=True) as process:  # fmt: skip
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return dict.fromkeys(tests, "timeout")
    ended: dict[str, set[str]] = {test: set() for test in tests}
    for case in ElementTree.parse(report).iter("testcase") if report.is_file() else ():
        name, tags = f"{case.get('classname').replace('.', '/')}.py::{case.get('name')}", {part.tag for part in case}
        how = "failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"
        for test in {name, name.partition("[")[0]} & ended.keys():
            ended[test].add(how)
    return {test: min(each, default="not found") for test, each in ended.items()}  # failed < passed < skipped


def judge(home: Path, chosen: dict[int, Fault]) -> list[dict]:
    """The result of each fault, printed as it comes.  Raises ValueError if a fault or its tests do not fit."""
    honest = {fault.file: (home / fault.file).read_text(encoding="utf-8") for fault in chosen.values()}
    for number, fault in chosen.items():
        if (count := honest[fault.file].count(fault.old)) != 1:
            raise ValueError(f"fault {number} ({fault.fault}): `old` occurs {count} times in {fault.file}, not once")
    tests = list(dict.fromkeys(test for fault in chosen.values() for test in fault.caught_by))
    before = outcomes(home, tests, SECONDS * len(chosen)) if tests else {}
    if wrong := [f"{test} ({how})" for test, how in before.items() if how != "passed"]:
        raise ValueError(f"without any fault these tests do not pass: {', '.join(wrong)}")
    results = []
    for number, fault in chosen.items():
        path, began = home / fault.file, time.monotonic()
        path.write_text(honest[fault.file].replace(fault.old, fault.new), encoding="utf-8")
        ended = outcomes(home, fault.caught_by, SECONDS) if fault.caught_by else {}
        path.write_text(honest[fault.file], encoding="utf-8")
        caught, seconds = set(ended.values()) == {"failed"}, round(time.monotonic() - began, 1)
        print(f"{number:3}  {'caught' if caught else 'MISSED'}  {seconds:5.1f} s  {fault.fault}", flush=True)
        facts = {"number": number, "fault": fault.fault, "area": fault.area, "caught": caught, "seconds": seconds}
        results.append(facts | {"tests": ended})
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("numbers", nargs="*", type=int, metavar="NUMBER", help="entries of faults.yaml, from 1 [all]")
    parser.add_argument("--repo", type=Path, default=HERE.parents[1], help="the checkout to judge [this one]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the results, with the outcome of each test")
    args = parser.parse_args()
    entries = yaml.safe_load((HERE / "faults.yaml").read_text(encoding="utf-8"))
    chosen = {i: Fault(**each) for i, each in enumerate(entries, 1) if not args.numbers or i in args.numbers}
    os.environ.setdefault("TRYON_TEST_DATA", str(args.repo.resolve().parent / "shared" / "data"))  # the copy has none
    with tempfile.TemporaryDirectory(prefix="planted-") as scratch:
        copy_repository(args.repo, Path(scratch) / "repository")
        try:
            results = judge(Path(scratch) / "repository", chosen)
        except (OSError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    caught = sum(result["caught"] for result in results)
    print(f"{caught} of {len(results)} faults are caught")
    return 0 if caught == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
