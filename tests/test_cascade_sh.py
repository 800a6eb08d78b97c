"""launch/cascade.sh starts the stages one after the other, with the keys that are theirs, and stops where one stops."""

import os
import subprocess
from pathlib import Path

import pytest

from runs import HOME
from training.config import Config

# Stands before every python, as a container would: notes what it was to train, and says that it is done, or not.
INSIDE = """#!/usr/bin/env bash
case "$*" in *launch.agent*) ;; *) exit 0 ;; esac
all="$*"
echo "${all##* -- }" >>"$STARTED"
for word in "$@"; do
  case $word in run.dir=*) run=${word#run.dir=} ;; esac
done
mkdir -p "$run"
case $run in *"$UNFINISHED") exit 0 ;; esac
touch "$run/DONE"
"""


@pytest.fixture
def cascade(tmp_path):
    """cascade(WORDS, unfinished=STAGE) -> (status, what it printed, the training commands)"""
    inside, started = tmp_path / "inside", tmp_path / "started"
    inside.write_text(INSIDE)
    inside.chmod(0o755)

    def start(*words: str, unfinished: str = "none") -> tuple[int, str, list[str]]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PET_", "TRYON_", "SLURM_"))}
        env = kept | {"TRYON_RUN_IN": str(inside), "STARTED": str(started), "UNFINISHED": unfinished}
        env |= {"TRYON_NPROC": "1", "TMPDIR": str(tmp_path)}
        started.write_text("")
        command = ["bash", "launch/cascade.sh", str(tmp_path / "runs"), *words]
        done = subprocess.run(command, cwd=HOME, env=env, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr, started.read_text().splitlines()

    return start


def test_three_stages_in_order(cascade, tmp_path):
    words = ("train.num_steps=9", "sr_unet.optim.lr=1e-3", "sr_1024.data.shards=shards/a b")
    status, text, started = cascade(*words)
    run = tmp_path / "runs"
    assert status == 0, text
    assert started == [
        f"train_ddp.py configs/base_unet.yaml run.dir={run}/base_unet train.num_steps=9",
        f"train_ddp.py configs/sr_unet.yaml run.dir={run}/sr_unet train.num_steps=9 optim.lr=1e-3",
        f"train_ddp.py configs/sr_1024.yaml run.dir={run}/sr_1024 train.num_steps=9 data.shards=shards/a b",
    ]
    assert f"sample.py {run} --unpaired" in text.splitlines()[-1]


def test_a_stage_waits_for_the_one_before(cascade, tmp_path):
    status, text, started = cascade(unfinished="sr_unet")
    assert status == 1 and "sr_unet is not done; the same command continues" in text and len(started) == 2
    assert cascade()[0] == 0 and (tmp_path / "runs/sr_1024/DONE").exists()


def test_other_configs(cascade, tmp_path):
    folder = Path(tmp_path / "mine")
    folder.mkdir()
    status, text, _ = cascade("--configs", str(folder))
    assert status == 1 and "has none of base_unet.yaml, sr_unet.yaml, sr_1024.yaml" in text
    (folder / "sr_unet.yaml").write_text("{}\n")
    status, text, started = cascade("--configs", str(folder))
    assert status == 0 and started == [f"train_ddp.py {folder}/sr_unet.yaml run.dir={tmp_path}/runs/sr_unet"], text
    assert cascade("--config", "x")[0] == 1


def test_what_is_refused_before_anything_starts(cascade, tmp_path):
    for words, said in (
        (("other",), f"{tmp_path}/runs and other: two folders; name one"),
        (("sr_unett.optim.lr=1",), "sr_unett is neither a stage (base_unet, sr_unet, sr_1024) nor a part of a config"),
        (("--what",), "--help says which there are"),
    ):
        status, text, started = cascade(*words)
        assert status == 1 and said in text and not started
    status, text, started = cascade("--help")
    assert status == 0 and "bash launch/cascade.sh [DIR]" in text and "set -e" not in text and not started


def test_it_knows_the_parts_of_a_config():
    (line,) = [line for line in (HOME / "launch/cascade.sh").read_text().splitlines() if line.startswith("parts=")]
    assert set(line.removeprefix("parts=").strip('"').split()) == set(Config.model_fields)
