"""The roll call before torchrun: what differs between nodes is named on all of them, and nothing waits for ever."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from launch import rollcall
from launch.roll import disagreements, parse, this_node
from runs import HOME, free_port

COMMAND = ["train_ddp.py", "optim.lr=1e-4"]


@pytest.fixture
def port() -> int:
    return free_port()


def node(number: int, port: int, command: list[str] = COMMAND, *, home: Path = HOME, wait: float = 20, **env: str):
    """The process of a roll call on node `number` of nodes a, b."""
    values = {
        "TRYON_NODES": "a b", "TRYON_NODE_RANK": str(number), "PET_RDZV_ID": "job", "PET_NPROC_PER_NODE": "8",
        "PET_RDZV_ENDPOINT": f"127.0.0.1:{port}",
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "launch.rollcall", "--wait", str(wait), *command], cwd=home,
        env=os.environ | values | env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def verdicts(*nodes: subprocess.Popen, within: float = 15) -> list[str]:
    """What each said; statuses are those of a refusal when it is an error, and nobody says more than a line."""
    end, said = time.monotonic() + within, []
    try:
        for process in nodes:
            text = process.communicate(timeout=max(0.1, end - time.monotonic()))[0]
            assert len(text.splitlines()) <= 1 and process.returncode == text.startswith("error: "), text
            said.append(text.strip())
    finally:
        for process in nodes:
            process.kill()
    return said


def both_hear(expected: str, *nodes: subprocess.Popen, within: float = 15) -> None:
    said = verdicts(*nodes, within=within)
    assert len(set(said)) == 1 and said[0].startswith("error: ") and expected in said[0], said


def test_equal_nodes_pass_and_one_line_says_so(port):
    said = verdicts(node(0, port), node(1, port))
    assert said == ["roll call: a, b: 2 x 8 ranks, same code, same config", ""]


def test_it_starts_without_heavy_imports():
    code = "import sys, launch.rollcall; sys.exit(str(sorted({'torch', 'numpy', 'yaml', 'pydantic'} & {*sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=HOME, capture_output=True, text=True)
    assert done.stderr.strip() == "[]"


def test_the_master_may_come_late(port):
    late = node(1, port)
    time.sleep(1)
    assert verdicts(node(0, port), late)[0].startswith("roll call: ")


def test_another_command(port):
    both_hear(
        "b was started with optim.lr=1e-3 where a has optim.lr=1e-4; start the same command on every node",
        node(0, port), node(1, port, ["train_ddp.py", "optim.lr=1e-3"]),
    )  # fmt: skip


def test_another_number_of_ranks(port):
    both_hear("b starts 4 ranks, a 8; ", node(0, port), node(1, port, PET_NPROC_PER_NODE="4"))


def test_another_torch(port, tmp_path):
    (tmp_path / "torch-9.9.dist-info").mkdir()
    (tmp_path / "torch-9.9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9\n")
    both_hear("b has torch 9.9, a torch 2.", node(0, port), node(1, port, PYTHONPATH=str(tmp_path)))


def test_another_config(port, tmp_path):
    for name, text in (("a", "seed: 1\n"), ("b", "seed: 2\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "my.yaml").write_text(text)
    command, env = ["train_ddp.py", "my.yaml"], {"PYTHONPATH": str(HOME)}
    nodes = [node(i, port, command, home=tmp_path / name, **env) for i, name in enumerate("ab")]
    both_hear("b has another config than a: my.yaml; copy the same file", *nodes)
    (tmp_path / "b" / "my.yaml").unlink()
    nodes = [node(i, port, command, home=tmp_path / name, **env) for i, name in enumerate("ab")]
    both_hear("b has another config than a: my.yaml (missing); ", *nodes)


def test_other_code(port, tmp_path):
    shutil.copytree(HOME, tmp_path / "copy", ignore=lambda path, names: {n for n in names if n.startswith(".")})
    loop = tmp_path / "copy" / "training" / "loop.py"
    loop.write_text(loop.read_text() + "# mended here alone\n")
    (tmp_path / "copy" / "train_ddp.py").unlink()
    both_hear(
        "b has other code than a: train_ddp.py (missing), training/loop.py; copy the same project folder",
        node(0, port), node(1, port, home=tmp_path / "copy"),
    )  # fmt: skip


def test_the_batch_script_hears_what_would_be_refused_again(port, tmp_path):
    refused = tmp_path / "refused.txt"
    env = {"TRYON_REFUSED": str(refused)}
    both_hear("b starts 4", node(0, port, **env), node(1, port, PET_NPROC_PER_NODE="4", **env))
    assert refused.read_text().startswith("error: b starts 4") and refused.read_text().count("\n") == 1
    refused.unlink()
    verdicts(node(0, port, wait=0.5, **env))
    assert not refused.exists()


def test_a_node_that_never_calls(port):
    nodes = {"TRYON_NODES": "a b c d"}
    began = time.monotonic()
    both_hear("c, d never called a:", node(0, port, wait=2, **nodes), node(1, port, wait=2, **nodes))
    assert time.monotonic() - began < 6


def test_a_master_that_does_not_listen(port):
    (said,) = verdicts(node(1, port, wait=1))
    assert f"b cannot reach the master a at 127.0.0.1:{port} for 1 s: nothing listens there; start the same" in said


def test_an_address_that_does_not_answer(port, monkeypatch):
    def nobody(address, timeout):
        time.sleep(0.2)
        raise TimeoutError("timed out")

    monkeypatch.setattr(rollcall.socket, "create_connection", nobody)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    with pytest.raises(ValueError, match=r"no answer; is a up, does a firewall.*is eth7 the network"):
        rollcall.call(local(1), "127.0.0.1", port, 1)


@pytest.mark.parametrize("greets", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b'{"greeting": "hello"}\n'])
def test_another_program_on_the_port(port, monkeypatch, greets):
    monkeypatch.setattr(rollcall, "GREETING_S", 0.5)
    with socket.create_server(("127.0.0.1", port)) as listener:

        def serve():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                connection.sendall(greets)
                held.append(connection)

        held: list[socket.socket] = []
        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(ValueError, match=f"another program listens on port {port} of the master a"):
            rollcall.call(local(1), "127.0.0.1", port, 10)
        (said,) = verdicts(node(0, port))
        assert f"port {port} of the master a is taken by another program" in said
        listener.shutdown(socket.SHUT_RDWR)


def test_two_nodes_of_one_number(port):
    three = {"TRYON_NODES": "a b c"}
    master, one, two = (node(i, port, **three) for i in (0, 1, 1))
    both_hear("started as node 2 of 3, twice in all; start the command once on every node", master, one, two)


def test_a_second_master(port):
    first = node(0, port)
    time.sleep(1)
    (said,) = verdicts(node(0, port))
    assert "is taken by another program" in said
    assert verdicts(first, node(1, port))[0].startswith("roll call: ")


def test_strangers_are_sent_away_and_the_others_go_on(port):
    master = node(0, port)
    (said,) = verdicts(node(1, port, PET_RDZV_ID="other"))
    assert "is of job other, a:" in said and "of job job; name the same nodes and job on every node" in said
    (said,) = verdicts(node(1, port, TRYON_NODES="x b"))
    assert "knows the nodes x b, a the nodes a b" in said
    assert verdicts(master, node(1, port))[0].startswith("roll call: ")


@pytest.mark.parametrize("said", [b"", b"[" * 100_000 + b"\n", b'{"host": 1}\n', b"\xff\n"])
def test_noise_on_the_port_changes_nothing(port, said):
    master = node(0, port)
    with _connected(port) as connection:
        connection.sendall(said)
        assert verdicts(master, node(1, port))[0].startswith("roll call: ")


def test_a_line_without_an_end_is_cut(port):
    master = node(0, port)
    with _connected(port) as connection:
        began = time.monotonic()
        with pytest.raises(ConnectionError):
            while time.monotonic() - began < 20:
                connection.sendall(b"x" * (1 << 16))
        assert time.monotonic() - began < rollcall.GREETING_S
    assert verdicts(master, node(1, port))[0].startswith("roll call: ")


def test_a_node_that_calls_and_leaves_is_missing(port):
    three = "a b c"
    master = node(0, port, wait=4, TRYON_NODES=three)
    with _connected(port) as connection:
        connection.sendall(json.dumps(local(1, three)._asdict()).encode() + b"\n")
        time.sleep(0.5)
    both_hear("error: b never called a:", master, node(2, port, wait=4, TRYON_NODES=three))


def test_of_many_nodes_the_usual_value_is_right():
    nodes = [local(i, nodes="a b c d") for i in range(4)]
    nodes[0] = nodes[0]._replace(ranks=4)
    assert disagreements(nodes)[0].startswith("a starts 4 ranks, b 8; ")
    nodes[2] = nodes[2]._replace(ranks=4)
    assert disagreements(nodes)[0].startswith("b, d starts 8 ranks, a 4; "), "as many: the master's"


def test_a_clock_that_is_off():
    nodes = [local(0), local(1)]
    assert disagreements(nodes, {0: 0.0, 1: 5.0}) == []
    assert disagreements(nodes, {0: 0.0, 1: 40.0})[0].startswith("the clock of b is 40 s behind that of a")
    assert "30 s ahead of" in disagreements(nodes, {1: -30.0})[0]


@pytest.mark.parametrize(
    "change", [{"host": 1}, {"code": []}, {"command": [1]}, {"number": 2}, {"number": -1}, {"new": 1}]
)
def test_only_nodes_are_taken_for_nodes(change):
    told = local(1)._asdict()
    assert parse(told) == local(1)._replace(clock=told["clock"])
    with pytest.raises(ValueError):
        parse(told | change)


def test_without_env_sh_it_says_what_to_source():
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PET_", "TRYON_"))}
    command = [sys.executable, "-m", "launch.rollcall", "train_ddp.py"]
    done = subprocess.run(command, cwd=HOME, env=env, capture_output=True, text=True)
    assert done.returncode == 1 and "launch/env.sh; source that first" in done.stderr


def local(number: int, nodes: str = "a b"):
    """A node as this process would be one."""
    with pytest.MonkeyPatch.context() as patch:
        values = {"TRYON_NODES": nodes, "TRYON_NODE_RANK": str(number), "PET_RDZV_ID": "job", "PET_NPROC_PER_NODE": "8"}
        for name, value in values.items():
            patch.setenv(name, value)
        return this_node(COMMAND)


def _connected(port: int) -> socket.socket:
    """A connection to a master that is about to listen."""
    end = time.monotonic() + 10
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=5)
        except ConnectionRefusedError:
            assert time.monotonic() < end
            time.sleep(0.05)
