"""GGUF files: the same network as in safetensors, its permuted queries and keys put back."""

import numpy as np
import pytest

pytest.importorskip("gguf", reason="needs the package gguf (extra: pretrained)")

import gguf

from diffusion_text.model.pretrained import read
from diffusion_text.model.pretrained.gguf_weights import GGUF, NAMES
from tests.model.pretrained.families_test import IDS, logits_of
from tests.model.pretrained.reference import CASES, GROUPS, HEADS, D, V, llama, random_tensors

OURS = {theirs: ours for ours, theirs in NAMES.items()}


REFUSED = {  # metadata -> what is said
  ("rope.scaling.attn_factor", 0.5): r"llama.rope.scaling.attn_factor=0.5, .* and only 1 is; take",
  ("attention.sliding_window", 16): "sliding_window=16, which the transformer here does not do",
  (
    "rope.dimension_count",
    4,
  ): f"rope.dimension_count=4, .* and only {D // HEADS} is; take the safe",
  ("attention.causal", False): "llama.attention.causal=False, which is not read and only True is",
  ("logit_scale", 2.0): "llama.logit_scale=2.0, which is not read; take the safetensors",
}


def file_name(name):
  """model.layers.3.mlp.up_proj.weight -> blk.3.ffn_up.weight, and others as they are."""
  if name == "rope_freqs.weight":
    return name
  base, _, kind = name.rpartition(".")
  parts = base.split(".")
  if "layers" in parts:
    return f"blk.{parts[2]}.{OURS['.'.join(parts[3:])]}.{kind}"
  return f"{OURS[base]}.{kind}"


def permuted(values, heads):
  """Rows of a head from halves to neighbours, as files of the architecture llama have them."""
  half = values.shape[0] // heads // 2
  return values.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(values.shape)


def written(path, kind, tensors, quantised=(), more=lambda writer: None):
  """A GGUF file of a random checkpoint; `more` adds metadata."""
  config, _, _, _ = CASES[kind]
  writer = gguf.GGUFWriter(path, kind)
  writer.add_embedding_length(D)
  writer.add_block_count(config["num_hidden_layers"])
  writer.add_head_count(HEADS)
  writer.add_head_count_kv(GROUPS)
  writer.add_feed_forward_length(config["intermediate_size"])
  writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
  writer.add_rope_freq_base(config["rope_theta"])
  writer.add_bos_token_id(1)
  more(writer)
  for name, values in tensors.items():
    if kind == "llama" and name.split(".")[-2] in ("q_proj", "k_proj"):
      values = permuted(values, HEADS if "q_proj" in name else GROUPS)
    if name in quantised:
      packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
      writer.add_tensor(file_name(name), packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    else:
      writer.add_tensor(file_name(name), values)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def test_a_gguf_file_is_the_same_network(tmp_path, monkeypatch):
  """Logits of the family's formula, to 2e-5; not where queries and keys stay permuted."""
  config, shapes, _, _ = CASES["llama"]
  tensors = random_tensors(shapes)
  written(tmp_path / "a.gguf", "llama", tensors)
  found = read(tmp_path / "a.gguf")
  want = llama(tensors, config, IDS)
  np.testing.assert_allclose(logits_of(found.network, found.params, True), want, atol=2e-5)
  monkeypatch.setattr(GGUF, "_order", lambda self, name: None)
  mutant = read(tmp_path)
  assert np.abs(logits_of(mutant.network, mutant.params, True) - want).max() > 1e-2


def test_other_architectures_and_quantised_tensors(tmp_path):
  """Qwen2 is not permuted, has biases and a head; a tensor in 8 bits is what it stands for."""
  _, shapes, _, _ = CASES["qwen2"]
  tensors = random_tensors(shapes)
  name = "model.layers.1.self_attn.k_proj.weight"
  written(tmp_path / "b.gguf", "qwen2", tensors, quantised=(name,))
  params = read(tmp_path / "b.gguf").params
  blocks = params["blocks"]["attention"]
  for ours, theirs in (("query", "q_proj"), ("value", "v_proj")):
    for layer in (0, 1):
      part = tensors[f"model.layers.{layer}.self_attn.{theirs}.weight"]
      np.testing.assert_array_equal(blocks[ours]["kernel"][layer], part.T)
  assert 0 < np.abs(blocks["key"]["kernel"][1] - tensors[name].T).max() < 0.01
  np.testing.assert_array_equal(params["head"]["kernel"], tensors["lm_head.weight"].T)


def test_files_that_are_not_whole_or_of_another_network_are_refused(tmp_path):
  _, shapes, _, _ = CASES["llama"]
  written(tmp_path / "a.gguf", "llama", random_tensors(shapes))
  whole = (tmp_path / "a.gguf").read_bytes()
  (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
  (tmp_path / "mamba.gguf").write_bytes(whole.replace(b"llama", b"mamba"))
  (tmp_path / "text.gguf").write_bytes(b"some text that is no model")
  for name, match in (
    ("cut", r"cut.gguf is no whole GGUF file .*; is the download complete"),
    ("mamba", "holds a network of architecture 'mamba'; those that are read are llama"),
    ("text", r"text.gguf is no whole GGUF file"),
  ):
    with pytest.raises(ValueError, match=match) as raised:
      read(tmp_path / f"{name}.gguf")
    assert "\n" not in str(raised.value)


def test_slowed_positions_and_windows_in_the_metadata(tmp_path):
  """The type, factor and length are read; what would change the network unsaid is refused."""
  tensors = random_tensors(CASES["llama"][1])
  yarn = {"type": "yarn", "factor": 4.0, "original_context_length": 64}
  yarn = {f"rope.scaling.{key}": value for key, value in yarn.items()}

  def with_metadata(said, more=None):
    def add(writer):
      for key, value in said.items():
        kind = {int: writer.add_uint32, float: writer.add_float32, bool: writer.add_bool}
        kind.get(type(value), writer.add_string)(f"llama.{key}", value)

    path = tmp_path / "a.gguf"
    written(path, "llama", tensors | (more or {}), more=add)
    return path

  def options(said):
    return read(with_metadata(said)).architecture.options

  found = options(yarn | {"rope.scaling.yarn_beta_fast": 16.0, "rope.dimension_count": D // HEADS})
  assert (found["rope_kind"], found["rope_factor"]) == ("yarn", 4.0)
  assert found["rope_trained_length"] == 64 and found["rope_fast_turns"] == 16
  assert found["rope_gain"] == pytest.approx(1.1386, 1e-4)
  for linear in ({"rope.scaling.factor": 2.0}, {"rope.scale_linear": 2.0}):
    found = options(linear)
    assert (found["rope_kind"], found["rope_factor"]) == ("linear", 2.0), "as without a type"
  for plain in ({"rope.scaling.type": "none", "rope.scaling.factor": 2.0}, {"vocab_size": V}):
    assert options(plain).get("rope_kind", "plain") == "plain"
  for said, match in REFUSED.items():
    with pytest.raises(ValueError, match=match) as raised:
      read(with_metadata(yarn | dict([said])))
    assert "\n" not in str(raised.value)
  ratios = {"rope_freqs.weight": np.ones(D // HEADS // 2, np.float32)}
  with pytest.raises(
    ValueError, match=r"by its tensor rope_freqs\.weight, which is not read; take"
  ):
    read(with_metadata({}, ratios))
