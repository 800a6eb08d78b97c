"""Weights & Biases, where its package is installed; nothing here reaches a network."""

import json
import re
import struct
import sys
from pathlib import Path

import pytest

from runs import empty_config, finish, ranks, train, words
from training.log import LogConfig, check_log

BLOCK, WHOLE, LAST = 32768, 1, 4


def records(path: Path) -> list:
    """What a run told: the records of its file, a LevelDB log behind a header of 7 bytes."""
    messages = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    data, place, found, parts = path.read_bytes(), 7, [], b""
    while place + 7 <= len(data):
        if BLOCK - place % BLOCK < 7:  # too short for the head of a record
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (WHOLE, LAST):
            found.append(messages.Record.FromString(parts))
            parts = b""
    return found


@pytest.mark.slow
def test_a_run_and_its_restart_are_one_run_there(shards, tmp_path):
    pytest.importorskip("wandb")
    run, config = tmp_path / "run", str(empty_config(tmp_path))
    told = {"log__wandb": "offline", "log__wandb_project": "mine", "data__val_shards": shards}
    for last in (2, 4):
        train(tmp_path, [config, *words(shards, run, train__num_steps=last, log__preview_every=2, **told)])
    files = sorted(run.glob("wandb/offline-run-*/run-*.wandb"))
    name = (run / "wandb/id").read_text().strip()
    assert len(files) == 2 and {file.name for file in files} == {f"run-{name}.wandb"}
    losses, validations = {}, {}
    for file in files:
        said = records(file)
        (begun,) = [record.run for record in said if record.HasField("run")]
        assert (begun.run_id, begun.project, begun.display_name) == (name, "mine", "run")
        assert "optim" in {item.key for item in begun.config.update}
        for record in said:
            line = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            if "train/loss" in line:
                losses[line["_step"]] = line["train/loss"]
                validations[line["_step"]] = line.get("validation/loss")
    lines = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    assert losses == {line["step"]: line["loss"] for line in lines if "loss" in line} and sorted(losses) == [1, 2, 3, 4]
    measured = {line["step"]: line["validation/loss"] for line in lines if "validation/loss" in line}
    assert {step: value for step, value in validations.items() if value is not None} == measured and len(measured) == 2
    assert len(list(run.glob("wandb/offline-run-*/files/media/images/preview_*.png"))) == 2


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.delitem(sys.modules, "training.wandb_sink", raising=False)
    check_log(LogConfig())
    with pytest.raises(ValueError, match=r"log\.wandb needs a package .*: pip install wandb; or use log\.wandb=off"):
        check_log(LogConfig(wandb="offline"))


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({"WANDB_API_KEY": ""}, "nobody is logged in to Weights & Biases on this host; use `wandb login`"),
        ({"WANDB_API_KEY": "short"}, "WANDB_API_KEY invalid: .*, has 5; use another key"),
        ({"WANDB_BASE_URL": "http://127.0.0.1:9"}, r"Failed to .* http://127\.0\.0\.1:9: .*; use another key"),
        ({"WANDB_BASE_URL": "nowhere"}, ".*base_url Input should be a valid URL"),
    ],
)
def test_who_cannot_log_in_is_told_by_all_ranks_before_anything_is_written(shards, tmp_path, env, told):
    pytest.importorskip("wandb")
    alone = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "none"), "WANDB_CONFIG_DIR": str(tmp_path)}
    alone |= {"WANDB_API_KEY": "a" * 40, "WANDB_HTTP_TIMEOUT": "1"}
    asked = [str(empty_config(tmp_path)), *words(shards, tmp_path / "run", log__wandb="online")]
    statuses, said = finish(ranks(tmp_path, 2, asked, env=alone | env))
    found = re.findall(rf"error: log\.wandb=online: {told}.*log\.wandb=offline", said)
    assert statuses == [1, 1] and len(found) == 1, said
    assert "Traceback" not in said and not (tmp_path / "run/config.yaml").exists()
