"""Train, compare and decode every kind of text diffusion.

One transformer, one trainer, one likelihood, one sampling loop:

  import diffusion_text as dt

The public names below are imported when they are first used, so that `import diffusion_text` is
quick.
"""

from __future__ import annotations

import importlib
from typing import Any

# Public name -> module, and the name in it where that differs.
_PUBLIC = {
  # contracts
  "Batch": "types",
  "DataFacts": "types",
  "Model": "types",
  "Progress": "types",
  # processes and schedules
  "Masked": "process.masked",
  "Uniform": "process.uniform",
  "Mixed": "process.mixed",
  "TokenMasked": "process.token_masked",
  "Embedding": "process.embedding",
  "Simplex": "process.simplex",
  # timings and contexts
  "Shared": "timing",
  "Slanted": "timing",
  "AtNoise": "timing",
  "Full": "context",
  "Causal": "context",
  "Blocks": "context",
  "NextToken": "context",
  # the network
  "Transformer": "model",
  # objectives
  "Bound": "objective",
  "CrossEntropy": "objective",
  # readers and samplers
  "WholeRow": "reader.whole_row",
  "Cached": "reader.cached",
  "ClassifierFree": "reader.classifier_free",
  "SelfConditioned": "reader.self_conditioned",
  "Grid": "sampler.grid",
  "Reveal": "sampler.reveal",
  "EvenShare": "sampler.budget",
  # what to do with them
  "init": "experiment.build",
  "loss": "experiment.build",
  "build": "experiment.build",
  "nats": "objective.engine",
  "sample": "sampler.loop",
  "stream": "sampler.host",
  "film": "experiment.film",
  "fit": "experiment.api",
  "text_data": "experiment.api",
  "TextData": "experiment.api",
  "score": "experiment.api",
}

__all__ = sorted(_PUBLIC)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
  if name not in _PUBLIC:
    known = ", ".join(__all__)
    raise AttributeError(f"diffusion_text has no public name {name!r}; it has {known}")
  value = getattr(importlib.import_module(f"diffusion_text.{_PUBLIC[name]}"), name)
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  return __all__
