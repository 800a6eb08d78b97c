import json

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.log import RunLog, drop_after


def test_lines_that_will_be_said_again_and_half_lines_are_dropped(tmp_path):
    path = tmp_path / "stats.jsonl"
    path.write_text("".join(json.dumps({"step": s}) + "\n" for s in (1, 2, 3, 4)) + '{"step": 5, "lo')
    drop_after(path, 3)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'
    path.write_text('{"step": 1}\n{"st')
    drop_after(path, 3)
    assert path.read_text() == '{"step": 1}\n'
    drop_after(tmp_path / "none.jsonl", 3)
    assert not (tmp_path / "none.jsonl").exists()


@pytest.mark.parametrize("restart", [0, 3])
def test_a_restart_doubles_no_step_in_any_file(tmp_path, restart):
    for first, last in ((0, 5), (restart, 7)):
        log = RunLog(tmp_path, first, 4 * first, 10, 4)
        for step in range(first + 1, last + 1):
            log.stats_line(step, {"samples": 4 * step, "loss": 10.0 * last + step, "loss_by_t/0.1": 1.0})
            log.image(step, "preview", np.full((4, 6, 3), step, np.uint8))
        log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0, "scalars": 0}).Reload()
    expected = [50.0 + step for step in range(1, restart + 1)] + [70.0 + step for step in range(restart + 1, 8)]
    scalars = events.Scalars("train/loss")
    assert [(event.step, event.value) for event in scalars] == list(enumerate(expected, 1))
    assert [event.step for event in events.Images("preview")] == list(range(1, 8))
    assert len(events.Scalars("loss_by_t/0.1")) == 7
    lines = [json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == list(enumerate(expected, 1))
