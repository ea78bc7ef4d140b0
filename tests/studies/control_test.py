"""The control study on two made-up novels: labels, classifiers, and the whole demonstration with
networks that know nothing.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from diffusion_text.core.options import member
from diffusion_text.core.prng import position_keys
from diffusion_text.data.corpora import AUSTEN_NOVELS, CORPORA, Austen
from diffusion_text.data.labels import LabelledRows, labelled_rows
from diffusion_text.data.token_arrays import TokenArrays
from diffusion_text.experiment.build import build
from diffusion_text.experiment.run import Trained
from diffusion_text.experiment.summary import AnyVocabulary
from diffusion_text.model.classifier import Classifier
from diffusion_text.process.embedding import Embedding
from diffusion_text.schedules.gaussian import LogSNR
from diffusion_text.studies import control, control_exam, exams, task_table
from diffusion_text.studies.control_exam import ControlExam
from diffusion_text.studies.exam_contract import How
from diffusion_text.types import DataFacts, Inputs
from tests.conftest import ROOT


@member
class TwoNovels:
  """One of a's and b's, one of c's and d's, in turns."""

  def documents(self, split):
    rng = np.random.default_rng(0)
    return iter(["".join(rng.choice(list("ab" if i % 2 == 0 else "cd"), 60)) for i in range(40)])

  def sources(self, split):
    return ("first", "second"), [i % 2 for i in range(40)]

  def identity(self, memo=None):
    return "two novels"

  def origin(self, split):
    return "two novels"


def test_austen_tells_its_novels():
  documents = list(Austen().documents("train"))
  names, labels = Austen().sources("train")
  assert len(labels) == len(documents) and names == tuple(AUSTEN_NOVELS)
  first = {names[label]: documents[labels.index(label)] for label in set(labels)}
  assert {name: title.lower().replace(" ", "_") for name, title in first.items()} == {
    name: name for name in names
  }
  _, test = Austen().sources("test")
  assert set(test) == {names.index("persuasion")}


def test_rows_are_of_one_source_and_parts_are_disjoint():
  tokens = np.arange(400, dtype=np.uint16)  # every token is its own document's
  offsets = np.arange(0, 401, 10)
  rows = labelled_rows(TokenArrays(tokens, offsets, 400, 0), [i % 2 for i in range(40)], 4, 3)
  assert (rows.ids // 10 % 2 == rows.label[:, None]).all()
  parts = [set(rows.of_part(part).ids.reshape(-1).tolist()) for part in range(3)]
  assert sum(map(len, parts)) == len(set.union(*parts)) == 400 and min(map(len, parts)) > 0
  with pytest.raises(ValueError, match="39 labels for 40 documents"):
    labelled_rows(TokenArrays(tokens, offsets, 400, 0), [0] * 39, 4, 3)
  with pytest.raises(ValueError, match="too few for 99 parts"):
    labelled_rows(TokenArrays(tokens, offsets, 400, 0), [0] * 40, 4, 99)


def test_a_classifier_reads_soft_tokens_as_it_reads_tokens_and_knows_its_window():
  ids = jnp.array([[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]])
  for options in ({"window": 3, "pool": "max"}, {}):
    classifier = Classifier(classes=2, input_size=6, width=8, **options)
    params = classifier.init(jax.random.key(0))
    params |= {"out": {"kernel": jnp.ones((8, 2)), "bias": jnp.zeros(2)}}
    apply = jax.jit(classifier.apply)
    hard = apply(params, Inputs(ids=ids))
    soft = apply(params, Inputs(vectors=jax.nn.one_hot(ids, 6)))
    np.testing.assert_allclose(hard, soft, atol=1e-5)
    same = np.allclose(hard[0], hard[1], atol=1e-5)
    assert same == (classifier.window == 1), "a bag knows no order, a window does"
  with pytest.raises(ValueError, match="vectors of 5 numbers"):
    classifier.apply(params, Inputs(vectors=jnp.ones((1, 2, 5))))
  with pytest.raises(ValueError, match="window=2 must be odd"):
    Classifier(classes=2, input_size=6, window=2)
  with pytest.raises(ValueError, match="pool"):
    Classifier(classes=2, input_size=6, pool="sum")


def test_a_classifier_of_text_reads_noised_vectors_and_is_surer_of_clearer_ones():
  process = Embedding(vocab_size=4, schedule=LogSNR(log_snr_max=6.0, log_snr_min=-6.0), width=8)
  of_process = process.init(jax.random.key(0), DataFacts(length=6, vocab_size=4))
  label = np.arange(64) % 2
  ids = np.random.default_rng(0).integers(0, 2, (64, 6)) + 2 * label[:, None]
  ids, label = ids.astype(np.int32), label.astype(np.int32)
  judged = control.train_classifier(
    Classifier(classes=2, input_size=4, width=16),
    LabelledRows(ids, label, label),
    read=control.clean,
    seed=0,
    steps=150,
    batch_size=32,
  )

  @jax.jit
  def answers(t):
    keys = position_keys(jax.random.key(1), *ids.shape)
    state = process.corrupt(of_process, keys, process.clean(of_process, ids), t)
    return judged.log_prob(control.shown_tokens(process, of_process, state, t))

  right = []
  for time in (0.1, 0.95):
    logp = answers(jnp.full(ids.shape, time))
    right.append(float(np.mean(np.asarray(logp)[np.arange(64), label])))
  assert right[0] > -0.1 and right[1] < right[0] - 0.1 and right[1] > -1.2, right


def untrained(config, tokenizer=None):
  experiment = build(config, tokenizer=tokenizer, devices=jax.devices()[:1])
  params, _ = jax.jit(experiment.init)(jax.random.key(0))
  return Trained(experiment, params, 0)


def test_control_is_a_part_of_the_table_and_steers_a_generator_that_knows_nothing(
  tmp_path, monkeypatch
):
  """An untrained generator draws any letters, an untrained judge finds all equally likely: only the
  classifiers know the novels.
  """
  monkeypatch.setitem(CORPORA, "austen", TwoNovels)
  monkeypatch.setattr(control, "BATCH", 16)
  config = base.config("micro")
  config.model.update({"width": 16, "mlp_width": 32, "layers": 1})
  config.data.update({"length": 8, "cache_dir": str(tmp_path)})
  config.sampler.steps = 8
  options = {"target": "first", "strengths": (16,), "num": 32, "classifier_steps": 80}
  options["judge"] = "a run"
  files = {"mdlm": ROOT / "configs/mdlm.py"}
  table = task_table.TaskTable(tmp_path, config, files, {"control": options}, steps=1)
  exam, (cell,) = table.exam("control"), table.cells.values()
  shared = table.config(cell).data
  assert shared == config.data and shared.length == 8
  generator = untrained(config)
  config.timing.name, config.context.name, config.sampler.steps = "at_noise", "next_token", 1
  judge = untrained(config, generator.experiment.tokenizer)
  monkeypatch.setattr(control_exam, "load", {"a run": judge}.get)
  exam.check(generator.experiment)
  taken = exam.taken(generator, How(), 0, generator.experiment.sampler)
  (free, steered, wrong), (own,) = (
    taken.lines,
    exam.baselines(How(), lambda: generator.experiment).values(),
  )
  assert [line.label for line in taken.lines] == [
    *("", "strength 16", "labels shuffled, strength 16")
  ]
  assert all(set(each) == set(exam.columns) for each in (free.scores, steered.scores, own))
  # The evaluator has only seen rows of one novel; where the guide is content with most of the
  # letters, it need not be.
  by_guide = [line.scores["success_of_guide"].value for line in taken.lines]
  assert by_guide[1] >= by_guide[0] + 0.2 and steered.scores["success"] > free.scores["success"]
  assert steered.scores["guide_right"].value > 0.9 and np.isnan(own["guide_right"].value)
  assert wrong.scores["success"].value < steered.scores["success"].value
  assert own["success"].value > 0.9 and taken.numbers["evaluator_right"] > 0.9
  assert steered.scores["judge_nats"].value == pytest.approx(free.scores["judge_nats"].value)
  assert taken.text.count("---") == 3 and exam.legend(How()).startswith("32 rows for each")
  with pytest.raises(ValueError, match="target='third' is no source"):
    dataclasses.replace(exam, target="third").check(generator.experiment)
  monkeypatch.setattr(control_exam, "load", {"a run": generator}.get)
  with pytest.raises(ValueError, match="the judge must be autoregressive"):
    exam.check(generator.experiment)


def test_latents_are_steered_too(tmp_path, monkeypatch):
  """The other kind of control, on an embedding process whose network knows nothing."""
  monkeypatch.setitem(CORPORA, "austen", TwoNovels)
  monkeypatch.setattr(control, "BATCH", 16)
  config = base.config("micro")
  config.model.update({"width": 16, "mlp_width": 32, "layers": 1})
  config.data.update({"length": 8, "cache_dir": str(tmp_path)})
  config.process = {"name": "embedding", "width": 8, "prediction": "leave_one_out"}
  config.sampler.steps = 16
  settings = control.Settings(
    target="first",
    strengths=(32.0,),
    num=32,
    classifier_steps=80,
    guidance="latents",
    inner_steps=3,
  )
  steered = control.steer(untrained(config), settings)
  free, guided, _ = (
    np.mean(steered.evaluator.answers(each.ids) == steered.target) for each in steered.samples
  )
  assert steered.samples[1].guide_right > 0.8
  assert guided > free + 0.2, (free, guided)


def test_settings_are_checked_and_a_system_that_cannot_be_steered_is_known():
  made = exams.made("control", {"judge": "runs/ar"})
  assert made == ControlExam(judge="runs/ar") and made.strengths == (2.0,)
  plain = build(base.config("micro"), tokenizer=AnyVocabulary(9))
  assert made.refusal(plain) is None
  refused = dataclasses.replace(made, guidance="latents").refusal(plain)
  assert "which Masked does not offer; guidance='logits' serves" in refused
  with pytest.raises(ValueError, match="judge"):
    exams.made("control", {})
  with pytest.raises(ValueError, match="num=33 must be a multiple of 32 rows; use 64"):
    exams.made("control", {"judge": "runs/ar", "num": 33})
  with pytest.raises(ValueError, match="guidance"):
    exams.made("control", {"judge": "runs/ar", "guidance": "both"})
