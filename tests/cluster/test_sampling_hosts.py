"""Two hosts share the pictures of a cascade, and draw those of one process."""

import machines
import numpy as np
from PIL import Image

from cascades import write_cascade
from runs import output, train


def test_two_hosts_draw_the_same_pictures(shell, shards, tmp_path):
    cascade = write_cascade(tmp_path / "cascade", shards)
    words = [str(cascade), "--pairs", "6", "--batch", "2"]
    train(tmp_path, [*words, "--out", str(tmp_path / "one")], "sample.py")
    command = " ".join(["bash launch/torchrun_node.sh sample.py", *words, "--out", str(tmp_path / "two")])
    env = {"TRYON_NODES": " ".join(machines.HOSTS), "TRYON_NPROC": "1"}
    nodes = [shell(host, command, **env) for host in machines.HOSTS]
    texts = [output(node) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(texts)
    assert "6 images, 6 of them new" in "".join(texts)
    names = sorted(path.name for path in (tmp_path / "one").glob("*.png"))
    assert len(names) == 7 and names == sorted(path.name for path in (tmp_path / "two").glob("*.png"))
    for name in names:
        one, two = (np.asarray(Image.open(tmp_path / folder / name)).astype(int) for folder in ("one", "two"))
        assert np.abs(one - two).max() <= 1
