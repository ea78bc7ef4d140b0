"""A run and its text: moved, changed, another's; and text of one's own in Python."""

import jax
import ml_collections
import pytest

import diffusion_text as dt
from configs import base
from diffusion_text.data import corpora
from diffusion_text.experiment import other_text
from diffusion_text.experiment import run as runs
from diffusion_text.experiment.api import TextData
from diffusion_text.experiment.build import build
from tests.conftest import ROOT
from tests.docs_test import blocks

LINES = [f"the {n} cats, sat on {n} mats" for n in range(300)]


def write(folder, lines=LINES):
  folder.mkdir()
  (folder / "train.txt").write_text("\n".join(lines))
  (folder / "test.txt").write_text("the 5 cats\nsat on 7 mats\n")
  return folder


def experiment_of(folder, cache, steps=1, **changes):
  config = base.config("micro")
  config.data = ml_collections.ConfigDict(
    {"corpus": "folder", "path": str(folder), "length": 16, "tokenizer": "bytes"}
    | {"packing": "stream", "cache_dir": str(cache)}
    | changes
  )
  config.model.update({"layers": 1, "width": 16, "heads": 1, "kv_heads": 1})
  config.train.update({"steps": steps, "batch_size": 2, "save_every": 1, "evaluate_every": 10**6})
  config.evaluate.update({"batch_size": 4, "split": "test"})
  return build(config, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
  """(workdir of a run of one step, the folder that its text was moved to, its score before)."""
  root = tmp_path_factory.mktemp("moved")
  experiment = experiment_of(write(root / "old"), root / "cache")
  workdir = str(root / "run")
  runs.train_workdir(experiment, workdir, terminal=False)
  trained = runs.load(workdir)
  before = runs.score(trained.experiment, trained.params, split="test", num_draws=1)
  (root / "old").rename(root / "new")
  return workdir, root / "new", before


def scored(workdir, *choices, split="test"):
  trained = runs.load(workdir, other_text.of_workdir(workdir, *choices))
  return runs.score(trained.experiment, trained.params, split=split, num_draws=1)


def test_a_run_is_scored_on_its_text_in_a_new_place(moved):
  workdir, new, before = moved
  with pytest.raises(FileNotFoundError, match="old"):
    scored(workdir)
  assert scored(workdir, str(new)) == before
  assert before.bytes == before.characters == before.tokens == 25


def test_a_run_goes_on_with_its_text_in_a_new_place_and_not_with_other_text(moved, tmp_path):
  """Moving the folder ended the run, and other text with as many tokens was read on, silently."""
  workdir, new, _ = moved
  other = write(tmp_path / "other", [line.replace("cats", "dogs") for line in LINES])
  with pytest.raises(ValueError, match=r"belongs to other training text than data\.path now holds"):
    runs.train_workdir(experiment_of(other, tmp_path / "cache", steps=2), workdir, terminal=False)
  again = experiment_of(new, tmp_path / "cache", steps=2)
  assert runs.train_workdir(again, workdir, terminal=False).step == 2


def test_a_run_is_scored_on_other_text(moved, tmp_path):
  workdir, _, _ = moved
  path = tmp_path / "set_test.jsonl"
  path.write_text('{"article": "a , b é"}\n{"article": "c"}\n')
  result = scored(workdir, str(path), ["field=article"], "lm1b", split="all")
  assert (result.characters, result.bytes) == (len("a, b é\nc\n"), len("a, b é\nc\n".encode()))
  assert result.bits_per_byte < result.bits_per_char
  (tmp_path / "text8").write_text("one two three four " * 20)
  assert scored(workdir, str(tmp_path / "text8"), ["corpus=text8"]).characters == 19


def test_which_options_of_the_run_are_kept():
  folder = {"corpus": "folder", "packing": "stream"}
  assert other_text.overrides(folder, "x") == [("data.path", "x"), ("data.corpus", "folder")]
  pairs = dict(other_text.overrides(folder, "x", ["corpus=pairs", "source=mr"]))
  assert pairs["data.packing"] == "pairs" and pairs["data.source"] == "mr"
  assert pairs["data.field"] is None and pairs["data.path"] == "x"
  austen = {"corpus": "austen", "packing": "documents"}
  assert dict(other_text.overrides(austen, "x"))["data.corpus"] == "folder"
  assert other_text.overrides(austen) == [("data.corpus", "austen")]
  with pytest.raises(ValueError, match=r"--data=field has no value"):
    other_text.overrides(folder, "x", ["field"])
  assert other_text.of_workdir("/nowhere", "x") == []


def test_python_text_is_trained_and_scored():
  """The language has one continuation for each character, so the bound falls far below log V."""
  data = dt.text_data((text for text in ["abcd" * 40] * 50), length=16, tokenizer="characters")
  process = dt.Masked(vocab_size=data.vocab_size)
  network = dt.Transformer(
    layers=1, width=32, heads=2, input_sizes=process.input_sizes, output_size=process.output_size
  )
  model = dt.Model(network, process, dt.Shared(), dt.Full())
  facts = data.facts(steps=120)
  params = dt.fit(model, dt.Bound(), data.batches(8), facts, learning_rate=1e-2, ema_decay=0.9)
  result = dt.score(model, params, data, split="train")
  assert result.characters == data.tokens("train").characters and result.bytes == result.characters
  assert result.bits_per_char == result.bits_per_byte < 1.8  # log2 V is 2.6
  assert facts.token_counts()[:5].sum() == len(data.tokens("train").tokens)
  other = TextData(corpora.Austen(), data.tokenizer, 16)
  assert dt.score(model, params, other, split="validation", batch_size=256).bits_per_char > 2


def test_the_example_of_the_page_of_commands_runs(capsys):
  (example,) = blocks((ROOT / "docs" / "commands.md").read_text(), "python")
  exec(compile(example, "commands.md", "exec"), {})
  assert "26 characters, 26 bytes" in capsys.readouterr().out


def test_python_text_is_refused_with_the_fix():
  with pytest.raises(ValueError, match=r"packing='pairs' is not 'stream' or 'documents'"):
    dt.text_data(["a"], length=4, packing="pairs")
  with pytest.raises(ValueError, match=r"no text for split='train'"):
    dt.text_data({"test": ["a"]}, length=4)
