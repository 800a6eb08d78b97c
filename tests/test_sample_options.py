"""sample.py refuses options that do nothing, and says what is true after Ctrl-C."""

import argparse
import runpy
import sys

import pytest

import sample
from cascades import write_cascade
from runs import HOME
from sampling.options import check_out
from sampling.stages import find_stages
from training import exits

PHOTOS = ("--person", "a.jpg", "--garment", "b.jpg")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--crop",), "--crop: has no effect here, only photographs are cropped, with --person; leave it out"),
        (("--rule", "paper"), "--rule: has no effect here"),
        (("--garment-kind", "worn"), "--garment-kind: has no effect here"),
        (("--quality", "95"), "--quality: has no effect here, it is of --format jpeg"),
        ((*PHOTOS, "--pairs", "64"), "--person and --pairs exclude each other"),
        ((*PHOTOS, "--garment-kind", "flat", "--garment-pose", "b.json"), "--garment-pose exclude each other"),
    ],
)
def test_options_without_effect(words, said):
    with pytest.raises(ValueError) as refusal:
        sample.check(sample.parser().parse_intermixed_args(["run", *words]))
    assert said in str(refusal.value)
    sample.check(sample.parser().parse_intermixed_args(["run", *PHOTOS, "--crop", "--rule", "paper"]))
    sample.check(sample.parser().parse_intermixed_args(["run", "--format", "jpeg", "--quality", "95"]))


def test_images_alone_and_folders_that_are_taken(tmp_path, monkeypatch):
    cascade = write_cascade(tmp_path / "cascade")

    def refusal(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["sample.py", str(cascade), *words])
        with pytest.raises(ValueError) as error:
            sample.main()
        return str(error.value)

    alone = ("--start", "sr_1024", "--image", "a.png")
    for words in (("--grid", "2x2"), ("--unpaired",), ("--shards", "x")):
        assert f"{words[0]}: has no effect here, sr_1024 and what follows know no garment" in refusal(*alone, *words)
    for out in (cascade, cascade / "sr_1024", cascade / "base_unet" / ".."):
        with pytest.raises(ValueError, match="is the folder of what draws; name one of its own"):
            check_out(out, [cascade], find_stages([cascade]), "samples")
    check_out(cascade / "samples", [cascade], find_stages([cascade]), "samples")


def test_ctrl_c(monkeypatch):
    def interrupted(*_) -> None:
        raise KeyboardInterrupt

    left = []
    monkeypatch.setattr(exits, "leave", lambda status, message: left.append((status, message)))
    monkeypatch.setattr(argparse.ArgumentParser, "parse_intermixed_args", interrupted)
    runpy.run_path(str(HOME / "sample.py"), run_name="__main__")
    assert left == [(130, "interrupted at once; the same command draws what is missing")]
    exits.run(interrupted)
    assert "continues at the last checkpoint" in left[1][1]
