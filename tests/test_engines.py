"""One curve on every engine, and a checkpoint of any continued by any other.

The figures go to docs/engines.md when all of them were measured.
"""

import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from runs import HOME, Script, deviation, empty_config, finish, losses, ranks, words

SETTINGS = {"train__global_batch": 8, "data__augment__flip_prob": 0.5, "ema__decay": 0.9}
LIMITS = {"fp32": 1e-5, "bf16": 2e-2}  # relative, of the loss over 20 steps
TABLES = HOME / "docs" / "engines.md"


class Engine(NamedTuple):
    name: str
    script: str
    num_ranks: int = 1
    zero_stage: int | None = None


SINGLE = Engine("single", "train_single.py")
ONE_PROCESS = [SINGLE, Engine("dp", "train_dp.py")]
BY_TWO = [Engine("ddp x 2", "train_ddp.py", 2), *(Engine(f"zero {i} x 2", "train_ddp.py", 2, i) for i in range(4))]
TWO_OR_LESS = [*ONE_PROCESS, *BY_TWO]
ALL = [*TWO_OR_LESS, *(engine._replace(name=f"{engine.name[:-1]}4", num_ranks=4) for engine in BY_TWO)]
CELLS = list(product(("fp32", "bf16"), (1, 2)))  # precision, accumulation
# What the fast tier measures of both tables.
QUICK_CELLS = {("dp", "fp32", 2), ("ddp x 2", "fp32", 2), ("ddp x 2", "bf16", 1), ("zero 1 x 2", "fp32", 1),
               ("zero 2 x 2", "fp32", 2), ("zero 3 x 2", "fp32", 1)}  # fmt: skip
QUICK_PAIRS = {("single", "ddp x 2"), ("ddp x 2", "zero 2 x 2"), ("zero 2 x 2", "dp"), ("zero 3 x 2", "single")}


def cases(values: Iterable[tuple], quick: set[tuple[str, ...]]) -> list:
    """One test for each; those that are not quick are left to --all."""
    named = [(tuple(str(getattr(part, "name", part)) for part in value), value) for value in values]
    wanted = {tuple(map(str, each)) for each in quick}
    return [
        pytest.param(*value, id="-".join(names), marks=() if names in wanted else pytest.mark.slow)
        for names, value in named
    ]


def run(folder: Path, engine: Engine, data: Path, script: str | None = None, **changes) -> Path:
    """The run folder of a run that must succeed."""
    folder.mkdir(parents=True, exist_ok=True)
    arguments = [str(empty_config(folder)), *words(data, folder / "run", **SETTINGS | changes)]
    if engine.zero_stage is not None:
        arguments.append(f"engine.zero_stage={engine.zero_stage}")
    script = script or engine.script
    if engine.num_ranks > 1:
        statuses, text = finish(ranks(folder, engine.num_ranks, arguments, script))
    else:
        statuses, text = finish([Script(folder, script, arguments)])
    assert not any(statuses), text
    return folder / "run"


@pytest.fixture(scope="module")
def single(shards, tmp_path_factory) -> Callable[[str, int], np.ndarray]:
    """(precision, accumulation) -> the losses of 20 steps of train_single.py."""

    @cache
    def curve(precision: str, accumulation: int = 1) -> np.ndarray:
        settings = {"engine__precision": precision, "train__accumulation": accumulation}
        return losses(run(tmp_path_factory.mktemp("single"), SINGLE, shards, **settings))

    return curve


@pytest.fixture(scope="module")
def tables() -> Iterator[dict[str, dict[str, dict[str, float]]]]:
    """Deviations by table, row and column; written when whole."""
    measured = {"matrix": defaultdict(dict), "pairs": defaultdict(dict)}
    yield measured
    num_measured = {name: sum(map(len, rows.values())) for name, rows in measured.items()}
    if num_measured == {"matrix": len(ALL) * len(CELLS), "pairs": len(TWO_OR_LESS) ** 2}:
        text = TABLES.read_text(encoding="utf-8")
        for name, rows in measured.items():
            text = re.sub(rf"(<!-- {name} -->\n).*?(<!-- end -->)", rf"\g<1>{_table(rows)}\g<2>", text, flags=re.DOTALL)
        TABLES.write_text(text, encoding="utf-8")


def _table(rows: dict[str, dict[str, float]]) -> str:
    """Of tests that ran in any order."""
    order = [*(engine.name for engine in ALL), *(_cell(*cell) for cell in CELLS)]
    columns = sorted(next(iter(rows.values())), key=order.index)
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in sorted(rows, key=order.index):
        lines.append(f"| {name} | " + " | ".join(f"{rows[name][column]:.0e}" for column in columns) + " |")
    return "\n".join(lines) + "\n"


def _cell(precision: str, accumulation: int) -> str:
    return f"{precision}, accumulation {accumulation}"


@pytest.mark.parametrize(
    ("engine", "precision", "accumulation"), cases(((e, *cell) for e in ALL for cell in CELLS), QUICK_CELLS)
)
def test_one_curve(engine, precision, accumulation, single, shards, tmp_path, tables):
    settings = {"engine__precision": precision, "train__accumulation": accumulation}
    reference = single(precision)
    curve = single(precision, accumulation) if engine is SINGLE else losses(run(tmp_path, engine, shards, **settings))
    worst = deviation(reference, curve)
    assert len(curve) == 20 and worst <= LIMITS[precision], (engine.name, precision, accumulation)
    assert np.corrcoef(reference, curve)[0, 1] > 0.999, "the trend is the same"
    tables["matrix"][engine.name][_cell(precision, accumulation)] = worst


@pytest.fixture(scope="module")
def half(shards, tmp_path_factory) -> Callable[[Engine], Path]:
    """engine -> the folder of its run of 10 steps."""
    return cache(lambda engine: run(tmp_path_factory.mktemp("half"), engine, shards, train__num_steps=10))


@pytest.mark.parametrize(("first", "second"), cases(product(TWO_OR_LESS, repeat=2), QUICK_PAIRS))
def test_any_engine_continues_any_other(first, second, half, single, shards, tmp_path, tables):
    shutil.copytree(half(first), tmp_path / "run")
    curve = losses(run(tmp_path, second, shards))
    worst = deviation(single("fp32"), curve)
    assert len(curve) == 20 and worst <= LIMITS["fp32"]
    tables["pairs"][first.name][second.name] = worst


@pytest.mark.slow
@pytest.mark.parametrize("stage", cases([(1,), (2,), (3,)], {("2",)}))
def test_zero_continues_on_another_number_of_ranks(stage, shards, tmp_path):
    """12 samples a step, by 2, then by 3, which divides few parameters, then by 4 ranks."""
    reference = losses(run(tmp_path / "single", SINGLE, shards, train__global_batch=12))
    for num_ranks, num_steps in ((2, 7), (3, 14), (4, 20)):
        engine = Engine("zero", "train_ddp.py", num_ranks, stage)
        run_dir = run(tmp_path / "zero", engine, shards, train__global_batch=12, train__num_steps=num_steps)
    assert deviation(reference, losses(run_dir)) <= LIMITS["fp32"]


@pytest.mark.parametrize(
    "engine", cases([(SINGLE,), (BY_TWO[1],), (BY_TWO[3],), (BY_TWO[4],)], {("single",), ("zero 2 x 2",)})
)
def test_without_the_moments_the_curve_is_another(engine, half, single, shards, tmp_path):
    """What the tests above compare with would not stay hidden."""
    script = tmp_path / "forgetful.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(HOME)!r})\n"
        "from training import resume\n"
        "from training.engine import SingleDevice\n"
        "kinds = [SingleDevice]\n"
        f"if {engine.zero_stage!r} is not None:\n"
        "    from training.zero import ZeRO, ZeRO3\n"
        "    kinds += [ZeRO, ZeRO3]\n"
        "for kind in kinds:\n"
        "    kind.load_optimizer = lambda self, get, steps: None\n"
        f"import {engine.script[:-3]} as script\n"
        "script.run(script.main)\n"
    )
    shutil.copytree(half(SINGLE), tmp_path / "run")
    curve = losses(run(tmp_path, engine, shards, str(script)))
    assert deviation(single("fp32"), curve) > 100 * LIMITS["fp32"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "changes",
    [
        {"engine__zero_stage": 2, "engine__offload": "optimizer"},
        {"engine__zero_stage": 3, "engine__offload": "all", "engine__activation_checkpointing": True},
    ],
    ids=["stage 2", "stage 3"],
)
def test_offload_and_checkpointing_change_no_curve(changes, precision, single, shards, tmp_path):
    engine = Engine("zero", "train_ddp.py", 2)
    curve = losses(run(tmp_path, engine, shards, engine__precision=precision, **changes))
    assert deviation(single(precision), curve) <= LIMITS[precision]


@pytest.mark.slow
def test_ranks_that_share_weights_look_at_uneven_numbers_of_samples(shards, tmp_path):
    """3 held-out samples and 1 preview on 2 ranks at stage 3, where every forward pass is everyone's."""
    uneven = {
        "data__val_shards": str(shards), "log__num_validation": 3, "log__validate_every": 5,
        "log__preview_every": 5, "log__num_previews": 1, "train__num_steps": 10,
    }  # fmt: skip
    one = run(tmp_path / "one", SINGLE, shards, **uneven)
    two = run(tmp_path / "two", BY_TWO[4], shards, **uneven)
    told = [re.findall(r"validation loss ([\d.]+)", (folder / "training.log").read_text()) for folder in (one, two)]
    assert len(told[0]) == 2 and np.allclose(*(np.array(each, float) for each in told), atol=2e-4)


def test_a_rank_that_cannot_read_a_checkpoint_says_so_at_stage_3(shards, tmp_path):
    """Others gather the small weights there: no rank may wait for one that refused."""
    run(tmp_path, BY_TWO[4], shards, train__num_steps=2)
    script = tmp_path / "unreadable.py"
    script.write_text(
        "import os, sys\n"
        f"sys.path.insert(0, {str(HOME)!r})\n"
        "from training import checkpoint\n"
        "honest = checkpoint.open_tensors\n"
        "def fail(folder, name, shapes):\n"
        "    if os.environ['RANK'] == '1' and name == 'model':\n"
        "        raise ValueError('model.safetensors: input/output error')\n"
        "    return honest(folder, name, shapes)\n"
        "checkpoint.open_tensors = fail\n"
        "import train_ddp\n"
        "train_ddp.run(train_ddp.main)\n"
    )
    arguments = [str(empty_config(tmp_path)), *words(shards, tmp_path / "run", **SETTINGS), "engine.zero_stage=3"]
    statuses, text = finish(ranks(tmp_path, 2, arguments, str(script)))
    assert statuses == [1, 1] and "rank 1] model.safetensors: input/output error" in text


def test_a_zero_stage_needs_train_ddp(shards, tmp_path):
    arguments = [str(empty_config(tmp_path)), *words(shards, tmp_path / "run"), "engine.zero_stage=2"]
    statuses, text = finish([Script(tmp_path, "train_single.py", arguments)])
    assert statuses == [1] and "error: engine.zero_stage=2 is for train_ddp.py: torchrun" in text


def test_deepspeed_that_is_not_installed_is_named_once(shards, tmp_path):
    script = tmp_path / "without.py"
    script.write_text(
        "import sys\n"
        "sys.modules['deepspeed'] = None  # what Python itself does for a package that must not be imported\n"
        f"sys.path.insert(0, {str(HOME)!r})\n"
        "import train_ddp\n"
        "train_ddp.run(train_ddp.main)\n"
    )
    arguments = [str(empty_config(tmp_path)), *words(shards, tmp_path / "run"), "engine.zero_stage=2"]
    statuses, text = finish(ranks(tmp_path, 2, arguments, str(script)))
    assert statuses == [1, 1] and "Traceback" not in text and not (tmp_path / "run").exists()
    assert len(re.findall("^error: .*pip install deepspeed", text, re.MULTILINE)) == 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="resets the peak of resident memory as Linux does")
def test_no_rank_holds_the_whole_network_at_stage_3(tmp_path):
    """While it is drawn, of a network of 180 MB, a rank of two needs its half and a block."""
    script = tmp_path / "build.py"
    script.write_text(
        "import math, sys\n"
        "from pathlib import Path\n"
        f"sys.path.insert(0, {str(HOME)!r})\n"
        "import psutil\n"
        "from model.parallel_unet import ParallelUNet, ParallelUNetConfig\n"
        "from training.config import Config\n"
        "from training.distributed import process_group\n"
        "from training.engine import EngineConfig\n"
        "from training.zero import ZeRO3\n"
        "class Watched(ZeRO3):\n"
        "    def build(self, model):\n"
        "        before = psutil.Process().memory_info().rss\n"
        "        Path('/proc/self/clear_refs').write_text('5')  # the peak starts anew\n"
        "        net = super().build(model)\n"
        "        status = Path('/proc/self/status').read_text().splitlines()\n"
        "        peak = next(int(line.split()[1]) for line in status if line.startswith('VmHWM')) * 1024\n"
        "        self.taken = peak - before\n"
        "        return net\n"
        "model = ParallelUNetConfig(image_size=(32, 32), channels=(64, 128, 256), num_blocks=(3, 4, 6),"
        " attention_levels=(2,), head_dim=64, emb_dim=64)\n"
        "config = Config()\n"
        "with process_group(config.distributed, 'cpu'):\n"
        "    tiny = ParallelUNetConfig(image_size=(32, 32), channels=(8, 8), num_blocks=(1, 1),"
        " attention_levels=(1,), head_dim=8, emb_dim=16)\n"
        "    for each in (tiny, model):  # code and buffers of the first call\n"
        "        engine = Watched(each, EngineConfig(device='cpu', zero_stage=3), config.optim, 0)\n"
        "    whole = 4 * sum(map(math.prod, engine.shapes.values()))\n"
        "    print('share', whole / 2**20, engine.taken / whole, flush=True)\n"
        "    del engine\n"
    )
    statuses, text = finish(ranks(tmp_path, 2, [], str(script)))
    assert not any(statuses), text
    told = [tuple(map(float, each)) for each in re.findall(r"^share ([\d.]+) ([\d.]+)", text, re.MULTILINE)]
    print(told)
    assert len(told) == 2 and all(size > 150 and share < 0.8 for size, share in told), told
