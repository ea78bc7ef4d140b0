"""The table of decoders: every line can be made, and what is written is what was measured."""

import json

import pytest

from diffusion_text.context import Full
from diffusion_text.contrib.decoders import DECODERS
from diffusion_text.process.masked import Masked
from diffusion_text.studies import decoders
from diffusion_text.testing import ExactNetwork
from diffusion_text.timing import Shared
from diffusion_text.types import Model


def test_every_line_can_be_made():
  process = Masked(vocab_size=24)
  model = Model(ExactNetwork(process), process, Shared(), Full())
  found = list(decoders.decoders(decoders.Settings()))
  for _, _, sampler, _, _ in found:
    sampler.check(model)
    assert sampler.temperature == 1
  assert len({(name, options) for name, options, *_ in found}) == len(found)
  left_out = set(DECODERS) - set(decoders.KNOBS)
  # Of uniform noise, of a second model or layer, greedy, or a cache that changes no choice.
  assert left_out == {
    *("renoise_cap", "renoise_loop", "edits", "canvas", "edlm", "look_ahead", "llada"),
    *("free_cache", "dkv_cache", "dkv_cache_greedy", "dllm_cache", "dllm_by_layer"),
    "d2_cache",
    *("adaptive_guidance", "joint", "speculative", "bigram_drafts", "guided"),
  }


def test_a_table_is_written(tmp_path, monkeypatch):
  monkeypatch.setattr(decoders, "KNOBS", {"ancestral": [{"steps": 3}]})
  monkeypatch.setattr(decoders.jax, "clear_caches", lambda: None)  # other tests need them
  settings = decoders.Settings(layers=1, width=32, steps=2, rows=8)
  text = decoders.run("branchy", settings, tmp_path)
  kept = json.loads((tmp_path / "branchy.json").read_text())
  names = [line["name"] for line in kept["lines"]]
  assert names == ["data", "ancestral", decoders.DRAWN, decoders.DRAWN]
  data, ancestral, *_ = kept["lines"]
  assert data["quality"]["invalid"] == 0
  assert ancestral["quality"]["invalid"] > 0.5 and ancestral["calls"] == 3
  assert (tmp_path / "branchy.md").read_text() == text + "\n" and text.count("\n") == 5
  with pytest.raises(ValueError, match="chain='phrases' is unknown"):
    decoders.run("phrases", settings, tmp_path)
