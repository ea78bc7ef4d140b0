"""Whether the members of a config fit one another and the data; asked by build, before any
compute.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_text.core.prng import make_key
from diffusion_text.data.pipeline import ANSWERING
from diffusion_text.data.words import Words
from diffusion_text.experiment import registry
from diffusion_text.experiment.settings import DataSettings, EvaluateSettings, TrainSettings
from diffusion_text.objective import Bound, engine
from diffusion_text.timing import Shared
from diffusion_text.types import Batch, DataFacts, Model, Progress


def scoring_model(model: Model, evaluate: EvaluateSettings) -> Model:
  """The model under which the bound is reported: that of training, if its times give a bound;
  otherwise with another timing. One time for all tokens is drawn as the process asks.

  Raises:
    ValueError: for an `evaluate.timing` that gives no bound, an `evaluate.decode_at` of a process
      without a log-SNR, and self-conditioning of a network that has none.
  """
  remembers = model.network.remembers
  always = 1.0 if remembers else 0.0
  probability = evaluate.self_conditioning
  if probability is not None and not remembers:
    raise ValueError(
      f"evaluate.self_conditioning={probability} needs a network that conditions on itself; set"
      " model.self_conditioning, or leave it unset"
    )
  scoring = model._replace(self_conditioning=always if probability is None else probability)
  if evaluate.decode_at is not None:
    model.process.time_of(evaluate.decode_at)
  if evaluate.timing is not None:
    timing = registry.construct("timing", evaluate.timing, where="config.evaluate.timing")
    scoring = scoring._replace(timing=timing)
    if model.process.has_bound and not engine.is_bound(scoring, Bound()):
      raise ValueError(
        f"evaluate.timing={evaluate.timing} gives no bound for {model.process}; use"
        " evaluate.timing={'name': 'shared'}, or leave it unset"
      )
    return scoring
  timing = scoring.timing if engine.is_bound(scoring, Bound()) else Shared()
  return scoring._replace(timing=timing.for_bound(model.process.bound_times()))


def check_members(
  model: Model,
  scoring: Model,
  members: Mapping[str, Any],
  data: DataSettings,
  settings: TrainSettings,
  facts: DataFacts,
) -> None:
  """Raises ValueError, with the fix, for members that do not fit one another."""
  network, objective = model.network, members["objective"]
  if (settings.self_conditioning is None) == network.remembers:
    raise ValueError(
      f"train.self_conditioning={settings.self_conditioning} with"
      f" model.self_conditioning={network.self_conditioning!r}: a network that reads its own answer"
      " needs the probability that it is shown one, and another takes none; 'add' with 0.5 is usual"
    )
  if network.remembers and not model.context.reads_noisy:
    raise ValueError(
      f"model.self_conditioning={network.self_conditioning!r} with {model.context}: a network that"
      " reads clean tokens alone gives no answer on noisy ones to be shown; use another context"
    )
  if settings.prompt_dropout and model.context.unit is not None:
    raise ValueError(
      f"train.prompt_dropout={settings.prompt_dropout} with {model.context}: observed tokens would"
      " still be read in the clean copy beside the noisy blocks; use context.name=full"
    )
  if settings.prompt_dropout and data.packing not in ANSWERING:
    raise ValueError(
      f"train.prompt_dropout={settings.prompt_dropout} hides observed tokens, and rows of"
      f" data.packing={data.packing!r} have none; leave it unset, or use pairs or conversations"
    )
  network.check(model, data)
  model.context.check(model, data)
  for member in (objective, members["sampler"], members["reader"]):
    member.check(model)
  _check_teachers(model, objective, settings, facts)
  row = Batch(jax.ShapeDtypeStruct((1, data.length), jnp.int32))
  shapes = without_text(facts)
  for drawn in (model, scoring):  # sizes that a timing or a context refuses
    jax.eval_shape(functools.partial(_times, drawn, facts=shapes), row)


def without_text(facts: DataFacts) -> DataFacts:
  """The facts with made-up counts, for shapes: no corpus is read."""
  ones = np.ones(facts.vocab_size, np.int64)
  words = Words(ones[:1], ones[:1], np.arange(facts.vocab_size), 0 * ones, ones)
  return facts._replace(
    token_counts=lambda: ones,
    document_counts=lambda: ones,
    words=None if facts.words is None else lambda: words,
  )


def _times(model: Model, batch: Batch, *, facts: DataFacts) -> Any:
  key = make_key(0)
  unit = model.context.unit or model.process.positions(facts.length)
  params = {"timing": model.timing.init(key, facts._replace(length=unit))}
  return engine.draw_times(model, params, key, batch, Progress())


def _check_teachers(
  model: Model, objective: Any, settings: TrainSettings, facts: DataFacts
) -> None:
  """Raises ValueError if parameters that move get a gradient from nobody."""
  if model.process.noise_is_learned != ("noise" in objective.trains):
    raise ValueError(
      f"{objective} with {model.process}: only objective.name=score_function gives learned noise"
      f" its"
      " gradient, and it costs twice the network calls; use it where the noise is learned and"
      " nowhere"
      " else"
    )
