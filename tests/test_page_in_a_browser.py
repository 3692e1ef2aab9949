"""The page of a run in headless Chromium: no error, no sideways scroll on a phone, a slider that moves."""

import html
import json
import re
import shutil
import subprocess

import pytest
from small_runs import cnn_options

pytest.importorskip("rich")
pytest.importorskip("tensorboard")
pytest.importorskip("matplotlib")

from dartsfast.runs.comparison import read_runs, write_comparison
from dartsfast.search import CNNConfig, search_cnn

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(NAMES)} is installed")

# A window is never as narrow as a phone; a frame in it is, to its page.
FRAME = """<!DOCTYPE html><meta charset="utf-8"><meta name="color-scheme" content="light dark">
<iframe style="width: 360px; height: 800px; border: 0" srcdoc="{}"></iframe>"""

# Goes through a page as a reader would, and writes what it saw beside the frame.
VISIT = """<script>
const seen = {width: innerWidth, scroll: document.documentElement.scrollWidth};
seen.paper = getComputedStyle(document.body).backgroundColor;
for (const closed of document.querySelectorAll("details")) closed.open = true;
seen.scroll_open = document.documentElement.scrollWidth;
const slider = document.getElementById("epoch");
const picture = () => Array.from(document.querySelectorAll(".heat td"), cell => {
  const box = getComputedStyle(cell);
  return [cell.textContent, box.backgroundColor, box.outlineWidth === "2px" && box.outlineStyle === "solid"];
});
if (slider) {
  seen.frames = {};
  for (const place of [slider.max, slider.min]) {
    slider.value = place;
    slider.dispatchEvent(new Event("input"));
    seen.frames[document.getElementById("shown").textContent] = picture();
  }
  seen.slider = slider.getBoundingClientRect().width;
  document.getElementById("play").click();
  seen.playing = document.getElementById("play").textContent;
}
const words = document.querySelectorAll("td, th, p, .cell .op, .cell .name");
seen.smallest = Math.min(...Array.from(words, part => parseFloat(getComputedStyle(part).fontSize)));
const result = parent.document.createElement("pre");
result.id = "seen";
result.textContent = JSON.stringify(seen);
parent.document.body.append(result);
</script>"""


def visit(page, tmp_path, *options):
    """Return what is seen in a page 360 pixels wide, and what the console says."""
    text = page.read_text(encoding="utf-8").replace("</body>", VISIT + "</body>")
    copy = tmp_path / "visited.html"
    copy.write_text(FRAME.format(html.escape(text)), encoding="utf-8")
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]
    command = [BROWSER, *flags, profile, *options, "--dump-dom", copy.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.S)
    assert found, done.stderr
    return json.loads(html.unescape(found[1])), [
        line for line in done.stderr.splitlines() if "CONSOLE" in line
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    base = tmp_path_factory.mktemp("runs")
    options = {**cnn_options(base), "arch_learning_rate": 0.1}
    return [search_cnn(CNNConfig(**options, seed=seed, out=str(base / f"run{seed}"))) for seed in (1, 2)]


def test_the_report(runs, tmp_path):
    seen, console = visit(runs[0].out / "report.html", tmp_path)
    assert console == []
    assert seen["width"] == seen["scroll"] == seen["scroll_open"] == 360
    assert seen["slider"] > 100 and seen["smallest"] >= 10 and seen["playing"] == "pause"
    notes = [json.loads(line) for line in (runs[0].out / "epochs.jsonl").read_text().splitlines()]
    assert list(seen["frames"]) == ["epoch 2", "epoch 1"]
    for shown, note in zip(reversed(seen["frames"].values()), notes, strict=True):
        kept = [cell for cell in shown if cell[2]]
        assert len(kept) == sum(len(table["kept"]) for table in note["alphas"].values()) == 16
        assert len(shown) == 2 * 14 * 8 and len({color for _, color, _ in shown}) > 10
    first, second = seen["frames"].values()
    assert sum(a != b for a, b in zip(first, second, strict=True)) > 100


def test_it_is_dark_where_the_reader_wants_that(runs, tmp_path):
    def brightness(*options):
        seen, console = visit(runs[0].out / "report.html", tmp_path, *options)
        assert console == []
        return sum(map(int, re.findall(r"\d+", seen["paper"])[:3]))

    assert brightness() > 3 * 200 and brightness("--blink-settings=preferredColorScheme=0") < 3 * 50


def test_runs_side_by_side(runs, tmp_path):
    page = write_comparison(read_runs([run.out for run in runs]), tmp_path / "both.html")
    seen, console = visit(page, tmp_path)
    assert console == [] and seen["scroll"] == seen["scroll_open"] == 360


def test_a_page_that_does_wrong_is_seen(runs, tmp_path):
    text = (runs[0].out / "report.html").read_text(encoding="utf-8")
    wrong = tmp_path / "wrong.html"
    wrong.write_text(
        text.replace("<main>", '<main><script>nothing.at.all</script><div style="width:700px">x</div>')
    )
    seen, console = visit(wrong, tmp_path)
    assert len(console) == 1 and "nothing is not defined" in console[0] and seen["scroll"] > 700
