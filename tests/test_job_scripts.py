"""How a Slurm job ends, and what it leaves to the next: the real scripts, with a few lines in the place of Slurm and of
training.  tests/cluster runs them on a real Slurm."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from runs import HOME

COMMANDS = {
    "scontrol": """case "$1 $2" in
  "show job") echo "   Command=$PWD/slurm/base_unet.sh"; echo "   EndTime=Unknown ExcNodeList=(null)" ;;
  *) echo "$*" >>"$PLAYED/scontrol.txt" ;;
esac""",
    "squeue": "echo RUNNING",
    # Stands before python3, as a container would: the run folder is all that the scripts ask of Python.
    "inside": 'case "$*" in *launch.config_value*) echo "$PLAYED/run" ;; *) shift; exec "$PYTHON" "$@" ;; esac',
    # A training: a checkpoint each start, and the marker as training/stop.py leaves it.
    "srun": """run=$PLAYED/run
mkdir -p "$run/checkpoints"
touch "$PLAYED/training"
for _ in {1..200}; do [ -e "$run/STOP" ] && break; sleep 0.05; done
sleep 0.3
reason='its batch script'
[ -s "$run/STOP" ] || reason='the file STOP'
rm -f "$run/STOP"
echo "step_0000000$STEP" >"$run/checkpoints/latest"
echo "{\\"reason\\": \\"stopped by $reason\\", \\"step\\": $STEP}" >"$run/REQUEUE"
""",
}


@pytest.fixture
def job(tmp_path):
    """job(STEP, restarts, signal) -> (status, what it printed, what it asked of scontrol): one start of the job, whose
    training ends at a step once it is asked to."""
    commands = tmp_path / "commands"
    commands.mkdir()
    for name, text in COMMANDS.items():
        (commands / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (commands / name).chmod(0o755)

    def start(step: int, restarts: int, ask) -> tuple[int, str, str]:
        for left in ("training", "scontrol.txt"):
            (tmp_path / left).unlink(missing_ok=True)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PET_", "TRYON_", "SLURM_"))}
        env = kept | {
            "PATH": f"{commands}:{os.environ['PATH']}", "PLAYED": str(tmp_path), "STEP": str(step),
            "PYTHON": shutil.which("python3") or "python3", "TRYON_RUN_IN": "inside", "TRYON_NODES": "localhost",
            "TRYON_NPROC": "1", "TMPDIR": str(tmp_path), "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1",
            "SLURM_JOB_NODELIST": "localhost", "SLURM_RESTART_COUNT": str(restarts),
        }  # fmt: skip
        with (tmp_path / "out.txt").open("w") as out:
            process = subprocess.Popen(["bash", "slurm/base_unet.sh"], cwd=HOME, env=env, stdout=out, stderr=out)
            end = time.monotonic() + 20
            while not (tmp_path / "training").exists() and process.poll() is None:
                assert time.monotonic() < end
                time.sleep(0.02)
            ask(process)
            status = process.wait(20)
        asked = tmp_path / "scontrol.txt"
        return status, (tmp_path / "out.txt").read_text(), asked.read_text() if asked.exists() else ""

    return start


def test_the_end_of_the_time_requeues_and_a_wish_of_the_user_does_not(job, tmp_path):
    status, said, asked = job(1, 0, lambda process: process.send_signal(signal.SIGUSR2))
    assert status == 0 and "stop asked for" in said and "requeued: step 1" in said, said
    assert "requeue 7" in asked.splitlines()
    status, said, asked = job(2, 1, lambda process: Path(tmp_path / "run/STOP").touch())
    assert status == 1 and "the same sbatch command continues" in said and "requeue" not in asked, said


def test_starts_count_as_attempts_only_without_progress(job):
    ask = lambda process: process.send_signal(signal.SIGUSR2)  # noqa: E731
    for restarts, step in enumerate((1, 2, 3, 4, 4, 4)):
        status, said, _ = job(step, restarts, ask)
        assert status == 0 and "requeued: " in said, (step, said)
    status, said, _ = job(4, 6, ask)
    assert status == 1 and "3 runs made no progress beyond step 4" in said, said
