"""`check_process`: the laws that every process obeys, with exact networks and no training."""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_text.core.numerics import NEVER
from diffusion_text.core.prng import fold, position_keys
from diffusion_text.testing.exact_model import (
  exact_model,
  excess_of_bound,
  small_language,
)
from diffusion_text.testing.exact_network import output_of
from diffusion_text.testing.languages import Enumerable
from diffusion_text.testing.properties import (
  check_equal_options,
  expect,
  expect_mean,
  expect_same,
  run,
)
from diffusion_text.types import Batch, Params, Process, Timing

# Times from which and to which `step` is tried with the true token.
_PAIRS = ((1.0, 0.7), (0.8, 0.35), (0.5, 0.1), (0.3, 0.0))
_LEAST_LOG = -40.0  # posteriors with a token below it have lost their digits in float32
_SURE = -80.0  # the logarithm of what a network gives to a token that it excludes


def check_process(
  process: Process,
  *,
  params: Params | None = None,
  language: Enumerable | None = None,
  timing: Timing | None = None,
  reads: Literal["linear", "softmax"] = "linear",
  rows: int = 2048,
  draws: int = 16,
  steps: int = 64,
  exact_step: bool = True,
  exact_law: bool = True,
  largest_error: float = 0.1,
  slack: float = 0.02,
  only: Collection[str] | None = None,
) -> None:
  """Raises AssertionError, with what was found and expected, for a law that the process breaks.

  In the order in which they are tried: "options", "shapes", "inputs", "rounding", "elementwise",
  "excluded", "steps", "rate_at_noise", "clean", "noise", "evidence", "marginals", "posterior",
  "bound", "uniform", "language".

  Args:
    process: it has one position per token.
    params: its parameters; None: those of a fresh process.
    language: a few sequences over its V tokens; None: a drawn one.
    timing: of the bound; None: one shared time. A power lowers the noise of a heavy tail.
    reads: "softmax" if `inputs` are the softmax of the state, else they are a multiple of it.
    rows: rows of each draw; fewer are cheaper and find less.
    draws: draws of the bound.
    steps: steps from the prior to a text.
    exact_step: False if `step` is no exact posterior even with the true token ("marginals").
    exact_law: False if the bound is not tight and steps do not reach the language even with the
      exact network ("bound", "uniform", "language").
    largest_error: the largest share of the entropy that the bound may be uncertain by.
    slack: total variation to the language that is allowed for the size of steps.
    only: names of the laws to try; None: all.
  """
  language = small_language(process.vocab_size) if language is None else language
  model, tree = exact_model(process, language, timing=timing, reads=reads, process_params=params)
  params = tree["process"]
  too_much = largest_error * language.entropy
  leave_out = set() if exact_step else {"marginals"}
  if not (exact_law and process.has_bound):
    leave_out |= {"bound", "uniform"}
  if not exact_law:
    leave_out |= {"language"}
  if process.reads_logits_as == "vector":
    leave_out |= {"posterior"}

  @functools.cache
  def sample():
    return _sampled(process, params, 4 * rows)

  @functools.cache
  def elements():
    return _Elements(process, params)

  def bound():
    found = excess_of_bound(model, tree, language, rows=rows, draws=draws)
    expect_mean(found, 0.0, f"bound less -log p(x), of {process}", too_much)

  def uniform():
    flat = Enumerable.independent(language.vocab_size, language.length)
    knows_nothing = exact_model(process, flat, process_params=params)[1]["network"]
    nothing = {**tree, "network": knows_nothing}
    found = excess_of_bound(model, nothing, language, costs=flat, rows=rows, draws=draws)
    law = f"cost of a uniform prediction less L log V, of {process}"
    expect_mean(found, 0.0, law, too_much)

  run(
    {
      "options": lambda: check_equal_options(process),
      "shapes": lambda: _check_shapes(process, params, language),
      "inputs": lambda: elements().check_inputs(),
      "rounding": lambda: _check_rounding(process),
      "elementwise": lambda: elements().check_elementwise(),
      "excluded": lambda: elements().check_excluded(),
      "steps": lambda: elements().check_steps(),
      "rate_at_noise": lambda: elements().check_rate_at_noise(),
      "clean": lambda: _check_clean(process, sample()),
      "noise": lambda: _check_noise(process, sample()),
      "evidence": lambda: _check_evidence(process, sample()),
      "marginals": lambda: _check_marginals(process, sample()),
      "posterior": lambda: _check_posterior(model, tree, language, sample()),
      "bound": bound,
      "uniform": uniform,
      "language": lambda: _check_language(model, tree, language, rows, steps, slack),
    },
    only,
    leave_out,
  )


def _check_shapes(process: Process, params: Params, language: Enumerable) -> None:
  """Sizes that are announced are those of what comes."""
  rows, length = 3, language.length
  batch = Batch(language.systematic(rows))
  shape = process.in_positions(batch).ids.shape
  law = f"in_positions, of {process}"
  expect(shape == (rows, process.positions(length)), law, shape, (rows, process.positions(length)))
  keys = position_keys(jax.random.key(0), *shape)
  t = jnp.full(shape, 0.5)
  output = jnp.zeros((*shape, process.output_size))

  def all_shapes():
    clean = process.clean(params, batch.ids)
    inputs = process.inputs(params, process.corrupt(params, keys, clean, t), t)
    estimate = process.estimate(params, clean, t, output)
    terms = process.boundary_terms(params, keys, batch.ids)
    return inputs, estimate, terms

  inputs, estimate, terms = jax.eval_shape(all_shapes)
  expect(inputs.shape == shape, f"inputs, of {process}", inputs.shape, shape)
  if inputs.vectors is not None:
    width = inputs.vectors.shape[-1]
    announced = process.input_sizes.vectors
    expect(width == announced, f"input_sizes.vectors, of {process}", announced, width)
  want = (*shape, process.estimate_size)
  expect(estimate.shape == want, f"estimate, of {process}", estimate.shape, want)
  expect(terms.shape == shape, f"boundary_terms, of {process}", terms.shape, shape)


def _check_rounding(process: Process) -> None:
  """Times are rounded up to a grid that holds 0 and 1."""
  t = np.float32([0.0, 1e-3, 0.3, 0.5, 0.9999, 1.0])
  rounded = np.asarray(process.round_time(t))
  law = f"round_time, of {process}"
  expect(rounded[[0, -1]] == [0, 1], f"{law}, at 0 and 1", rounded[[0, -1]], [0, 1])
  expect((rounded >= t - 1e-6) & (rounded <= 1), f"{law}, up to the grid", rounded, f">= {t}")
  expect(np.diff(rounded) >= 0, f"{law}, rises", rounded, "a rising sequence")


class _Elements:
  """Every elementwise method on one flat list of positions, and again in another order and company.

  Of the positions the first is at t = 0 and the second at t = 1; of the rest the first third steps
  to 0, the second third from t to t, the last to times between.
  """

  def __init__(self, process: Process, params: Params):
    rng = np.random.default_rng(0)
    count = 48
    ids = rng.integers(0, process.vocab_size, count).astype(np.int32)
    t = rng.uniform(0.2, 1.0, count).astype(np.float32)
    t[:8], t[8:16] = 0.0, 1.0
    t = np.asarray(process.round_time(t))
    place = np.arange(count)
    share = np.where(place % 3 == 0, 0.0, np.where(place % 3 == 1, 1.0, rng.uniform(size=count)))
    s = np.asarray(process.round_time(np.float32(t * share)))
    # Logits far enough apart that a posterior has something to say.
    output = 2 * rng.normal(size=(count, process.output_size)).astype(np.float32)
    keys = position_keys(jax.random.key(1), 2, count)
    self.process, self.t, self.s, self.ids = process, t, s, ids
    clean = process.clean(params, ids)
    every = functools.partial(_every_method, process, params)
    self.found = jax.device_get(every(keys[0], clean, t, s, output))
    # The first half in another order, beside others.
    self.kept = rng.permutation(count)[: count // 2]
    order = np.concatenate([self.kept, self.kept])
    other = np.arange(count) >= count // 2
    company = jnp.where(other, keys[1], keys[0][order])
    moved = jax.tree.map(lambda leaf: jnp.asarray(leaf)[order], (clean, t, s, output))
    self.moved = jax.device_get(every(company, *moved))

  def check_elementwise(self) -> None:
    """No position depends on its place in the list or on its company."""
    half = len(self.kept)
    found = jax.tree.map(lambda leaf: leaf[:half], self.moved)
    expected = jax.tree.map(lambda leaf: leaf[self.kept], self.found)
    law = f"a position in another company is the same, of {self.process}"
    expect_same(found, expected, law, 1e-4)

  def check_inputs(self) -> None:
    """The network knows every id that stands in noise, in corrupted or in clean tokens."""
    for name in ("read", "read_noise", "read_clean"):
      ids = self.found[name]
      if ids is not None:
        known = self.process.input_sizes.ids
        law = f"input_sizes.ids, of {self.process}, is above every id that `inputs` gives"
        expect((ids >= 0) & (ids < known), law, known, f"at least {ids.max() + 1}")

  def check_excluded(self) -> None:
    """Whatever the network answers, the posterior of a token that the evidence excludes is 0."""
    if "posterior" not in self.found:
      return
    chance = np.exp(self.found["posterior"])
    left = np.where(self.found["evidence"] <= NEVER, chance, 0.0)
    law = f"posterior, of {self.process}, of tokens that the evidence excludes"
    expect(left < 1e-6, law, left.max(), 0.0)

  def check_steps(self) -> None:
    """What is said not to change does not, and what arrives at 0 is clean."""
    process, found = self.process, self.found
    scored = found["has_loss"] & (self.t == 0)
    expect(~scored, f"has_loss at t = 0, of {process}", found["has_loss"][self.t == 0], False)
    self._expect_kept(self.s == self.t, "a step from t to t, and of observed tokens (t = 0)")
    self._expect_kept(~found["may_change"], "a step where may_change is false")
    ended = self.s == 0
    ids = found["decoded"][ended]
    tokens = (ids >= 0) & (ids < process.vocab_size)
    law = f"tokens after a step to 0, of {process}"
    expect(tokens, law, np.unique(ids), f"ids below {process.vocab_size}")
    if process.reads_logits_as != "vector":  # a vector that is predicted need not be a token's own
      got, want = (jax.tree.map(lambda leaf: leaf[ended], found[n]) for n in ("step", "again"))
      expect_same(got, want, f"the state after a step to 0 is clean, of {process}", 1e-6)

  def _expect_kept(self, where, law: str) -> None:
    before, after = (
      jax.tree.map(lambda leaf: leaf[where], self.found[name]) for name in ("corrupt", "step")
    )
    expect_same(after, before, f"{law}, leaves the state, of {self.process}")

  def check_rate_at_noise(self) -> None:
    """Where the process says so, the rate at t = 1 is -log p of the clean token."""
    if not self.process.rate_at_noise_is_nll:
      return
    noise = self.t == 1
    said = self.found["posterior"][noise]
    nll = -np.take_along_axis(said, self.ids[noise][:, None], axis=1)[:, 0]
    law = f"nelbo_rate at t = 1 is -log p, of {self.process}"
    expect_same(self.found["nelbo_rate"][noise], nll, law, 1e-4)


@functools.partial(jax.jit, static_argnums=0)
def _every_method(process, params, keys, clean, t, s, output) -> dict[str, Any]:
  """What the elementwise methods give, by name."""
  state = process.corrupt(params, keys, clean, t)
  asked = params, state, t, output
  step = process.step(params, fold(keys, 1), state, output, t, s)
  decoded = process.decode(params, step)
  noise = process.prior(params, keys)

  def ids_read(state, t):
    """The ids that the network would read, as rows of one token; None if it reads vectors."""
    rows = jax.tree.map(lambda leaf: leaf[:, None], state)
    return process.inputs(params, rows, t[:, None]).ids

  found = {
    "prior": noise,
    "read": ids_read(state, t),
    "read_noise": ids_read(noise, jnp.ones_like(t)),
    "read_clean": ids_read(clean, jnp.zeros_like(t)),
    "corrupt": state,
    "evidence": process.evidence(params, state, t),
    "estimate": process.estimate(*asked),
    "has_loss": process.has_loss(params, state, t),
    "may_change": process.may_change(params, fold(keys, 1), state, t, s),
    "step": step,
    "decoded": decoded,
    "again": process.clean(params, jnp.clip(decoded, 0, process.vocab_size - 1)),
  }
  if process.reads_logits_as != "vector":
    found["posterior"] = process.posterior(*asked)
    found["leave_one_out"] = process.leave_one_out(*asked)
  if process.has_bound:
    found["nelbo_rate"] = process.nelbo_rate(params, clean, state, t, output)
  return found


class _Sample(NamedTuple):
  """Draws of every token at every pair of times: [rows, pairs, V, …]; `prior` is [rows, V, …].

  Attributes:
    t: float32 [pairs].
    clean: the clean states.
    zero: `corrupt` to t = 0, of one pair.
    state: `corrupt` to t.
    evidence: of the state.
    after: a step from t to s with the true token.
    fresh: `corrupt` to s, drawn apart.
    prior: draws of the prior.
  """

  t: Any
  clean: Any
  zero: Any
  state: Any
  evidence: Any
  after: Any
  fresh: Any
  prior: Any


@functools.partial(jax.jit, static_argnums=(0, 2))
def _drawn(process: Process, params: Params, rows: int, key, t, s) -> tuple[Any, ...]:
  """(clean, state, evidence, after, fresh, prior), [rows, pairs · V, …] each."""
  size, pairs = process.vocab_size, len(_PAIRS)
  ids, t, s = jnp.tile(jnp.arange(size), pairs), jnp.repeat(t, size), jnp.repeat(s, size)
  shape = (rows, len(ids))
  known, start, stop = (jnp.broadcast_to(x, shape) for x in (ids, t, s))
  clean = process.clean(params, known)
  keys = position_keys(key, *shape)
  state = process.corrupt(params, keys, clean, start)
  sure = jnp.where(known[..., None] == jnp.arange(size), 0.0, _SURE)
  own = process.evidence(params, state, start)
  output = output_of(process, params, sure, own, start)
  after = process.step(params, fold(keys, 1), state, output, start, stop)
  fresh = process.corrupt(params, fold(keys, 2), clean, stop)
  return clean, state, own, after, fresh, process.prior(params, keys)


def _sampled(process: Process, params: Params, rows: int) -> _Sample:
  size, pairs = process.vocab_size, len(_PAIRS)
  t, s = (np.asarray(process.round_time(np.float32(x))) for x in zip(*_PAIRS, strict=True))
  found = jax.device_get(_drawn(process, params, rows, jax.random.key(5), t, s))
  found = jax.tree.map(lambda leaf: leaf.reshape(rows, pairs, size, *leaf.shape[2:]), found)
  clean, state, own, after, fresh, prior = found
  zero = jax.tree.map(lambda leaf: leaf[:, -1], fresh)  # the pair whose s is 0
  prior = jax.tree.map(lambda leaf: leaf[:, 0], prior)
  return _Sample(t, clean, zero, state, own, after, fresh, prior)


def _check_clean(process: Process, sample: _Sample) -> None:
  """t = 0 is the clean state; vectors to rounding, as a program may make them twice."""
  clean = jax.tree.map(lambda leaf: leaf[:, 0], sample.clean)
  expect_same(sample.zero, clean, f"corrupt to t = 0 is clean, of {process}", 1e-6)


def _check_noise(process: Process, sample: _Sample) -> None:
  """At t = 1 ids have forgotten their token: `corrupt` there is the prior.

  Vectors keep a trace, as their log-SNR is finite: the bound pays for it (`boundary_terms`).
  """
  noise = jax.tree.map(lambda leaf: leaf[:, 0], sample.state)
  law = f"corrupt to t = 1 is the prior, of {process}"
  _expect_same_law(noise, sample.prior, law, ids_only=True)


def _check_evidence(process: Process, sample: _Sample) -> None:
  """As tokens are drawn evenly, softmax(evidence) is calibrated: E[(1{x = v} - p_v) p_w] = 0."""
  logits = sample.evidence - sample.evidence.max(-1, keepdims=True)
  p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)  # [rows, pairs, V, V]
  miss = np.eye(process.vocab_size) - p
  values = miss[..., :, None] * p[..., None, :]
  mean = values.mean((0, 2))
  # The tokens of a row and pair are drawn evenly, each once: their spread is that of a mean of V.
  limit = 5 * values.mean(2).std(0) / len(p) ** 0.5 + 1e-4
  worst = np.unravel_index(np.argmax(np.abs(mean) - limit), mean.shape)
  law = f"evidence is log q(z | x = v), at t = {sample.t[worst[0]]}, of {process}"
  wanted = f"0 ± {limit[worst]:.4f}"
  expect(np.abs(mean) < limit, law, f"calibration off by {mean[worst]:+.4f}", wanted)


def _check_marginals(process: Process, sample: _Sample) -> None:
  """`corrupt` to t and a `step` to s with the true token leave the law of `corrupt` to s."""
  law = f"corrupt to t, then step to s with the true token, is corrupt to s, of {process}"
  _expect_same_law(sample.after, sample.fresh, law)


def _expect_same_law(found: Any, expected: Any, law: str, ids_only: bool = False) -> None:
  """Two samples [rows, columns, …] have the same law in each column.

  Ids are compared by their frequencies, vectors by means and variances.
  """
  for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    got, want = np.asarray(got), np.asarray(want)
    rows = got.shape[0]
    if np.issubdtype(got.dtype, np.integer):
      for token in range(min(got.min(), want.min()), max(got.max(), want.max()) + 1):
        one, other = (got == token).mean(0), (want == token).mean(0)
        both = (one + other) / 2
        limit = 5 * np.sqrt(2 * both * (1 - both) / rows) + 2 / rows
        _expect_close(one, other, limit, f"{law}; frequency of id {token}")
    elif not ids_only:
      spread = np.sqrt((got.var(0) + want.var(0)) / rows)
      _expect_close(got.mean(0), want.mean(0), 5 * spread + 1e-4, f"{law}; mean")
      fourth = ((got - got.mean(0)) ** 2).var(0) + ((want - want.mean(0)) ** 2).var(0)
      limit = 5 * np.sqrt(fourth / rows) + 1e-4
      _expect_close(got.var(0), want.var(0), limit, f"{law}; variance")


def _expect_close(found, expected, limit, law: str) -> None:
  worst = np.unravel_index(np.argmax(np.abs(found - expected) - limit), found.shape)
  wanted = f"{expected[worst]:.4f} ± {limit[worst]:.4f}"
  near = np.abs(found - expected) <= limit
  expect(near, f"{law} in column {tuple(map(int, worst))}", f"{found[worst]:.4f}", wanted)


def _check_posterior(model, tree: Params, language: Enumerable, sample: _Sample) -> None:
  """Of the exact network's output, `posterior` and `leave_one_out` are the exact laws."""
  process, params = model.process, tree["process"]
  ids = language.systematic(min(256, len(sample.evidence)))
  pair = np.random.default_rng(0).integers(0, len(sample.t), ids.shape)
  row = np.arange(len(ids))[:, None]
  state = jax.tree.map(lambda leaf: leaf[row, pair, ids], sample.state)

  @jax.jit
  def laws(state, t):
    inputs = process.inputs(params, state, t)
    rows = model.context.sampling_rows(inputs, inputs, t, Batch(ids))
    output = model.network.apply(tree["network"], rows).logits
    clues = process.evidence(params, state, t)
    # [L, B, L, V]: once without each place.
    without = clues * (1 - np.eye(language.length)[:, None, :, None])
    alone = jnp.diagonal(language.posterior(without), axis1=0, axis2=2)
    said = process.posterior(params, state, t, output), language.posterior(clues)
    others = process.leave_one_out(params, state, t, output), jnp.moveaxis(alone, -1, 1)
    return said, others, process.has_loss(params, state, t)

  (said, exact), (others, alone), scored = laws(state, sample.t[pair])
  _expect_law(said, exact, scored, f"posterior of the exact output, of {process}")
  # Where the posterior is sure of a token nothing else can be read off it.
  clear = scored & (np.asarray(exact).min(-1) > _LEAST_LOG)
  _expect_law(others, alone, clear, f"leave_one_out of the exact output, of {process}")


def _expect_law(found, expected, where, law: str) -> None:
  found, expected = np.exp(found), np.exp(expected)
  total = found.sum(-1)
  expect(np.abs(total - 1) < 1e-3, f"{law}, sums to 1", total, 1.0)
  off = np.where(where, np.abs(found - expected).max(-1), 0.0)
  worst = np.unravel_index(np.argmax(off), off.shape)
  expect(off < 2e-3, law, found[worst], expected[worst])


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _walk(model, tree: Params, key, shape: tuple[int, int], steps: int):
  """ids [B, L] after `steps` even steps from the prior; all tokens fall together."""
  process, params = model.process, tree["process"]
  keys = position_keys(key, *shape)
  batch = Batch(jnp.zeros(shape, jnp.int32))
  noise = process.prior(params, fold(keys, 0))

  def turn(number, state):
    t, s = (process.round_time(jnp.full(shape, (steps - n) / steps)) for n in (number, number + 1))
    beside = process.inputs(params, noise, jnp.ones(shape))
    rows = model.context.sampling_rows(process.inputs(params, state, t), beside, t, batch)
    output = model.network.apply(tree["network"], rows).logits
    return process.step(params, fold(keys, number + 1), state, output, t, s)

  return process.decode(params, jax.lax.fori_loop(0, steps, turn, noise))


def _check_language(model, tree, language: Enumerable, rows, steps, slack) -> None:
  """Steps from the prior with the exact network reproduce the language."""
  ids = np.asarray(_walk(model, tree, jax.random.key(8), (rows, language.length), steps))
  distance = language.total_variation(language.histogram(ids))
  chance = language.chance_distance(rows)
  law = f"total variation of {rows} texts of {steps} steps to the language, of {model.process}"
  most = 1.5 * chance + slack
  wanted = f"at most {most:.4f} (exact draws: {chance:.4f})"
  expect(distance < most, law, f"{distance:.4f}", wanted)
