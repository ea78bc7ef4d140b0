"""The field's networks that read the noise: logits of random ones against the family's own formula,
SEDD's loss, out and in again, the systems that they are converted to, and what is refused."""

import functools
import json
import math

import jax
import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("safetensors", reason="needs the package safetensors (extra: pretrained)")

from safetensors.numpy import load_file, save_file

from diffusion_text.experiment.registry import construct
from diffusion_text.model.pretrained import read, write
from diffusion_text.schedules.discrete import weight
from diffusion_text.testing.small_transformer import rows_of
from diffusion_text.types import Inputs
from tests.model.pretrained import reference
from tests.model.pretrained.reference import (
  HEADS,
  LAYERS,
  D,
  V,
  dit,
  mdlm_shapes,
  random_tensors,
  sedd_output,
)

IDS = np.random.default_rng(7).integers(0, V - 1, (2, 9)).astype(np.int32)
MASKED = np.random.default_rng(8).uniform(size=IDS.shape) < 0.5
READ = np.where(MASKED, V - 1, IDS).astype(np.int32)  # the last row is the mask's
T = 0.4
LOGLINEAR = -math.log(1 - 0.999 * T)
SIZES = {"n_blocks": LAYERS, "n_heads": HEADS, "cond_dim": 6, "dropout": 0.1}
FLAT = SIZES | {"vocab_size": V, "hidden_dim": D, "time_conditioning": True}


def sedd(graph, noise, **more):
  model = SIZES | {"hidden_size": D, "scale_by_sigma": graph == "absorb", "type": "ddit"} | more
  tokens = V - (graph == "absorb")
  return {"graph": {"type": graph}, "noise": noise, "model": model, "tokens": tokens}


GEOMETRIC = {"type": "geometric", "sigma_min": 1e-3, "sigma_max": 5.0}
# name: (config, its number of the noise, a number read wrongly, the section of its process).
CASES = {
  "sedd": (
    sedd("absorb", {"type": "loglinear", "sigma_min": 1e-4, "sigma_max": 20}),
    LOGLINEAR,
    {"time_signal": "time"},
    {"name": "masked", "prediction": "score"},
  ),
  "sedd, uniform": (
    sedd("uniform", GEOMETRIC),
    1e-3 ** (1 - T) * 5.0**T,
    {"time_sigmas": (1e-4, 20.0)},
    {
      **{"name": "uniform", "prediction": "score"},
      "schedule": {"name": "geometric", "sigma_min": 1e-3, "sigma_max": 5.0},
    },
  ),
  "udlm": (
    FLAT | {"model_type": "udlm", "cfg": False},
    LOGLINEAR,
    {"time_signal": "thousands"},
    {"name": "uniform"},
  ),
  "duo": (FLAT | {"model_type": "DUO"}, LOGLINEAR, {"norm_eps": 1e-3}, {"name": "uniform"}),
  "gidd": (
    FLAT | {"model_type": "gidd", "p_uniform": 0.2, "mask_token_id": V - 1},
    T,
    {"time_signal": "loglinear"},
    {"name": "mixed", "mixing": "peaked", "share": 0.2},
  ),
  "mdlm": (FLAT | {"model_type": "mdlm"}, LOGLINEAR, {"time_signal": "time"}, None),
}
MASKS = {"sedd": V - 1, "gidd": V - 1, "mdlm": V - 1}


def checkpoint(folder, config, tensors=None):
  """A random checkpoint with this config in a folder, and its tensors."""
  tensors = random_tensors(mdlm_shapes()) if tensors is None else tensors
  folder.mkdir(exist_ok=True)
  save_file(tensors, folder / "model.safetensors")
  (folder / "config.json").write_text(json.dumps(config))
  return tensors


@functools.cache
def program(network):
  """Of a network, compiled once: several families are one network."""
  network = network.like(attention=("xla",), scan_layers=False)
  rows = rows_of(Inputs(READ), t=T)
  return jax.jit(lambda params: network.apply(params, rows).logits)


def logits_of(network, params):
  return np.asarray(program(network)(params))


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_family(name, tmp_path):
  """To 2e-5, and not where the noise is read wrongly; written again, every tensor has the same
  bits (but for the bias of SEDD), and read again, every array of ours."""
  config, sigma, mutant, process = CASES[name]
  tensors = checkpoint(tmp_path / "in", config)
  found = read(tmp_path / "in")
  mask = MASKS.get(name)
  assert found.architecture.mask_id == mask and found.network.output_size == V
  assert (None if found.family.process is None else found.family.process(config)) == process
  raw = dit(tensors, READ, sigma)
  got = logits_of(found.network, found.params)
  wrong = logits_of(found.network.like(**mutant), found.params)
  if mask is not None:
    assert (got[..., mask] < -1e29).all()
    raw, got, wrong = raw[..., :mask], got[..., :mask], wrong[..., :mask]
  if name == "sedd":  # ours are log(V s), theirs log((V - 1) s), before what depends on the noise
    got, wrong = got - math.log(V / (V - 1)), wrong - math.log(V / (V - 1))
  assert np.abs(raw).max() > 0.5
  np.testing.assert_allclose(got, raw, atol=2e-5)
  assert np.abs(wrong - raw).max() > 1e-4
  write(tmp_path / "out", found.family, found.architecture, found.params)
  written = load_file(tmp_path / "out" / "model.safetensors")
  assert written.keys() == tensors.keys()
  bias = "backbone.output_layer.linear.bias"
  for key, value in written.items():
    worked = name == "sedd" and key == bias  # a number is added to it
    np.testing.assert_allclose(value, tensors[key], rtol=0, atol=1e-7 * worked, err_msg=key)
  again = read(tmp_path / "out", noise_id=found.noise_id)
  assert again.architecture == found.architecture and again.family is found.family
  jax.tree.map(np.testing.assert_array_equal, again.params, found.params)


@pytest.mark.parametrize("name", CASES)
def test_logits_in_bfloat16(name, tmp_path):
  """As of the networks without time: weights of bfloat16 and float32 to 2e-5, all in bfloat16 an
  error of at most 2.5 % of the size of the logits, and far more with the layers in another order.
  """
  config, sigma, _, _ = CASES[name]
  whole = random_tensors(mdlm_shapes())
  tensors = {key: value.astype(ml_dtypes.bfloat16) for key, value in whole.items()}
  checkpoint(tmp_path, config, tensors)
  found = read(tmp_path)
  answers = slice(MASKS.get(name))
  want, before = (dit(each, READ, sigma)[..., answers] for each in (tensors, whole))
  added = math.log(V / (V - 1)) if name == "sedd" else 0.0

  def logits(network, params):
    return logits_of(network, params)[..., answers] - added

  got = logits(found.network, found.params)
  np.testing.assert_allclose(got, want, atol=2e-5)
  assert np.abs(got - before).max() > 1e-3
  network = found.network.like(dtype="bfloat16")
  flipped = jax.tree.map(lambda leaf: leaf[::-1], found.params["blocks"])
  wrong = found.params | {"blocks": flipped}
  for params, least, most in ((found.params, 1e-3, 0.025), (wrong, 0.5, np.inf)):
    error = logits(network, params) - want
    assert least < np.sqrt(np.mean(error**2) / np.mean(want**2)) < most


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
  """(our logits, SEDD's logits of the last layer) of the masked one."""
  folder = tmp_path_factory.mktemp("sedd")
  tensors = checkpoint(folder, CASES["sedd"][0])
  found = read(folder)
  return logits_of(found.network, found.params), dit(tensors, READ, LOGLINEAR)


def test_the_loss_of_sedd_is_our_rate(scored):
  """Its score entropy at masks, written out from the output of its network, is our rate with the
  same hazard; without the mask's row left out of V it is not."""
  ours, raw = scored
  output = sedd_output(raw, READ, LOGLINEAR, scale_by_sigma=True)
  assert (np.take_along_axis(output, READ[..., None], -1) == 0).all()
  ratio = 1 / math.expm1(LOGLINEAR)
  at_true = np.take_along_axis(output, IDS[..., None], -1)[..., 0]
  entropy = np.exp(output[..., :-1]).sum(-1) - ratio * at_true + ratio * (math.log(ratio) - 1)
  process = construct("process", CASES["sedd"][3], vocab_size=V)
  state = np.where(MASKED, V, IDS).astype(np.int32)
  t = np.full(IDS.shape, T, np.float32)
  rate = process.nelbo_rate({}, IDS, state, t, ours) / weight(process.schedule, t)
  np.testing.assert_allclose(np.asarray(rate)[MASKED], (entropy / ratio)[MASKED], rtol=2e-4)
  assert (np.asarray(rate)[~MASKED] == 0).all()
  unfolded = ours - math.log(V / (V - 1))
  mutant = process.nelbo_rate({}, IDS, state, t, unfolded) / weight(process.schedule, t)
  assert np.abs(mutant / rate - 1)[MASKED].max() > 1e-3


def test_the_loss_of_uniform_sedd_is_our_rate(tmp_path):
  """Its score entropy (arXiv 2310.16834, equation 5) of the output of its network, pair by pair,
  times the hazard / V, where σ is that of our schedule: from 0 on, and infinite at t = 1. With the
  scores of another noise, or σ from sigma_min on, it is another."""
  config, sigma, mutant, section = CASES["sedd, uniform"]
  raw = np.float64(dit(checkpoint(tmp_path, config), READ, sigma))
  found = read(tmp_path)
  output = sedd_output(raw, READ, sigma, scale_by_sigma=False)

  def entropy(row, place, left):
    x, clean = READ[row, place], IDS[row, place]
    law = np.full(V, (1 - left) / V)  # of the token at this noise
    law[clean] += left
    ratios, scores = law / law[x], output[row, place]
    costs = np.exp(scores) - ratios * scores + ratios * (np.log(ratios) - 1)
    return costs.sum() - costs[x]

  def costs(left, hazard):
    places = range(READ.shape[1])
    return hazard / V * np.array([[entropy(row, i, left) for i in places] for row in range(2)])

  slope = sigma * math.log(5.0 / 1e-3)
  now, last = math.exp(1e-3 - sigma), math.exp(1e-3 - 5.0)
  want = costs((now - last) / (1 - last), slope * now / (now - last))
  process = construct("process", section, vocab_size=V)
  t = np.full(IDS.shape, T, np.float32)

  def rate(network):
    return process.nelbo_rate({}, IDS, READ, t, logits_of(network, found.params))

  np.testing.assert_allclose(rate(found.network), want, rtol=2e-4)
  assert np.abs(rate(found.network.like(**mutant)) / want - 1).max() > 1e-3
  assert np.abs(costs(math.exp(-sigma), slope) / want - 1).max() > 1e-2


def changed(tensors, name, change):
  return tensors | {name: change(tensors[name])}


TOLD = "backbone.blocks.1.adaLN_modulation.weight"
# name: (config, change of the tensors, message)
BAD = {
  "another scale": (
    sedd("absorb", {"type": "loglinear"}, scale_by_sigma=False),
    lambda t: t,
    "sets scale_by_sigma=False, which the transformer here does not do; it reads True",
  ),
  "another graph": (sedd("tree", GEOMETRIC), lambda t: t, "sets type='tree'"),
  "no noise": (
    CASES["sedd"][0] | {"model_type": "sedd", "noise": None},
    lambda t: t,
    "of model_type='sedd' lacks 'noise'",
  ),
  "classes": (CASES["udlm"][0] | {"cfg": True}, lambda t: t, "sets cfg=True"),
  "without time": (
    CASES["duo"][0] | {"time_conditioning": False},
    lambda t: t,
    "sets time_conditioning=False",
  ),
  "missing": (
    CASES["udlm"][0],
    lambda t: {name: value for name, value in t.items() if name != TOLD},
    rf"lacks the tensor {TOLD} \(1 of 30 are missing",
  ),
  "extra": (
    CASES["udlm"][0],
    lambda t: t | {"backbone.cond_map.embedding_table.weight": np.ones((3, 6), np.float32)},
    "holds backbone.cond_map.embedding_table.weight .3, 6., which nothing here reads",
  ),
  "reshaped": (
    CASES["duo"][0],
    lambda t: changed(t, TOLD, lambda value: value[: 4 * D]),
    rf"{TOLD} is \[128, 6\], and config.json makes it \[192, 6\]",
  ),
  "a bias of what is read": (
    CASES["gidd"][0],
    lambda t: t | {"backbone.logit_bias": np.full((1, 1, 1), 0.5, np.float32)},
    "backbone.logit_bias is 0.5: it is added to the logit of each token that is read",
  ),
  "another family": (
    FLAT | {"model_type": "llada"},
    lambda t: t,
    "lacks 'd_model'",
  ),
}


@pytest.mark.parametrize("case", BAD)
def test_checkpoints_that_do_not_fit_are_refused(case, tmp_path):
  config, change, match = BAD[case]
  checkpoint(tmp_path, config, change(random_tensors(mdlm_shapes())))
  with pytest.raises(ValueError, match=match) as raised:
    read(tmp_path)
  assert "\n" not in str(raised.value)


def test_a_bias_of_zero_and_buffers_are_left_unread(tmp_path):
  """Of GIDD: its tables of cosines and sines, and a bias that adds nothing."""
  tensors = random_tensors(mdlm_shapes())
  more = {f"backbone.rotary_emb.{name}_cached": np.ones(3, np.float32) for name in ("cos", "sin")}
  more["backbone.logit_bias"] = np.zeros((1, 1, 1), np.float32)
  checkpoint(tmp_path, CASES["gidd"][0], tensors | more)
  assert len(read(tmp_path).unread) == 2


def test_what_a_family_cannot_write_is_refused(tmp_path):
  """A network without time, a mask that UDLM has no place for, another noise in GIDD."""
  checkpoint(tmp_path / "a", CASES["udlm"][0])
  found = read(tmp_path / "a")
  options = found.architecture.options
  for change, match in (
    ({"options": options | {"time_in_head": False}}, "with time_in_head=False"),
    ({"mask_id": 3}, r"mask_id=3 \(it writes None\)"),
    ({"options": options | {"time_signal": "time"}}, "with time_signal='time'"),
  ):
    architecture = found.architecture._replace(**change)
    with pytest.raises(ValueError, match=match):
      write(tmp_path / "b", found.family, architecture, found.params)


@pytest.mark.parametrize("name", ["sedd", "udlm", "gidd"])
def test_a_workdir_has_the_process_of_the_weights(name, tmp_path, monkeypatch):
  """Scores, uniform noise, or both kinds of noise; a mask only where the weights have one; written
  and converted again, the same."""
  pytest.importorskip("tokenizers", reason="needs the package tokenizers (extra: pretrained)")
  from diffusion_text.experiment import run as runs
  from diffusion_text.studies.convert import convert
  from diffusion_text.studies.export import export
  from tests.studies.convert_test import byte_level, small

  rows = 300
  monkeypatch.setattr(reference, "V", rows)
  config, _, _, process = CASES[name]
  config = config | ({"tokens": rows - 1} if name == "sedd" else {"vocab_size": rows})
  config.pop("mask_token_id", None)
  tensors = checkpoint(tmp_path / "in", config, random_tensors(mdlm_shapes()))
  (tmp_path / "in" / "tokenizer.json").write_text(byte_level())
  (tmp_path / "in" / "tokenizer_config.json").write_text('{"mask_token": "<mask>"}')
  report = convert(str(tmp_path / "in"), str(tmp_path / "run"), small(tmp_path), keep_system=False)
  trained = runs.load(str(tmp_path / "run"))
  assert trained.experiment.config.process.to_dict() == process, report
  table = trained.params["network"]["embedding"]
  mask = {"sedd": rows - 1, "udlm": None, "gidd": 2}[name]  # of GIDD by the tokenizer
  assert trained.experiment.model.network.unanswered == (() if mask is None else (mask,))
  assert len(table) == rows + (mask is not None)
  if mask is not None:
    np.testing.assert_array_equal(table[rows], tensors["backbone.vocab_embed.embedding"][mask])
  if name != "gidd":
    return
  export(str(tmp_path / "run"), str(tmp_path / "out"))
  convert(str(tmp_path / "out"), str(tmp_path / "again"), small(tmp_path), keep_system=False)
  again = runs.load(str(tmp_path / "again"))
  assert again.experiment.model == trained.experiment.model
  jax.tree.map(np.testing.assert_array_equal, again.params, trained.params)
