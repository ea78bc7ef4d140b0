"""What tokens cost by how often they occur, of networks that say one law everywhere."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from configs import autoregressive
from diffusion_text.experiment.build import build
from diffusion_text.experiment.run import Trained, held_out_rows
from diffusion_text.objective import engine
from diffusion_text.studies import rare_tokens
from diffusion_text.testing.table_network import TableNetwork
from diffusion_text.types import InputSizes

TEXT = {"train": "aaaaaaaa bbbb cc d\na", "validation": "ab", "test": "abca daab\nbbd aca caabd"}
SETTINGS = rare_tokens.Settings(edges=(1, 3, 6), rows=4, draws=1, pairs=4)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """seed -> a run on a few letters whose network says the law of a table, whatever it reads."""
  folder = tmp_path_factory.mktemp("text")
  for split, text in TEXT.items():
    (folder / f"{split}.txt").write_text(text)
  config = autoregressive.get_config("micro")
  config.data = {"corpus": "folder", "path": str(folder), "tokenizer": "characters", "length": 5}
  config.mesh, config.evaluate.batch_size = {"fsdp": 1}, 2
  experiment = build(config, devices=jax.devices()[:1])
  size = experiment.tokenizer.vocab_size
  model, scoring = (
    each._replace(network=TableNetwork()) for each in (experiment.model, experiment.scoring)
  )
  experiment = dataclasses.replace(experiment, model=model, scoring=scoring)

  def trained(seed):
    params = TableNetwork.params(jax.random.key(seed), InputSizes(ids=size + 1), size, size)
    params["table"] = jax.numpy.broadcast_to(params["table"][:1], params["table"].shape)
    return Trained(experiment, {"network": params, "process": {}, "timing": {}}, 0)

  return trained


def law_of(trained):
  net = trained.params["network"]
  return np.asarray(jax.nn.log_softmax(net["table"][0] @ net["out"]))


def rows_of(trained):
  """The ids of the test split, and which of them are scored."""
  batches = list(held_out_rows(trained.experiment, "test", SETTINGS.rows))
  ids = np.concatenate([batch.ids for batch in batches])
  weights = np.concatenate([np.asarray(engine.scored_weights(batch)) for batch in batches])
  return ids, weights > 0


def test_each_token_costs_in_its_class_alone(made):
  """Mutant: tokens stand in the class of the token before them in the vocabulary."""
  trained = made(0)
  counts = trained.experiment.facts.token_counts()
  classes = rare_tokens.Classes.of(counts, SETTINGS.edges)
  assert classes.names == ("never", "1 to 2", "3 to 5", "6 or more")
  tokens = {letter: trained.experiment.tokenizer.encode(letter)[0] for letter in "abcd"}
  assert [classes.numbers[tokens[each]] for each in "abcd"] == [3, 2, 1, 1]
  ids, scored = rows_of(trained)

  def expected(numbers):
    kinds = [(numbers[ids] == kind) & scored for kind in range(4)]
    return np.stack([(-law_of(trained)[ids] * kind).sum(1) for kind in [*kinds, scored]], 1)

  found = rare_tokens.costs(trained, classes, SETTINGS)
  np.testing.assert_allclose(found.nats, expected(classes.numbers), rtol=1e-5)
  np.testing.assert_array_equal(found.weight[:, -1], scored.sum(1))
  assert np.abs(found.nats - expected(np.roll(classes.numbers, 1))).max() > 0.1


def test_the_likelier_of_two_tokens_of_a_class_is_counted(made):
  """By a law of all places a row is likelier if the exchanged token is rarer in this law."""
  trained = made(0)
  classes = rare_tokens.Classes.of(trained.experiment.facts.token_counts(), SETTINGS.edges)
  rng, right = np.random.default_rng((SETTINGS.seed, 1)), []
  for batch in held_out_rows(trained.experiment, "test", SETTINGS.pairs):
    other, changed = rare_tokens.exchanged(rng, batch, classes, 1)
    differs = np.asarray(other.ids) != batch.ids
    assert (differs.sum(1) == changed).all() and (classes.numbers[batch.ids[differs]] == 1).all()
    assert (classes.numbers[np.asarray(other.ids)[differs]] == 1).all()
    law = law_of(trained)
    right += list(law[batch.ids[differs]] > law[np.asarray(other.ids)[differs]])
  share, _ = rare_tokens.right_of_two(trained, classes, 1, SETTINGS)
  assert len(right) > 2 and share == np.mean(right)
  assert rare_tokens.right_of_two(trained, classes, 0, SETTINGS) is None


def test_differences_are_taken_row_by_row(made, tmp_path):
  """Two runs whose laws differ: the mean difference of all scored tokens, and what is written."""
  first, second = made(0), made(1)
  text = rare_tokens.run(SETTINGS, {"one": first, "two": second}, tmp_path)
  kept = json.loads((tmp_path / "rare_tokens.json").read_text())["lines"]
  assert (tmp_path / "rare_tokens.md").read_text() == text + "\n"
  ids, scored = rows_of(first)
  more = (law_of(first) - law_of(second))[ids][scored].mean()
  last = [line for line in kept if line[:2] == ["two", "all"]]
  assert last[0][4].startswith(f"{more:+.4f} ± ") and float(last[0][2]) == scored.sum()
  assert all(line[4] == "–" for line in kept if line[0] == "one")
  classes = rare_tokens.Classes.of(first.experiment.facts.token_counts(), SETTINGS.edges)
  number = list(classes.names).index("1 to 2")
  own = rare_tokens.costs(first, classes, SETTINGS)
  own.weight[1:, number] = 0  # one row has no error
  assert "1 to 2" in [line[1] for line in kept]
  assert "1 to 2" not in [line[1] for line in rare_tokens.lines("x", own, own, [], classes)]


def test_runs_of_other_rows_are_refused(made, tmp_path):
  first = made(0)
  data = dataclasses.replace(first.experiment.data, length=4)
  other = dataclasses.replace(first, experiment=dataclasses.replace(first.experiment, data=data))
  with pytest.raises(ValueError, match=r"one and two differ in tokenizer, data\.length"):
    rare_tokens.run(SETTINGS, {"one": first, "two": other}, tmp_path)
  with pytest.raises(ValueError, match=r"edges=\(3, 1\) must be positive and rise"):
    rare_tokens.run(rare_tokens.Settings(edges=(3, 1)), {"one": first}, tmp_path)
