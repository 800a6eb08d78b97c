"""Jobs of a real Slurm on two hosts: limits, deaths and cancellations, and runs that go on by themselves."""

import contextlib
import json
import re
import signal
import subprocess
import time
from pathlib import Path

import machines
import psutil
import pytest

from runs import HOME, deviation, empty_config, losses, newest, stats, train, words
from training import checkpoint

SETTINGS = {"train__global_batch": 16, "train__num_steps": 60, "checkpoint__every": 5, "data__augment__flip_prob": 0.5}
FAST = {"distributed__hang_s": 6, "distributed__timeout_s": 60}
TEMPLATES = sorted(path.name for path in (HOME / "slurm").glob("*.sh") if "\n#SBATCH" in path.read_text())


class Job:
    """A submitted job: its run folder, what it printed, and how Slurm sees it."""

    def __init__(self, folder: Path, script: str, arguments: list[str], *options: str):
        folder.mkdir(parents=True, exist_ok=True)
        self.run_dir, self.out = folder / "run", folder / "out.txt"
        command = ["sbatch", "--parsable", f"--output={self.out}", "--cpus-per-task=4", *options, script, *arguments]
        self.id = subprocess.check_output(command, cwd=HOME, text=True).strip()
        self.submitted = time.time()

    @property
    def text(self) -> str:
        return self.out.read_text(errors="replace") if self.out.exists() else ""

    def state(self) -> str:
        return machines.sh("squeue", "-h", "-t", "all", "-j", self.id, "-o", "%T", check=False).strip()

    def restarts(self) -> int:
        told = machines.sh("scontrol", "show", "job", self.id)
        return int(re.search(r"Restarts=(\d+)", told)[1])

    def wait(self, *states: str, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while self.state() not in states:
            assert time.monotonic() < end, f"{self.state()}, not {states}:\n{self.text[-5000:]}"
            time.sleep(0.3)

    def wait_for_step(self, step: int, seconds: float = 90) -> None:
        """Until a checkpoint of this step is there."""
        end = time.monotonic() + seconds
        while self.step() < step:
            assert time.monotonic() < end and self.state() not in ("FAILED", "COMPLETED"), self.text[-5000:]
            time.sleep(0.1)

    def step(self) -> int:
        if not (self.run_dir / "checkpoints" / "latest").exists():
            return 0
        return int(newest(self.run_dir).name.removeprefix("step_"))

    def wait_for_text(self, part: str, seconds: float = 90, after: int = 0) -> float:
        """Seconds until the job prints it."""
        began = time.monotonic()
        while part not in self.text[after:]:
            assert time.monotonic() - began < seconds, f"no {part!r}:\n{self.text[-5000:]}"
            time.sleep(0.1)
        return time.monotonic() - began

    def line(self, part: str) -> str:
        return next(line for line in self.text.splitlines() if part in line)

    def marker(self, name: str) -> dict:
        return json.loads((self.run_dir / name).read_text())


@pytest.fixture
def submit(slurm, shards, tmp_path):
    """submit(script, *sbatch options, **config changes) -> Job; none outlives its test."""
    jobs = []

    def start(script: str, *options: str, run_dir: str | None = None, **changes) -> Job:
        changes = SETTINGS | FAST | changes
        arguments = [str(empty_config(tmp_path)), *words(shards, tmp_path / "run", **changes)]
        if run_dir:
            arguments.append(f"run.dir={run_dir}")
        jobs.append(Job(tmp_path, f"slurm/{script}", arguments, *options))
        return jobs[-1]

    machines.wait_for_nodes()
    yield start
    for job in jobs:
        machines.sh("scancel", job.id, check=False)
    machines.wait_for_nodes()


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory):
    """The losses of the uninterrupted run, on one device, for more steps than any job here takes."""
    folder, changes = tmp_path_factory.mktemp("whole"), SETTINGS | {"train__num_steps": 100}
    train(folder, [str(empty_config(folder)), *words(shards, folder / "run", **changes)])
    return losses(folder / "run")


def assert_whole_curve(job: Job, whole, num_steps: int = SETTINGS["train__num_steps"]) -> None:
    assert checkpoint.read_state(newest(job.run_dir)).step == job.marker("DONE")["step"] == num_steps
    worst = deviation(whole[:num_steps], losses(job.run_dir))
    print(f"largest relative deviation of the joined curve {worst:.1e}")
    assert worst < 1e-5


def ranks_on(host: str) -> list[psutil.Process]:
    """The training processes on a host, by rank, without their loader workers."""
    found = {}
    for pid in machines.pids(host):
        try:
            process = psutil.Process(pid)
            if "train_ddp.py" in process.cmdline() and "RANK" in process.environ():
                found[pid] = int(process.environ()["RANK"]), process
        except psutil.Error:
            continue
    return [process for _, process in sorted(found.values(), key=lambda one: one[0]) if process.ppid() not in found]


def agent_on(host: str) -> psutil.Process:
    return ranks_on(host)[0].parent()


TWO_RANKS = ("--gpus-per-node=1",)


@pytest.mark.timeout(600)
def test_sixteen_ranks_go_through_limits_to_DONE_by_themselves(submit, whole, faults):
    """`sbatch slurm/base_unet.sh` with two minutes a job, signalled after 60 to 90 s: no hand touches it.

    The network makes a step take 1.5 s on any machine: 90 steps cannot fit into two jobs.
    """
    with machines.slow_network("nodeB", "2mbit"):
        job = submit("base_unet.sh", "--time=2", "--signal=B:USR2@30", train__num_steps=90)
        job.wait("COMPLETED", seconds=540)
    assert job.restarts() >= 2 and job.text.count("requeued: step ") == job.restarts()
    assert job.text.count("stop asked for") >= 2 and job.text.count("by its batch script") >= 2
    assert "global batch 16 on 16 x cpu" in job.text
    assert_whole_curve(job, whole, 90)
    faults("the job's time limit, twice", job.line("requeued: step "), 0)
    started = job.line("start-up took")
    print(started)
    for phase in ("batch", "node", "rollcall", "torchrun", "imports", "process group", "checks", "first step"):
        assert f" {phase} " in started


def test_one_job_survives_every_death(submit, whole, faults):
    """A rank, an agent and a host die, one after the other; each time the job comes back and continues."""
    job = submit("base_unet.sh", *TWO_RANKS)
    job.wait_for_step(5)
    ranks_on("nodeB")[0].kill()
    seconds = job.wait_for_text("requeued: ")
    assert "rank 1 ended first here, by SIGKILL" in job.line("requeued: ")
    faults("SIGKILL of one rank", job.line("ended first here, by"), seconds)

    job.wait_for_step(job.step() + 5)
    begun = len(job.text)
    agent_on("nodeB").kill()
    seconds = job.wait_for_text("requeued: ", after=begun)
    faults("SIGKILL of a torchrun agent", job.text[begun:].split("requeued: ")[1].splitlines()[0], seconds)
    time.sleep(1)
    assert not ranks_on("nodeA") and not ranks_on("nodeB")  # no orphans

    job.wait_for_step(job.step() + 5)
    restarts, began = job.restarts(), time.monotonic()
    machines.kill_host("nodeB")
    while job.restarts() == restarts:
        assert time.monotonic() - began < 90, job.text[-3000:]
        time.sleep(0.2)
    faults("SIGKILL of a whole node (slurmd, steps and all)", "the job is PENDING again", time.monotonic() - began)
    machines.slurmd_up("nodeB")
    job.wait("COMPLETED", seconds=120)
    assert job.restarts() >= 3
    assert_whole_curve(job, whole)


def test_a_stopped_rank_is_named_and_the_job_requeued(submit, whole, faults):
    job = submit("base_unet.sh", *TWO_RANKS)
    job.wait_for_step(5)
    stopped = ranks_on("nodeB")[0]
    stopped.send_signal(signal.SIGSTOP)
    seconds = job.wait_for_text("no progress for")
    line = job.line("no progress for")
    assert f"host nodeB, rank {1 - int('rank 1]' in line)}" in line or "host nodeB" in line
    assert f"(pid {stopped.pid})" in line and "its process stands still" in line
    faults("SIGSTOP of one rank (distributed.hang_s=6)", line, seconds)
    job.wait("COMPLETED", seconds=150)
    assert job.restarts() == 1
    assert_whole_curve(job, whole)


def test_a_job_that_its_limit_kills_comes_back_too(submit, faults):
    """Nobody heard the signal and nothing was saved: a rank and its agent stand still, and the watch is off."""
    late = ("--time=1", "--signal=B:USR2@1")
    job = submit("base_unet.sh", *TWO_RANKS, *late, distributed__hang_s=0, distributed__timeout_s=600)
    job.wait_for_step(5)
    agent_on("nodeB").suspend()
    ranks_on("nodeB")[0].suspend()
    job.wait_for_text("requeued: ", 120)
    assert "DUE TO TIME LIMIT" in job.text
    faults("the time limit kills a job that cannot save", job.line("requeued: "), 0)
    job.wait("COMPLETED")
    assert job.marker("DONE")["step"] == 60


def test_scancel_saves_and_is_not_undone(submit, faults):
    job = submit("base_unet.sh", *TWO_RANKS, train__num_steps=100_000, checkpoint__every=100_000)
    job.wait_for_text("start-up took")
    began = time.monotonic()
    subprocess.check_call(["scancel", job.id])
    job.wait("CANCELLED", seconds=40)
    time.sleep(2)
    assert job.state() == "CANCELLED" and job.restarts() == 0
    assert job.step() > 0 and job.marker("REQUEUE")["step"] == job.step()
    faults("scancel", job.line("stopped at step"), time.monotonic() - began)


def test_one_task_of_an_array_requeues_itself_alone(submit, tmp_path, faults):
    job = submit("single_gpu.sh", "--array=0-1", run_dir=f"{tmp_path}/run_%a", train__accumulation=1)
    begun = tmp_path / "run_0" / "stats.jsonl"
    end = time.monotonic() + 60
    while not begun.exists() or not stats(tmp_path / "run_0"):
        assert time.monotonic() < end, job.text[-3000:]
        time.sleep(0.05)
    machines.sh("scancel", "--batch", "--signal=USR2", f"{job.id}_0")
    seconds = job.wait_for_text("requeued: ")
    faults("requeue of one task of an array", job.line("requeued: "), seconds)
    end = time.monotonic() + 120
    while not all((tmp_path / f"run_{i}" / "DONE").exists() for i in (0, 1)):
        assert time.monotonic() < end, job.text[-3000:]
        time.sleep(0.3)
    told = machines.sh("scontrol", "show", "job", job.id)
    restarts = dict(re.findall(r"ArrayTaskId=(\d).*?Restarts=(\d+)", told, re.DOTALL))
    assert restarts == {"0": "1", "1": "0"}


def test_a_signal_before_the_first_step_is_heard(submit, faults):
    """It comes while the script still starts, before anybody knows the run folder."""
    job = submit("base_unet.sh", *TWO_RANKS)
    job.wait("RUNNING")
    time.sleep(0.3)
    began = time.monotonic()
    machines.sh("scancel", "--batch", "--signal=USR2", job.id)
    job.wait_for_text("requeued: step 1;")
    faults("Slurm's signal before the first batch", job.line("stopped at step 1"), time.monotonic() - began)
    job.wait("COMPLETED")
    assert job.marker("DONE")["step"] == 60


def test_the_users_STOP_ends_the_chain_of_jobs(submit, faults):
    job = submit("base_unet.sh", *TWO_RANKS, train__num_steps=100_000)
    job.wait_for_step(5)
    began = time.monotonic()
    (job.run_dir / "STOP").touch()
    job.wait("FAILED", seconds=30)
    step = job.marker("REQUEUE")["step"]
    told = f"STOP at step {step}; the same sbatch command continues"
    assert told in job.text and job.restarts() == 0 and step == job.step() and not (job.run_dir / "STOP").exists()
    faults("touch RUN/STOP", job.line("stopped at step"), time.monotonic() - began)


def test_a_refusal_ends_the_job_at_once(submit, faults):
    job = submit("base_unet.sh", *TWO_RANKS, data__shards="nowhere")
    job.wait("FAILED")
    assert job.restarts() == 0 and "nowhere" in job.marker("FAILED")["reason"]
    assert [line for line in job.text.splitlines() if line.startswith("error: ")] == [
        job.line("error: data.shards: nowhere")
    ]
    faults("shards that are not there", job.line("error: "), time.time() - job.submitted)
    unknown = submit("base_unet.sh", *TWO_RANKS, optim__learning_rate=1)
    unknown.wait("FAILED")
    assert "unknown key 'optim.learning_rate'" in unknown.text and unknown.restarts() == 0


def test_three_runs_without_progress_end_in_FAILED(submit, faults):
    job = submit("base_unet.sh", *TWO_RANKS, checkpoint__every=1000, train__num_steps=100_000)
    began = time.monotonic()
    for attempt in (1, 2, 3):
        job.wait_for_text(f"attempt {attempt} from step 0")
        begun = len(job.text)
        job.wait_for_text("start-up took", after=begun)
        ranks_on("nodeA")[0].kill()
    job.wait("FAILED")
    reason = job.marker("FAILED")["reason"]
    assert reason.startswith("3 runs made no progress beyond step 0; the last said: torchrun on nodeA: rank 0 ended")
    assert job.restarts() == 2
    faults("three runs without progress", job.line("failed: "), time.monotonic() - began)


def test_hosts_are_tested_before_training_and_a_broken_one_is_left_out(submit, monkeypatch, faults):
    monkeypatch.setenv("TRYON_PREFLIGHT", "yes")
    job = submit("base_unet.sh", *TWO_RANKS)
    testing = wait_for_process("nodeB", "launch.preflight")
    testing.suspend()
    job.wait_for_text("requeued: without nodeB", 120)
    faults("a host that does not answer preflight", job.line("error: host nodeB"), time.time() - testing.create_time())
    end = time.monotonic() + 10
    while "ExcNodeList=nodeB" not in machines.sh("scontrol", "show", "job", job.id):
        assert time.monotonic() < end, job.text[-3000:]
        time.sleep(0.1)
    machines.sh("scontrol", "update", f"JobId={job.id}", "ExcNodeList=")
    job.wait("COMPLETED")
    again = job.text.partition("requeued: without nodeB")[2]
    assert "preflight: 2 of 2 ranks answered" in again and "error: host" not in again


def wait_for_process(host: str, word: str) -> psutil.Process:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for pid in machines.pids(host):
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                if word in process.cmdline():
                    return process
        time.sleep(0.02)
    raise AssertionError(f"no {word} on {host}")


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_are_accepted(slurm, template):
    done = subprocess.run(["sbatch", "--test-only", f"slurm/{template}"], cwd=HOME, capture_output=True, text=True)
    assert done.returncode == 0 and "to start at" in done.stderr, done.stderr


def test_the_cascade_is_accepted(slurm):
    done = subprocess.run(["bash", "slurm/cascade.sh", "--test-only"], cwd=HOME, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.count("to start at") == 3, done.stderr


def test_values_of_templates_that_must_agree():
    """sbatch cannot read a shared file, so a line may stand in two templates; it never differs."""
    for name in ("signal", "open-mode", "ntasks-per-node", "requeue"):
        lines = {line for file in (HOME / "slurm").glob("*.sh") for line in file.read_text().splitlines()}
        assert len({line for line in lines if line.startswith(f"#SBATCH --{name}")}) == 1
    assert (HOME / "slurm" / "sr_unet.sh").readlink() == Path("base_unet.sh")
