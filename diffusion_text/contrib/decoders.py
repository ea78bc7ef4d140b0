"""Published decoders by name: each is a sampler, a reader and a size of windows, in the sections of
a config.

`experiments.sample --decoder=NAME` takes one, and `--decoder='?'` lists them. What a name stands
for is here in full, so that any option can be set beside it. Numbers are the published ones where a
source has them, some for rows of a thousand tokens and blocks of 32; `--steps` and `--block` change
them. What a decoder does, and what differs from the official code, is said by the classes that its
sections name, and in docs/decoding.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

Section = Mapping[str, Any]

# Stands in a section for the reader of a second model, which a command line gives by its workdir.
SCORER = "@scorer"


@dataclasses.dataclass(frozen=True)
class Decoder:
  """A decoder.

  Attributes:
    line: What it does, in a line.
    near: The decoder that it is nearest to, from which a test tells it.
    sampler: The section of the sampler.
    reader: A section of a reader. A reader of the network takes the place of the config's, inside
      of what guides or conditions; one that asks another reader is put around the config's. None:
      the config's own.
    block: Positions that are sampled together, left to right; None: the whole row.
  """

  line: str
  near: str
  sampler: Section
  reader: Section | None = None
  block: int | None = None

  @property
  def has_scorer(self) -> bool:
    """True if a second model scores."""
    return SCORER in str(self.sampler)


def _reveal(score: Any, budget: Any, **options: Any) -> Section:
  """The section of `reveal` at temperature 0."""
  return {"name": "reveal", "score": score, "budget": budget, "temperature": 0.0, **options}


def _remasking(strategy: str, **options: Any) -> Section:
  """The section of `remasking` with the nucleus of all its published runs."""
  return {"name": "remasking", "steps": 64, "top_p": 0.9, "strategy": strategy, **options}


def _renoising(strategy: str, **options: Any) -> Section:
  return {"name": "renoising", "steps": 64, "top_p": 0.9, "strategy": strategy, **options}


_LOOP = {"eta": 0.02, "loop": (0.55, 0.05, 0.9)}
_EVEN = {"name": "even_share", "steps": 64}
_SURE = {"name": "threshold", "least": 0.9}
_LLADA = _reveal("max_prob", _EVEN)
_FAST = _reveal("max_prob", _SURE)

DECODERS: dict[str, Decoder] = {
  # Steps down a grid of times, for every process.
  "ancestral": Decoder(
    "64 posterior steps; the model's own law as steps grow",
    "first_hitting",
    {"name": "grid", "steps": 64},
  ),
  "first_hitting": Decoder(
    "1000 posterior steps without those that change nothing: at most one call per token",
    "ancestral",
    {"name": "grid", "steps": 1000, "skip": True},
  ),
  "psi": Decoder(
    "posterior steps in which one token in 20 is guessed and noised again (Ψ-samplers)",
    "ancestral",
    {"name": "grid", "steps": 64, "kappa": 0.95},
  ),
  "remdm_cap": Decoder(
    "ReMDM: visible tokens are masked again with a small fixed probability",
    "ancestral",
    _remasking("cap", eta=0.04),
  ),
  "remdm_rescale": Decoder(
    "ReMDM: with a fixed share of the largest probability that keeps the marginals",
    "remdm_cap",
    _remasking("rescale", eta=0.04),
  ),
  "remdm_conf": Decoder(
    "ReMDM: tokens that were unlikely when they were drawn more often",
    "remdm_rescale",
    _remasking("conf"),
  ),
  "remdm_loop": Decoder(
    "ReMDM: steps at which a tenth of the tokens is masked and masking goes on",
    "remdm_cap",
    _remasking("cap", **_LOOP),
  ),
  "renoise_cap": Decoder(
    "ReMDM's cap for every process that loses tokens, by guesses that are noised again",
    "psi",
    _renoising("cap", eta=0.04),
  ),
  "renoise_loop": Decoder(
    "ReMDM's loop for every process that loses tokens",
    "renoise_cap",
    _renoising("cap", **_LOOP),
  ),
  # One token, or a number of tokens, per call.
  "one_by_one": Decoder(
    "a random token per call, drawn at temperature 1: exact but for the network's errors",
    "left_to_right",
    {"name": "reveal", "score": "random", "budget": "count"},
  ),
  "left_to_right": Decoder(
    "the next token per call, drawn at temperature 1",
    "one_by_one",
    {"name": "reveal", "score": "left_to_right", "budget": "count"},
  ),
  "maskgit": Decoder(
    "the most confident tokens, few at first and many at the end (a cosine)",
    "confidence",
    {"name": "reveal", "score": "max_prob", "budget": {"name": "quota", "steps": 16}},
  ),
  "confidence": Decoder(
    "the most confident tokens, an even share per call, greedily", "llada", _LLADA
  ),
  "llada": Decoder("the same in blocks of 32 (LLaDA)", "confidence", _LLADA, block=32),
  "dream": Decoder(
    "the tokens of least entropy, an even share per call, greedily (Dream)",
    "confidence",
    _reveal("entropy", _EVEN),
  ),
  "margin": Decoder(
    "the tokens whose best two candidates are furthest apart, greedily",
    "dream",
    _reveal("margin", _EVEN),
  ),
  "pc_sampler": Decoder(
    "confident tokens from left to right (PC-Sampler; without counts of a corpus)",
    "left_to_right",
    _reveal("calibrated", _EVEN),
  ),
  "density": Decoder(
    "confident tokens near visible ones (the order of d2Cache)",
    "confidence",
    _reveal("density", _EVEN),
  ),
  "ccd": Decoder(
    "least entropy of the mean over two calls (CCD)",
    "dream",
    _reveal({"name": "averaged", "calls": 2, "highest": 20}, _EVEN),
  ),
  # As many tokens per call as the predictions allow.
  "fast_dllm": Decoder(
    "every token whose best candidate has 0.9, in blocks of 32 (Fast-dLLM)",
    "llada",
    _FAST,
    block=32,
  ),
  "fast_dllm_factor": Decoder(
    "the longest list of confident tokens with (n + 1)(1 - c_n) < 1, in blocks of 32",
    "fast_dllm",
    _reveal("max_prob", "factor"),
    block=32,
  ),
  "entropy_bound": Decoder(
    "the tokens whose entropies but the largest add up to 0.1 nats (EB sampler)",
    "dream",
    {"name": "reveal", "score": "entropy", "budget": {"name": "entropy_bound", "gamma": 0.1}},
  ),
  "klass": Decoder(
    "tokens that are sure and have stood still for two calls (KLASS)",
    "fast_dllm",
    _reveal("max_prob", "stable"),
  ),
  "ccd_adaptive": Decoder(
    "every token that two calls rank high with the same candidate (CCD-DS)",
    "ccd",
    _reveal("entropy", "consistent"),
  ),
  "hierarchy": Decoder(
    "the best token of each run of masks, and all that have 0.9 (dInfer)",
    "fast_dllm",
    _reveal("max_prob", {"name": "any_of", "budgets": ["per_run", _SURE]}),
  ),
  "look_ahead": Decoder(
    "greedy one-by-one decoding; next steps are guessed and verified together (FreeDave)",
    "dream",
    {"name": "look_ahead", "depth": 4},
  ),
  # Tokens that are taken back or edited.
  "rcr": Decoder(
    "every call fills the row, and what was least sure goes back (RCR)",
    "confidence",
    _reveal(
      "max_prob",
      {"name": "even_share", "steps": 1},
      revise={"name": "running_confidence", "steps": 16},
    ),
  ),
  "wino": Decoder(
    "tokens that have 0.6; doubtful ones are checked without themselves and go back (WINO)",
    "fast_dllm",
    _reveal("max_prob", {"name": "threshold", "least": 0.6}, revise="verify"),
  ),
  "edits": Decoder(
    "tokens that have 0.95; visible ones are replaced where another has 0.9 (LLaDA 2.1)",
    "fast_dllm",
    _reveal("max_prob", {"name": "threshold", "least": 0.95}, revise="edit"),
    block=32,
  ),
  "canvas": Decoder(
    "each call chooses anew under an entropy bound, the rest is noise (DiffusionGemma)",
    "entropy_bound",
    {
      "name": "reveal",
      "score": "entropy",
      "budget": {"name": "entropy_bound", "gamma": 0.1},
      "revise": "reselect",
      "temperature": 0.8,
      "cooling": (0.4, 48),
    },
  ),
  # Caches: approximate for networks that see the whole row.
  "fast_dllm_prefix": Decoder(
    "fast_dllm; what stands before the block is read at its start only",
    "fast_dllm",
    _FAST,
    {"name": "suffix_cache"},
    block=32,
  ),
  "fast_dllm_dual": Decoder(
    "fast_dllm; what stands outside of the block is read at its start only",
    "fast_dllm_prefix",
    _FAST,
    {"name": "window_cache"},
    block=32,
  ),
  "free_cache": Decoder(
    "llada; finished blocks are never read again (FreeCache)",
    "fast_dllm_prefix",
    _LLADA,
    {"name": "suffix_cache", "prefix": "kept"},
    block=32,
  ),
  "dkv_cache": Decoder(
    "confidence; tokens are cached a call after they were committed (dKV-Cache)",
    "confidence",
    _LLADA,
    {"name": "delayed_cache", "queries": 128},
  ),
  "dkv_cache_greedy": Decoder(
    "a random order; tokens that come and go and their neighbours are read (dKV-Cache)",
    "dkv_cache",
    _reveal("random", _EVEN),
    {"name": "delayed_cache", "queries": 32, "every": 2, "near": 4},
  ),
  "dllm_cache": Decoder(
    "confidence; the quarter of a row whose values moved most is read (dLLM-Cache)",
    "dkv_cache",
    _LLADA,
    {"name": "similar_cache"},
  ),
  "dllm_by_layer": Decoder(
    "the same with a choice of tokens in every layer (dLLM-Cache)",
    "dllm_cache",
    _LLADA,
    {"name": "layer_cache"},
  ),
  "d2_cache": Decoder(
    "density; sure masks and the known tokens that are attended to most are read (d2Cache)",
    "density",
    _reveal("density", _EVEN),
    {"name": "roll_out_cache", "queries": 64},
  ),
  # Guidance by a prompt.
  "adaptive_guidance": Decoder(
    "confidence; guided by the prompt (scale 2) until both answers agree to 0.01",
    "confidence",
    _LLADA,
    {"name": "classifier_free", "scale": 2.0, "agree": 0.01},
  ),
  # Layers and orders that were trained for it.
  "joint": Decoder(
    "several tokens per call by one extra layer (ADJUST; after objective.name='joint_layer')",
    "one_by_one",
    {"name": "joint", "steps": 64},
  ),
  "speculative": Decoder(
    "five tokens are drafted, a second call checks them (ASSD; context.name='any_order')",
    "left_to_right",
    {"name": "speculative", "drafts": 5},
  ),
  "bigram_drafts": Decoder(
    "the same with drafts from bigrams of the row: one call checks them (ASSD)",
    "speculative",
    {"name": "context_bigrams", "drafts": 5},
    {"name": "unread"},
  ),
  # A second model.
  "guided": Decoder(
    "the greedy run of tokens that an autoregressive scorer would write too (Guided Diffusion)",
    "left_to_right",
    _reveal(
      "left_to_right",
      {"name": "diffusion_text.sampler.agreement:Agreement", "scorer": SCORER},
    ),
  ),
  "edlm": Decoder(
    "posterior steps; of 8 candidate rows an autoregressive scorer chooses (EDLM)",
    "ancestral",
    {"name": "diffusion_text.contrib.energy:Energy", "steps": 32, "scorer": SCORER},
  ),
}
