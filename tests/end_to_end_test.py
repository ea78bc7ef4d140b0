"""The command lines of a researcher, as real processes on a small network: train, kill, resume,
score, sample.
"""

import functools
import json
import pathlib
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from diffusion_text.train import WorkdirLock
from tests.commands import Forked
from tests.conftest import environment

ROOT = pathlib.Path(__file__).resolve().parents[1]
SMALL = (
  "--config.data.length=32",
  "--config.train.batch_size=8",
  "--config.evaluate.batch_size=8",
  "--config.evaluate.max_rows=16",
  "--config.sampler.steps=4",
)


def command(name, *flags):
  return [sys.executable, "-m", f"experiments.{name}", *flags]


STARTED = {"compare", "complete", "tasks", "translate"}  # names that are forked from the first on


@functools.cache
def forked(tmp):
  return Forked(environment(tmp), tmp)


def call(tmp, name, *flags, code=0, as_shipped=False):
  """What a command says. The first of most names is started as a user does, others are forked.
  Those `as_shipped` are compiled as users have them.
  """
  if as_shipped or name not in STARTED:
    STARTED.add(name)
    env = environment(tmp, as_shipped)
    done = subprocess.run(
      command(name, *flags),
      cwd=ROOT,
      env=env,
      capture_output=True,
      text=True,
      timeout=300,
      check=False,
    )
  else:
    done = forked(tmp).run(name, *flags)
  assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
  return done.stdout if code == 0 else done.stdout + done.stderr


def train_flags(workdir, steps, *more):
  every = (
    "--config.train.save_every=50",
    "--config.train.evaluate_every=150",
    "--config.train.log_every=1",
  )
  return (
    "--config=configs/mdlm.py:micro",
    *SMALL,
    f"--config.train.steps={steps}",
    *every,
    f"--workdir={workdir}",
    *more,
  )


@pytest.fixture(scope="module")
def home(tmp_path_factory):
  path = tmp_path_factory.mktemp("home")
  yield path
  forked(path).close()


@pytest.fixture(scope="module")
def trained(home):
  """A workdir with 300 steps, trained in one go."""
  workdir = home / "straight"
  out = call(home, "train", *train_flags(workdir, 300))
  assert "finished at step 300" in out
  return workdir


def losses(workdir):
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return {
    row["step"]: (row["loss"], row["bound"], row["grad_norm"]) for row in rows if "loss" in row
  }


def test_faults_change_nothing(home):
  """kill -9 after a step and while saving, and a damaged checkpoint: same losses at every step,
  same arrays, to the last bit.
  """
  flags = ("--faults=3", "--steps=30", "--kinds=train,save,truncate", "--seed=2")
  out = call(home, "faults", f"--workdir={home / 'faults'}", *flags)
  assert re.search(r"^all +3 ", out, re.M) and "nothing lost, repeated or changed" in out


def test_sigterm_saves_and_exits_42_then_goes_on(home, trained):
  workdir = home / "preempted"
  process = subprocess.Popen(
    command("train", *train_flags(workdir, 300)),
    cwd=ROOT,
    env=environment(home),
    stdout=subprocess.DEVNULL,
  )
  while not (workdir / "metrics.jsonl").exists() or not losses(workdir):
    assert process.poll() is None
    time.sleep(0.01)
  process.terminate()
  assert process.wait(timeout=120) == 42
  call(home, "train", *train_flags(workdir, 300))
  assert losses(workdir) == losses(trained)


def test_it_learns(trained):
  """From the cost of a uniform guess, as held-out text and the first updates have it, downwards."""
  rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
  first = next(row for row in rows if "validation_bits_per_character" in row)
  error = first["validation_bits_per_character_error"]
  assert abs(first["validation_bits_per_character"] - np.log2(82)) < 3 * error
  bits = np.array([row["bound"] for row in rows if "bound" in row]) / np.log(2)
  assert bits[-100:].mean() < 5.0 < bits[:20].mean(), (bits[:20].mean(), bits[-100:].mean())


def test_evaluate_prints_the_bound(home, trained):
  base = (f"--workdir={trained}", "--max_rows=64", "--num_draws=2")
  row = json.loads(call(home, "evaluate", *base, "--split=test", "--json", as_shipped=True))
  assert row["step"] == 300 and row["rows"] == 64
  assert row["perplexity"] == pytest.approx(np.exp(row["nats_per_token"]))
  assert row["bits_per_char"] == pytest.approx(
    row["nats_per_token"] / np.log(2)
  )  # characters are the tokens
  assert 0 < row["standard_error"] < 0.2
  text = call(home, "evaluate", *base, "--parameters=bfloat16")
  assert "nats/token" in text and "bits/char" in text and "±" in text
  assert float(text.split("bound ")[1].split()[0]) == pytest.approx(row["nats_per_token"], rel=0.01)


def samples(text):
  text = text.rsplit("\n--- cost: ", 1)[0]
  return [part.split("\n", 1)[1].rstrip("\n") for part in text.split("--- sample ")[1:]]


def test_ragged_prompts_give_the_same_text_together_and_alone(home, trained):
  base = (
    f"--workdir={trained}",
    "--num=2",
    "--steps=6",
    "--seed=3",
    "--length=24",
    "--order=entropy",
  )
  together = samples(call(home, "sample", *base, "--prompt=To be", "--prompt=It was a long time"))
  alone = samples(call(home, "sample", *base, "--prompt=It was a long time"))
  assert together[2:] == alone and len(together) == 4
  assert all(text.startswith("To be") for text in together[:2]) and together[0] != together[1]


def test_infilling_keeps_what_is_given(home, trained):
  base = (f"--workdir={trained}", "--num=1", "--steps=6", "--event_driven")
  both = samples(call(home, "sample", *base, "--infill=To be, [16] that is", "--infill=[3]!"))
  assert (
    both[0].startswith("To be, ") and both[0].endswith(" that is") and len(both[0]) == 7 + 16 + 8
  )
  assert len(both[1]) == 4 and both[1].endswith("!")
  assert both[1] == samples(call(home, "sample", *base, "--infill=[3]!"))[0]


def test_dry_runs_compute_nothing(home, trained):
  plan = call(home, "train", *train_flags(home / "never", 300, "--dry_run"))
  assert "parameters" in plan and "new" in plan and not (home / "never").exists()
  assert "go on from step 300" in call(home, "train", *train_flags(trained, 300, "--dry_run"))
  assert "would draw   2 rows" in call(
    home, "sample", f"--workdir={trained}", "--num=2", "--dry_run"
  )


def test_a_second_run_in_a_workdir_is_refused(home, trained):
  """Dry run and run alike; this process stands for the first run."""
  with WorkdirLock(str(trained)):
    for flags in (("--dry_run",), ()):
      text = call(home, "train", *train_flags(trained, 310, *flags), code=2)
      assert re.search(r"is in use by another run \(.*, process \d+, since", text), text
    assert "would draw" in call(home, "sample", f"--workdir={trained}", "--dry_run"), (
      "to read is free"
    )


def test_weights_of_a_run_start_a_new_one(home, trained):
  """Other rows, text, seed and rate, with the tokenizer that a command exports; the first score is
  that of a trained model, and step, optimizer and data begin afresh.
  """
  text = home / "mine.txt"
  text.write_text("".join(f"It was a fine day, the {n}th, and they walked.\n" for n in range(400)))
  tokenizer = home / "exported"
  assert "fingerprint" in call(home, "tokenize", f"--workdir={trained}", f"--output={tokenizer}")
  start = (
    f"--config.train.initialize_from={trained}",
    f"--config.data.tokenizer_path={tokenizer}",
    "--config.data.corpus=folder",
    f"--config.data.path={text}",
    "--config.data.length=16",
    "--config.train.batch_size=4",
    "--config.seed=5",
  )
  flags = train_flags(home / "second", 2, *start)
  assert re.search(
    r"new, with the weights of .*\d+ arrays loaded", call(home, "train", *flags, "--dry_run")
  )
  out = call(home, "train", *flags)
  assert "finished at step 2" in out
  rows = [json.loads(x) for x in (home / "second" / "metrics.jsonl").read_text().splitlines()]
  first = next(row for row in rows if "validation_bits_per_character" in row)
  assert first["step"] == 0 and first["validation_bits_per_character"] < 5.0 < np.log2(82)
  text = call(
    home,
    "train",
    *train_flags(home / "third", 2, *start[:1], "--config.data.tokenizer=bytes"),
    code=2,
  )
  assert "was trained with the characters tokenizer" in text and "experiments.tokenize" in text
  text = call(home, "train", *flags, f"--config.train.restore_from={trained}", "--dry_run", code=2)
  assert "set one of them" in text
  flags = train_flags(home / "third", 2, f"--config.train.restore_from={trained}")
  text = call(home, "train", *flags, "--config.seed=5", "--dry_run", code=2)
  assert "the saved data position has seed=0" in text
  text = call(home, "train", *flags, "--config.model.width=32", "--dry_run", code=2)
  assert re.search(r"has network/\S+: \(.*\) where this config has \(", text)


def test_many_samples_go_to_a_file(home, trained):
  output = home / "samples.jsonl"
  flags = (f"--workdir={trained}", "--num=5", "--steps=3", "--length=16", "--seed=4")
  shown = samples(call(home, "sample", *flags, "--batch_size=2", f"--output={output}"))
  rows = [json.loads(line) for line in output.read_text().splitlines()]
  assert [row["text"] for row in rows] == shown and len(rows) == 5
  assert all(row["seed"] == 4 and row["calls"] == 3 and len(row["ids"]) == 16 for row in rows)
  assert samples(call(home, "sample", *flags)) == shown
  assert "is there already" in call(home, "sample", *flags, f"--output={output}", code=2)


def test_a_decoder_by_name_and_its_film(home, trained):
  """The film's last frames are the samples, and both say what the decoding cost."""
  listed = call(home, "sample", "--decoder=?")
  assert "fast_dllm_dual" in listed and "uncached" not in listed
  page = home / "film.html"
  flags = (f"--workdir={trained}", "--decoder=fast_dllm", "--block=8", "--num=2", "--length=16")
  drawn = call(home, "sample", *flags)
  made = samples(drawn)
  film = call(home, "sample", *flags, "--stream", f"--trace={page}")
  last = dict(re.findall(r"^row (\d+) call +\d+  (.*)$", film, re.M))
  assert [last[str(row)] for row in range(2)] == [text.replace("\n", "⏎") for text in made]
  cost = drawn.rsplit("--- cost: ", 1)[1].splitlines()[0]
  assert cost in film and "tokens a call" in cost
  assert "</html>" not in page.read_text() and "slider" in page.read_text()


def test_a_report_shows_the_bound_and_the_same_samples(home, trained):
  page = home / "report.html"
  flags = (f"--workdir={trained}", f"--output={page}", "--num=1", "--max_rows=8")
  said = call(home, "report", *flags, "--decoder=fast_dllm")
  text = page.read_text()
  assert f"report: {page}" in said and "(8 rows, " in text
  own, other = (json.loads(held) for held in re.findall(r"class=data>(.*?)</script>", text))
  for (film,), decoder in ((own, ()), (other, ("--decoder=fast_dllm",))):
    drawn = call(home, "sample", f"--workdir={trained}", "--num=1", *decoder)
    assert "".join(film[-1][1]) == samples(drawn)[0]
  bad = call(home, "report", *flags, "--decoder=fast_dlm", code=2)
  assert "did you mean 'fast_dllm'" in bad


def test_a_row_may_stop_at_its_end(home, trained):
  """The text before the end is the same, and no end stands behind it."""
  flags = (f"--workdir={trained}", "--num=4", "--steps=6", "--length=16", "--seed=1")
  whole = samples(call(home, "sample", *flags))
  said = call(home, "sample", *flags, "--stop_at_end", "--lengths")
  assert re.search(r"--- lengths: .*4 texts\n--- held-out rows: .* tokens up to the end", said)
  stopped = samples(said)
  ends = [text.split("\n", 1)[0] for text in whole]
  assert stopped == ends


def test_a_second_model_scores(home, trained):
  """An untrained autoregressive model of the same tokenizer is enough; another one is refused."""
  scorer = home / "scorer"
  flags = train_flags(scorer, 1)
  call(home, "train", "--config=configs/autoregressive.py:micro", *flags[1:])
  base = (f"--workdir={trained}", "--decoder=edlm", "--num=1", "--length=12", "--steps=2")
  drawn = call(home, "sample", *base, f"--scorer={scorer}", "--sampler=candidates=2")
  assert "(6 network calls)" in drawn


def test_a_run_on_a_task_answers_and_has_its_table(home):
  pytest.importorskip("sacrebleu", reason="sacrebleu is in the extras 'metrics' and 'test'")
  small = {"name": "addition", "digits": 1, "train_size": 30, "held_out_size": 8}
  options = [f"--option={key}={value}" for key, value in small.items() if key != "name"]
  said = call(home, "tasks", "--task=addition", *options, "--num=2", "--show=1")
  assert " => " in said and "majority answer: right 0." in said
  workdir = home / "sums"
  task = ["--config.data.corpus=task", "--config.data.packing=pairs", "--config.data.length=16"]
  task += [f"--config.data.task.{key}={value}" for key, value in small.items()]
  task += ["--config.data.task.name=addition", "--config.model.layers=1"]
  call(home, "train", *train_flags(workdir, 1, *task))
  said = call(home, "tasks", f"--workdir={workdir}", "--num=2", "--show=1")
  assert " => " in said and "network calls" in said
  flags = (f"--workdirs={workdir}", "--mbr=1,2", "--num=2", "--num_draws=1", "--show=1")
  said = call(home, "translate", *flags)
  assert "| sums |" in said and "| sums, consensus of 2 |" in said and "*7-gram*" in said


BAD = [
  ("train", lambda w: train_flags(w, 300, "--config.model.width=32"), r"another configuration"),
  (
    "train",
    lambda w: train_flags(f"{w}_new", 300, f"--config.data.cache_dir={w}/config.json/cache"),
    r"data\.cache_dir=.* cannot be written",
  ),
  ("train", lambda w: train_flags(f"{w}/config.json", 300), r"config\.json cannot be written"),
  ("sample", lambda w: (f"--workdir={w}", f"--seed={2**32}"), "seed"),
  ("sample", lambda w: (f"--workdir={w}", "--steps=1000000000"), "steps=1000000000"),
  ("train", lambda w: train_flags(w, 300, "--config.model.wdith=32"), r"width"),
  (
    "train",
    lambda w: ("--config=configs/mdlm.py:micro", "--workdir=x", "--config.data.length=100000000"),
    "100000000",
  ),
  (
    "train",
    lambda w: (
      "--config=configs/mdlm.py:micro",
      "--workdir=x",
      "--config.data.corpus=folder",
      "--config.data.path=/no",
    ),
    "/no",
  ),
  ("sample", lambda w: (f"--workdir={w}", "--prompt=§"), "§"),
  ("sample", lambda w: (f"--workdir={w}", "--infill=a[0]b"), r"\[0\]"),
  ("sample", lambda w: (f"--workdir={w}", "--prompt=a", "--infill=a[1]b"), "not both"),
  ("sample", lambda w: (f"--workdir={w}", "--temperature=-1"), "temperature=-1"),
  ("sample", lambda w: (f"--workdir={w}", "--order=entropy", "--event_driven"), "choose one"),
  ("evaluate", lambda w: ("--workdir=nowhere",), "nowhere"),
  ("inspect", lambda w: ("config=oops",), "config=oops"),
]


@pytest.mark.parametrize(
  "name,flags,match", BAD, ids=lambda value: value if isinstance(value, str) else ""
)
def test_bad_input_is_told_in_one_line(home, trained, name, flags, match):
  text = call(home, name, *flags(trained), code=2)
  assert re.search(match, text) and text.count("error: ") == 1 and "Traceback" not in text


def test_tools_print_what_they_promise(home):
  assert "devices" in call(home, "inspect", "--config=configs/mdlm.py:micro")
  assert "cpu" in call(home, "doctor") and "complete -o default" in call(home, "complete")
  assert "countdown3 " in call(home, "tasks") and "control " in call(home, "compare", "--tasks=?")
  options = call(home, "inspect", "--options=process.embedding")
  assert "config.process.name=embedding" in options and "training_schedule" in options
  nested = ("--config.process.schedule.name=cosine", "--config.process.schedule.nmae=1")
  assert "nmae=1" in call(home, "inspect", "--config=configs/mdlm.py:micro", *nested, code=2)
  flags = (
    "--config=configs/mdlm.py:micro",
    *SMALL,
    "--vocab_size=64",
    "--rounds=1",
    "--sample_steps=2",
    "--full_logits",
  )
  row = json.loads(call(home, "benchmark", *flags).splitlines()[-1])
  wanted = {
    "train_tokens_per_second",
    "sample_tokens_per_second",
    "compile_seconds",
    "peak_rss_mib",
    "device",
    "train_speedup_over_full_logits",
  }
  assert wanted <= row.keys() and row["train_tokens_per_second"] > 0
  flags = ("--what=attention", "--lengths=64", "--rows=1", "--heads=1", "--rounds=1")
  rows = [json.loads(line) for line in call(home, "benchmark", *flags).splitlines()]
  assert {row["layout"] for row in rows} >= {"causal", "noisy_clean_32"} and any(
    "not_here" in row for row in rows
  )


def test_tokenizer_by_command_and_a_run_with_it(home):
  path = home / "bpe"
  choice = ("--config.data.tokenizer=sentencepiece", "--config.data.vocab_size=400")
  call(home, "tokenize", "--config=configs/mdlm.py:micro", *choice, f"--output={path}")
  flags = train_flags(home / "bpe_run", 2, *choice, f"--config.data.tokenizer_path={path}")
  assert "V = 400" in call(home, "train", *flags)
  smaller = ("--config=configs/mdlm.py:micro", *choice[:1], "--config.data.vocab_size=420")
  refused = call(home, "tokenize", *smaller, f"--output={path}", code=2)
  assert f"--output={path} is there already" in refused
  path.unlink()
  call(home, "tokenize", *smaller, f"--output={path}")
  assert "other text" in call(
    home, "train", *flags, "--config.train.steps=4", code=2
  )  # the same path, another tokenizer
  path.unlink()  # the checkpoint has its own copy
  text = samples(
    call(
      home, "sample", f"--workdir={home / 'bpe_run'}", "--num=1", "--prompt=It was", "--length=20"
    )
  )[0]
  assert text.startswith("It was")


def test_quickstart_trains_reports_and_says_that_it_is_finished(home):
  flags = (
    "--config=configs/quickstart.py:micro",
    f"--workdir={home / 'quick'}",
    "--seconds=1",
    "--num_draws=1",
    "--config.data.length=32",
    "--config.model.layers=1",
  )
  out = call(home, "quickstart", *flags)
  for part in (
    "this model (upper bound)",
    "character 5-gram",
    "xz -9",
    "--- sample 1 (plain ancestral: ",
    "--- sample 4 (",
    " network calls, token entropy ",
    "that of held-out text is",
    "--- infilling",
    "report.html",
  ):
    assert part in out
  assert (home / "quick" / "report.html").stat().st_size > 10_000
  again = call(home, "quickstart", *flags)
  assert (
    "is finished" in again
    and out.split("held-out text: bound")[1] == again.split("held-out text: bound")[1]
  )
