"""Ranks that do not fit together, and the folders of hosts."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from runs import BROKEN, HOME, empty_config, finish, ranks, train, words
from training import hosts, replicas, snapshot, timeline
from training.distributed import Agreed


def test_another_config_on_one_rank_is_named(shards, tmp_path):
    config = str(empty_config(tmp_path))
    each = [[config, *words(shards, tmp_path / "run", optim__lr=lr)] for lr in (1e-3, 2e-3)]
    statuses, text = finish(ranks(tmp_path, 2, each))
    assert statuses == [1, 1] and text.count("error: ") == 1, text
    assert "has optim.lr 0.002, but" in text and "start the same command on all hosts" in text
    assert not (tmp_path / "run").exists()


def test_other_data_on_one_rank_is_named(shards, photographs, tmp_path):
    config = str(empty_config(tmp_path))
    each = [[config, *words(folder, tmp_path / "run")] for folder in (shards, photographs)]
    statuses, text = finish(ranks(tmp_path, 2, each))
    assert statuses == [1, 1] and "with fingerprint" in text and "copy the same shards" in text, text


def test_shards_may_lie_elsewhere_on_each_host(shards, tmp_path):
    shutil.copytree(shards, tmp_path / "copy")
    config = str(empty_config(tmp_path))
    each = [[config, *words(folder, tmp_path / "run")] for folder in (shards, tmp_path / "copy")]
    statuses, text = finish(ranks(tmp_path, 2, each))
    assert statuses == [0, 0], text


def host(name: str, device: str = "cpu", **software: str) -> hosts.Host:
    return hosts.Host(name, device, {"seed": 1}, {"code": "c", "torch": "t", "python": "p"} | software)


@pytest.mark.parametrize(
    ("fleet", "parts"),
    [
        ([host("a"), host("a"), host("b", code="x")], ['host b has code "x", but a has "c"', "copy the same code"]),
        ([host("a", torch="2.11"), host("b"), host("b")], ['host a has torch "2.11", but b has "t"']),
        ([host("a", "GPU 7 (H100)"), host("a", "GPU 7 (H100)")], ["host a: 2 ranks use the same GPU 7"]),
    ],
)
def test_hosts_that_do_not_fit(monkeypatch, fleet, parts):
    monkeypatch.setattr(hosts, "all_gather", lambda value: fleet)
    monkeypatch.setattr(hosts, "this_host", lambda config, device: fleet[0])
    with pytest.raises(Agreed) as refused:
        hosts.check_hosts(None, torch.device("cpu"))
    assert all(part in str(refused.value) for part in parts), refused.value


def test_equal_gpus_of_two_hosts_are_two(monkeypatch):
    fleet = [host("a", "GPU 7 (H100)"), host("b", "GPU 7 (H100)")]
    monkeypatch.setattr(hosts, "all_gather", lambda value: fleet)
    monkeypatch.setattr(hosts, "this_host", lambda config, device: fleet[0])
    assert hosts.check_hosts(None, torch.device("cpu")) == ["a: GPU 7 (H100)", "b: GPU 7 (H100)"]


def test_a_folder_that_is_not_shared_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(hosts, "num_ranks", lambda: 2)
    monkeypatch.setattr(hosts, "VISIBLE_S", 0.5)
    with pytest.raises(ValueError, match="does not see there what rank 0 wrote"):
        hosts.check_shared(tmp_path, "token")
    (tmp_path / "start").write_text("token")
    hosts.check_shared(tmp_path, "token")


def test_replicas_that_drift_apart_are_named(monkeypatch):
    models = [nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)) for _ in range(3)]
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())
    monkeypatch.setattr(replicas, "num_ranks", lambda: 3)

    def gathered(value):
        return [(f"node{i}", replicas.fingerprint(model)) for i, model in enumerate(models)]

    monkeypatch.setattr(replicas, "all_gather", gathered)
    replicas.check_replicas(models[0], 2)
    with torch.no_grad():
        models[2][1].weight[0, 0] += 1e-7  # the smallest drift
    with pytest.raises(Agreed, match=r"after step 2 the parameters of rank 2 \(host node2\) .* 1\.weight first"):
        replicas.check_replicas(models[0], 2)


def test_a_run_keeps_its_code_and_environment(shards, tmp_path):
    arguments = [str(empty_config(tmp_path)), *words(shards, tmp_path / "run", train__num_steps=1)]
    for _ in range(2):
        train(tmp_path, arguments)
    (archive,) = (tmp_path / "run" / "code").iterdir()
    assert archive.name == f"{snapshot.code_hash()}.zip"
    with zipfile.ZipFile(archive) as code:
        assert code.read("training/loop.py") == (HOME / "training/loop.py").read_bytes()
        assert "train_ddp.py" in code.namelist() and "configs/base_unet.yaml" in code.namelist()
    lines = [json.loads(line) for line in (tmp_path / "run" / "environment.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and lines[0]["packages"]["torch"] == torch.__version__
    assert lines[0]["code"] == snapshot.code_hash() and lines[0]["devices"][0].endswith(": cpu")


def test_any_change_of_code_is_another_hash(monkeypatch, tmp_path):
    before = snapshot.code_hash()
    for file in snapshot.code_files():
        path = tmp_path / file.relative_to(HOME)
        path.parent.mkdir(exist_ok=True)
        shutil.copy(file, path)
    monkeypatch.setattr(snapshot, "HOME", tmp_path)
    assert snapshot.code_hash() == before
    with (tmp_path / "model" / "layers.py").open("a") as file:
        file.write("\n")
    assert snapshot.code_hash() != before


def test_each_rank_has_a_log_and_rank_0_speaks(shards, tmp_path):
    each = ranks(tmp_path, 2, [str(empty_config(tmp_path)), *words(shards, tmp_path / "run", train__num_steps=2)])
    statuses, _ = finish(each)
    assert statuses == [0, 0]
    logs = {path.name: path.read_text() for path in (tmp_path / "run" / "logs").glob("*/rank_*.log")}
    assert set(logs) == {"rank_0.log", "rank_1.log"}
    assert "finished: 2 steps" in each[0].text and "finished: 2 steps" in logs["rank_0.log"]
    assert "finished" not in each[1].text + logs["rank_1.log"]


def test_a_bug_on_one_rank_is_a_line_with_host_and_rank(shards, tmp_path):
    """Its traceback is in the rank's log.  The bug: a step of the optimizer that is not there."""
    broken = tmp_path / "broken.py"
    broken.write_text(BROKEN)
    for rank in (0, 1):
        run_dir = tmp_path / f"run_{rank}"
        each = ranks(
            tmp_path / str(rank), 2, [str(empty_config(tmp_path)), *words(shards, run_dir)], str(broken),
            env={"BROKEN_RANK": str(rank)},
        )  # fmt: skip
        statuses, text = finish(each, 40)
        assert statuses == [1, 1] and text.count("Traceback") == (rank == 0), text  # rank 0's log is the console
        assert f"rank {rank}] IndexError: nothing there (" in text and f"rank_{rank}.log" in text
        assert "lost contact with another rank" in text
        log = next(Path(run_dir, "logs").glob(f"*/rank_{rank}.log")).read_text()
        assert "Traceback" in log and "IndexError: nothing there" in log


def test_a_start_is_told_by_phase(monkeypatch):
    monkeypatch.setattr(timeline, "process_began", lambda: 1030.0)
    monkeypatch.setattr(timeline, "MARKS", {"imports": 1034.0, "first step": 1040.0})
    monkeypatch.setenv("TRYON_TIMELINE", "submit=1000 batch=1020.5 node=1021 rollcall=1022")
    monkeypatch.setenv("RANK", "0")
    assert timeline.told() == (
        "start-up took 40.0 s, 36.0 s of it beyond Python's imports: "
        "batch 20.5, node 0.5, rollcall 1.0, torchrun 8.0, imports 4.0, first step 6.0"
    )
    assert timeline.began() == 1020.5


def test_the_time_left_counts_requeues(monkeypatch):
    monkeypatch.setenv("TRYON_TIMELINE", "submit=0 batch=50")
    forecast = timeline.Forecast(deadline=1100, first_step=100)  # 1000 s of steps a job, 100 s lost with each start
    assert forecast.of(900, now=100) == (900, 0)
    assert forecast.of(2500, now=600) == (2700, 2)  # 500 s here, then 1000 + 1000
    assert timeline.Forecast(float("inf"), 100).of(1e9, now=0) == (1e9, 0)
    assert [timeline.duration(s) for s in (12, 200, 18720, 100000)] == ["12 s", "3 min 20 s", "5 h 12 min", "1 d 3 h"]
