"""Pretrained weights as the start of other systems: what is read at first, what each config makes
of them, which of their numbers stay, and the table of starts."""

import dataclasses
import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("safetensors", reason="needs the package safetensors (extra: pretrained)")
pytest.importorskip("tokenizers", reason="needs the package tokenizers (extra: pretrained)")

import tokenizers as library
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from diffusion_text import train
from diffusion_text.context import Annealed, Full
from diffusion_text.core.trees import merge, split
from diffusion_text.experiment import run as runs
from diffusion_text.experiment.build import build
from diffusion_text.experiment.checks import check_loss, check_sampler
from diffusion_text.model.pretrained import read
from diffusion_text.process.uniform import Uniform
from diffusion_text.studies import adaptation
from diffusion_text.studies.convert import convert
from diffusion_text.studies.given_table import principal
from diffusion_text.testing.small_transformer import rows_of
from diffusion_text.timing import Shared
from diffusion_text.types import Batch, Inputs, Model, Progress, Times
from tests.conftest import jit_well
from tests.model.pretrained import reference

V, LENGTH = 300, 16  # 282 tokens, and rows that no token has
TEXT = "It was the best of times, it was the worst of times. " * 12
SHAPES = {
  "llama": lambda: (reference.llama_shapes("llama"), reference.llama_config("llama")),
  "gpt2": lambda: (reference.gpt2_shapes(), reference.gpt2_config()),
  "bert": lambda: (reference.bert_shapes("bert"), reference.bert_config("bert")),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
  """family -> the folder of a random checkpoint of two layers; "text" and "chats" -> files."""
  made = library.Tokenizer(library.models.BPE())
  made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = library.decoders.ByteLevel()
  trainer = library.trainers.BpeTrainer(
    vocab_size=290,
    special_tokens=["<begin>", "<end>", "<|im_start|>", "<|im_end|>"],
    initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  made.train_from_iterator([TEXT], trainer)
  root = tmp_path_factory.mktemp("checkpoints")
  folders = {name: root / name for name in (*SHAPES, "text", "chats", "cache")}
  for place in folders.values():
    place.mkdir()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(reference, "V", V)
    for kind, make in SHAPES.items():
      shapes, config = make()
      save_file(reference.random_tensors(shapes), folders[kind] / "model.safetensors")
      roles = {"bos_token_id": 0, "eos_token_id": 1}
      (folders[kind] / "config.json").write_text(json.dumps(config | roles))
      (folders[kind] / "tokenizer.json").write_text(made.to_str())
  turns = [[("user", f"What was {n}?"), ("assistant", "It was the best.")] for n in range(40)]
  messages = [[{"role": role, "content": said} for role, said in turn] for turn in turns]
  lines = [json.dumps({"messages": each}) for each in messages]
  for name in ("train", "validation", "test"):
    (folders["text"] / f"{name}.txt").write_text(TEXT)
    (folders["chats"] / f"{name}.jsonl").write_text("\n".join(lines))
  return folders


def config_of(places, name, **data):
  """A config on rows of 16 tokens of a text of one document."""
  config = importlib.import_module(f"configs.{name}").get_config("micro")
  text = {"corpus": "folder", "path": str(places["text"]), "length": LENGTH}
  config.data.update(text | {"cache_dir": str(places["cache"])} | data)
  config.train.update({"batch_size": 8, "steps": 2, "ema_decay": 0.0})
  config.evaluate.batch_size = 8
  return config


# The autoregressive reference.


def rows_at(context, ids, step):
  """The rows of clean tokens at a step of training."""
  t = jnp.zeros(ids.shape)
  clean, noise = Inputs(ids=jnp.asarray(ids)), Inputs(ids=jnp.full(ids.shape, V))
  times = Times(t, t + 1, t[:, :1], t)
  batch, progress = Batch(ids), Progress(step=step)
  return context.training_rows(jax.random.key(0), clean, clean, noise, times, batch, progress)


class OneTooLate(Annealed):
  """Answers stand where the tokens do."""

  def sampling_rows(self, noisy, noise, t, batch):
    rows = super().sampling_rows(noisy, noise, t, batch)
    return dataclasses.replace(rows, answers=rows.tokens)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_before_the_first_update_rows_are_answered_as_by_the_weights(places, kind, monkeypatch):
  """Annealing 0 against the formula of the family in numpy, token by token; annealing 1 is a whole
  row, which no autoregressive network has read."""
  found = read(places[kind])
  tensors = {}
  for name, shape in found.weights.shapes.items():
    tensors[name] = np.empty(shape, np.float32)
    for rows, values in found.weights.chunks(name):
      tensors[name][rows] = values
  ids = np.random.default_rng(0).integers(4, 280, (3, LENGTH)).astype(np.int32)
  begun = np.concatenate([np.zeros_like(ids[:, :1]), ids], axis=1)
  monkeypatch.setattr(reference, "V", V)
  want = getattr(reference, kind)(tensors, found.weights.config, begun)[:, :-1]
  network = found.network.like(position_offset=1) if kind == "gpt2" else found.network

  logits = jit_well(lambda params, rows: network.apply(params, rows).logits)

  def far(context, step):
    found_here = np.asarray(logits(found.params, rows_at(context, ids, step)))
    return np.abs(found_here - want).max()

  shifted = Annealed(steps=10, answer_shift=1)
  assert far(shifted, 0) < 1e-4, far(shifted, 0)
  assert far(shifted, 10) > 1e-2
  if kind == "llama":
    for mutant in (OneTooLate(steps=10, answer_shift=1), Annealed(steps=10)):
      assert far(mutant, 0) > 1e-2
    whole = logits(found.params, rows_at(Full(answer_shift=1), ids, 10))
    last = logits(found.params, rows_at(shifted, ids, 10))
    np.testing.assert_allclose(last, whole, atol=1e-5)


# From weights to a workdir, by every config.


def converted(places, tmp_path, kind, name, table=None, change=None, **data):
  """(report, workdir, config as it was given) of a conversion."""
  config = config_of(places, name, **data)
  if change is not None:
    change(config)
  workdir = tmp_path / name
  report = convert(str(places[kind]), str(workdir), config, keep_system=True, table=table)
  return report, str(workdir), config


def config_in(workdir):
  return runs.read_run_config(workdir)


STARTED = [  # config, family of the weights, what its report says
  ("ar2diff", "llama", "process uniform"),
  ("efficient_dlm", "llama", "timing tilted, context {'name': 'blocks'"),
  ("diffusionbert", "bert", "not read: model.time_conditioning='adaln' of the config is left out"),
]


@pytest.mark.parametrize("name, kind, says", STARTED)
def test_weights_become_the_start_of_a_config(places, tmp_path, name, kind, says):
  """Loss and sampler are traced; the network is that of the weights, number by number."""
  report, workdir, config = converted(places, tmp_path, kind, name)
  assert says in report, report
  trained = runs.load(workdir)
  experiment = trained.experiment
  check_loss(experiment)
  check_sampler(experiment)
  weights = read(places[kind]).params
  jax.tree.map(
    lambda ours, theirs: np.testing.assert_array_equal(ours, theirs[: len(ours)]),
    jax.device_get(trained.params["network"]),
    weights,
  )
  assert experiment.objective == build(config_in(workdir)).objective
  assert config_in(workdir).process.to_dict() == config.process.to_dict()


def test_the_table_of_starts_trains_scores_and_samples(places, tmp_path, monkeypatch):
  """DiffuLLaMA from weights, through the code of experiments.train, evaluate and sample. The bound
  is of the run as its decoding was chosen: here one that is very sure, and mostly wrong."""
  settings = adaptation.Settings(steps=2, rows=8, samples=2, sampler_steps=2)

  def chosen(trained, *, num_draws, max_rows):
    assert (num_draws, max_rows) == (settings.draws, settings.rows)
    sure = jax.tree.map(lambda leaf: 100 * leaf, trained.params)
    return dataclasses.replace(trained, params=sure), -1.5

  monkeypatch.setattr(adaptation, "chosen_decoding", chosen)
  folder, config = tmp_path / "table", config_of(places, "diffullama")
  text = adaptation.run(str(places["llama"]), config, ["weights"], settings, folder)
  line = json.loads((folder / "adaptation.json").read_text())["lines"][0]
  assert "| weights, decoded at log-SNR -1.50 | 2 |" in text
  assert line["nats"] > 50 and line["nats_error"] > 0  # even odds cost 5.7
  assert text.splitlines()[-1].startswith("| held-out text |") and 1 < line["text_entropy"] < 6
  assert line["tokens"] == 2 * 8 * LENGTH and 0 < line["moved"] < 0.2 and line["entropy"] > 1
  for starts, match in [
    (["weight"], "--starts=weight is unknown; did you mean 'weights'"),
    (["scratch"], "holds a"),
  ]:
    with pytest.raises(ValueError, match=match):
      adaptation.run(str(places["llama"]), config, starts, settings, folder)


def test_a_masked_model_is_tuned_on_answers(places, tmp_path):
  """Conversations in the tokens of the weights; an update moves the network."""
  data = {"corpus": "conversations", "packing": "conversations", "path": str(places["chats"])}
  data |= {"template": "chatml", "answer_multiple": 4, "length": 64}
  _, workdir, _ = converted(places, tmp_path, "llama", "instruction", **data)
  before = runs.load(workdir).params["network"]["final_norm"]["scale"]
  config = config_in(workdir)
  config.train.steps = 1
  result = runs.train_workdir(build(config), workdir, terminal=False)
  after = runs.load(workdir).params["network"]["final_norm"]["scale"]
  assert result.step == 1 and np.abs(np.asarray(after - before)).max() > 0


# Tables.


def one_update(experiment, params):
  """The parameters after one update on random tokens."""
  ids = np.random.default_rng(0).integers(0, V, (8, LENGTH)).astype(np.int32)
  with jax.set_mesh(experiment.mesh):
    state = train.create_state(
      lambda: split(jax.tree.map(jnp.array, params), experiment.trainable),
      experiment.optimizer,
      ema=False,
    )
    step = experiment.jitted_step(experiment.loss_fn(1.0))
    state, _ = step(state, train.global_batch(Batch(ids), experiment.mesh))
  return jax.device_get(merge(state.params, state.frozen))


def test_a_frozen_table_stays_as_it_is_bit_by_bit(places, tmp_path):
  """SED in the rows of the weights, after an update that moves the network."""

  def wide(config):  # and plain, which is quick to compile
    config.process.width = reference.D
    config.model.update({"self_conditioning": "none", "time_conditioning": "none"})
    config.train.self_conditioning, config.reader = None, ConfigDict({"name": "whole_row"})

  report, workdir, _ = converted(places, tmp_path, "bert", "sed", table="exact", change=wide)
  assert "the rows of these weights, 32 numbers each, not trained" in report, report
  rows = read(places["bert"]).params["embedding"][:V]
  config = config_in(workdir)
  assert list(config.train.frozen) == ["process/embedding"] and config.model.width == 64
  started = jax.device_get(runs.load(workdir).params)
  np.testing.assert_array_equal(started["process"]["embedding"], rows)
  trained = one_update(build(config, devices=jax.devices()[:1]), started)
  np.testing.assert_array_equal(trained["process"]["embedding"], rows)
  assert adaptation.moved(started["network"], trained["network"]) > 0


def test_tables_of_other_widths_are_projected_drawn_or_refused(places, tmp_path):
  report, workdir, _ = converted(
    places, tmp_path, "bert", "smoothie", "principal", lambda c: c.process.update({"width": 8})
  )
  assert "on their first principal components, 8 numbers each, not trained" in report, report
  assert "row V" not in report and "MLP" not in report
  with pytest.raises(ValueError, match="--frozen keeps the weights of a network"):
    convert(str(places["bert"]), "no", ConfigDict(), keep_system=True, frozen=True, table="exact")
  rows = read(places["bert"]).params["embedding"][:V]
  table = np.asarray(runs.load(workdir).params["process"]["embedding"])
  np.testing.assert_array_equal(table, principal(rows, 8))
  check_sampler(runs.load_experiment(workdir))
  for name, width, table, match in [
    ("smoothie", 64, "exact", r"width=64, and the rows of these weights have 32 .*width=32"),
    ("sed", 32, "principal", r"of 32 numbers projects nothing; use a width below 32"),
    ("mdlm", None, "exact", r"name='masked' has no parameters; use 'embedding' or 'distance'"),
  ]:
    config = config_of(places, name)
    if width is not None:
      config.process.width = width
    with pytest.raises(ValueError, match=match):
      convert(str(places["bert"]), str(tmp_path / "no"), config, keep_system=True, table=table)
  assert not (tmp_path / "no").exists()


def test_principal_components_keep_most_of_the_distances():
  """Of rows that lie in three directions all; and no rows, scaled or turned, would do as well."""
  rng = np.random.default_rng(0)
  rows = (rng.normal(size=(50, 3)) * [5, 2, 1] @ rng.normal(size=(3, 8)) + 7).astype(np.float32)

  def distances(table):
    return np.square(table[:, None] - table[None]).sum(-1)

  np.testing.assert_allclose(distances(principal(rows, 3)), distances(rows), rtol=1e-3, atol=1e-2)
  centred = rows - rows.mean(0)
  directions = np.linalg.lstsq(centred, principal(rows, 3), rcond=None)[0]
  largest = np.take_along_axis(directions, np.abs(directions).argmax(0)[None], 0)
  assert (largest > 0).all(), "the sign of a direction is not chance"
  kept = distances(principal(rows, 2)).sum() / distances(rows).sum()
  assert distances(rows[:, :2]).sum() / distances(rows).sum() < kept < 1
  assert kept > 0.8


def test_how_far_a_network_has_moved_is_over_matrices_and_common_rows():
  first = {"table": np.array([[3.0, 4.0], [0.0, 0.0]]), "scale": np.ones(2), "old": np.ones((2, 2))}
  last = {"table": np.array([[3.0, 5.0], [0.0, 2.0], [9.0, 9.0]]), "scale": np.zeros(2)}
  assert adaptation.moved(first, last) == pytest.approx((1 + 4) ** 0.5 / 5)


# The model's own score.


def test_the_own_score_is_the_mean_log_probability_of_what_is_read(places):
  """Row by row, over the tokens to generate alone."""
  found, process = read(places["llama"]), Uniform(V, prediction="posterior")
  model = Model(found.network, process, Shared(), Full(), chunk=16)
  ids = np.random.default_rng(1).integers(4, 280, (2, LENGTH)).astype(np.int32)
  active = np.broadcast_to(np.arange(LENGTH) > np.array([[5], [9]]), ids.shape)
  params = {"network": found.params, "process": {}}
  got = jit_well(lambda params: adaptation.own_score(model, params, ids, active))(params)
  logits = jit_well(lambda net: found.network.apply(net, rows_of(Inputs(ids))).logits)(found.params)
  log_p = np.take_along_axis(np.log(reference.softmax(np.asarray(logits))), ids[..., None], 2)
  want = (log_p[..., 0] * active).sum(1) / active.sum(1)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  assert np.abs(np.asarray(got) - log_p.mean((1, 2))).min() > 1e-3
