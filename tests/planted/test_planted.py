"""The planted faults fit the code and the tests of today; run.py beside this file plants them."""

from pathlib import Path

import pytest
import yaml

from runs import HOME

FAULTS = yaml.safe_load((Path(__file__).parent / "faults.yaml").read_text(encoding="utf-8"))


def test_there_are_enough_in_every_area():
    areas = [fault["area"] for fault in FAULTS]
    wanted = ("model", "diffusion", "sampler", "loader", "order", "checkpoint", "stop", "engines", "launch")
    assert len(areas) >= 30 and all(areas.count(area) >= 3 for area in wanted)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault["fault"][:60])
def test_it_can_be_planted_and_its_tests_are_there(fault):
    assert (HOME / fault["file"]).read_text(encoding="utf-8").count(fault["old"]) == 1
    assert fault["caught_by"] and fault["new"] != fault["old"]
    for test in fault["caught_by"]:
        file, name = test.partition("[")[0].split("::")
        assert f"\ndef {name}(" in (HOME / file).read_text(encoding="utf-8"), test
