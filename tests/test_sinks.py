import json
import math

import numpy as np
from PIL import Image

from training.sinks import Files, drop_after


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


def test_numbers_and_pictures_are_files(tmp_path):
    files = Files(tmp_path, 0)
    files.scalars(3, {"loss": math.nan, "lr": 0.5, "eval/ssim": math.inf})
    assert json.loads((tmp_path / "stats.jsonl").read_text()) == {"step": 3, "loss": None, "lr": 0.5, "eval/ssim": None}
    files.image(3, "preview", np.full((4, 6, 3), 7, np.uint8))
    files.close()
    assert (np.asarray(Image.open(tmp_path / "previews/preview_00000003.png")) == 7).all()
