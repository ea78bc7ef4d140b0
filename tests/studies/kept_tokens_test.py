"""Weights with the tokens of a text alone: the same text, the same logits, smaller tables. Files of
them: convert_test.py."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

pytest.importorskip("safetensors", reason="needs the package safetensors (extra: pretrained)")
pytest.importorskip("tokenizers", reason="needs the package tokenizers (extra: pretrained)")

from diffusion_text.data.fewer_tokens import used_tokens
from diffusion_text.data.tokenizer_json import load_tokenizer
from diffusion_text.model.pretrained import read
from diffusion_text.studies import export
from diffusion_text.studies.kept_tokens import kept_tokens, renumbered
from diffusion_text.testing.small_transformer import rows_of
from diffusion_text.types import Inputs
from tests.studies.convert_test import V, checkpoint, words  # noqa: F401  (fixtures)

LINE = "It was the best of times"


def logits_of(found, ids):
  network = found.network.like(attention=("xla",), scan_layers=False)
  return np.asarray(
    jax.jit(lambda params: network.apply(params, rows_of(Inputs(ids))).logits)(found.params)
  )


@pytest.mark.parametrize("kind", ["llada", "llama"])
def test_logits_of_the_tokens_that_stay_are_what_they_were(kind, checkpoint):  # noqa: F811
  """With a mask in the vocabulary and a head of its own, and with neither; rows in another order
  are noticed."""
  folder = checkpoint(kind)[0]
  before, tokenizer = read(folder, noise_id=1), load_tokenizer(folder, size=V)
  used = used_tokens(tokenizer, [LINE])
  fewer, old, architecture, params = kept_tokens(
    tokenizer, used, before.architecture, before.params
  )
  after = before._replace(architecture=architecture, params=params)
  assert len(old) == architecture.vocab_size < V and params["embedding"].shape == (len(old) + 1, 32)
  ids = fewer.encode(LINE)[None]
  lost = np.concatenate([ids[:, :3], [[len(old)]]], axis=1)  # row V, for a lost token
  full = logits_of(before, np.concatenate([old[ids[:, :3]], [[V]]], axis=1))[..., old]
  np.testing.assert_allclose(logits_of(after, lost), full, atol=1e-5)
  np.testing.assert_array_equal(old[ids], tokenizer.encode(LINE)[None])
  if kind == "llada":
    assert old[architecture.mask_id] == before.architecture.mask_id
  params = {**params, "embedding": np.roll(params["embedding"], 1, axis=0)}
  assert np.abs(logits_of(after._replace(params=params), lost) - full).max() > 1e-2


def test_a_mask_without_a_task_stays(checkpoint):  # noqa: F811
  """A token like any other that a text does not need, which noise has become."""
  folder = checkpoint("llama")[0]
  before, tokenizer = read(folder, noise_id=1), load_tokenizer(folder, size=V)
  used = used_tokens(tokenizer, [LINE])
  _, old, _, _ = kept_tokens(tokenizer, used, before.architecture, before.params)
  gone = min(set(range(V)) - set(old.tolist()))
  masked = before.architecture._replace(mask_id=gone)
  _, old, architecture, _ = kept_tokens(tokenizer, used, masked, before.params)
  assert old[architecture.mask_id] == gone


def test_a_tokenizer_that_has_no_file_is_refused():
  bytes_alone = SimpleNamespace(tokenizer=SimpleNamespace(name="bytes"))
  said = r"keep_tokens_of=corpus needs a tokenizer.json, .* runs/a is of kind 'bytes'; leave"
  with pytest.raises(ValueError, match=said):
    export._used(bytes_alone, "corpus", "runs/a")


def test_ids_of_a_config_are_renumbered():
  """Of single tokens and of several; those that are gone are left out, and all else stays."""
  config = {"eos_token_id": [5, 9], "bos_token_id": 9, "pad_token_id": 4, "vocab_size": 5}
  said = renumbered(config, np.array([1, 5, 9], np.int32))
  assert said == {"eos_token_id": [1, 2], "bos_token_id": 2, "vocab_size": 5}
