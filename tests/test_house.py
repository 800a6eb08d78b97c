"""The house rules that a machine can keep: arrows between modules, sole importers, ranks, loading, size and lint."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from pydantic import BaseModel

from model.networks import NETWORKS
from training.config import Config

ROOT = Path(__file__).resolve().parents[1]
HIDDEN = {"runs", "shards", "samples"}  # what the project writes
FILES = sorted(
    path
    for path in ROOT.rglob("*.py")
    if not any(part in HIDDEN or part.startswith(".") for part in path.relative_to(ROOT).parts)
)
PRODUCT = [path for path in FILES if path.relative_to(ROOT).parts[0] != "tests"]

# The only files that may ask which rank they are.  training/exits.py prints what all ranks know of: an error that they
# agreed on and Ctrl-C are one line a run, not one a rank, and it does nothing else with the rank.  launch/place.py says
# who serves the board of the check before training.
RANK_FILES = {
    "launch/place.py",
    "training/distributed.py",
    "training/checkpoint.py",
    "training/log.py",
    "training/exits.py",
}
RANKS = {"rank", "get_rank", "local_rank", "RANK", "LOCAL_RANK", "is_main", "is_main_process"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


MODULES = {module_of(path): path for path in FILES}


def imports_of(tree: ast.Module) -> Iterator[str]:
    """Every module that a file imports; from a package, the submodule; from torch, what might be one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES or node.module == "torch" else node.module


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def used_names(tree: ast.AST) -> Iterator[str]:
    """Every dotted name that is read, such as torch.distributed.barrier."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node)


def rank_checks(tree: ast.Module) -> Iterator[int]:
    """Lines that compare a rank with a constant or take it for true or false."""

    def is_rank(node: ast.expr) -> bool:
        if isinstance(node, ast.Call):
            inner = [node.func, *node.args]
            return any(is_rank(part) for part in inner)
        if isinstance(node, ast.Subscript):
            return is_rank(node.slice)
        named = {ast.Name: "id", ast.Attribute: "attr", ast.Constant: "value"}.get(type(node))
        return named is not None and getattr(node, named) in RANKS

    def tested(node: ast.expr) -> Iterator[ast.expr]:
        if isinstance(node, ast.BoolOp):
            for value in node.values:
                yield from tested(value)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            yield from tested(node.operand)
        else:
            yield node

    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(is_rank(side) for side in sides) and any(isinstance(side, ast.Constant) for side in sides):
                equality = (ast.Eq, ast.NotEq, ast.Gt, ast.Lt, ast.GtE, ast.LtE, ast.Is, ast.IsNot)
                if any(isinstance(op, equality) for op in node.ops):
                    yield node.lineno
        elif isinstance(node, ast.If | ast.IfExp | ast.While | ast.Assert | ast.BoolOp):
            condition = node if isinstance(node, ast.BoolOp) else node.test
            if any(is_rank(part) for part in tested(condition)):
                yield node.lineno


def unsafe_loads(tree: ast.Module) -> Iterator[str]:
    """Calls that run whatever a file tells them to."""
    modules = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}  # and torch.load under a name of its own
    for module in imports_of(tree):
        if module.partition(".")[0] in modules or module == "torch.load":
            yield f"import {module}"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        keywords = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
        trusting = called == "torch.load" and keywords.get("weights_only") is not True
        unpickling = keywords.get("allow_pickle", False) is not False
        if trusting or unpickling or called in ("yaml.load", "yaml.unsafe_load", "eval", "exec"):
            yield ast.unparse(node)


def test_the_project_is_seen():
    assert {"train_ddp", "model.diffusion", "data.loader", "training.loop", "tests.test_house"} <= set(MODULES)


ARROWS = {  # package: what it never imports
    "model": ("data", "training", "sampling", "evaluation", "launch", "benchmarks", "tests"),
    "data": ("model", "training", "sampling", "evaluation", "launch", "benchmarks", "tests"),
    "training": ("sampling", "evaluation", "launch", "benchmarks", "tests"),
    "sampling": ("evaluation", "launch", "benchmarks", "tests"),
    "evaluation": ("launch", "benchmarks", "tests"),
    "launch": ("evaluation", "benchmarks", "tests"),
    "benchmarks": ("tests",),
}
FRONT_DOOR = ("model", "sampling.pipeline")  # `from model import TryOnCascade`, imported when it is asked for
ENTRIES = ("train_single", "train_dp", "train_ddp", "sample", "evaluate")


@pytest.mark.parametrize("package", ARROWS)
def test_arrows_run_one_way(package):
    for module, path in MODULES.items():
        if within(module, package):
            for imported in imports_of(tree_of(path)):
                wrong = [other for other in (*ARROWS[package], *ENTRIES) if within(imported, other)]
                assert not wrong or (module, imported) == FRONT_DOOR, f"{name_of(path)} imports {imported}"


@pytest.mark.parametrize(
    ("library", "only"),
    [
        # training/probe.py measures machines before there is a process group, and outlives hosts that do not answer;
        # launch/agent.py is torchrun itself.
        ("torch.distributed", ("training/distributed.py", "training/probe.py", "launch/agent.py")),
        ("deepspeed", ("training/zero.py",)),
    ],
)
def test_sole_importers(library, only):
    for path in PRODUCT:
        tree = tree_of(path)
        found = [name for name in (*imports_of(tree), *used_names(tree)) if within(name, library)]
        assert not found or name_of(path) in only, f"{name_of(path)} uses {found[0]}"


def test_no_import_cycles():
    graph = {module: {m for m in imports_of(tree_of(path)) if m in MODULES} for module, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_rank_checks():
    for path in PRODUCT:
        lines = list(rank_checks(tree_of(path)))
        assert not lines or name_of(path) in RANK_FILES, f"{name_of(path)}:{lines[0]} asks for its rank"


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("if get_rank() == 0: pass", True),
        ("if rank != 0 and ready: pass", True),
        ("self.main = 0 == engine.rank", True),
        ("if not rank: pass", True),
        ("x = 1 if local_rank() else 2", True),
        ("if int(os.environ['RANK']) > 0: pass", True),
        ("is_main() and save()", True),
        ("first = (micro * ranks + rank) * size", False),
        ("if 'RANK' in os.environ: pass", False),
        ("if rank >= gpus: pass", False),
        ("share = range(get_rank(), num, num_ranks())", False),
    ],
)
def test_rank_checks_are_recognised(code, found):
    assert bool(list(rank_checks(ast.parse(code)))) == found


def test_nothing_loads_pickles():
    # LPIPS's weights come as pickles: its own unpickler knows numpy's arrays and refuses all else.
    allowed = {("training/lpips_weights.py", "import pickle")}
    for path in PRODUCT:
        found = [each for each in unsafe_loads(tree_of(path)) if (name_of(path), each) not in allowed]
        assert not found, f"{name_of(path)}: {found[0]}"


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import torch\ntorch.load(path)", True),
        ("import torch\ntorch.load(path, weights_only=False)", True),
        ("import torch\ntorch.load(path, weights_only=True)", False),
        ("from pickle import load", True),
        ("np.load(path, allow_pickle=True)", True),
        ("np.load(path, allow_pickle=False)", False),
        ("json.load(file)", False),
    ],
)
def test_unsafe_loads_are_recognised(code, found):
    assert bool(list(unsafe_loads(ast.parse(code)))) == found


def test_files_are_named_and_cut_by_idea():
    for path in FILES:
        assert path.stem not in ("utils", "util", "common", "helpers", "misc"), name_of(path)
        length = len(path.read_text(encoding="utf-8").splitlines())
        assert length <= 400, f"{name_of(path)}: {length} lines are two ideas"


def test_every_config_key_is_described():
    def keys(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str | None]]:
        assert model.model_config.get("extra") == "forbid" and model.model_config.get("frozen"), model
        for name, field in model.model_fields.items():
            if model is Config and name == "model":
                parts = list(NETWORKS.values())
            else:
                parts = [field.annotation]
            for part in parts:
                if isinstance(part, type) and issubclass(part, BaseModel):
                    yield from keys(part, f"{prefix}{name}.")
                else:
                    yield f"{prefix}{name}", field.description

    described = dict(keys(Config, ""))
    assert len(described) > 40 and [key for key, text in described.items() if not text] == []


@pytest.mark.parametrize("command", [("check",), ("format", "--check")], ids=" ".join)
def test_ruff_is_clean(command):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "--quiet", "."], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
