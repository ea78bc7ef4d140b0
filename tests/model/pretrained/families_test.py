"""Every family of checkpoints: logits of random ones against the family's own formula, in numpy;
out and in again; what is refused, in one line."""

import functools
import json

import jax
import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("safetensors", reason="needs the package safetensors (extra: pretrained)")

from safetensors.numpy import load_file, save_file

from diffusion_text.model.pretrained import FAMILIES, read, write
from diffusion_text.testing.small_transformer import rows_of
from diffusion_text.types import Inputs, Layout
from tests.model.pretrained.reference import CASES, V, random_tensors, slowed_rates

IDS = np.random.default_rng(7).integers(0, V, (2, 11)).astype(np.int32)
PLACE = np.arange(11, dtype=np.int32)[None]


def checkpoint(folder, name, tensors=None, **changes):
  """A random checkpoint of a family in a folder, and its tensors."""
  config, shapes, _, _ = CASES[name]
  tensors = random_tensors(shapes) if tensors is None else tensors
  folder.mkdir(exist_ok=True)
  save_file(tensors, folder / "model.safetensors")
  (folder / "config.json").write_text(json.dumps(config | changes))
  return tensors


@functools.cache
def program(network, causal):
  """Parameters -> (features, logits) of a network. Rows of next tokens begin at position -1, the
  first row of a learned table."""
  network = network.like(attention=("xla",), scan_layers=False)
  layout = Layout(block=PLACE) if causal else Layout()
  shift = 1 if causal and network.positions == "learned" else 0
  rows = rows_of(Inputs(IDS, position=PLACE - shift), layout=layout)

  def both(params):
    output = network.apply(params, rows)
    return output.features, output.logits

  return jax.jit(both)


def logits_of(network, params, causal):
  """Our logits."""
  return np.asarray(program(network, causal)(params)[1])


def rounded(tensors):
  """The tensors in bfloat16."""
  return {name: value.astype(ml_dtypes.bfloat16) for name, value in tensors.items()}


def answered(logits, mask_id):
  """All logits but those of a mask, which must be impossible."""
  if mask_id is None:
    return logits
  assert (logits[..., mask_id] < -1e29).all()
  return np.delete(logits, mask_id, axis=-1)


# An option that is read wrongly, by family.
MUTANTS = {
  "gpt2": {"activation": "gelu_exact"},
  "llama": {"norm_eps": 1e-6},
  "llada": {"rope_base": 1000.0},
  "Dream": {"rope_base": 1000.0},
  "qwen2": {"rope_base": 1000.0},
  "qwen3": {"rope_base": 1000.0},
  "bert": {"activation": "gelu"},
  "roberta": {"activation": "gelu"},
  "mdlm": {"norm_eps": 1e-3},
  "mistral, longer rows": {"window": 5, "rope_gain": 1.0},
  "llama, longer rows": {"rope_fast_turns": 3.0},
  "qwen2, longer rows": {"full_layers": ()},
  "qwen3, longer rows": {"window": 4},
}


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_family(name, tmp_path):
  """To 2e-5, and not with one option read wrongly; written again, every tensor has the same bits
  (unless some are worked into others), and read again, every array of ours."""
  config, _, reference, causal = CASES[name]
  tensors = checkpoint(tmp_path / "in", name)
  found = read(tmp_path / "in")
  mask = config.get("mask_token_id")
  assert found.architecture.mask_id == mask and found.network.output_size == V
  want = reference(tensors, config, IDS)
  want = want if mask is None else np.delete(want, mask, axis=-1)
  got = answered(logits_of(found.network, found.params, causal), mask)
  assert np.abs(want).max() > 0.5
  np.testing.assert_allclose(got, want, atol=2e-5)
  mutant = logits_of(found.network.like(**MUTANTS[name]), found.params, causal)
  assert np.abs(answered(mutant, mask) - want).max() > 1e-4
  write(tmp_path / "out", found.family, found.architecture, found.params)
  written = load_file(tmp_path / "out" / "model.safetensors")
  prefix = "transformer." if name == "gpt2" else ""
  assert {key.removeprefix(prefix) for key in written} == set(tensors)
  for key, value in written.items() if found.family.folding is None else ():
    np.testing.assert_array_equal(value, tensors[key.removeprefix(prefix)], key)
  again = read(tmp_path / "out", noise_id=found.noise_id)
  assert again.architecture == found.architecture and again.family is found.family
  jax.tree.map(np.testing.assert_array_equal, again.params, found.params)


@pytest.mark.parametrize("name", [name for name in CASES if "longer" not in name])
def test_logits_in_bfloat16(name, tmp_path):
  """Weights of bfloat16: computed in float32, logits are those of the rounded weights to 2e-5, and
  not to 1e-3 those of the weights before. Computed in bfloat16, their error has 2.5 % of the size
  of the logits, and more than all of it with the layers in another order."""
  config, shapes, reference, causal = CASES[name]
  whole, mask = random_tensors(shapes), config.get("mask_token_id")
  tensors = checkpoint(tmp_path, name, rounded(whole))
  found = read(tmp_path)
  want, before = reference(tensors, config, IDS), reference(whole, config, IDS)
  if mask is not None:
    want, before = np.delete(want, mask, axis=-1), np.delete(before, mask, axis=-1)
  got = answered(logits_of(found.network, found.params, causal), mask)
  np.testing.assert_allclose(got, want, atol=2e-5)
  assert np.abs(got - before).max() > 1e-3
  network = found.network.like(dtype="bfloat16")
  flipped = jax.tree.map(lambda leaf: leaf[::-1], found.params["blocks"])
  wrong = found.params | {"blocks": flipped}
  for params, least, most in ((found.params, 1e-3, 0.025), (wrong, 1.0, np.inf)):
    got = answered(logits_of(network, params, causal), mask)
    assert least < np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2)) < most


def test_what_the_last_rounding_to_bfloat16_costs(tmp_path):
  """Features of float32 that are rounded once move logits by more than 1e-3, so that no network
  which computes in bfloat16 comes that near."""
  checkpoint(tmp_path, "qwen2")
  found = read(tmp_path)
  features, logits = map(np.asarray, program(found.network, True)(found.params))
  head = found.params["head"]["kernel"]
  np.testing.assert_allclose(features @ head, logits, atol=1e-5)
  once = features.astype(ml_dtypes.bfloat16).astype(np.float32) @ head
  assert 1e-3 < np.abs(once - logits).max() < 1e-2


def test_what_a_process_reads_in_place_of_a_token_is_the_mask(tmp_path):
  """Row V of the table is the mask's, or that of the token which begins texts; written again, it is
  the mask's."""
  checkpoint(tmp_path / "llada", "llada")
  checkpoint(tmp_path / "llama", "llama")
  masked, plain = read(tmp_path / "llada"), read(tmp_path / "llama")
  for found, token in ((masked, 30), (plain, 1)):
    table = found.params["embedding"]
    assert table.shape[0] == V + 1 and found.noise_id == token
    np.testing.assert_array_equal(table[V], table[token])
  masked.params["embedding"][V] += 1
  plain.params["embedding"][V] += 1
  write(tmp_path / "a", masked.family, masked.architecture, masked.params)
  write(tmp_path / "b", plain.family, plain.architecture, plain.params)
  trained, same = read(tmp_path / "a"), read(tmp_path / "b")
  np.testing.assert_array_equal(trained.params["embedding"][30], masked.params["embedding"][V])
  np.testing.assert_array_equal(same.params["embedding"][1], plain.params["embedding"][1])


def test_shards_and_half_precision(tmp_path):
  """Several files with an index hold the same; numbers of float16 and bfloat16 are read as they
  are."""
  tensors = checkpoint(tmp_path / "one", "qwen2")
  found = read(tmp_path / "one")
  files = write(
    tmp_path / "many", found.family, found.architecture, found.params, shard_bytes=10_000
  )
  assert len(files) > 4 and files[-1].name == "model.safetensors.index.json"
  jax.tree.map(
    np.testing.assert_array_equal, read(tmp_path / "many", noise_id=1).params, found.params
  )
  for dtype in (np.float16, ml_dtypes.bfloat16):
    folder = tmp_path / np.dtype(dtype).name
    half = {name: value.astype(dtype) for name, value in tensors.items()}
    checkpoint(folder, "qwen2", half)
    head = read(folder).params["head"]["kernel"]
    np.testing.assert_array_equal(head.T, half["lm_head.weight"].astype(np.float32))
  (tmp_path / "many" / files[2].name).unlink()
  with pytest.raises(ValueError, match=r"lists model-.*which is not there; is the download"):
    read(tmp_path / "many")


def test_buffers_and_prefixes_of_older_files(tmp_path):
  """Masks, tied heads, position ids and poolers are no weights; a prefix may be missing."""
  tensors = checkpoint(tmp_path / "gpt2", "gpt2")
  more = {"h.0.attn.bias": np.ones((1, 1, 4, 4), np.uint8), "lm_head.weight": tensors["wte.weight"]}
  checkpoint(tmp_path / "old", "gpt2", tensors | more)
  old = read(tmp_path / "old")
  assert old.unread == ("h.0.attn.bias", "lm_head.weight")
  jax.tree.map(np.testing.assert_array_equal, old.params, read(tmp_path / "gpt2").params)
  bert = checkpoint(tmp_path / "bert", "bert")
  bare = {k.removeprefix("bert."): v for k, v in bert.items() if not k.startswith("cls.")}
  bare["pooler.dense.weight"] = np.ones((4, 4), np.float32)
  bare["embeddings.position_ids"] = np.arange(4)[None]
  checkpoint(tmp_path / "encoder", "bert", bare)
  encoder = read(tmp_path / "encoder")
  assert not encoder.network.head_transform and not encoder.network.has_head_bias
  np.testing.assert_array_equal(
    encoder.params["blocks"]["mlp"]["up"]["kernel"],
    read(tmp_path / "bert").params["blocks"]["mlp"]["up"]["kernel"],
  )


def test_blocks_are_those_of_the_same_network_without_time(tmp_path):
  """BD3-LM reads in blocks; with time it is refused, and tensors of another width are named."""
  checkpoint(tmp_path / "a", "mdlm", model_type="bd3lm", block_size=4, time_conditioning=True)
  with pytest.raises(ValueError, match="model_type='bd3lm' sets time_conditioning=True; with"):
    read(tmp_path / "a")
  checkpoint(tmp_path / "b", "mdlm", model_type="bd3lm", block_size=4)
  found = read(tmp_path / "b")
  assert found.family.reads == "blocks" and found.architecture.mask_id == V - 1
  checkpoint(tmp_path / "c", "mdlm", cond_dim=5)
  with pytest.raises(ValueError, match=r"sigma_map.mlp.0.weight is \[6, 256\], and .* \[5, 256\]"):
    read(tmp_path / "c")


def without(tensors, name):
  return {key: value for key, value in tensors.items() if key != name}


NORM = "model.layers.1.mlp.up_proj.weight"
BAD = {
  "missing": (lambda t: without(t, NORM), {}, rf"lacks the tensor {NORM} \(1 of 20 are missing"),
  "extra": (
    lambda t: t | {"model.layers.0.self_attn.q_proj.bias": np.ones(32, np.float32)},
    {},
    r"holds model.layers.0.self_attn.q_proj.bias \[32\], which nothing here reads",
  ),
  "reshaped": (
    lambda t: t,
    {"intermediate_size": 40},
    r"\[48, 32\], and .* makes it \[40, 32\]",
  ),
  "dtype": (
    lambda t: t | {NORM: np.ones((48, 32), np.int8)},
    {},
    f"{NORM} has dtype I8, and weights are read as F32",
  ),
  "unknown family": (lambda t: t, {"model_type": "mamba"}, "model_type='mamba', which is not read"),
  "wrong family": (lambda t: t, {"model_type": "llada"}, "of model_type='llada' lacks 'n_heads'"),
  "another family": (
    lambda t: t,
    {"model_type": "qwen3"},
    r"lacks the tensor model.layers.0.self_attn.q_norm.weight",
  ),
  "no network": (
    lambda t: t,
    {"num_key_value_heads": 3},
    "what config.json says makes no network: kv_heads=3 must divide heads=4",
  ),
  "scaling": (
    lambda t: t,
    {"rope_scaling": {"type": "longrope"}},
    "rotary positions by rope_type='longrope', which the transformer here does not do; it reads",
  ),
  "scaling by layer": (
    lambda t: t,
    {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
    "gives full_attention=.* to rope_type='default', which has the keys factor; remove it",
  ),
  "no factor": (
    lambda t: t,
    {"rope_scaling": {"rope_type": "linear"}},
    "lacks 'factor' of rope_type='linear'; is the file complete",
  ),
  "no bound": (
    lambda t: t,
    {
      "max_position_embeddings": 8,
      "rope_scaling": {"rope_type": "llama3", "factor": 8, "high_freq_factor": 4},
    },
    "lacks 'low_freq_factor' of rope_type='llama3'",
  ),
  "no length": (
    lambda t: t,
    {"rope_scaling": {"rope_type": "yarn", "factor": 8}},
    "lacks 'max_position_embeddings'; is it the config",
  ),
  "a factor that is too small": (
    lambda t: t,
    {"rope_scaling": {"rope_type": "linear", "factor": 0.5}},
    "what config.json says makes no network: .*greater than or equal to 1",
  ),
  "a part of each head": (
    lambda t: t,
    {"partial_rotary_factor": 0.5},
    "sets partial_rotary_factor=0.5, which the transformer here does not do",
  ),
  "window": (lambda t: t, {"sliding_window": 8}, "sliding_window=8, which the transformer"),
  "layers": (
    lambda t: t,
    {"model_type": "mistral", "sliding_window": 8, "layer_types": ["sliding_attention"]},
    r"layer_types=\['sliding_attention'\] for 2 layers; give one of",
  ),
  "a kind of layer": (
    lambda t: t,
    {"model_type": "mistral", "sliding_window": 8, "layer_types": ["linear_attention"] * 2},
    "give one of 'sliding_attention' and 'full_attention' for each layer",
  ),
}


@pytest.mark.parametrize("case", BAD)
def test_checkpoints_that_do_not_fit_are_refused(case, tmp_path):
  change, config, match = BAD[case]
  tensors = checkpoint(tmp_path, "llama")
  checkpoint(tmp_path, "llama", change(tensors), **config)
  with pytest.raises(ValueError, match=match) as raised:
    read(tmp_path)
  assert "\n" not in str(raised.value)


def options_of(folder, kind, **changes):
  """Our options of a checkpoint of a kind with these keys in its config."""
  checkpoint(folder, kind, **changes)
  return read(folder).architecture.options


def test_slowed_positions_by_other_keys(tmp_path):
  """Newer files hold rope_parameters; YaRN may lack its factor, or have two scales instead of a
  gain; dynamic scaling goes by the longest row, whatever else is said; a window for no layer is
  none, and Dream has none."""
  newer = {"rope_type": "linear", "factor": 3.0, "rope_theta": 700.0}
  options = options_of(tmp_path / "a", "llama", rope_parameters=newer, rope_theta=None)
  assert options["rope_base"] == 700.0 and options["rope_factor"] == 3.0
  yarn = {"rope_type": "yarn", "original_max_position_embeddings": 8, "mscale": 2.0}
  yarn |= {"mscale_all_dim": 1.0, "truncate": False}
  more = {"rope_scaling": yarn, "max_position_embeddings": 32}
  options = options_of(tmp_path / "b", "llama", **more)
  _, gain = slowed_rates({"rope_theta": 500.0, "rope_scaling": yarn | {"factor": 4.0}}, 8, 11)
  assert options["rope_factor"] == 4.0 and not options["rope_whole_pairs"]
  assert options["rope_gain"] == pytest.approx(gain) and gain > 1.1
  dynamic = {"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 8}
  more = {"rope_scaling": dynamic, "max_position_embeddings": 32}
  assert options_of(tmp_path / "e", "llama", **more)["rope_trained_length"] == 32
  qwen = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}
  assert "window" not in options_of(tmp_path / "c", "qwen2", **qwen)
  with pytest.raises(ValueError, match="use_sliding_window=True, which the transformer here"):
    options_of(tmp_path / "d", "Dream", **qwen)


def test_what_mistral_cannot_say_is_refused(tmp_path):
  """Windows in some layers, which its config.json has no word for that other code reads."""
  config = {"layer_types": ["full_attention", "sliding_attention"]}
  checkpoint(tmp_path / "a", "mistral, longer rows", **config)
  found = read(tmp_path / "a")
  assert found.architecture.options["full_layers"] == (0,)
  with pytest.raises(ValueError, match=r"'llama' cannot write .* full_layers=\(0,\)"):
    write(tmp_path / "b", found.family, found.architecture, found.params)


def test_files_that_cannot_be_read_are_refused(tmp_path):
  """One line each, with the fix: truncated, pickled (by name and content), no JSON, not there."""
  checkpoint(tmp_path / "a", "llama")
  path = tmp_path / "a" / "model.safetensors"
  whole = path.read_bytes()
  cases = {
    "is no whole safetensors file .*; is the download complete": whole[:-7],
    "is a torch pickle, .* convert it: python -c": b"PK\x03\x04" + whole,
  }
  for match, content in cases.items():
    path.write_bytes(content)
    with pytest.raises(ValueError, match=match) as raised:
      read(tmp_path / "a")
    assert "\n" not in str(raised.value)
  path.rename(tmp_path / "a" / "pytorch_model.bin")
  with pytest.raises(ValueError, match=r"pytorch_model.bin is a torch pickle") as raised:
    read(tmp_path / "a")
  program = str(raised.value).split('python -c "')[1].removesuffix('"')
  compile(program, "the command that converts it", "exec")
  (tmp_path / "a" / "pytorch_model.bin").unlink()
  with pytest.raises(ValueError, match=r"holds neither model.safetensors nor"):
    read(tmp_path / "a")
  path.write_bytes(whole)
  (tmp_path / "a" / "config.json").write_text("{")
  with pytest.raises(ValueError, match=r"config.json holds no JSON"):
    read(tmp_path / "a")
  with pytest.raises(ValueError, match="nowhere is not there; give a folder"):
    read(tmp_path / "nowhere")


def test_what_a_family_cannot_write_is_refused(tmp_path):
  checkpoint(tmp_path / "a", "llama")
  found = read(tmp_path / "a")
  changed = found.architecture._replace(options=found.architecture.options | {"norm": "layernorm"})
  with pytest.raises(
    ValueError, match=r"'llama' cannot write .* norm='layernorm' \(it writes 'rms"
  ):
    write(tmp_path / "b", FAMILIES["llama"], changed, found.params)
  with pytest.raises(ValueError, match="is there already; write to another folder"):
    write(tmp_path / "a", found.family, found.architecture, found.params)
