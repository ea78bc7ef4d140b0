"""`check_objective`: the laws that every objective obeys, whatever it minimises."""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_text.core.prng import stream
from diffusion_text.objective import engine
from diffusion_text.testing.exact_model import Estimate, facts_of
from diffusion_text.testing.languages import Enumerable
from diffusion_text.testing.properties import (
  check_equal_options,
  expect,
  expect_mean,
  expect_same,
  run,
)
from diffusion_text.types import Batch, Loss, Model, Objective, Params, Progress, TokenCosts

_ROWS = 8  # of the laws that hold for every single draw


def check_objective(
  objective: Objective,
  model: Model,
  params: Params,
  language: Enumerable,
  *,
  exact_law: bool = True,
  exact_gradient: bool = True,
  rows: int = 1024,
  draws: int = 16,
  largest_error: float = 0.1,
  only: Collection[str] | None = None,
) -> None:
  """Raises AssertionError, with what was found and expected, for a law that the objective breaks.

  In the order in which they are tried: "options", "fits" (its own `check`), "shapes", "weights"
  (twice the weights are twice the loss, and padding costs nothing), "observed" (observed tokens are
  not scored), "microbatches" (two of them add up to the whole batch), "costs" (no gradient flows
  through them), "groups" (only the groups in `trains` receive gradient), "slope" (the gradient is
  the derivative of the value), "bound" (where `engine.is_bound` says that there is one, it is tight
  for the exact network).

  Args:
    objective: any.
    model: a model whose network is exact (`exact_model`).
    params: the model's; groups of the objective's own are made if they are missing.
    language: what the network knows.
    exact_law: False if what is reported as the bound is not tight with this model ("bound").
    exact_gradient: False if the gradient is an estimate, or leaves parts out ("slope").
    rows: rows of each draw of the bound.
    draws: draws of the bound.
    largest_error: the largest share of the entropy that the bound may be uncertain by.
    only: names of the laws to try; None: all.
  """
  facts = facts_of(language)
  own = objective.init(model, jax.random.key(2), facts)
  params = {**own, **params}
  leave_out = set() if exact_law and engine.is_bound(model, objective) else {"bound"}
  # A first reading is held constant, and a score function's gradient is no derivative of its value.
  if not exact_gradient or model.self_conditioning or model.process.noise_is_learned:
    leave_out |= {"slope"}
  asked = _Asked(objective, model, params, language)

  def bound():
    found = asked.excess(rows, draws)
    law = f"reported bound less -log p(x), of {objective}"
    expect_mean(found, 0.0, law, largest_error * language.entropy)

  run(
    {
      "options": lambda: check_equal_options(objective),
      "fits": lambda: objective.check(model),
      "shapes": asked.check_shapes,
      "weights": asked.check_weights,
      "observed": asked.check_observed,
      "microbatches": asked.check_microbatches,
      "costs": asked.check_costs,
      "groups": asked.check_groups,
      "slope": asked.check_slope,
      "bound": bound,
    },
    only,
    leave_out,
  )


def _loss(
  objective: Objective, model: Model, params: Params, key: Any, batch: Batch, progress: Progress
) -> tuple[Loss, TokenCosts | None]:
  times = engine.draw_times(model, params, stream(key, "times"), batch, progress)
  return objective(model, params, key, batch, times, progress)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _value(objective, model, params, key, batch, progress):
  return _loss(objective, model, params, key, batch, progress)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _differentiated(objective, model, params, key, batch, progress):
  """((loss, costs), gradient of the total, gradient of the costs)."""

  def both(params):
    loss, costs = _loss(objective, model, params, key, batch, progress)
    leaves = [] if costs is None else [jnp.sum(leaf) for leaf in costs[:3]]
    return (loss.total, sum(leaves, jnp.float32(0))), (loss, costs)

  _, backward, found = jax.vjp(both, params, has_aux=True)
  one, zero = jnp.float32(1), jnp.float32(0)
  return found, backward((one, zero))[0], backward((zero, one))[0]


class _Asked:
  """One objective, asked about batches of a few rows."""

  def __init__(self, objective, model, params, language: Enumerable):
    self.objective, self.model, self.params, self.language = objective, model, params, language
    self.ids = language.systematic(_ROWS)
    self.key = jax.random.key(3)

  def value(self, progress: Progress | None = None, ids=None, params=None, **fields):
    """(loss, costs) of a batch with these fields."""
    asked = self._asked(progress, ids, params, **fields)
    # The program that also differentiates is needed in any case.
    whole = asked[-2].ids.shape == self.ids.shape
    return jax.device_get(_differentiated(*asked)[0] if whole else _value(*asked))

  def _asked(self, progress=None, ids=None, params=None, **fields):
    """What a program is given: every field is set, so that one program serves all laws."""
    ids = self.ids if ids is None else ids
    params = self.params if params is None else params
    shape = ids.shape
    batch = Batch(
      ids,
      observed=fields.get("observed", np.zeros(shape, bool)),
      weights=fields.get("weights", np.ones(shape, np.float32)),
      segment=fields.get("segment", np.zeros(shape, np.int32)),
    )
    progress = Progress() if progress is None else progress
    return self.objective, self.model, params, self.key, batch, progress

  def check_shapes(self) -> None:
    """The loss is made of scalars, and counts each token of text once."""
    loss, costs = self.value()
    leaves = {"total": loss.total, "count": loss.count, **loss.sums}
    for name, value in leaves.items():
      law = f"{name} of the loss, of {self.objective}"
      expect(np.shape(value) == (), law, np.shape(value), "a scalar")
      expect(np.isfinite(value), law, value, "a number")
    law = f"count of a batch without padding, of {self.objective}"
    expect(loss.count == self.ids.size, law, loss.count, self.ids.size)
    if costs is not None:
      shape = (_ROWS, self.model.process.positions(self.ids.shape[1]))
      for name, value in costs._asdict().items():
        law = f"costs.{name}, of {self.objective}"
        expect(value.shape == shape, law, value.shape, shape)

  def check_weights(self) -> None:
    """Twice the weights are twice the loss; what weighs nothing and stands apart costs nothing."""
    once, _ = self.value()
    twice, _ = self.value(weights=np.full(self.ids.shape, 2.0, np.float32))
    law = f"twice the weights are twice the loss, of {self.objective}"
    expect_same(twice, jax.tree.map(lambda leaf: 2 * leaf, once), law, 1e-4)
    padding = np.zeros(self.ids.shape, bool)
    padding[: _ROWS // 2, -1] = True
    fields = {"weights": np.float32(~padding), "segment": padding.astype(np.int32)}
    other = np.where(padding, (self.ids + 1) % self.language.vocab_size, self.ids)
    one, _ = self.value(**fields)
    two, _ = self.value(ids=other.astype(np.int32), **fields)
    expect_same(two, one, f"the ids of padding change no loss, of {self.objective}", 1e-4)
    want = np.sum(~padding)
    expect(one.count == want, f"count with padding, of {self.objective}", one.count, want)

  def check_observed(self) -> None:
    """Observed tokens are not scored."""
    observed = np.zeros(self.ids.shape, bool)
    observed[:, 0] = True
    loss, costs = self.value(observed=observed)
    want = np.sum(~observed)
    expect(loss.count == want, f"count with a prompt, of {self.objective}", loss.count, want)
    loss, _ = self.value(observed=np.ones(self.ids.shape, bool))
    for name, value in {"total": loss.total, "count": loss.count}.items():
      law = f"{name} where every token is observed, of {self.objective}"
      expect(abs(value) < 1e-5, law, value, 0.0)
    if costs is not None and costs.weight.shape == observed.shape:
      found = costs.weight[observed]
      expect(found == 0, f"weight of observed tokens, of {self.objective}", found, 0.0)

  def check_microbatches(self) -> None:
    """Two microbatches, whose rows are interleaved, add up to the whole batch."""
    whole, _ = self.value()
    parts = [
      self.value(Progress(part=part, parts=2), ids=self.ids[part::2])[0] for part in range(2)
    ]
    added = jax.tree.map(lambda one, two: one + two, *parts)
    law = f"two microbatches add up to the whole batch, of {self.objective}"
    expect_same(added, whole, law, 2e-4)

  @functools.cached_property
  def gradients(self):
    """(of the total, of the costs)."""
    return jax.device_get(_differentiated(*self._asked())[1:])

  def check_costs(self) -> None:
    """No gradient flows through the costs."""
    size = _size(self.gradients[1])
    expect(size == 0, f"gradient through the costs, of {self.objective}", size, 0.0)

  def check_groups(self) -> None:
    """Gradients are finite, the network has one, and groups that are not trained have none."""
    trains = self.objective.trains
    for group, gradient in self.gradients[0].items():
      size = _size(gradient)
      law = f"gradient of params[{group!r}], of {self.objective}"
      expect(np.isfinite(size), law, size, "a number")
      if group not in trains:
        expect(size == 0, law, size, f"0, as trains={set(trains)}")
    if "network" in trains:
      size = _size(self.gradients[0]["network"])
      law = f"gradient of params['network'], of {self.objective}"
      expect(size > 0, law, size, "some, as it is trained")

  def check_slope(self) -> None:
    """Along a direction of the network's head the gradient is the difference of values."""
    kernel = self.params["network"]["kernel"]
    direction = np.random.default_rng(0).normal(size=kernel.shape).astype(np.float32)
    step = 5e-3

    def total(amount):
      network = {**self.params["network"], "kernel": kernel + amount * direction}
      loss, _ = self.value(params={**self.params, "network": network})
      return float(loss.total)

    found = float(np.sum(self.gradients[0]["network"]["kernel"] * direction))
    expected = (total(step) - total(-step)) / (2 * step)
    near = abs(found - expected) < 0.02 * abs(expected) + 0.05
    law = f"slope of the loss along a direction, of {self.objective}"
    expect(near, law, f"{found:.4f} by its gradient", f"{expected:.4f} by its values")

  def excess(self, rows: int, draws: int) -> Estimate:
    """The reported bound less -log p(x), in nats per row."""
    values = []
    for number in range(draws):
      ids = self.language.systematic(rows, seed=number)
      key = jax.random.key(100 + number)
      batch = Batch(ids)
      loss, _ = _value(self.objective, self.model, self.params, key, batch, Progress())
      log_p = self.language.log_likelihood(ids)
      values.append(float(loss.sums["bound"]) / rows + log_p.mean())
    return Estimate.of(values)


def _size(tree: Any) -> float:
  """The largest absolute value of a tree of arrays."""
  return max((float(np.abs(leaf).max()) for leaf in jax.tree.leaves(tree)), default=0.0)
