"""The table of caches: its lines can be made, and its numbers are counted as they are named."""

import json

import numpy as np
import pytest

from diffusion_text.context import Full
from diffusion_text.process.masked import Masked
from diffusion_text.reader.whole_row import WholeRow
from diffusion_text.reader.window_cache import WindowCache
from diffusion_text.studies import caches
from diffusion_text.studies.chains import network_of
from diffusion_text.studies.measures import neighbours, total_variation
from diffusion_text.testing.exact_model import exact_model
from diffusion_text.testing.languages import Enumerable, MarkovChain
from diffusion_text.testing.small_transformer import noisy_parameters
from diffusion_text.timing import Shared
from diffusion_text.types import Batch, Model


def test_every_line_has_a_name_of_its_own_and_whole_rows_come_first():
  for block, length in ((32, 128), (12, 48), (8, 32)):
    found = list(caches.readers(block, length))
    assert found[0][2] == WholeRow()
    assert len({line[:2] for line in found}) == len({line[2] for line in found}) == len(found)


def test_neighbours_are_counted():
  found = neighbours(np.array([[0, 1, 1], [0, 1, 0]]), 2)
  np.testing.assert_allclose(found, [[0, 0.5], [0.25, 0.25]])
  assert total_variation(found, np.full((2, 2), 0.25)) == 0.25


def test_an_exact_network_has_no_layers_to_choose_in():
  model, _ = exact_model(Masked(vocab_size=2), Enumerable.dirichlet(0, 0.5, 2, 4))
  kinds = {name for name, _, reader in caches.readers(8, 32) if not caches.fits(reader, model)}
  assert kinds == {"similar by layer", "roll-out"}


def test_a_named_reader_that_cannot_read_the_model_is_refused(tmp_path):
  """Mutant: it is left out, as it is where no reader is named."""

  def exact(chain):
    return exact_model(Masked(vocab_size=8), MarkovChain(chain.initial, chain.transition, 32))

  with pytest.raises(ValueError, match="which ExactNetwork does not tell"):
    caches.run("exact", caches.Settings(rows=2), tmp_path, ["roll-out"], exact)


def untrained(chain, layers, width, steps, seed):
  """A model of a chain whose parameters are random."""
  process = Masked(vocab_size=len(chain.initial))
  network = network_of(process, layers, width)
  params = {"network": noisy_parameters(network, 0.3, seed), "process": {}, "timing": {}}
  return Model(network, process, Shared(), Full()), params


def test_a_table_is_written(tmp_path, monkeypatch):
  """Agreement is with whole rows, of generated tokens alone; a cache of one window reads less."""
  monkeypatch.setattr(caches, "masked_model", untrained)
  lines = [("whole rows", "–", WholeRow()), ("window", "once a window", WindowCache())]
  monkeypatch.setattr(caches, "readers", lambda block, length: iter(lines))
  monkeypatch.setattr(caches.jax, "clear_caches", lambda: None)  # other tests need them
  settings = caches.Settings(layers=1, width=32, rows=4)
  with pytest.raises(ValueError, match="--readers=windows is unknown; did you mean 'window'"):
    caches.run("branchy", settings, tmp_path, ["windows"])
  text = caches.run("branchy", settings, tmp_path)
  assert (tmp_path / "branchy.md").read_text() == text + "\n" and text.count("\n") == 4
  whole, window = json.loads((tmp_path / "branchy.json").read_text())["lines"]
  assert whole[2:5] == ["1.000", "1.000", "1.000 ± 0.000"]
  assert window[2] == f"{(32 + 3 * 8) / (4 * 32):.3f}"  # four calls a window, one of the whole row
  batch = Batch(None, np.array([[True, False, False]] * 2))
  problem = caches.Problem(None, None, batch, 0, block=8, temperature=0, per_call=3)
  assert caches.sampler_of(problem).budget.steps == 3  # of 8 positions, the last call has 2
  ids = np.array([[1, 1, 0], [0, 0, 0]])
  drawn = caches.Line("a", "b", ids, caches.CostReport(*range(11)))
  drawn_whole = drawn._replace(ids=np.array([[0, 1, 0], [0, 0, 1]]))
  assert caches.agreement(problem, drawn, drawn_whole) == (0.75, 0.25)
