"""The doctor: a good run passes; each fault has its line, its remedy and its exit status."""

import json
import sys
from pathlib import Path

import pytest
import torch

from data.loader import Layout
from launch import doctor, memory, rehearsal
from launch.duration import checkpoint_bytes, num_jobs, span
from launch.gpus import GPU, GPUS, find_gpu
from launch.rehearsal import missing_positions
from launch.slurm_script import read_slurm_script
from runs import HOME, damage, empty_config, words
from training.config import read_config
from training.distributed import fake_process_group, num_ranks

GOOD = """#!/usr/bin/env bash
#SBATCH --nodes=2
#SBATCH --gpus-per-node=h100:2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --time=1-00:00:00
#SBATCH --signal=B:USR2@300
#SBATCH --requeue
#SBATCH --open-mode=append
source slurm/prologue.sh
train "$@"
"""


@pytest.fixture
def run(shards, tmp_path, capsys):
    """(options..., key=value...) -> exit status, what was printed, and the lines by what they are about."""

    def examine(*options: str, **changes) -> tuple[int, str, dict[str, dict]]:
        config, told = empty_config(tmp_path), tmp_path / "told.json"
        arguments = [str(config), *words(changes.pop("data__shards", shards), tmp_path / "run", **changes)]
        status = doctor.main([*arguments, "--json", str(told), *options])
        lines = json.loads(told.read_text())
        worst = {"ok": 0, "warning": 1, "error": 2}
        by_what = {line["what"]: line for line in sorted(lines, key=lambda line: worst[line["status"]])}
        return status, capsys.readouterr().out, by_what

    return examine


@pytest.fixture
def script(tmp_path):
    """(old line, new line)... -> the good batch script with these changes, named after the tests' config."""

    def write(*changes: tuple[str, str], name: str = "empty.sh") -> str:
        text = GOOD
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


def test_a_good_run_passes_every_check(run, script):
    status, text, lines = run("--slurm", script(), "--gpu", "h100", "--price-per-gpu-hour", "2", train__accumulation=1)
    assert status == 0 and text.endswith("nothing speaks against this run\n"), text
    assert all(line["status"] == "ok" and not line["remedy"] for line in lines.values()), text
    said = {
        "global batch": "4 = 2 x 2 GPUs x 1 micro-batch of 1",
        "shards": "48 samples of 32x32 in 3 shards",
        "memory of a GPU": "of 79.6 GiB of h100",
        "speed": "estimated, not measured",
        "time": "GPU-hours, 0 at 2 an hour",
        "jobs": "1 of 24.0 h each, 0 of them requeued",
        "waiting": "< hang_s 300 s; a checkpoint",
        "last checkpoint": "< 300 s of --signal < --time 24.0 h",
        "dry run": "the first and the last of 4 ranks",
        "one real step": "your shards",
    }
    for what, part in said.items():
        assert part in lines[what]["figure"], lines[what]
    assert max(map(len, text.splitlines())) < 110


def test_a_real_step_is_made_in_a_folder_of_its_own(run, tmp_path, monkeypatch):
    trained = []
    honest = doctor.real_step
    monkeypatch.setattr(doctor, "real_step", lambda config: trained.append(config) or honest(config))
    assert run()[0] == 0 and len(trained) == 1 and not (tmp_path / "run").exists()
    assert "one real step" not in run("--skip-step")[2] and len(trained) == 1


def test_a_fault_in_the_samples_is_found(run, shards, tmp_path):
    status, _, lines = run(data__shards=damage(shards, tmp_path))
    assert status == 1 and "is damaged" in lines["shards"]["figure"] and "data.prepare" in lines["shards"]["remedy"]
    assert lines["one real step"]["figure"].startswith("not made")


def test_an_invalid_config_is_one_line_and_the_end(run):
    status, text, lines = run(optim__lrr=1)
    assert status == 1 and list(lines) == ["config"] and "unknown key 'optim.lrr'" in text and "'optim.lr'" in text
    status, text, lines = run(distributed__hang_s=1800)
    assert status == 1 and list(lines) == ["config"] and "timeout_s" in text


@pytest.mark.parametrize(
    ("changes", "what", "figure", "remedy"),
    [
        ({"data__shards": "/none/here"}, "shards", "/none/here: no such folder", "data.prepare"),
        ({"model__image_size": [64, 64]}, "shards", "images of 32x32, but model.image_size=64x64", "--size 64x64"),
        ({"train__global_batch": 50}, "shards", "48 samples, fewer than train.global_batch=50", "=48 or less"),
        ({"data__val_shards": "/none/here"}, "shards", "data.val_shards: /none/here: no such", "data.prepare"),
        ({"checkpoint__keep": 10**9}, "disk", "GiB free", "lower checkpoint.keep"),
    ],
)
def test_errors_of_one_gpu(run, changes, what, figure, remedy):
    status, text, lines = run("--skip-step", **changes)
    assert status == 1 and lines[what]["status"] == "error", text
    assert figure in lines[what]["figure"] and remedy in lines[what]["remedy"], lines[what]


def test_a_run_folder_that_cannot_be_written(run, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    status, _, lines = run("--skip-step")
    assert status == 1 and lines["disk"]["figure"] == f"{tmp_path} cannot be written"
    assert "another run.dir" in lines["disk"]["remedy"]


def test_the_disk_holds_further_averages_and_those_that_are_stored(run, tmp_path):
    averages = {"ema__also": [0.5], "ema__power": [0.05, 0.1], "ema__snapshot_every": 5}
    slow = ("--skip-step", "--disk-mb-per-s", "0.01")
    plain, more = run(*slow)[2], run(*slow, **averages)[2]
    assert "for 4 checkpoints of 0.0, " in plain["disk"]["figure"] and plain["disk"]["status"] == "ok"
    assert "of 0.0 with 4 averages, 0.0 for 4 x 2 stored averages of 0.0, " in more["disk"]["figure"]
    assert plain["waiting"]["figure"] != more["waiting"]["figure"], "a larger checkpoint is written for longer"
    (tmp_path / "run").mkdir()
    (tmp_path / "run/stats.jsonl").write_text('{"step": 11}')
    assert "0.0 for 2 x 2 stored" in run("--skip-step", **averages)[2]["disk"]["figure"], "two are there already"
    status, _, lines = run("--skip-step", train__num_steps=10**12, **averages)
    assert status == 1 and "raise ema.snapshot_every" in lines["disk"]["remedy"]


def test_a_checkpoint_has_a_file_of_each_average():
    base = HOME / "configs/base_unet.yaml"
    assert checkpoint_bytes(read_config(base), 10) == 160
    assert checkpoint_bytes(read_config(base, ["ema.also=[0.5]", "ema.power=[0.05,0.1]"]), 10) == 280


@pytest.mark.parametrize(
    ("changes", "package"),
    [
        ({"engine__zero_stage": 2}, "deepspeed"),
        ({"optim__name": "adamw8bit"}, "bitsandbytes"),
        ({"log__wandb": "offline"}, "wandb"),
    ],
)
def test_a_package_that_is_not_there(run, monkeypatch, changes, package):
    monkeypatch.setitem(sys.modules, package, None)  # what Python itself does for a package that must not be imported
    status, _, lines = run("--skip-step", **changes)
    assert status == 1 and lines["packages"]["figure"].startswith(f"{package}, for ")
    assert "is not here, where the doctor runs" in lines["packages"]["figure"]
    assert lines["packages"]["remedy"].startswith(f"pip install {package}, ")
    assert "packages" not in run("--skip-step")[2]


def test_what_zero_needs_and_what_is_not_rehearsed(run):
    pytest.importorskip("deepspeed")
    status, _, lines = run("--skip-step", engine__zero_stage=2)
    assert status == 0 and "deepspeed, for engine.zero_stage=2, is here" in lines["packages"]["figure"]
    assert lines["dry run"]["figure"].endswith("; DeepSpeed's ZeRO itself is not rehearsed")
    assert "ZeRO" not in run("--skip-step")[2]["dry run"]["figure"]


def test_the_host_memory_of_a_node(run):
    assert "0.0 for a checkpoint's copy" in run("--skip-step")[2]["host memory"]["figure"]
    assert "host memory" not in run("--skip-step", checkpoint__asynchronous=False)[2]


def test_a_batch_that_does_not_divide(run):
    status, _, lines = run("--nodes", "3", "--gpus-per-node", "2")
    assert status == 1 and "does not divide by 6 ranks" in lines["global batch"]["figure"]
    assert "train.global_batch=6" in lines["global batch"]["remedy"]
    assert run("--nodes", "3", "--gpus-per-node", "2", "--skip-step", train__global_batch=6)[0] == 0


def test_held_out_samples_that_are_the_training_samples(run, shards):
    status, _, lines = run("--skip-step", data__val_shards=shards)
    assert status == 0 and lines["held-out shards"]["status"] == "warning"
    assert run("--skip-step", "--strict", data__val_shards=shards)[0] == 1


def test_memory_is_compared_with_the_gpu(run, monkeypatch):
    needed = float(run("--skip-step")[2]["memory of a GPU"]["figure"].split()[0])
    for memory_gib, expected in ((10 * needed, "ok"), (1.06 * needed, "warning"), (0.5 * needed, "error")):
        monkeypatch.setattr(memory, "find_gpu", lambda name, memory_gib=memory_gib: GPU(memory_gib, 1, 1))
        status, _, lines = run("--skip-step", "--gpu", "l4")
        assert lines["memory of a GPU"]["status"] == expected and status == (expected == "error")
        assert bool(lines["memory of a GPU"]["remedy"]) == (expected != "ok")


def test_a_gpu_without_bf16(run):
    _, _, lines = run("--skip-step", "--gpu", "v100-32", engine__precision="bf16", engine__device="auto")
    assert lines["precision"]["status"] == "warning" and lines["precision"]["remedy"] == "engine.precision=fp16"


@pytest.mark.parametrize(
    "options",
    [["--gpu", "voodoo2"], ["--nodes", "0"], ["--slurm", "/none.sh"], ["--samples-per-s", "-1"], ["--no-such"]],
    ids=" ".join,
)
def test_wrong_usage(run, options, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(*options)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "h100" in said if "--gpu" in options else options[0] in said


@pytest.mark.parametrize(
    ("old", "new", "status", "figure", "remedy"),
    [
        ("#SBATCH --ntasks-per-node=1", "#SBATCH --ntasks-per-node=2", "error", "is 2", "--ntasks-per-node=1"),
        ("B:USR2@300", "USR2@300", "error", "would go to torchrun", "--signal=B:USR2@300"),
        ("B:USR2@300", "B:TERM@300", "error", "no USR2", "--signal=B:USR2@300"),
        ("#SBATCH --requeue\n", "", "warning", "no --requeue", "#SBATCH --requeue"),
        ("#SBATCH --open-mode=append\n", "", "warning", "overwrites", "--open-mode=append"),
        ("#SBATCH --time=1-00:00:00\n", "", "warning", "no --time", "--time=D-HH:MM:SS"),
        ("#SBATCH --gpus-per-node=h100:2\n", "", "error", "no --gpus-per-node", "--gpus-per-node=N"),
        ("--cpus-per-task=2", "--cpus-per-task=1", "warning", "2 GPUs x (1 + data.num_workers=0)", "--cpus-per-task=2"),
        ("bash\n", "bash\n#SBATCH --requeue\nset -e\n", "error", "is not given", "--ntasks-per-node=1"),
    ],
)
def test_faults_of_a_batch_script(run, script, old, new, status, figure, remedy):
    code, text, lines = run("--slurm", script((old, new)), "--skip-step")
    line = lines["slurm script"]
    assert line["status"] == status and code == (status == "error"), text
    assert figure in text and remedy in text
    assert "in /" in line["remedy"], "the remedy names the script"


def test_a_batch_script_of_another_config(run, script):
    status, _, lines = run("--slurm", script(name="other.sh"), "--skip-step")
    assert status == 0 and "trains configs/other.yaml" in lines["slurm script"]["figure"]
    named = script(("source slurm", "default_config=x/empty.yaml\nsource slurm"), name="other.sh")
    assert run("--slurm", named, "--skip-step")[2]["slurm script"]["status"] == "ok"


def test_the_script_decides_on_the_layout(run, script):
    status, _, lines = run("--slurm", script(), "--nodes", "4", "--skip-step")
    assert status == 1 and "--nodes 4 here, 2 in" in lines["layout"]["figure"]
    own = script(('train "$@"', 'train train.accumulation=4 "$@"'))
    assert "does not divide" in run("--slurm", own, "--skip-step")[2]["global batch"]["figure"]


def test_waits_in_the_right_order(run, script):
    slow = ("--skip-step", "--samples-per-s", "0.01")  # a step takes 400 s
    status, _, lines = run(*slow)
    assert status == 1 and "distributed.hang_s=300" in lines["waiting"]["figure"]
    fixed = dict(word.split("=") for word in lines["waiting"]["remedy"].split(",")[0].split())
    fixed = {key.replace(".", "__"): int(value) for key, value in fixed.items()}
    assert run(*slow, **fixed)[0] == 0
    status, _, lines = run(*slow, distributed__hang_s=0, distributed__timeout_s=100)
    assert status == 1 and "distributed.timeout_s=100" in lines["waiting"]["figure"]
    status, _, lines = run(*slow, "--slurm", script(), distributed__hang_s=0)
    assert status == 1 and "--signal comes 300 s before" in lines["last checkpoint"]["figure"]
    status, _, lines = run("--skip-step", "--slurm", script(("1-00:00:00", "6:30")))
    assert status == 1 and "no step between the start" in lines["last checkpoint"]["figure"]
    assert run("--skip-step", "--disk-mb-per-s", "0.0001")[0] == 1, "a slow disk writes a slow checkpoint"


def test_the_speed_is_said_or_measured_or_estimated(run, tmp_path):
    folder = tmp_path / "run"
    assert "not known" in run("--skip-step")[2]["time"]["figure"]
    assert "estimated" in run("--skip-step", "--gpu", "l4")[2]["speed"]["figure"]
    folder.mkdir()
    lines = [json.dumps({"step": step, "samples_per_s": 8.0 + step % 3}) for step in range(1, 11)]
    (folder / "stats.jsonl").write_text("\n".join([*lines, '{"step": 11, "sam']))
    found = run("--skip-step", "--gpu", "l4")[2]
    assert found["speed"]["figure"].startswith("9 samples/s, measured") and "unknown number" in found["speed"]["figure"]
    assert "for 10 more steps" in found["time"]["figure"]
    (folder / "training.log").write_text("x: a new run of 9 steps; global batch 4 on 2 x cuda, bf16\n")
    found = run("--skip-step", "--gpus-per-node", "4")[2]
    assert (
        found["speed"]["figure"].startswith("18 samples/s") and "on 2 x cuda, scaled to 4" in found["speed"]["figure"]
    )
    assert run("--skip-step", "--samples-per-s", "3")[2]["speed"]["figure"].startswith("3 samples/s, as --samples")


def test_hours_jobs_and_money(run, script):
    options = ("--skip-step", "--samples-per-s", "1000", "--price-per-gpu-hour", "3", "--slurm", script())
    lines = run(*options, train__num_steps=250 * 3600 * 50)[2]  # x 4 samples: 50 hours
    assert lines["time"]["figure"] == "2.1 days for 45,000,000 steps: 200 GPU-hours, 600 at 3 an hour"
    assert lines["jobs"]["figure"].startswith("3 of 24.0 h each, 2 of them requeued")
    assert num_jobs(100, 30, 5, 5) == 5 and span(90000) == "25.0 h"


def test_slurm_times_and_gpus(script):
    seconds = {
        "90": 5400,
        "1:30": 90,
        "2:00:00": 7200,
        "1-12": 129600,
        "1-12:30": 131400,
        "1-00:00:01": 86401,
        "0": None,
    }
    for text, value in seconds.items():
        assert read_slurm_script(Path(script(("1-00:00:00", text)))).time_s == value, text
    gres = read_slurm_script(Path(script(("--gpus-per-node=h100:2", "--gres=gpu:a100:8"))))
    short = read_slurm_script(Path(script(("--nodes=2", "-N 3"))))
    assert gres.gpus_per_node == 8 and short.nodes == 3 and gres.signal == ("B", "USR2", 300)


def test_a_gpu_by_any_spelling():
    assert find_gpu("RTX-4090") == find_gpu("rtx4090") == GPUS["rtx4090"] and find_gpu("A100_80GB") == GPUS["a100-80"]
    with pytest.raises(ValueError, match="known are v100-32, a100-40"):
        find_gpu("a100")


def test_every_position_is_taken_once():
    assert missing_positions(Layout(24, num_ranks=4, num_micro_batches=2)) == []
    assert missing_positions(Layout(25, num_ranks=4, num_micro_batches=2)) == [24]


def test_a_fake_group_has_the_size_it_is_told():
    with fake_process_group(6, 7):
        assert num_ranks() == 7
    assert num_ranks() == 1


def test_a_parameter_without_a_gradient_fails_the_dry_run(run, monkeypatch):
    class Idle(rehearsal.DDP):
        def wrap(self, model):
            model.register_parameter("idle", torch.nn.Parameter(torch.zeros(1)))
            self.model.register_parameter("idle", model.idle)
            return super().wrap(model)

    monkeypatch.setattr(rehearsal, "DDP", Idle)
    status, _, lines = run("--skip-step")
    assert status == 1 and "no gradient for idle" in lines["dry run"]["figure"]
