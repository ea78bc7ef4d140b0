"""`launch/sweep`: which runs a grid makes, what is done again, and the table."""

import csv
import json
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.launch_test import ROOT, launch

sys.path.insert(0, str(ROOT / "launch"))

import sweep_points  # found in launch/

# A run that writes a metric which depends on its flags; it fails as often as its workdir says.
RUN = """
import json, pathlib, sys
flags = dict(word.lstrip("-").split("=", 1) for word in sys.argv[1:])
workdir = pathlib.Path(flags["workdir"])
workdir.mkdir(parents=True, exist_ok=True)
starts = workdir / "starts"
number = len(starts.read_text()) if starts.exists() else 0
starts.write_text("x" * (number + 1))
codes = json.loads(flags.get("codes", "[0]"))
if codes[min(number, len(codes) - 1)]:
  sys.exit(codes[number])
value = float(flags["rate"]) + float(flags["config.seed"])
rows = [{"step": 5, "bound": 9.0}, {"step": 10, "bound": value, "bound_error": 0.25}]
rows += [{"step": 10, "loss": 0.0}]
(workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
"""


@pytest.fixture
def command(tmp_path):
  """A command that a sweep can run, without its options."""
  script = tmp_path / "run.py"
  script.write_text(RUN)
  return [sys.executable, script]


def starts(folder):
  """How often each run was started."""
  return {path.parent.name: len(path.read_text()) for path in folder.glob("*/starts")}


def test_a_grid_is_all_combinations_each_with_a_workdir_of_its_own():
  grid = [["config.seed", "0", "1"], ["config.data.path", "a b/c", "d"]]
  runs = sweep_points.points("gs://b/s/", grid, ["go"])
  assert [run.name for run in runs] == ["seed=0,path=a_b_c", "seed=0,path=d"] + [
    "seed=1,path=a_b_c",
    "seed=1,path=d",
  ]
  assert runs[0].command == [
    *("go", "--config.seed=0", "--config.data.path=a b/c", "--workdir=gs://b/s/seed=0,path=a_b_c")
  ]


@pytest.mark.parametrize(
  "grid, command, said",
  [
    ([["seed"]], ["go"], "--grid seed has no values"),
    ([["--seed", "1"]], ["go"], "without dashes"),
    ([["seed=1", "2"]], ["go"], "without dashes and '='"),
    ([["seed", "1"], ["seed", "2"]], ["go"], "given twice"),
    ([["seed", "1", "1"]], ["go"], "would be called seed=1"),
    ([["path", "a/b", "a b"]], ["go"], "would be called path=a_b"),
    ([["seed", "1"]], ["go", "--seed=3"], "--seed=3 is set by the sweep"),
    ([["seed", "1"]], ["go", "--workdir", "x"], "--workdir is set by the sweep"),
  ],
)
def test_grids_that_cannot_be_meant_are_refused(grid, command, said):
  with pytest.raises(ValueError, match=said):
    sweep_points.points("runs", grid, command)


def test_the_table_has_every_run_and_means_over_seeds(command, tmp_path):
  folder = tmp_path / "sweep"
  grid = ["--grid", "rate", "0.5", "1", "--grid", "config.seed", "0", "2"]
  sweep = ["sweep", f"--workdir={folder}", *grid, "--metric=bound", "--jobs=2", "--", *command]
  printed = launch(*sweep)
  table = printed[printed.index("| rate") :].splitlines()
  assert table[:3] == [
    "| rate | config.seed | run | step | bound | its standard error |",
    "| --- | --- | --- | --- | --- | --- |",
    "| 0.5 | 0 | finished | 10 | 0.5000 | 0.2500 |",
  ]
  # Values 0.5 and 2.5, 1 and 3: the standard error of a mean of two is half of their distance.
  assert table[-2:] == ["| 0.5 | 2 | 1.5000 | 1.0000 |", "| 1 | 2 | 2.0000 | 1.0000 |"]
  assert (folder / "table.md").read_text().splitlines() == table
  rows = list(csv.reader((folder / "table.csv").open()))
  assert rows[-1] == ["1", "2", "finished", "10", "3.0", "0.25"]
  assert "0 of them done" in printed
  assert "4 of them done" in launch(*sweep)  # nothing is run again
  assert set(starts(folder).values()) == {1}


def test_what_failed_is_tried_again_and_what_was_preempted_goes_on_at_once(command, tmp_path):
  folder = tmp_path / "sweep"
  sweep = ["sweep", f"--workdir={folder}", "--metric=bound", "--grid", "config.seed", "0"]
  sweep += ["--grid", "codes", "[42, 42, 0]", "[1, 0]", "--", *command, "--rate=1"]
  printed = launch(*sweep, code=1)
  failed, preempted = "seed=0,codes=_1__0_", "seed=0,codes=_42__42__0_"
  assert starts(folder) == {preempted: 3, failed: 1}
  assert f"{failed}: exit code 1" in printed
  assert f"{preempted}: finished" in printed
  assert "| 0 | [1, 0] | exit code 1 | – | – | – |" in printed
  assert "1 of them done" in launch(*sweep)
  assert starts(folder) == {preempted: 3, failed: 2}
  # Another command under the same names is another sweep.
  assert "0 of them done" in launch(*sweep[:-1], "--rate=2")


def test_a_half_written_record_is_no_record_and_a_strange_line_is_named(tmp_path):
  (point,) = sweep_points.points(str(tmp_path), [["seed", "1"]], ["go"])
  records = sweep_points.Records(tmp_path)
  records.add(point, 0)
  whole = records.path.read_text()
  records.path.write_text(whole + whole[:10])
  again = sweep_points.Records(tmp_path)
  assert again.done(point)
  again.add(point, 1)
  assert [json.loads(line)["code"] for line in records.path.read_text().splitlines()] == [0, 1]
  records.path.write_text("what\n")
  with pytest.raises(ValueError, match=r"sweep\.jsonl:1 is no record"):
    sweep_points.Records(tmp_path)


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 42), (signal.SIGINT, 130)])
def test_signals_reach_the_runs_and_nothing_more_is_started(tmp_path, number, code):
  folder = tmp_path / "sweep"
  script = tmp_path / "wait.py"
  script.write_text(
    "import signal, sys, time\n"
    "for number in (signal.SIGTERM, signal.SIGINT):\n"
    "  signal.signal(number, lambda number, _: (print('told', number), sys.exit(42)))\n"
    "print('ready', flush=True)\n"
    "time.sleep(60)\n"
  )
  command = [sys.executable, ROOT / "launch/sweep", f"--workdir={folder}", "--grid", "seed"]
  process = subprocess.Popen(
    [*map(str, command), "0", "1", "--", sys.executable, str(script)], stdout=subprocess.PIPE
  )
  log = folder / "seed=0.log"
  while not (log.exists() and "ready" in log.read_text()):
    time.sleep(0.02)
  process.send_signal(number)
  process.communicate(timeout=30)
  assert process.returncode == code
  assert f"told {int(number)}" in log.read_text()
  assert not (folder / "seed=1.log").exists()


def test_runs_are_handed_to_a_cluster_once(tmp_path):
  """sbatch is a program that keeps what it is given."""
  programs = tmp_path / "bin"
  programs.mkdir()
  (programs / "sbatch").write_text(f"#!/bin/sh\ncat >> {tmp_path}/queued\n")
  (programs / "gcloud").write_text('#!/bin/sh\necho \'{"step": 3, "bound": 1.5}\'\n')
  for program in programs.iterdir():
    program.chmod(0o755)
  environment = {"PATH": f"{programs}:/usr/bin:/bin"}
  sweep = ["sweep", "--workdir=gs://bucket/rates", f"--records={tmp_path / 'kept'}"]
  sweep += ["--grid", "config.seed", "0", "1", "--by=slurm --cpu --nodes=2", "--metric=bound"]
  launch(*sweep, "--", "python", "-m", "x", env=environment)
  queued = (tmp_path / "queued").read_text()
  assert queued.count("#SBATCH --nodes=2") == 2
  assert "#SBATCH --job-name=rates-1" in queued
  assert "python -m x --config.seed=1 --workdir=gs://bucket/rates/seed=1" in queued
  launch(*sweep, "--", "python", "-m", "x", env=environment)
  assert (tmp_path / "queued").read_text() == queued
  printed = launch(*sweep, "--table", "--", "python", "-m", "x", env=environment)
  assert "| 1 | handed over | 3 | 1.5000 | – |" in printed
  launch(*sweep, "--again", "--dry_run", "--", "python", "-m", "x", env=environment)
  assert (tmp_path / "queued").read_text() == queued


@pytest.mark.parametrize(
  "arguments, said",
  [
    (["--workdir=gs://bucket/rates"], "gs://bucket/rates is on a network: add --records=LOCAL"),
    (["--workdir=rates", "--jobs=0"], "--jobs=0 must be at least 1"),
    (["--workdir=rates", "--by=cloud"], "--by='cloud' must begin with one of slurm, gke, tpu_pod"),
    (["--workdir=rates", "--by=slurm --cpu", "--jobs=2"], "--jobs=2 is of this machine"),
    (["--workdir=a/Rates", "--by=slurm --cpu"], "--workdir=a/Rates: .* 'Rates' must begin with a"),
  ],
)
def test_options_that_cannot_be_meant_are_refused(arguments, said):
  command = [sys.executable, ROOT / "launch/sweep", *arguments, "--grid", "seed", "1", "--", "go"]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 2
  assert re.search(f"sweep: error: .*{said}", done.stderr), done.stderr
