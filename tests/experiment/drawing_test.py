"""Samples in bounded batches: the text of a row is its own, and what is drawn is on the disk."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import base
from diffusion_text.context import Blocks
from diffusion_text.core.prng import row_keys
from diffusion_text.data.tokenizers import Bytes
from diffusion_text.experiment import drawing
from diffusion_text.experiment.build import build
from diffusion_text.experiment.run import Trained, generate, open_rows
from diffusion_text.reader.unprompted import reader_for
from diffusion_text.reader.whole_row import WholeRow
from diffusion_text.sampler.budget import EvenShare
from diffusion_text.sampler.reveal import Reveal
from diffusion_text.sampler.score import MaxProb


@pytest.fixture(scope="module")
def trained():
  """An untrained model of bytes, whose texts hold whatever bytes there are."""
  config = base.config("micro")
  config.model.update({"layers": 1, "width": 16, "heads": 1, "kv_heads": 1, "mlp_width": 32})
  config.data.update({"length": 12, "tokenizer": "bytes"})
  config.sampler = {"name": "grid", "steps": 3}
  config.reader = {"name": "classifier_free", "scale": 2.0, "reader": {"name": "whole_row"}}
  config.train.batch_size = config.evaluate.batch_size = 8
  experiment = build(config, tokenizer=Bytes(), devices=jax.devices()[:1])
  return Trained(experiment, jax.jit(experiment.create_state)().eval_params, 0)


def _rows(trained, texts, **how):
  return list(drawing.draw(trained, texts, num=3, seed=7, **how))


def test_the_batch_size_changes_no_text(trained):
  """Nine rows, three per text, at once, by two and by five; the last batch is never full."""
  texts = open_rows(trained.experiment.tokenizer, 1, 12, ["a", "To be", ""])
  whole = _rows(trained, texts, batch_size=100)
  assert [row.row for row in whole] == list(range(9)) and len({row.text for row in whole}) > 3
  assert whole == _rows(trained, texts, batch_size=2) == _rows(trained, texts, batch_size=5)
  assert all(row.text.startswith("To be") for row in whole[3:6])
  batch = open_rows(trained.experiment.tokenizer, 3, 12, ["a", "To be", ""])
  assert [row.text for row in whole] == generate(trained, batch, num=3, seed=7)[0]


def test_rows_over_several_devices_are_the_same_text(trained):
  """Nine rows by five: on two devices by six, each with its share."""
  experiment = build(
    trained.experiment.config, tokenizer=trained.experiment.tokenizer, devices=jax.devices()[:2]
  )
  state = jax.device_put(jax.device_get(trained.params), experiment.shardings().eval_params)
  texts = open_rows(experiment.tokenizer, 1, 12, ["a", "To be", ""])
  costs, alone = drawing.Costs(), drawing.Costs()
  two = _rows(Trained(experiment, state, 0), texts, batch_size=5, costs=costs)
  assert two == _rows(trained, texts, batch_size=5, costs=alone)
  lines = [drawing.closing(each, experiment, lengths=False) for each in (costs, alone)]
  assert lines[0] == lines[1]


def test_a_key_of_the_place_in_the_batch_would_be_noticed(trained, monkeypatch):
  """The mutant of the law above."""
  texts = open_rows(trained.experiment.tokenizer, 1, 12, ["a", "To be", ""])
  monkeypatch.setattr(drawing, "numbered_keys", lambda seed, rows: row_keys(seed, len(rows)))
  assert _rows(trained, texts, batch_size=2) != _rows(trained, texts, batch_size=5)


def test_rows_of_one_text_are_told(trained):
  """A greedy decoder writes one text for each prompt."""
  texts = open_rows(trained.experiment.tokenizer, 1, 12, ["a", "To be"])
  greedy = Reveal(score=MaxProb(), budget=EvenShare(steps=2), temperature=0.0)
  for sampler, said in ((greedy, "--- 2 different texts in 6 rows; "), (None, None)):
    costs = drawing.Costs()
    _rows(trained, texts, sampler=sampler, costs=costs)
    closing = drawing.closing(costs, trained.experiment, lengths=False).splitlines()
    assert closing[0].startswith("--- cost: ")
    assert [line[: len(said or "")] for line in closing[1:]] == ([said] if said else [])


def test_padding_is_no_text(trained):
  texts = open_rows(trained.experiment.tokenizer, 1, None, infills=["a[3]b", "[2]"])
  rows = _rows(trained, texts, batch_size=4)
  assert [len(row.ids) for row in rows] == [5] * 3 + [2] * 3


def test_rows_are_on_the_disk_as_they_are_drawn(trained, tmp_path):
  """Text that no terminal and no encoding can show is kept, and so is what came before an error."""
  output = tmp_path / "new" / "samples.jsonl"

  def rows():
    yield drawing.Drawn(0, "a\ud800\x00é\n", [1, 2], 3, 7)
    assert len(output.read_text().splitlines()) == 1, "a row waits for the next one"
    raise RuntimeError("the device is gone")

  with pytest.raises(RuntimeError, match="gone"):
    list(drawing.write(rows(), str(output)))
  (line,) = output.read_bytes().splitlines()
  assert line.isascii()
  wanted = {"row": 0, "text": "a\ud800\x00é\n", "ids": [1, 2], "calls": 3, "seed": 7}
  assert json.loads(line) == wanted
  with pytest.raises(ValueError, match="is there already"):
    drawing.write(rows(), str(output))
  with pytest.raises(ValueError, match="cannot be written"):
    drawing.write(rows(), str(output / "below"))


def test_guidance_without_a_prompt_is_one_call(trained):
  """The guided answer u + 2 (c - u) of c = u is u: the second call would be for nothing."""
  tokenizer, experiment = trained.experiment.tokenizer, trained.experiment
  for texts in (
    open_rows(tokenizer, 1, 12, [""]),
    open_rows(tokenizer, 1, None, infills=["[12]", "[5]"]),  # padding is observed, and no prompt
  ):
    assert reader_for(experiment.reader, texts).calls == 1
  prompted = open_rows(tokenizer, 1, 12, ["", "a"])
  assert reader_for(experiment.reader, prompted).calls == 2
  rows = _rows(trained, open_rows(tokenizer, 1, 12, [""]))
  assert {row.calls for row in rows} == {3}, "three steps"
  alone = dataclasses.replace(experiment, reader=experiment.reader.reader)
  plain = dataclasses.replace(trained, experiment=alone)
  assert rows == _rows(plain, open_rows(tokenizer, 1, 12, [""]))


def test_a_check_refuses_what_would_fail(trained, tmp_path):
  experiment = trained.experiment
  texts = open_rows(experiment.tokenizer, 1, 12, ["a"])
  plan = drawing.check(experiment, texts, num=10, seed=0, batch_size=4)
  assert plan == "would draw   10 rows of 12 tokens, 110 active, in 3 batches"
  with pytest.raises(ValueError, match=r"not enough memory: 4194304 rows of 12 tokens under Grid"):
    long = dataclasses.replace(experiment.sampler, steps=10**6)
    drawing.check(experiment, texts, num=10**8, seed=0, batch_size=2**22, sampler=long)
  with pytest.raises(ValueError, match="seed=4294967296 must be"):
    drawing.check(experiment, texts, num=1, seed=2**32)
  (tmp_path / "there").write_text("")
  with pytest.raises(ValueError, match="is there already"):
    drawing.check(experiment, texts, num=1, seed=0, output=str(tmp_path / "there"))
  assert np.asarray(texts.observed).sum() == 1


def test_a_terminal_that_cannot_show_a_text_shows_it_in_ascii(root):
  code = "from experiments.paths import show_any_text as s; s(); print('a\\ud800é'); print('b')"
  env = {**os.environ, "PYTHONIOENCODING": "ascii"}
  command = [sys.executable, "-c", code]
  done = subprocess.run(command, cwd=root, env=env, capture_output=True, check=True)
  assert done.stdout.splitlines() == [rb"a\ud800\xe9", b"b"]


def test_text_behind_a_hole_is_refused_before_anything_is_computed(trained):
  """By the check that a dry run makes, and by whoever draws without it."""
  experiment = trained.experiment
  model = experiment.model._replace(context=Blocks(size=4))
  blocks = dataclasses.replace(experiment, model=model, reader=WholeRow())
  tokenizer, how = experiment.tokenizer, {"num": 2, "seed": 0}
  behind = open_rows(tokenizer, 1, None, infills=["[4]", "a[6]b"])
  said = r"row 1: the observed token at position 7 .* hole at position 1, .*Blocks\(size=4"
  with pytest.raises(ValueError, match=said):
    drawing.check(blocks, behind, **how)
  with pytest.raises(ValueError, match="observed token at position 7"):
    next(drawing.draw(Trained(blocks, None, 0), behind, **how))
  for texts in (["a[2]b[4]"], ["ab[6]"]):
    assert "would draw" in drawing.check(
      blocks, open_rows(tokenizer, 1, None, infills=texts), **how
    )
  assert "would draw" in drawing.check(experiment, behind, **how)


def test_rows_that_no_memory_holds_are_refused_before_they_are_made(trained):
  tokenizer = trained.experiment.tokenizer
  with pytest.raises(ValueError, match="length=1000000000 is more than 16777216 tokens"):
    open_rows(tokenizer, 1, 10**9, ["a"])
  with pytest.raises(ValueError, match=r"a hole of more than 16777216 tokens, '\[1000000000\]'"):
    open_rows(tokenizer, 1, None, infills=["a[1000000000]"])


def test_ends_behind_a_text_are_left_out():
  ids = np.array([1, 2, 9, 3, 9, 9])
  assert drawing._without_ends(ids, 9).tolist() == [1, 2, 9, 3]
  assert drawing._without_ends(ids, None).tolist() == ids.tolist()
  assert drawing._without_ends(np.array([9, 9]), 9).tolist() == []
