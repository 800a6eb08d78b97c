"""The sanity check of every practitioner: four real pairs are learnt by heart and drawn from memory."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import structural_similarity

from data import prepare
from data.dataset import ShardedDataset
from runs import losses

HOME = Path(__file__).parent.parent
PAIRS = 4


def call(*words: str) -> None:
    env = os.environ | {"OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, *words], cwd=HOME, check=True, timeout=900, env=env)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_four_real_pairs_are_learnt_by_heart(real_data, tmp_path, capsys):
    shards, run = tmp_path / "shards", tmp_path / "run"
    source = str(real_data / "cotton")
    words = ["viton_hd", "--source", source, "--label-map", "cotton", "--size", "64", "--num", str(PAIRS)]
    assert prepare.main([*words, "--out", str(shards)]) == 0
    call(
        "train_single.py", "configs/demo.yaml", f"run.dir={run}", f"data.shards={shards}",
        "train.overfit_one_batch=true", f"train.global_batch={PAIRS}",
        "train.num_steps=160", "diffusion.cond_drop_prob=0", "log.every=1", "checkpoint.every=160",
    )  # fmt: skip
    call("sample.py", str(run), "sampler.guidance_scale=1", "--shards", str(shards))

    curve = losses(run)
    first, last = np.mean(curve[:20]), np.mean(curve[-20:])
    with capsys.disabled():
        print(f"  overfitting four real pairs: loss {first:.4f} -> {last:.4f}", end="")
    assert last <= first / 10, f"the loss fell from {first:.4f} to {last:.4f} only"

    dataset = ShardedDataset(shards)
    scores = {}
    for i in range(PAIRS):
        sample = dataset.read(i)
        result = np.asarray(Image.open(run / "samples" / f"{sample.key}.png"))
        scores[sample.key] = structural_similarity(sample.person, result, channel_axis=2)
    with capsys.disabled():
        print(f", SSIM of the sampled pairs {min(scores.values()):.3f} to {max(scores.values()):.3f}")
    assert min(scores.values()) >= 0.8, f"SSIM of the sampled pairs against the truth: {scores}"
