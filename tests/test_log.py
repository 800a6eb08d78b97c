import json

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.config import load_config
from training.log import LogConfig, RunLog


@pytest.mark.parametrize("restart", [0, 3])
def test_a_restart_doubles_no_step_in_any_file(tmp_path, restart):
    for first, last in ((0, 5), (restart, 7)):
        log = RunLog(tmp_path, first, 4 * first, 10, 4, LogConfig(), {})
        for step in range(first + 1, last + 1):
            log.stats_line(step, {"samples": 4 * step, "loss": 10.0 * last + step, "loss_by_t/0.1": 1.0})
            log.scalars(step, {"validation/loss": step / 2})
            log.image(step, "preview", np.full((4, 6, 3), step, np.uint8))
        log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0, "scalars": 0}).Reload()
    expected = [50.0 + step for step in range(1, restart + 1)] + [70.0 + step for step in range(restart + 1, 8)]
    scalars = events.Scalars("train/loss")
    assert [(event.step, event.value) for event in scalars] == list(enumerate(expected, 1))
    assert [event.step for event in events.Images("preview")] == list(range(1, 8))
    assert len(events.Scalars("loss_by_t/0.1")) == 7
    lines = [json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines[::2]] == list(enumerate(expected, 1))
    assert lines[1::2] == [{"step": step, "validation/loss": step / 2} for step in range(1, 8)]
    assert [event.value for event in events.Scalars("validation/loss")] == [step / 2 for step in range(1, 8)]


def test_off_is_a_word_here_and_not_yamls_false(tmp_path):
    (tmp_path / "c.yaml").write_text("log: {wandb: off}\n")
    for words in ([str(tmp_path / "c.yaml")], ["log.wandb=off"], []):
        assert load_config(words).log.wandb == "off"
    with pytest.raises(ValueError, match=r"log\.wandb=true: input should be 'off', 'offline' or 'online'"):
        load_config(["log.wandb=on"])
