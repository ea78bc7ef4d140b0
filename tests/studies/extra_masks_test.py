"""What stands behind a row, as a network sees it that knows tokens and counts masks."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from configs import base
from diffusion_text.experiment.build import build
from diffusion_text.experiment.run import Trained
from diffusion_text.process.uniform import Uniform
from diffusion_text.studies import extra_masks
from diffusion_text.testing.table_network import TableNetwork
from diffusion_text.types import InputSizes


@pytest.fixture(scope="module")
def trained():
  """A run on sums of one digit whose network is a table."""
  config = base.config("micro")
  task = {"name": "addition", "digits": 1, "train_size": 30, "held_out_size": 6}
  config.data = {"corpus": "task", "packing": "pairs", "task": task, "length": 12}
  config.mesh = {"fsdp": 1}
  experiment = build(config, devices=jax.devices()[:1])
  size = experiment.tokenizer.vocab_size
  network = TableNetwork(mask_id=size)
  params = TableNetwork.params(jax.random.key(0), InputSizes(ids=size + 1), size, size)
  model = experiment.model._replace(network=network)
  made = {"network": jax.device_get(params), "process": {}, "timing": {}}
  return Trained(dataclasses.replace(experiment, model=model), made, 0)


def law_of(trained, masks):
  """The log-probabilities at a mask of a row that sees so many."""
  net = trained.params["network"]
  logits = (net["table"][-1] + masks * net["crowd"]) @ net["out"]
  return logits - np.logaddexp.reduce(logits)


def check_masks(trained, asked, behind):
  """Places of the answers know of as many masks more as stand behind the row."""
  for count in (0, 3, 12):
    laws = behind(trained, asked, count, 12, True)
    own = (~asked.observed).sum(1)
    for row, counted, masks in zip(laws, asked.counted, own):
      want = np.broadcast_to(law_of(trained, masks + count), row[counted].shape)
      np.testing.assert_allclose(row[counted], want, atol=2e-5)


def test_masks_behind_a_row_are_seen_and_ends_are_no_masks(trained):
  asked = extra_masks.questions(trained, 4)
  assert len(asked.ids) == 4 and not (asked.observed & asked.counted).any()
  separator = trained.experiment.tokenizer.separator
  assert (asked.ids[asked.observed] == separator).sum() == 4  # behind each prompt
  assert (asked.ids[asked.counted] == separator).sum() == 4  # and each answer
  check_masks(trained, asked, extra_masks.answers)
  plain, ends = (extra_masks.answers(trained, asked, count, 12, False) for count in (0, 12))
  np.testing.assert_allclose(plain, ends, atol=1e-6)

  def unseen(trained, asked, count, room, masks):
    return extra_masks.answers(trained, asked, 0, room, masks)

  with pytest.raises(AssertionError, match="Not equal to tolerance"):
    check_masks(trained, asked, unseen)


def test_the_lines_are_of_the_answers_alone(trained, tmp_path):
  asked = extra_masks.Questions(
    np.array([[0, 1, 2, 0], [0, 2, 2, 2]]),
    np.eye(4, dtype=bool)[[0, 0]],
    np.array([[0, 1, 1, 0]] * 2),
  )
  laws = np.log(np.broadcast_to([0.1, 0.3, 0.6], (2, 4, 3)))
  found = extra_masks.Answered.of(asked._replace(counted=asked.counted.astype(bool)), laws)
  np.testing.assert_allclose(found.right, [0.5, 1.0])
  np.testing.assert_allclose(found.nats, [-np.log(0.3 * 0.6) / 2, -np.log(0.6)])
  assert found.said.tolist() == [2, 2, 2, 2]
  better = found._replace(right=np.array([1.0, 1.0]))
  assert found.cells(better)[1] == "0.2500 ± 0.2500"
  text = extra_masks.run(extra_masks.Settings(times=(1,), rows=4), {"table": trained}, tmp_path)
  kept = json.loads((tmp_path / "extra_masks.json").read_text())["lines"]
  assert [line[1] for line in kept] == ["nothing", "12 masks", "12 ends (control)"]
  assert (tmp_path / "extra_masks.md").read_text() == text + "\n"


def test_a_process_without_masks_is_refused(trained):
  experiment = trained.experiment
  uniform = experiment.model._replace(process=Uniform(vocab_size=3))
  other = dataclasses.replace(trained, experiment=dataclasses.replace(experiment, model=uniform))
  with pytest.raises(ValueError, match="has no masks to stand behind a row"):
    extra_masks.answers(other, extra_masks.questions(trained, 4), 1, 2, True)
