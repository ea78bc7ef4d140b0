"""Pages about runs: what they say, and what a browser makes of their films."""

import json
import re
import shutil
import subprocess

import pytest

from diffusion_text.experiment.film import Film
from diffusion_text.experiment.player import OPEN, Shown
from diffusion_text.studies import run_report
from diffusion_text.studies.measures import names

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
# One row of four tokens: the first is given, the third is written, made noise again and rewritten.
FRAMES = [
  Shown(0, 0, ["a", OPEN, OPEN, OPEN], [False] * 4, [False, True, True, True]),
  Shown(0, 1, ["a", OPEN, "c", OPEN], [False, False, True, False], [False, True, False, True]),
  Shown(0, 2, ["a", "·", OPEN, OPEN], [False, True, True, False], [False, False, True, True]),
  Shown(0, 3, ["a", "·", "</p>", "d"], [False, False, True, True], [False] * 4),
]
# What a person would do: move the slider to call 1 and to call 2, then press play and wait.
HAND = """<script>
const seen = {};
const texts = () => [...document.querySelectorAll(".row")].map(row => row.textContent);
const look = name => {
  seen[name] = [document.querySelector(".now").textContent, ...texts()];
  seen[name + " open"] = document.querySelectorAll(".row:first-child .open").length;
};
const slider = document.querySelector(".slider");
const move = to => { slider.value = to; slider.dispatchEvent(new Event("input")); };
look("at first"); move(1); look("one"); move(2); look("two");
document.querySelector(".play").click(); look("played");
setTimeout(() => {
  look("later"); seen.last = document.querySelector(".last").textContent;
  seen.colours = [...document.querySelectorAll(".row span")].map(span => span.style.background);
  const out = document.createElement("pre");
  out.id = "seen"; out.textContent = JSON.stringify(seen); document.body.append(out);
}, 2000);
</script>"""


def run(name="runs/<a>", rows=(), frames=FRAMES):
  """A run whose name would break a page that does not quote it."""
  films = {"entropy & bound": Film(frames, "3.0 calls")}
  return run_report.Run(name, {"data": name}, rows, None, films)


def test_device_time_has_a_unit_that_fits():
  times = [run_report.device_time(seconds / 3600) for seconds in (30, 90, 3600)]
  assert times == ["30 device seconds", "1.5 device minutes", "1 device hours"]


def test_a_page_says_what_was_run_side_by_side(tmp_path):
  rows = [{"step": 1, "validation_bits_per_character": 3.0}]
  rows += [{"step": 2, "validation_bits_per_character": 2.0}]
  runs = [run(rows=rows), run("runs/b")]
  text = run_report.page(runs, "test")
  assert "<tr><th>data<td>runs/&lt;a&gt;<td>runs/b" in text
  assert "<h2>runs/b, entropy &amp; bound</h2>" in text
  assert text.count("class=film") == 2
  assert "<a>" not in text
  assert "</p>" not in "".join(re.findall(r"class=data>(.*?)</script>", text))
  # Nothing comes from elsewhere.
  assert not re.search(r'(src|href)="?https?:|@import|url\(http', text)
  path = tmp_path / "report.html"
  run_report.write(runs, "test", str(path))
  run_report.write(runs, "test", str(path))  # over an older one
  path.write_text("notes")
  with pytest.raises(ValueError, match=r"report.html is there and is no report"):
    run_report.write(runs, "test", str(path))
  assert path.read_text() == "notes"


def test_runs_are_called_by_the_end_of_their_paths_unless_two_share_it():
  assert names(["runs/a", "/x/b/"]) == ["a", "b"]
  assert names(["runs/a", "old/a"]) == ["runs/a", "old/a"]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine: pages are not played")
def test_a_browser_plays_the_film(tmp_path):
  path = tmp_path / "report.html"
  path.write_text(run_report.page([run()], "test") + HAND)
  command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
  command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=4000"]
  command += [f"--user-data-dir={tmp_path / 'profile'}", f"file://{path}"]
  done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
  text = re.search(r'<pre id="seen">(.*?)</pre>', done).group(1)
  seen = json.loads(text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
  assert seen["last"] == "3"
  assert seen["at first"] == ["3", "a·</p>d"]
  assert seen["one"] == ["1", "a·c·"]
  assert seen["two"] == ["2", "a···"]
  assert seen["played"] == ["0", "a···"]  # from the beginning
  assert seen["later"] == ["3", "a·</p>d"]
  # A dot that is text is not shown as noise, and a token that is noise again is.
  names = ("at first", "one", "two", "played")
  assert [seen[f"{name} open"] for name in names] == [0, 2, 2, 3]
  given, *written = seen["colours"]
  assert given == ""
  assert written[0] != written[1] == written[2] != ""  # calls 2, 3 and 3
