"""What both sides of the comparison are given: sizes, token counts, a batch, parameters.

`freeze.py` reads this file beside the old code and `frozen_test.py` beside the present one, so it
imports neither.
"""

import zlib

import numpy as np

# [B, L, V] of types.py.
ROWS, LENGTH, VOCABULARY = 4, 16, 11
CHUNK = 8  # positions whose logits exist at a time
NETWORK = {
  "layers": 2,
  "width": 32,
  "heads": 2,
  "kv_heads": 2,
  "mlp_width": 64,
  "time_width": 16,
}
EXPERTS = {"experts": 4, "expert_width": 32}
FIRST_STAGE_LAYERS = 1
VECTOR_WIDTH = 8  # numbers of a diffusion vector
BLOCK = 4  # positions of a block of the context, or of a wave of times
APPENDED = 1  # masks after a row: with at most one, their number is no draw
REWARD_WEIGHT = 1e-12  # it leaves nothing of the reward, whose rows are drawn inside
# A config whose path is learned is frozen a second time, on a fixed path of the same window.
FIXED_PATH = {"plaid_fixed": "plaid", "cdcd_fixed": "cdcd"}


def corpus_counts() -> np.ndarray:
  """[V]: what stands for the token counts of a corpus, with ties and a token that never occurs."""
  return np.array([40, 25, 25, 13, 8, 8, 5, 3, 2, 1, 0])


def texts() -> dict[str, np.ndarray]:
  """ids, given, weights and segment of the batch, [B, L] each.

  Rows 0 and 2 have given tokens, row 2 holds two documents, row 3 ends in padding, and row 1 is
  plain.
  """
  shape = (ROWS, LENGTH)
  ids = np.random.default_rng(1).integers(0, VOCABULARY, shape).astype(np.int32)
  given, segment = np.zeros(shape, bool), np.zeros(shape, np.int32)
  weights = np.ones(shape, np.float32)
  given[0, :3] = given[2, 9:11] = True
  segment[2, 9:] = 1
  weights[3, 12:] = 0.0
  segment[3, 12:] = 2
  return {"ids": ids, "given": given, "weights": weights, "segment": segment}


def leaf_name(path) -> str:
  """The name "network/blocks/attention/query/kernel" of a path that jax gives to a leaf."""
  return "/".join(str(part.key) for part in path)


def leaf_value(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """The float32 value of a free parameter, from its name and shape alone."""
  normal = np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape)
  mean, std = 0.0, 0.3
  if name.endswith("/scale"):  # of norms
    mean, std = 1.0, 0.1
  elif name == "process/embedding":
    std = 1.0
  elif name == "process/power":
    mean = 0.5
  elif name == "timing/size":
    std = 0.03
  return (mean + std * normal).astype(np.float32)
