"""Sequence to sequence with the ordinary trainer, likelihood and sampler: the source comes out as
it went in, and padding is no text.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import diffuseq, mdlm
from diffusion_text.context import Full
from diffusion_text.core.options import member
from diffusion_text.core.prng import row_keys
from diffusion_text.experiment import run
from diffusion_text.experiment.build import build
from diffusion_text.experiment.summary import AnyVocabulary
from diffusion_text.process.embedding import Embedding
from diffusion_text.sampler.gaussian import GaussianGrid
from diffusion_text.sampler.loop import sample
from diffusion_text.schedules.gaussian import SquareRoot
from diffusion_text.studies import exams, task_report, tasks
from diffusion_text.studies.exam_contract import How
from diffusion_text.timing import Shared
from diffusion_text.types import Batch, DataFacts, Head, Model, Prediction, Progress

PAIRS = [f"{a}{b}\t{b}{a}!" for a in "abcdefgh" for b in "xyz"] + [
  "ax\txx",
  "a very long source\tz",
]


def experiment(module, tmp_path):
  for name in ("train", "dev", "test"):
    (tmp_path / f"{name}.tsv").write_text("".join(f"{pair}\n" for pair in PAIRS))
  config = module.get_config("micro")
  config.data.update(
    {
      "corpus": "pairs",
      "packing": "pairs",
      "path": str(tmp_path),
      "tokenizer": "bytes",
      "length": 12,
    }
  )
  config.data.cache_dir = str(tmp_path / "cache")
  config.model.update(
    {"layers": 1, "width": 16, "heads": 1, "kv_heads": 1, "mlp_width": 16, "time_width": 4}
  )
  config.train.update(
    {"batch_size": 8, "steps": 2, "log_every": 1, "evaluate_every": 2, "save_every": 2}
  )
  config.evaluate.batch_size = 8
  config.sampler.steps = 3
  return build(config, devices=jax.devices()[:1])


@pytest.mark.parametrize("module", [mdlm, diffuseq])
def test_training_scoring_and_writing(module, tmp_path):
  pytest.importorskip("sacrebleu", reason="sacrebleu is in the extras 'metrics' and 'test'")
  toy = experiment(module, tmp_path)
  corpus, iterator = run.training_data(toy)
  params, frozen = jax.jit(toy.init)(jax.random.key(0))
  # A batch with observed tokens is an ordinary one.
  loss_fn = toy.loss_fn(run.tokens_per_character(toy, corpus))
  batch = next(iterator)
  loss = jax.eval_shape(loss_fn, params, frozen, jax.random.key(0), batch, Progress())
  assert loss.total.shape == () and batch.observed.any()
  assert "bits_per_character" in loss.sums
  # Rows of 12 hold 6 or 7 tokens to write, 2 or 3 of them text with its end: 25 pairs fit.
  assert run.tokens_per_character(toy, corpus) == pytest.approx((24 * 9 + 9) / (24 * 4 + 3))
  trained, how = run.Trained(toy, params, 0), How(num=5, mbr=(1, 2), scorer="chrf")
  exam = tasks.exam_of(trained)
  row, text = exams.measured(exam, trained, how, seed=0, sampler=toy.sampler, num_draws=1)
  assert row["altered"] == 0 and row["calls"] == 3 and row["prompts"] == 5 and row["left_out"] == 1
  # All pairs but the long one: 24 targets of three characters, one of two, and their ends. Padding
  # costs nats and is no token.
  assert row["tokens"] == 24 * 4 + 3
  (consensus,) = row["more"]
  assert consensus["label"] == "consensus of 2" and consensus["calls"] == 6
  assert set(row["scores"]) == set(exam.columns) and "bleu" in exam.columns and row["bound"][0] > 0
  named = {"system": "toy", "seed": 0, **row}
  shorter = {**named, "system": "shorter", "left_out": 4, "more": []}
  table = task_report.table_of_runs(exam, [named, shorter], how, toy)
  assert "Prompts that fill a row and were left out: toy 1, shorter 4." in table
  assert "| toy |" in table and "| toy, consensus of 2 |" in table and "*known answer*" in table
  assert "by sentence chrf" in table and "per token (bytes)" in table and len(text) > 0


def test_runs_of_other_tasks_are_in_no_table():
  """Tokens may differ, metrics may not."""
  parity, addition = (tasks.made(name, {"train_size": 9}) for name in ("parity", "addition"))
  one = tasks.TaskExam(parity, {}, "bytes")
  both = tasks.exam_of_both(one, tasks.TaskExam(parity, {}, "characters"))
  assert both.tokenizer == "bytes or characters" and tasks.exam_of_both(both, one) == both
  other = tasks.TaskExam(tasks.PairsOfRun(None), {})
  with pytest.raises(ValueError, match=r"one run has the metrics .* another bleu, .* of one task"):
    tasks.exam_of_both(tasks.TaskExam(addition, {}), other)


def test_text_is_no_pairs():
  plain = run.Trained(build(mdlm.get_config("micro"), tokenizer=AnyVocabulary(9)), {}, 0)
  with pytest.raises(ValueError, match=r"data.corpus='austen', which has neither tasks nor pairs"):
    tasks.exam_of(plain)


SEEN = []  # what the network of the next test has read


@member
class Watched:
  """A network whose logits follow from what it reads, and which writes that down."""

  layers: ClassVar[int] = 1

  def apply(self, params, rows, *, memory=None, key=None, hidden_layers=()):
    vectors = rows.inputs.vectors
    jax.debug.callback(lambda seen: SEEN.append(np.asarray(seen)), vectors)
    return Prediction(jnp.sin(vectors), Head(jnp.eye(3, 5) - jnp.eye(3, 5, 3)))


@pytest.mark.parametrize("rho", [None, 1.0])
def test_the_source_is_read_bit_for_bit_at_every_step(rho):
  """The network sees the clean vectors of the source at every call, whatever the noise, and the ids
  come out unaltered.
  """
  path = SquareRoot(log_snr_max=4.0, log_snr_min=-10.0)
  process = Embedding(vocab_size=5, schedule=path, width=3, norm="none")
  of_process = process.init(jax.random.key(0), DataFacts(length=6, vocab_size=5))
  model = Model(Watched(), process, Shared(), Full())
  params = {"network": {}, "process": of_process, "timing": {}}
  ids = np.random.default_rng(0).integers(0, 5, (4, 6)).astype(np.int32)
  observed = np.broadcast_to(np.arange(6) < 3, (4, 6))
  state = process.clean(of_process, jnp.asarray(ids))
  clean = np.asarray(process.inputs(of_process, state, jnp.zeros(ids.shape)).vectors)

  def kept(batch):
    """True if the observed tokens are what they were, in what is read and in what is written."""
    SEEN.clear()
    sampler = GaussianGrid(steps=4, rho=rho)
    results = [
      sample(model, params, sampler, row_keys(seed, 4), batch=batch).ids for seed in (0, 1)
    ]
    jax.effects_barrier()
    assert len(SEEN) == 8
    alike = all(np.array_equal(vectors[observed], clean[observed]) for vectors in SEEN)
    same = all(np.array_equal(np.asarray(drawn)[observed], ids[observed]) for drawn in results)
    return alike and same

  assert kept(Batch(jnp.asarray(ids), observed=jnp.asarray(observed)))
  if rho is not None:
    assert not kept(Batch(jnp.asarray(ids))), "the check cannot fail"
