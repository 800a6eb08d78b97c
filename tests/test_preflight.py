"""The check before training: verdicts on given measurements, and real ranks that measure one machine."""

import json
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from launch import host_health
from launch.host_links import edges
from launch.host_table import table
from launch.host_verdicts import World, broken, judge, slow
from launch.place import expand, find_place, tasks_per_node
from runs import HOME, TORCHRUN, empty_config, free_port, output, start, words
from training.config import load_config
from training.probe import Board, Group

HOSTS = ("n1", "n2", "n3", "n4")
GPU = {"name": "NVIDIA H100", "kind": "cuda", "tflops": 700.0, "same": True, "free_gib": 79.0, "memory_gib": 80.0,
       "own_gib": 0.5, "ecc": 0, "throttle": [], "celsius": 60}  # fmt: skip


def healthy(num: int = 4) -> World:
    """Hosts of two GPUs, a rank each, that have nothing to complain about."""
    facts = {
        rank: {
            "leads": True, "failed": {}, "code": "c0de", "config": {"seed": 0, "optim.lr": 1e-4},
            "versions": {"torch": "2.13.0", "CUDA": "13.0", "NCCL": "2.27"},
            "devices": [GPU | {"index": 0}, GPU | {"index": 1}],
            "free_gib": 400.0, "memory_gib": 500.0, "shm_gib": 200.0, "shm_free_gib": 200.0,
            "open_files": [65536, 65536], "cores": list(range(32)), "ranks": 2, "processes": 10, "shm_need_gib": 2.0,
            "open_files_need": 512, "write_mb_s": 900.0, "read_mb_s": 150.0,
        }
        for rank in range(num)
    }  # fmt: skip
    links = {
        rank: {
            "unseen": [], "clock_ms": 2.0, "clock_within_ms": 1.0, "clock_of": "n1", "link_failed": {},
            "sent_gbps": {HOSTS[(rank + way) % num]: 90.0 + rank for way in (1, -1)},
            "all_reduce": {"gbps": 80.0, "right": True},
        }
        for rank in range(num)
    }  # fmt: skip
    return World(dict(enumerate(HOSTS[:num])), facts, links, {})


def told(world: World) -> list[tuple[str, str]]:
    return [(remark.level, remark.host) for remark in judge(world)]


def test_healthy_hosts_pass():
    assert judge(healthy()) == judge(healthy(2)) == judge(healthy(1)) == []
    assert table(healthy(), []).count(" ok") == 4 and "2 H100" in table(healthy(), [])


CHANGES = [  # a fact of n3, whether it is broken or only a warning, and a word that must be said
    ({"code": "beef"}, "error", "other code"),
    ({"config": {"seed": 0, "optim.lr": 2e-4}}, "error", "optim.lr=0.0002, others 0.0001"),
    ({"versions": {"torch": "2.12.0", "CUDA": "13.0", "NCCL": "2.27"}}, "error", "torch 2.12.0, others 2.13.0"),
    ({"failed": {"run folder": "Read-only file system"}}, "error", "run folder: Read-only file system"),
    ({"devices": [GPU | {"index": 0}]}, "error", "1 x NVIDIA H100, others 2 x NVIDIA H100"),
    ({"devices": [GPU | {"index": 0}, GPU | {"index": 1, "ecc": 3}]}, "error", "GPU 1 has 3 ECC errors"),
    ({"devices": [GPU | {"index": 0}, GPU | {"index": 1, "rows_failed": True}]}, "error", "GPU 1 could not remap"),
    ({"devices": [GPU | {"index": 0}, GPU | {"index": 1, "same": False}]}, "error", "GPU 1 gives other results"),
    ({"devices": [GPU | {"index": 0}, GPU | {"index": 1, "throttle": ["hot"]}]}, "warning", "GPU 1 is throttled (hot)"),
    ({"devices": [GPU | {"index": 0}, GPU | {"index": 1, "celsius": 91}]}, "warning", "91 degrees"),
    ({"devices": [GPU | {"index": 0}, GPU | {"index": 1, "free_gib": 40.0}]}, "warning", "39.5 GiB of GPU 1"),
    ({"devices": [GPU | {"index": 0}, GPU | {"index": 1, "tflops": 300.0}]}, "warning", "GPU 1 (NVIDIA H100) computes"),
    ({"hidden_gpus": 8}, "error", "torch 2.13.0 can use none"),
    ({"shm_gib": 0.06, "shm_free_gib": 0.06}, "error", "/dev/shm has 0.06 GiB"),
    ({"free_gib": 3.0}, "warning", "3.0 GiB of RAM"),
    ({"open_files": [256, 4096]}, "warning", "ulimit -n 4096"),
    ({"cores": [0, 1]}, "warning", "2 cores for 10 processes"),
    ({"read_mb_s": 20.0}, "warning", "reads shards at 20 MB/s, the others' median is 150"),
    ({"write_mb_s": 40.0}, "warning", "writes the run folder at 40 MB/s"),
]


@pytest.mark.parametrize(("facts", "level", "word"), CHANGES, ids=lambda value: value if isinstance(value, str) else "")
def test_the_odd_host_is_named(facts, level, word):
    world = healthy()
    world.facts[2].update(facts)
    (remark,) = judge(world)
    assert (remark.level, remark.host) == (level, "n3") and word in str(remark)
    assert broken(world, [remark]) == (["n3"] if level == "error" else [])
    row = next(line for line in table(world, [remark]).splitlines() if line.startswith("n3"))
    assert row.endswith("BROKEN" if level == "error" else ("slow", "warning"))


def test_what_is_fast_enough_is_not_slow():
    world = healthy()
    world.facts[2]["write_mb_s"] = 300.0  # a third of the others', and plenty
    assert judge(world) == []
    assert slow({"a": 1.0, "b": 2.1}) == {"a": 2.1} and slow({"a": 1.0}) == {}


def test_the_same_everywhere_is_one_remark_and_excludes_nobody():
    world = healthy()
    for facts in world.facts.values():
        facts["failed"]["shards"] = "shards/train: no such folder; write some"
    (remark,) = judge(world)
    assert str(remark) == "error: all hosts (4): shards: shards/train: no such folder; write some"
    assert broken(world, [remark]) == []


def test_silent_hosts_are_named_and_what_follows_from_them_is_not():
    world = healthy()
    del world.links[2]
    for rank, peer in ((1, "n3"), (3, "n3")):
        world.links[rank]["link_failed"] = {peer: "timed out"}
    for note in world.links.values():
        note["all_reduce_failed"] = "timed out"
    assert told(world) == [("error", "n3")]
    world = healthy()._replace(missing={4: "n5", 5: None}, absent=("n6",))
    assert sorted(host for _, host in told(world)) == ["n5", "n6"] and broken(world, judge(world)) == ["n5", "n6"]
    assert told(healthy()._replace(missing={4: None})) == [("error", "of rank 4")]


def test_a_slow_link_is_its_owners_and_not_its_neighbours():
    world = healthy()
    world.links[2]["sent_gbps"] = {"n4": 5.0, "n2": 4.0}
    (remark,) = judge(world)
    assert (remark.level, remark.host) == ("warning", "n3") and "sends at 5 Gb/s" in remark.told
    world.links[2]["sent_gbps"] = {"n4": 91.0, "n2": 91.0}
    world.links[1]["sent_gbps"]["n3"] = world.links[3]["sent_gbps"]["n3"] = 3.0
    (remark,) = judge(world)
    assert remark.host == "n3" and "receives at 3 Gb/s" in remark.told
    world.links[3]["sent_gbps"]["n3"] = 90.0  # one of its two links: nobody's fault yet
    assert judge(world) == []
    two = healthy(2)
    two.links[1]["sent_gbps"]["n1"] = 5.0
    assert told(two) == [("warning", "n2")]
    assert told(two._replace(min_gbps=20.0)) == [("error", "n2")]
    assert sorted(told(healthy()._replace(min_gbps=200.0))) == [("error", host) for host in HOSTS for _ in (0, 1)]


def test_of_failed_links_the_host_with_most_is_at_fault():
    world = healthy()
    for rank, peer in ((1, "n3"), (2, "n2"), (2, "n4"), (3, "n3")):
        world.links[rank]["link_failed"] = world.links[rank]["link_failed"] | {
            peer: "what arrives is not what was sent"
        }
    assert {host for _, host in told(world)} == {"n3"}
    two = healthy(2)
    two.links[0]["link_failed"] = {"n2": "timed out"}
    assert {host for _, host in told(two)} == {"n1", "n2"} and broken(two, judge(two)) == []


def test_clocks_folders_and_sums():
    world = healthy()
    world.links[1]["clock_ms"] = -5000.0
    world.links[2]["unseen"] = ["n1", "n2", "n4"]
    world.links[3]["all_reduce"] = {"gbps": 80.0, "right": False}
    found = {remark.host: remark for remark in judge(world)}
    assert set(found) == {"n2", "n3", "n4"}
    assert "5.0 s behind that of n1" in found["n2"].told and found["n2"].level == "warning"
    assert "not the one that n1, n2, n4 see" in found["n3"].told and "wrong sum" in found["n4"].told
    world.links[1] |= {"clock_ms": 1500.0, "clock_within_ms": 800.0}  # known no better than that
    assert "n2" not in {remark.host for remark in judge(world)}


def test_places():
    assert expand("gpu[01-03,7],login") == ("gpu01", "gpu02", "gpu03", "gpu7", "login") and expand("") == ()
    assert expand("r[1-2]n[8-10]")[:4] == ("r1n8", "r1n9", "r1n10", "r2n8")
    assert tasks_per_node("2(x3),1") == [2, 2, 2, 1]
    step = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
            "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8",
            "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}  # fmt: skip
    place = find_place(step)
    assert place[:6] == (5, 8, 1, 4, "n1", 20049) and place.nodes == ("n1", "n2") and not place.serves
    del step["SLURM_STEP_ID"]
    assert find_place(step).size == 1  # the batch script itself
    listed = {"TRYON_NODES": "n1, n2", "SLURMD_NODENAME": "n2", "MASTER_PORT": "5"}
    assert find_place(listed)[:6] == (1, 2, 0, 1, "n1", 5)
    with pytest.raises(ValueError, match="host n3 is not in it"):
        find_place(listed | {"SLURMD_NODENAME": "n3"})
    agent = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "n1", "MASTER_PORT": "9"}
    assert find_place(agent).serves and not find_place(agent | {"TORCHELASTIC_USE_AGENT_STORE": "True"}).serves


@pytest.mark.parametrize("num", [2, 3, 4, 5, 8])
def test_the_ring_has_every_link_once(num):
    links = edges(num)
    assert {frozenset(link) for link in links} == {frozenset((i, (i + 1) % num)) for i in range(num)}
    assert len(links) == (1 if num == 2 else num)


def test_a_step_that_hangs_is_named_and_the_others_go_on(monkeypatch, tmp_path, shards):
    config = load_config([str(empty_config(tmp_path)), *words(shards, tmp_path / "run")])
    monkeypatch.setattr(host_health, "write_speed", lambda folder, mark: time.sleep(60))
    began = time.monotonic()
    facts = host_health.measure(find_place({}), config, True, ".preflight-x", began + 4)
    assert time.monotonic() - began < 6
    assert next(iter(facts["failed"])) == "run folder" and "no answer within" in facts["failed"]["run folder"]
    assert facts["code"] and facts["devices"][0]["tflops"] > 0


@pytest.mark.parametrize("tampered", [False, True])
def test_links_know_what_arrived(tampered, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    port, results = free_port(), {}
    server = Board("127.0.0.1", port, serves=True, prefix="u", until=time.monotonic() + 5)

    def member(place: int) -> None:
        board = Board("127.0.0.1", port, serves=False, prefix="t", until=time.monotonic() + 5)
        group = Group(board, "g", place, 2, device=torch.device("cpu"), seconds=10)
        group.sizes = group.sizes[:2]
        if tampered and place == 1:  # this side expects other data, and adds other numbers
            group._pattern = lambda size: torch.zeros(size, dtype=torch.uint8)
        if place == 0:
            results["sent"] = group.send_measured(1)
        else:
            group.answer(0)
            group.place += tampered
        results[place] = group.all_reduce_measured()

    assert [server.claim("who", i) for i in (3, 4)] == [3, 3] and server.read(["who", "nobody"]) == {"who": 3}
    threads = [threading.Thread(target=member, args=(place,), daemon=True) for place in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert [results[name][1] for name in ("sent", 0, 1)] == [not tampered] * 3
    assert results["sent"][0] > 1e6 and results[0][0] > 1e6


def test_two_ranks_under_torchrun(tmp_path, shards):
    report, listed = tmp_path / "report.json", tmp_path / "exclude"
    listed.write_text("n9\n")  # of an earlier check
    arguments = [str(empty_config(tmp_path)), *words(shards, tmp_path / "run"), "--seconds", "30"]
    command = [*TORCHRUN, "--standalone", "--nproc_per_node=2", "-m", "launch.preflight", *arguments]
    process = start([*command, "--json", str(report), "--exclude-file", str(listed)])
    text = output(process)
    assert process.returncode == 0, text
    assert text.count("verdict") == 1 and "2 of 2 ranks answered" in text and "the sum is right" in text
    known = json.loads(report.read_text())
    facts = known["facts"]["0"] | known["facts"]["1"]
    assert known["status"] == 0 and facts["write_mb_s"] > 0 and facts["read_mb_s"] > 0 and facts["shm_free_gib"] > 0
    assert not listed.exists() and list((tmp_path / "run").iterdir()) == []


def test_a_wrong_clock_and_a_folder_of_its_own(tmp_path, shards):
    """Two hosts by name; the second one's clock is 5 s ahead and its relative run folder lies elsewhere."""
    ahead = "import runpy, time; now = time.time; time.time = lambda: now() + 5; runpy.run_module('launch.preflight', "
    listed, port, env = tmp_path / "exclude", str(free_port()), {"TRYON_NODES": "h1 h2", "MASTER_ADDR": "127.0.0.1"}
    arguments = [str(empty_config(tmp_path)), *words(shards, Path("run")), "--seconds", "20"]
    arguments += ["--exclude-file", str(listed)]
    processes = []
    for host, command in (("h1", ["-m", "launch.preflight"]), ("h2", ["-c", ahead + "run_name='__main__')"])):
        (tmp_path / host).mkdir()
        line = ["env", "-C", str(tmp_path / host), f"PYTHONPATH={HOME}", sys.executable, *command, *arguments]
        processes.append(start(line, SLURMD_NODENAME=host, MASTER_PORT=port, **env))
    texts = [output(process) for process in processes]
    assert [process.returncode for process in processes] == [1, 1], texts
    assert "warning: host h2: its clock is 5.0 s ahead of that of h1" in texts[0]
    assert "error: host h2: its run folder is not the one that h1 see" in texts[0]
    assert texts[1] == "" and listed.exists() and listed.read_text() == "h2\n", texts[0]
    why = (tmp_path / "exclude.why").read_text()
    assert "error: host h2: its run folder is not the one that h1 see" in why, "should srun lose the words"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(["--seconds", "1"], "use 5 to 3600"), (["--seconds", "8", "optim.lrr=1"], "the nearest is 'optim.lr'")],
)
def test_refusals_are_one_line(arguments, word, tmp_path):
    process = start([sys.executable, "-m", "launch.preflight", str(empty_config(tmp_path)), *arguments])
    text = output(process)
    assert process.returncode == 1 and word in text and "Traceback" not in text
