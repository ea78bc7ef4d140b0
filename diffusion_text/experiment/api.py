"""Training from Python, without a config or a workdir: for notebooks, tests and small experiments.

What a run needs beyond this (checkpoints, several hosts, metrics on disk) is in `experiment.run`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping

import jax

from diffusion_text import train
from diffusion_text.core.trees import split
from diffusion_text.experiment.build import init, loss
from diffusion_text.types import Batch, DataFacts, Model, Objective, Params


def fit(
  model: Model,
  objective: Objective,
  batches: Iterable[Batch],
  facts: DataFacts,
  *,
  learning_rate: float = 1e-3,
  seed: int = 0,
  ema_decay: float = 0.99,
  trainable: Callable[[tuple[str, ...]], bool] = lambda path: True,
  report: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None,
) -> Params:
  """The parameters (their average) of a model after `facts.steps` updates on one device, as one
  tree.

  Args:
    model, objective: what is trained, and how.
    batches: at least `facts.steps` batches of one shape.
    facts: of the data; `steps` is the length of the run.
    learning_rate: the peak of a cosine schedule of AdamW.
    seed: of parameters and noise.
    ema_decay: of the average of parameters.
    trainable: path -> bool, which parameters move.
    report: called with (step, metrics) after every update.

  Raises:
    ValueError: if a member does not fit the model, or there are fewer batches than steps.
  """
  objective.check(model)
  optimizer = train.make_optimizer(
    learning_rate=learning_rate,
    steps=facts.steps,
    warmup_steps=min(facts.steps // 20, 2500),
    clips=lambda path: path[0] != "timing",
  )
  key = train.named_key(seed, "init", 0)
  state = train.create_state(
    lambda: split(init(model, key, facts, objective), trainable), optimizer
  )
  step = jax.jit(
    train.make_train_step(
      functools.partial(loss, model, objective), optimizer, seed=seed, ema_decay=ema_decay
    ),
    donate_argnums=0,
  )
  iterator = iter(batches)
  for number in range(facts.steps):
    batch = next(iterator, None)
    if batch is None:
      raise ValueError(f"batches ended after {number} of facts.steps={facts.steps}; give as many")
    state, metrics = step(state, batch)
    report(number + 1, metrics)
  return state.eval_params
