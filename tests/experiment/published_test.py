"""Choices of the configs that the official code of their systems fixes."""

import importlib
import math

import numpy as np
import pytest

CHOICES = [  # config, key, value
  ("rdm", "sampler.temperature", 0.0),
  ("mdm", "sampler.temperature", 0.0),
  ("mdm", "sampler.noise_scale", 0.5),
  ("mdm", "sampler.steps", 20),
  ("bd3lm", "sampler.skip", True),
  ("md4", "process.schedule", None),  # linear
  ("md4", "sampler.spacing", "cosine"),
  ("llada", "sampler.temperature", 0.0),
  ("llada", "data.short_rows", 0.01),
  ("llada_moe", "sampler.temperature", 0.0),
  ("efficient_dlm", "timing.name", "tilted"),
  ("efficient_dlm", "timing.ratio", 0.1),
  ("add", "objective.weighting", "signal"),
  ("frequency_masked", "timing.name", "by_frequency"),
  ("frequency_masked", "timing.power", 0.02),
  ("diffusion_forcing", "context.name", "causal"),
  ("diffusion_forcing", "timing.width", 64),
  ("mask_agnostic", "objective.weighting", "inverse_time"),
  ("mask_agnostic", "objective.form", None),  # published
  ("diffullama", "timing.low", 1e-3),
  ("diffullama", "context.answer_shift", 1),
  ("diffullama", "objective.name", "masked_mean"),
  ("diffullama", "objective.weighting", "inverse_time"),
  ("ar2diff", "process.prediction", "posterior"),
  ("ar2diff", "objective.second", None),  # as much as the first reading
  ("ar2diff", "sampler.steps", 10),
  ("ar2diff", "sampler.temperature", 0.2),
  ("instruction", "objective.name", "coupled"),
  ("instruction", "objective.weighting", "linear"),
  ("instruction", "sampler.steps", 10),
  ("instruction", "sampler.rate", "cosine"),
  ("instruction", "sampler.temperature", 0.0),
  ("as_arm", "context.order", None),  # left to right, as published
  ("as_arm", "context.drafts", None),
  ("as_arm", "sampler.drafts", 5),
  ("ar_diffusion", "timing.name", "converging"),
  ("ar_diffusion", "timing.levels", 2000),
  *(
    (name, "sampler.greedy_tail", True)
    for name in (
      "add",
      "ar_diffusion",
      "difformer",
      "diffuseq",
      "diffusion_lm",
      "infodiffusion",
      "masked_diffuse_lm",
      "neodiff",
      "seqdiffuseq",
      "smoothie",
      "ssd_lm",
      "tess",
      "trec",
    )
  ),
]


def choice(name, key, size="tiny"):
  """What a config chooses for a key; None where it leaves the default."""
  value = importlib.import_module(f"configs.{name}").get_config(size)
  for part in key.split("."):
    value = value.get(part)
  return value


@pytest.mark.parametrize("name,key,value", CHOICES, ids=str)
def test_choices(name, key, value):
  assert choice(name, key) == value


def chain(steps, offset, capped):
  """(first, last) log-SNR of the noisy levels of a chain with alpha² = cos² at k / steps; the last
  step of a chain that is `capped` has beta = 0.999.
  """

  def share(k):
    return math.cos((k / steps + offset) / (1 + offset) * math.pi / 2) ** 2

  levels = np.array([share(k) / share(0) for k in range(1, steps)])
  if capped:
    levels = np.append(levels, 1e-3 * levels[-1])
  return np.log(levels / (1 - levels))[[0, -1]]


@pytest.mark.parametrize(
  "name,levels",
  [
    ("tess", chain(5000, 1e-4, capped=False)),  # whose level 0 has no noise
    ("ssd_lm", chain(5000, 1e-4, capped=False)),
    ("add", chain(1000, 0.008, capped=True)),
    ("sed", chain(1000, 0.008, capped=True)),
  ],
)
def test_windows_of_paths_are_those_of_the_published_chains(name, levels):
  window = [choice(name, f"process.schedule.log_snr_{end}") for end in ("max", "min")]
  np.testing.assert_allclose(window, levels, atol=6e-3)


def test_widths():
  """Of vectors; the in_channel of SeqDiffuSeq's scripts is the width of its network."""
  assert choice("seqdiffuseq", "process.width", "small") == 128
