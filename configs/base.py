"""Sizes, and the sections that all systems share. A config file says only what differs from this.

`base.config(size)` gives the defaults. A section is {"name": …} and the options of that choice; an
option that is not set has the default of its class. Any option can be set on the command line, even
one that no file mentions:

  python -m experiments.train --config=configs/mdlm.py --config.train.steps=100 --workdir=runs/mdlm

The meaning, the default and the range of every option of a choice are printed by

  python -m experiments.inspect --options=process.embedding

Where a file names no number of sampler.steps it is 64, for a laptop; samples of masked and uniform
systems are mostly published at 1000 calls or more.

`owns` lists the sections and keys that make a system what it is: `experiments.compare` takes these
from the system's config, and everything else from one base, so that systems are compared on equal
terms.
"""

import difflib

from ml_collections import ConfigDict

# name: (layers, width, heads, kv_heads, mlp_width, activation, learning rate).
# The comments count parameters without embeddings.
SIZES = {
  "micro": (2, 64, 2, 2, 256, "gelu", 3e-3),  #            0.1 M, for tests
  "tiny": (6, 256, 4, 4, 1024, "gelu", 2e-3),  #           4.7 M, a laptop CPU
  "small": (12, 768, 12, 12, 3072, "gelu", 3e-4),  #        85 M, the field's standard
  "medium": (24, 1024, 16, 16, 4096, "gelu", 3e-4),  #     302 M
  "1b": (24, 2048, 16, 8, 7168, "swiglu", 2e-4),  #        1.4 B
  "8b": (32, 4096, 32, 8, 14336, "swiglu", 1e-4),  #       7.0 B
}


def config(size: str = "tiny") -> ConfigDict:
  """All defaults, for a network of this size. Raises ValueError for an unknown size."""
  size = size or "tiny"
  if size not in SIZES:
    near = difflib.get_close_matches(size, SIZES, n=1)
    hint = f"did you mean {near[0]!r}? Use" if near else "use"
    raise ValueError(
      f"size {size!r} is unknown; {hint} one of {', '.join(SIZES)}, as in"
      " --config=configs/mdlm.py:tiny"
    )
  layers, width, heads, kv_heads, mlp_width, activation, learning_rate = SIZES[size]
  large = size not in ("micro", "tiny")
  c = ConfigDict()
  c.seed = 0  # of parameters, data order, noise and dropout
  c.owns = ("process", "timing", "context", "objective", "reader", "sampler")

  c.data = ConfigDict({"corpus": "austen", "tokenizer": "characters", "length": 256})
  c.process = ConfigDict({"name": "masked"})
  c.timing = ConfigDict({"name": "shared"})
  c.context = ConfigDict({"name": "full"})
  c.objective = ConfigDict({"name": "bound"})
  c.reader = ConfigDict({"name": "whole_row"})
  c.sampler = ConfigDict({"name": "grid"})
  c.model = ConfigDict(
    {
      "name": "transformer",
      "layers": layers,
      "width": width,
      "heads": heads,
      "kv_heads": kv_heads,  # fewer than heads: grouped-query attention
      "mlp_width": mlp_width,
      "activation": activation,
      # Of matmuls; parameters, logits and losses are float32.
      "dtype": "bfloat16" if large else "float32",
      "remat": "full" if size in ("1b", "8b") else "none",
      "chunk": 2048 if large else 256,  # positions whose logits exist at a time, per device
    }
  )
  # adamw, whose rate this is; optimizer.name chooses lion, muon or schedule_free.
  c.optimizer = ConfigDict({"learning_rate": learning_rate})
  c.train = ConfigDict(
    {
      "steps": 1_000_000 if large else 10_000,
      "batch_size": 512 if large else 32,
      "ema_decay": 0.9999 if large else 0.999,
      "log_every": 100 if large else 10,
      "evaluate_every": 5_000 if large else 1_000,
      "save_every": 5_000 if large else 500,
    }
  )
  c.mesh = ConfigDict({"fsdp": -1})  # devices per axis; -1 takes what is left
  c.evaluate = ConfigDict({"batch_size": 512 if large else 32})
  return c


def own(c: ConfigDict, *keys: str) -> None:
  """Adds sections or keys, as in model.time_conditioning, to what the system owns."""
  c.owns = (*c.owns, *keys)


def time_conditioned(c: ConfigDict, how: str = "adaln") -> None:
  """The network reads the time of each token."""
  c.model.time_conditioning = how
  own(c, "model.time_conditioning")


def self_conditioned(c: ConfigDict, probability: float, how: str = "add") -> None:
  """The network reads its own last prediction.

  In training each row does so with this probability; in sampling every call does.
  """
  c.model.self_conditioning = how
  c.train.self_conditioning = probability
  c.reader = ConfigDict({"name": "self_conditioned", "reader": c.reader.to_dict()})
  own(c, "model.self_conditioning", "train.self_conditioning")
