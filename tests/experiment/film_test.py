"""Films: every call of every row, as lines and as a page."""

import html
import json

import jax
import numpy as np
import pytest

import diffusion_text as dt
from configs import base
from diffusion_text.data.tokenizers import Bytes, pieces
from diffusion_text.experiment import drawing
from diffusion_text.experiment.build import build
from diffusion_text.experiment.decoding import decoding_of
from diffusion_text.experiment.film import check_film, film_of, play
from diffusion_text.experiment.player import OPEN
from diffusion_text.experiment.run import Trained, open_rows


@pytest.fixture(scope="module")
def trained():
  """An untrained model of bytes."""
  config = base.config("micro")
  config.model.update({"layers": 1, "width": 16, "heads": 1, "kv_heads": 1, "mlp_width": 32})
  config.data.update({"length": 12, "tokenizer": "bytes"})
  config.train.batch_size = config.evaluate.batch_size = 8
  experiment = build(config, tokenizer=Bytes(), devices=jax.devices()[:1])
  return Trained(experiment, jax.jit(experiment.create_state)().eval_params, 0)


def test_every_call_is_shown_and_the_last_is_the_sample(trained, tmp_path, capsys, monkeypatch):
  decoding = decoding_of(trained.experiment, decoder="one_by_one")
  texts = open_rows(trained.experiment.tokenizer, 1, 8, ["To", "a"])
  costs = drawing.Costs()
  drawn = list(drawing.draw(trained, texts, num=1, seed=3, costs=costs, **decoding._asdict()))
  # A token that was drawn early in a row ends it: what is useful depends on the end.
  monkeypatch.setattr(Bytes, "special", {"end": drawn[0].ids[3]})
  made = film_of(trained, texts, decoding, samples=np.zeros(2, int), seed=3)
  frames = made.frames
  # The film and the samples are priced alike, ends of text included.
  assert f"--- cost: {made.costs}" == drawing.closing(costs, trained.experiment, lengths=False)
  for row, sample in enumerate(drawn):
    own = [frame for frame in frames if frame.row == row]
    assert [frame.call for frame in own] == list(range(sample.calls + 1))
    assert (
      own[-1].pieces == pieces(trained.experiment.tokenizer, np.array(sample.ids))
      and sum(own[0].changed) == 0
    )
    # One token per call: one dot less, and that token is what is marked.
    dots = [sum(piece == OPEN for piece in frame.pieces) for frame in own]
    assert dots == list(range(sample.calls, -1, -1))
    assert all(sum(frame.changed) == 1 for frame in own[1:])
  page = tmp_path / "film.html"
  play(trained, texts, decoding, num=1, seed=3, page=str(page), say=True)
  said = capsys.readouterr().out
  assert said.count("row ") == len(frames) and "--- cost: " in said
  held = page.read_text().split("class=data>")[1].split("</script>")[0]
  rows = json.loads(held)
  for number, row in enumerate(rows):
    own = [frame for frame in frames if frame.row == number]
    assert [call for call, *_ in row] == [frame.call for frame in own]
    assert row[-1][1] == own[-1].pieces


def test_a_notebook_plays_the_rows_of_sample(trained):
  model, tokenizer = trained.experiment.model, trained.experiment.tokenizer
  how = (model, trained.params, trained.experiment.sampler, jax.random.key(5))
  made = dt.film(dt.stream(*how, rows=2, length=8), model, tokenizer)
  ids = np.asarray(dt.sample(*how, rows=2, length=8).ids)
  last = {frame.row: list(frame.pieces) for frame in made.frames}
  assert last == {row: pieces(tokenizer, ids[row]) for row in range(2)}
  assert "tokens a call" in made.costs
  shown_there = made._repr_html_()
  assert shown_there.startswith("<iframe srcdoc=") and shown_there.count("<iframe") == 1
  assert html.unescape(shown_there.split('"')[1]) == made.page()


def test_what_a_film_cannot_show_is_refused(tmp_path, monkeypatch):
  with pytest.raises(ValueError, match=r"one batch, and 40 rows.*smaller --num"):
    check_film(None, True, 40, 32, None)
  with pytest.raises(ValueError, match="choose one"):
    check_film(None, True, 4, 32, "samples.jsonl")
  (tmp_path / "there").write_text("")
  with pytest.raises(ValueError, match="is there already"):
    check_film(str(tmp_path / "there"), False, 4, 32, None)
  check_film(None, False, 10**6, 32, "samples.jsonl")
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(ValueError, match="drawn by one process, and these are 2; start"):
    check_film(None, True, 4, 32, None)
