import re

import pytest

from data.chunk import Facts, Outcome
from data.prepare_report import LISTED, SIDES, page, write_report
from data.preparing import Report

EVERY_JOINT = (tuple([True] * 18), tuple([False] * 18))


def facts(num_rejects=0, sizes=("1024x768",) * 3) -> Facts:
    counted = Facts()
    for i, size in enumerate(sizes):
        counted.count(Outcome(str(i), {}, "", EVERY_JOINT, size, ("left wrist unsure",) * (i == 0)))
    for i in range(num_rejects):
        counted.count(Outcome(f"<b>{i}</b>", None, f"/set/{i}.jpg: missing (row {i}); put it there"))
    return counted


def report(**changes) -> Report:
    values = {
        "title": "set",
        "facts": facts(),
        "sets": {},
        "arguments": {"--size": "32x32"},
        "remarks": (),
        "left_out": (),
    }
    return Report(**values | changes)


def bars(text, title):
    """(name, width in percent, count) of each bar of a section."""
    section = text.split(f"<h2>{title}</h2>")[1].split("</section>")[0]
    found = re.findall(r"<span>([^<]*)</span><i><b style=\"width:([\d.]+)%\"></b></i><span>([\d,]+)</span>", section)
    return [(name, float(width), int(count.replace(",", ""))) for name, width, count in found]


def test_the_page_stands_alone_and_shows_samples(shards):
    text = page(shards, report(sets={"": 48}))
    pictures = re.findall(r'<img src="([^"]{30})', text)
    assert len(pictures) == 24 and all(src.startswith("data:image/jpeg;base64,") for src in pictures)
    assert not re.search(r"(src|href)=\"(?!data:)", text) and "<script" not in text and "http" not in text
    assert "1-0000000" in text and "1-0000047" in text, "the first and the last sample"
    assert text == page(shards, report(sets={"": 48}))


def test_every_reject_is_there_with_its_reason_and_counted_by_kind(tmp_path):
    write_report(tmp_path, report(facts=facts(200)))
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(f"/set/{i}.jpg: missing (row {i})" in text for i in range(200))
    assert "<td>200</td><td>… missing (row …); put it there</td>" in text
    assert "<b>7</b>" not in text and "&lt;b&gt;7&lt;/b&gt;" in text, "names are text, not HTML"
    assert f"and {100:,} more" in page(tmp_path, report(left_out=[("a.heic", "no image")] * (LISTED + 100)))


def test_bars_are_as_long_as_their_counts(tmp_path):
    text = page(tmp_path, report(facts=facts(sizes=("300x255", "512x600", "512x600", "4000x3000"))))
    sizes = bars(text, "Photographs by their shorter side")
    assert [count for _, _, count in sizes] == [1, 0, 2, 0, 0, 0, 1] and len(sizes) == len(SIDES) + 1
    assert [width for _, width, _ in sizes] == [50, 0, 100, 0, 0, 0, 50]
    assert sizes[2][0] == "512 to 767" and "512x600 (2)" in text
    assert bars(text, "What the estimates could not tell") == [("left wrist unsure", 25, 1)]
    joints = bars(text, "Visible joints")
    assert joints[0] == ("nose", 100, 4) and joints[-1] == ("18 joints", 100, 4) and len(joints) == 19
    assert "(4 samples without a pose)" in text


def test_the_first_samples_of_each_note_are_named(tmp_path):
    counted = Facts()
    for i in range(30):
        counted.count(Outcome(f"<{i}>", {}, "", EVERY_JOINT, "64x64", ("bag",) if i % 2 else ("bag", "tiny <person>")))
    text = page(tmp_path, report(facts=counted)).split("<h2>What the estimates")[1].split("</section>")[0]
    assert "<summary>which samples</summary>" in text
    bag = ", ".join(f"&lt;{i}&gt;" for i in range(20))
    assert f"<td>bag</td><td>{bag}, and 10 more</td>" in text
    tiny = ", ".join(f"&lt;{i}&gt;" for i in range(0, 30, 2))
    assert f"<td>tiny &lt;person&gt;</td><td>{tiny}</td>" in text


@pytest.mark.parametrize("sets", [{"train": 40, "val": 0}, {"": 0}])
def test_an_empty_set_has_no_picture(shards, sets, tmp_path):
    (tmp_path / "train").symlink_to(shards)
    assert page(tmp_path, report(sets=sets)).count("<img") == (24 if "train" in sets else 0)
