import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runs import empty_config, train, unavailable, words
from training.flop import training_flop
from training.history import Run
from training.report import main, report
from training.report_charts import POINTS, charts

# Each axis, and last logarithms of both, where zeros are left out: the charts as they are drawn then.
CLICKS = """
for (const click of [["[value=samples]"], ["[value=seconds]"], ["[value=flop]"], ["#logx", "#logy"]]) {
  for (const each of click) document.querySelector(`nav ${each}`).click();
  const view = document.createElement("section");
  view.className = "view";
  view.innerHTML = document.getElementById("charts").innerHTML;
  document.querySelector("main").append(view);
}
"""


@pytest.fixture(scope="module")
def runs(shards, tmp_path_factory) -> list[Path]:
    """A run of three steps that stood still after two, and its copy with another learning rate and name."""
    folder = tmp_path_factory.mktemp("runs")
    told = {"data__val_shards": shards, "log__validate_every": 2, "log__preview_every": 2}
    config, one, two = str(empty_config(folder)), folder / "one", folder / "<_script><b>two"
    for last in (2, 3):
        train(folder, [config, *words(shards, one, train__num_steps=last, **told)])
    shutil.copytree(one, two)
    (two / "config.yaml").write_text((one / "config.yaml").read_text().replace("lr: 0.001", "lr: 0.003"))
    return [one, two]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def data(page: str) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_two_runs_in_one_page(runs, tmp_path):
    out = tmp_path / "report.html"
    shown = report(runs, out)
    page = out.read_text()
    assert [run.name for run in shown] == [run.name for run in runs] and not any(run.remarks for run in shown)
    assert not re.search(r"<script[^>]+src|<link|@import|url\((?!#)", page.replace("url(#${clip})", "")), "one file"
    assert set(re.findall(r"https?://[^\s\"']+", page)) == {"http://www.w3.org/2000/svg"}
    assert "<b>two" not in page and page.count("</script>") == 2, "names are text"
    told = data(page)
    by_title = {chart["title"]: chart["series"] for chart in told["charts"]}
    assert list(by_title)[:3] == ["Training loss", "Validation loss", "Training loss by noise level t"]
    lines = [json.loads(line) for line in (runs[0] / "stats.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    first = by_title["Training loss"][0]
    assert first["samples"] == [4, 8, 12] and first["raw"] == pytest.approx(losses, rel=1e-4)
    speeds = [line["samples_per_s"] for line in lines if "loss" in line]
    assert first["seconds"] == pytest.approx(np.cumsum([4 / speed for speed in speeds]), rel=1e-4)
    assert [series["samples"] for series in by_title["Validation loss"]] == [[8, 12], [8, 12]]
    assert told["flop"] == [training_flop(shown[0].config)] * 2 and told["flop"][0] > 1e6
    differing = page.split("<h2>Settings</h2>")[1].split("</section>")[0]
    assert re.findall(r"<tr><th>([\w.]+)</th><td>", differing) == ["optim.lr"] and "<td>0.003</td>" in differing
    assert page.count("<h3>step 2</h3>") == 1 and page.count('src="data:image/jpeg;base64,') == 2
    assert "At equal budgets" in page and "<th>12 samples</th>" in page and " FLOP</th>" in page
    assert "continuing at step 2 of 3 steps" in page and "1 x cpu" in page


def test_evaluations_stand_side_by_side_and_say_what_does_not_compare(runs, tmp_path):
    folders = [tmp_path / run.name for run in runs]
    for run, folder, pairs in zip(runs, folders, ("a", "b"), strict=True):
        shutil.copytree(run, folder)
        facts = {"protocol": "paper", "pairing": "paired", "num": 7, "weights": "ema", "step": "3"}
        metrics = [
            {"name": "ssim", "value": 0.51234, "pair_list": pairs} | facts,
            {"name": "lpips_alex", "value": 0.25, "pair_list": "a"} | facts,
        ]
        (folder / "evaluation/paper").mkdir(parents=True)
        (folder / "evaluation/paper/metrics.json").write_text(json.dumps({"metrics": metrics}))
        (folder / "evaluation/catvton").mkdir()
        (folder / "evaluation/catvton/metrics.json").write_text('{"metrics": [{"name": "ss')
    report(folders, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    table = page.split("<h2>Evaluations</h2>")[1].split("</section>")[0]
    assert "<th>ssim, paired, as paper*</th>" + 2 * "<td>0.5123 (7 pictures, ema, step 3)</td>" in table
    assert "<th>lpips_alex, paired, as paper</th><td>0.25 (7" in table and "do not compare" in table
    assert "catvton" not in table
    report(runs, tmp_path / "report.html")
    assert "<h2>Evaluations</h2>" not in (tmp_path / "report.html").read_text()


def test_a_run_that_diverged_has_no_loss_at_a_budget(runs, tmp_path):
    diverged = tmp_path / "diverged"
    shutil.copytree(runs[0], diverged)
    lines = [json.loads(line) for line in (diverged / "stats.jsonl").read_text().splitlines()]
    lines = [line | ({"loss": None} if "loss" in line and line["step"] > 1 else {}) for line in lines]
    (diverged / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report([runs[0], diverged], tmp_path / "report.html")
    table = (tmp_path / "report.html").read_text().split("<h2>At equal budgets</h2>")[1].split("</section>")[0]
    assert re.search(r"<th>12 samples</th><td>[\d.]+</td><td>not finite</td>", table)


def test_a_browser_draws_every_curve_on_every_axis(runs, tmp_path):
    browser = shutil.which("chromium") or unavailable("chromium is not installed")
    diverged = tmp_path / "diverged"
    shutil.copytree(runs[0], diverged)
    lines = [json.loads(line) for line in (diverged / "stats.jsonl").read_text().splitlines()]
    lines = [line | ({"loss": 2e9, "skipped": 7} if "loss" in line else {}) for line in lines]
    (diverged / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report([*runs, diverged], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "skipped, for they were not finite</th><td>–</td><td>–</td><td>7</td>" in page
    curves = sum(len(chart["series"]) * (1 + ("raw" in chart["series"][0])) for chart in data(page)["charts"])
    budgets = page.split("<h2>At equal budgets</h2>")[1].split("</section>")[0]
    assert "nan" not in budgets
    (tmp_path / "seen.html").write_text(page.replace("</body>", f"<script>{CLICKS}</script></body>"))
    asked = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000", "--dump-dom"]
    seen = subprocess.run([*asked, f"file://{tmp_path / 'seen.html'}"], capture_output=True, text=True, timeout=60)
    views = seen.stdout.split('<section class="view">')[1:]
    assert len(views) == 4 and len(set(views)) == 4 and curves > 20
    for number, view in enumerate(views):
        drawn = re.findall(r'<path class="[^"]+"[^>]* d="M[^"]*L[^"]*"', view)
        assert ("axis cut: diverged reaches 2 G</p>" in view) == (number < 3), "logarithmic axes show all"
        assert "NaN" not in view and (len(drawn) == curves or (number == 3 and drawn)), number


def test_runs_that_tell_little_are_said_in_a_line_each(runs, tmp_path, capsys, monkeypatch):
    broken, empty = tmp_path / "broken", tmp_path / "empty"
    shutil.copytree(runs[0], broken)
    empty.mkdir()
    (empty / "stats.jsonl").touch()
    (broken / "config.yaml").write_bytes(b"\xff\x00")
    (broken / "previews/preview_00000002.png").write_bytes(b"no picture")
    (broken / "a&b").mkdir()
    Image.new("RGB", (4, 4)).save(broken / "a&b/sheet.png")
    with (broken / "stats.jsonl").open("a") as file:
        file.write('{"step": 4, "sam')
    words = [runs[0], broken, empty, "--out", tmp_path / "r.html"]
    monkeypatch.setattr(sys, "argv", ["report", *map(str, words)])
    main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["broken", "empty", str(tmp_path / "r.html")]
    assert "unreadable or do not fit the others: 1; " in lines[0] and "config.yaml: not a readable config" in lines[0]
    page = (tmp_path / "r.html").read_text()
    assert "<h2>Contact sheet a&amp;b</h2>" in page
    assert page.count('class="remark"') == 2 and "preview_00000002.png: not a readable picture" in page
    assert data(page)["flop"][1:] == [None, None] and len(data(page)["charts"][0]["series"]) == 2


def test_losses_of_other_quantities_are_said_not_to_compare(runs, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(runs[0], other)
    text = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(text.replace("prediction: noise", "prediction: v").replace("- 32", "- 64"))
    report([runs[0], other], tmp_path / "r.html")
    remarks = re.findall(r'class="remark">(.*?)</p>', (tmp_path / "r.html").read_text())
    assert len(remarks) == 1 and remarks[0].startswith("Losses do not compare across all of these runs")
    assert remarks[0].endswith("model.image_size, diffusion.prediction")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["none"], "none: no such run folder"),
        (["empty"], "no step is told in .*; name runs that have trained"),
        (["shards"], "shards: no run folder, for it has no stats.jsonl"),
        (["run", "--out", "run/stats.jsonl"], "stats.jsonl: lies in the run folder .*/run, which is left as it is"),
        (["run", "--out", "notes.txt"], "notes.txt: there is a file that is no such page; name another one"),
        (["run", "empty/../run"], "run: named twice"),
        (["run", "--out", "no/where.html"], "where.html: cannot be written .*; name another file"),
        (["run", "--out", "empty"], "empty: cannot be written .*; name another file"),
        (["run", "--out", "report.html/page.html"], "page.html: cannot be written .*; name another file"),
    ],
)
def test_refusals_leave_everything_as_it_was_and_come_before_the_work(runs, tmp_path, monkeypatch, names, said):
    monkeypatch.setattr("training.report.works", lambda runs: pytest.fail("FLOP are counted already"))
    shutil.copytree(runs[0], tmp_path / "run")
    (tmp_path / "empty").mkdir()
    shutil.copy(runs[0] / "config.yaml", tmp_path / "empty")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/train-000000.tar").touch()
    (tmp_path / "report.html").write_text("<!doctype html>an older page")
    (tmp_path / "notes.txt").write_text("notes")
    out = tmp_path / (names.pop() if "--out" in names else "report.html")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=said):
        report([tmp_path / name for name in names if name != "--out"], out)
    assert contents(tmp_path) == before


def test_long_curves_are_thinned_and_many_pictures_are_chosen_from(runs, tmp_path):
    long = tmp_path / "long"
    shutil.copytree(runs[0], long)
    lines = ({"step": i, "samples": i, "loss": float("nan") if i == 3 else 1 / i} for i in range(1, 5001))
    (long / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step in range(10, 100, 10):
        Image.new("RGB", (2000, 40)).save(long / f"previews/preview_{step:08d}.png")
    (chart, *_) = charts([Run(long)])
    (series,) = chart["series"]
    assert len(series["samples"]) <= POINTS and series["samples"][:3] == [1, 2, 3] and series["samples"][-1] == 5000
    assert series["raw"][2] is None and series["raw"][3] == 0.25
    report([long], tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert re.findall(r"<h3>step (\d+)</h3>", page) == ["2", "30", "60", "90"] and page.count('width="760"') == 3
    assert len(page) < 400_000
