"""One curve, whatever the mode, the number of ranks and nodes, of micro-batches and of loader workers."""

import os

import numpy as np
import pytest

from runs import TORCHRUN, deviation, empty_config, free_port, losses, output, start, stats, train, words

LIMIT = 1e-5  # relative, in fp32
SETTINGS = {"train__global_batch": 8, "data__augment__flip_prob": 0.5, "data__prefetch": 2}


@pytest.fixture(scope="module")
def data(request):
    """Real photographs where they are, else drawn ones."""
    beside = os.environ.get("TRYON_TEST_DATA") or os.environ.get("CI") == "true"
    real = beside or (request.config.rootpath.parent / "shared" / "data").is_dir()
    return request.getfixturevalue("photographs" if real else "shards")


@pytest.fixture(scope="module")
def single(data, tmp_path_factory):
    """The run that the others are compared with: its folder."""
    folder = tmp_path_factory.mktemp("single")
    train(folder, [str(empty_config(folder)), *words(data, folder / "run", **SETTINGS)])
    assert len(losses(folder / "run")) == 20
    return folder / "run"


def assert_same_curve(single, run_dir, capsys, name: str) -> None:
    worst = deviation(losses(single), losses(run_dir))
    with capsys.disabled():
        print(f"  {name}: largest relative deviation of the loss over 20 steps {worst:.1e}")
    assert worst < LIMIT
    one, two = stats(single), stats(run_dir)
    assert [line["samples"] for line in one] == [line["samples"] for line in two]
    np.testing.assert_allclose([line["grad_norm"] for line in one], [line["grad_norm"] for line in two], rtol=1e-4)
    by_t = [name for name in one[0] if name.startswith("loss_by_t/")]
    np.testing.assert_allclose([one[0][name] for name in by_t], [two[0][name] for name in by_t], rtol=1e-4)


@pytest.mark.parametrize(
    "script, workers, accumulation",
    [("train_dp.py", 1, 1), ("train_dp.py", 3, 2), ("train_single.py", 0, 4)],
)
def test_one_process(single, data, tmp_path, capsys, script, workers, accumulation):
    changes = SETTINGS | {"data__num_workers": workers, "train__accumulation": accumulation}
    train(tmp_path, [str(empty_config(tmp_path)), *words(data, tmp_path / "run", **changes)], script)
    assert_same_curve(single, tmp_path / "run", capsys, f"{script}, accumulation {accumulation}, {workers} workers")


def test_torchrun_with_two_ranks(single, data, tmp_path, capsys):
    changes = SETTINGS | {"data__num_workers": 1}
    arguments = [str(empty_config(tmp_path)), *words(data, tmp_path / "run", **changes)]
    process = start([*TORCHRUN, "--standalone", "--nproc_per_node=2", "train_ddp.py", *arguments])
    text = output(process)
    assert process.returncode == 0, text
    assert "global batch 8 on 2 x cpu" in text
    assert_same_curve(single, tmp_path / "run", capsys, "torchrun, 2 ranks, 1 worker each")


@pytest.mark.slow
def test_two_nodes_of_two_ranks(single, data, tmp_path, capsys):
    changes = SETTINGS | {"data__num_workers": 3, "train__accumulation": 2}
    arguments = [str(empty_config(tmp_path)), *words(data, tmp_path / "run", **changes)]
    meeting = [f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--rdzv-backend=c10d", "--rdzv-id=nodes", "--nnodes=2"]
    agents = [start([*TORCHRUN, *meeting, "--nproc_per_node=2", "train_ddp.py", *arguments]) for _ in range(2)]
    texts = [output(agent) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], "\n".join(texts)
    assert sum("global batch 8 on 4 x cpu" in text for text in texts) == 1
    assert_same_curve(
        single, tmp_path / "run", capsys, "two torchrun agents of 2 ranks, accumulation 2, 3 workers each"
    )


def test_another_seed_is_another_curve(single, data, tmp_path):
    """The comparison above can fail."""
    train(tmp_path, [str(empty_config(tmp_path)), *words(data, tmp_path / "run", seed=1, **SETTINGS)])
    assert deviation(losses(single), losses(tmp_path / "run")) > 1e-3
