"""Every process × every property, with exact denoisers and no training; and mutants that must fail.

To add a process: one line in ROWS. Toy A (V = 3, L = 4, H = 3.7085873970 nats) and toy B (V = 4, L = 2, H = 2.1112697) are the languages
of the golden numbers. What the exact network answers depends on what a process takes logits to mean: `exact`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.core.prng import row_keys, token_keys
from diffusion_text.objective.bound import Bound, Chunks
from diffusion_text.process.masked import Masked
from diffusion_text.process.mixed import LEAST, Mixed, phi
from diffusion_text.process.uniform import Uniform
from diffusion_text.sampler.ancestral import Ancestral
from diffusion_text.sampler.loop import sample
from diffusion_text.schedules.discrete import Cosine, Geometric, Linear, Polynomial, weight
from diffusion_text.testing.oracle import (
  NEVER,
  Enumerable,
  MarkovChain,
  exact_prediction,
  masked_evidence,
)
from diffusion_text.timing import Shared, Slanted
from diffusion_text.types import Batch, Progress

TOY = Enumerable.dirichlet(0, 0.5, 3, 4)
TOY_B = Enumerable.dirichlet(1, 0.7, 4, 2)
SCHEDULES = [Linear(), Cosine(), Polynomial(2.0), Geometric(), Geometric(1e-2, 5.0)]
V = TOY_B.vocab_size
ROWS = [
  *(Masked(V, schedule) for schedule in SCHEDULES),
  Masked(V, Linear(), prediction="score"),
  Uniform(V, Linear()),
  Uniform(V, Cosine()),
  Uniform(V, Geometric(1e-2, 10.0)),
  Uniform(V, Linear(), prediction="posterior"),
  Uniform(V, Linear(), prediction="score"),
  Mixed(V, Linear(), "gidd", 0.1),
  Mixed(V, Cosine(), "gidd", 0.4),
  Mixed(V, Linear(), "gidd", 0.2, prediction="posterior"),
  Mixed(V, Linear(), "gidd", 0.0),
  Mixed(V, Linear(), "constant", 0.3),
  Mixed(V, Linear(), "gamma", 0.3),
  Mixed(V, Linear(), "epsilon", 0.2),
]
POINTS, WEIGHTS = np.polynomial.legendre.leggauss(600)
U = (POINTS + 1) / 2
NODES, NODE_WEIGHTS = (
  U**2 * (3 - 2 * U),
  3 * U * (1 - U) * WEIGHTS,
)  # no pole of any rate is left at either end

every_row = pytest.mark.parametrize("process", ROWS, ids=repr)


def law(process, t):
  """float32 [..., V, S]: q(z_t = z | x = v) for t [...], from the shares of the process."""
  t = jnp.asarray(t, jnp.float32)
  if isinstance(process, Mixed):
    clean, mask, uniform = process.shares(t)
  else:
    (clean, mask), uniform = process.schedule(t), jnp.zeros_like(t)
  size = process.vocab_size
  tokens = jnp.eye(size) * clean[..., None, None] + uniform[..., None, None] / size
  full = jnp.concatenate(
    [tokens, jnp.broadcast_to(mask[..., None, None], (*t.shape, size, 1))], axis=-1
  )
  return full[..., : process.input_size]


def evidence(process, ids, t):
  """log q(z_i | x_i = v): [B, L, V]."""
  table = law(process, jnp.broadcast_to(t, ids.shape))
  picked = jnp.take_along_axis(table, ids[..., None, None], axis=-1)[..., 0]
  return jnp.maximum(jnp.log(picked), NEVER)


def leave_one_out(language, process, ids, t):
  """log p(x_i | z without z_i): [B, L, V]."""
  clues = evidence(process, ids, t)
  return jnp.stack(
    [language.posterior(clues.at[:, i].set(0.0))[:, i] for i in range(ids.shape[1])], axis=1
  )


def meant(process, logp, ids, t):
  """Leave-one-out log-probabilities [B, L, V] -> the logits by which this process says the same."""
  if process.prediction == "posterior":
    return jnp.maximum(logp + evidence(process, ids, t), NEVER)
  if process.prediction == "clean":
    return logp
  if isinstance(process, Masked):
    return logp + np.log(process.vocab_size)
  clean, _, uniform = process.shares(jnp.broadcast_to(t, ids.shape)[..., None])
  scores = jnp.log(clean * jnp.exp(logp) + uniform / process.vocab_size)
  return (
    scores - jnp.take_along_axis(scores, ids[..., None], axis=-1)
    if process.prediction == "score"
    else logp
  )


def exact(process, language=TOY_B):
  """The perfect network of a language, for this process."""

  def predict(inputs, t, layout=None):
    return exact_prediction(
      meant(process, leave_one_out(language, process, inputs.ids, t), inputs.ids, t)
    )

  return predict


def uniform(process, language=TOY_B):
  """The network that knows nothing: it is exact for the language of uniform, independent tokens."""

  def predict(inputs, t, layout=None):
    ids = inputs.ids
    return exact_prediction(
      meant(
        process, jnp.full((*ids.shape, process.vocab_size), -np.log(process.vocab_size)), ids, t
      )
    )

  return predict


def quadrature(
  process, predict, language=TOY_B, low=0.0, high=1.0, nodes=NODES, weights=NODE_WEIGHTS
) -> float:
  """∫ E[rate] dt in nats per sequence, summed over all sequences and states: no randomness."""
  length, size = language.sequences.shape[1], process.input_size
  states = jnp.asarray(np.indices((size,) * length).reshape(length, -1).T, jnp.int32)
  ids, probability = (
    jnp.asarray(language.sequences),
    jnp.asarray(language.probabilities, jnp.float32),
  )

  @jax.jit
  def at(t):
    logits = predict(process.inputs({}, states, t), jnp.full(states.shape, t)).logits
    pairs = lambda x: jnp.broadcast_to(x[:, None], (len(states), len(ids), *x.shape[1:]))
    shape = (len(states), len(ids), length)
    rate = process.rate(
      {}, jnp.broadcast_to(ids, shape), pairs(states), jnp.full(shape, t), pairs(logits)
    ).sum(-1)
    grid = getattr(process, "grid", None)
    table = law(process, t if grid is None else jnp.ceil(t * grid) / grid)
    chance = jnp.prod(table[ids[None], states[:, None]], axis=-1) * probability
    return jnp.sum(jnp.where(chance > 0, chance * rate, 0.0))

  nodes = jnp.asarray(low + (high - low) * nodes, jnp.float32)
  return float((high - low) * (weights * np.asarray(jax.lax.map(at, nodes), np.float64)).sum())


def check_bound_is_the_entropy(process):
  assert abs(quadrature(process, exact(process)) - TOY_B.entropy) < 5e-4


def check_uniform_predictor_costs_log_v(process):
  assert abs(quadrature(process, uniform(process)) / 2 - np.log(V)) < 2e-4


def check_ends(process):
  ids = jnp.asarray(np.tile(TOY_B.sequences, (2000, 1)))
  for seed in range(3):
    np.testing.assert_array_equal(
      process.corrupt({}, jax.random.key(seed), ids, jnp.zeros(ids.shape)), ids
    )
  noise = process.corrupt({}, jax.random.key(7), ids, jnp.ones(ids.shape))
  prior = process.prior({}, jax.random.key(8), ids.shape)
  want = np.asarray(law(process, 1.0))[0]
  for state in (noise, prior):
    got = np.bincount(np.asarray(state).reshape(-1), minlength=process.input_size) / ids.size
    assert np.abs(got - want).max() < 4.5 * np.sqrt(0.25 / ids.size)
  np.testing.assert_allclose(
    np.asarray(law(process, 1.0)).std(0), 0.0, atol=1e-7, err_msg="the prior knows the token"
  )


def true_logits(process, ids, state, t):
  """What a network that knows the tokens would answer."""
  return meant(
    process, jnp.where(ids[..., None] == jnp.arange(process.vocab_size), 0.0, -60.0), state, t
  )


def check_chapman_kolmogorov(process):
  """corrupt to t then step to s with the true token must leave corrupt's marginal at s, for random per-token t >= s."""
  rows = 60_000
  rng = np.random.default_rng(0)
  for _ in range(3):
    t = rng.random(2).astype(np.float32)
    s = (t * rng.random(2)).astype(np.float32)
    ids = jnp.asarray(np.tile(rng.integers(0, V, 2), (rows, 1)), jnp.int32)
    t_BxL, s_BxL = jnp.broadcast_to(t, ids.shape), jnp.broadcast_to(s, ids.shape)
    state = process.corrupt({}, jax.random.key(0), ids, t_BxL)
    keys = token_keys(row_keys(7, rows), 2)
    logits = true_logits(process, ids, state, t_BxL)
    after = process.step({}, keys, state, logits, t_BxL, s_BxL)
    still = ~np.asarray(process.moves({}, keys, state, t_BxL, s_BxL))
    assert (np.asarray(after)[still] == np.asarray(state)[still]).all(), (
      "a token moved that was said not to"
    )
    want = np.asarray(law(process, s))
    for place in range(2):
      got = np.bincount(np.asarray(after)[:, place], minlength=process.input_size) / rows
      p = want[place, int(ids[0, place])]
      assert (np.abs(got - p) < 4.5 * np.sqrt(p * (1 - p) / rows) + 1e-4).all(), (
        place,
        t,
        s,
        got,
        p,
      )


def check_steps_end_clean(process):
  """The last step of any grid leaves no noise symbol, and every id is a clean one."""
  state = process.prior({}, jax.random.key(0), (500, 4))
  t, s = jnp.full((500, 4), 0.25), jnp.zeros((500, 4))
  after = process.step({}, token_keys(row_keys(0, 500), 4), state, jnp.zeros((500, 4, V)), t, s)
  assert int(after.max()) < V and int(after.min()) >= 0


def check_many_steps_give_the_language(process):
  rows, law = 6_000, TOY_B.probabilities
  run = jax.jit(
    lambda keys: sample(
      Ancestral(Shared(), 64),
      process,
      {},
      exact(process),
      token_keys(keys, 2),
      Batch(jnp.zeros((rows, 2), jnp.int32)),
    )
  )
  got = TOY_B.histogram(np.asarray(run(row_keys(0, rows)).ids))
  drawn = (
    0.5 * np.sqrt(2 * law * (1 - law) / (np.pi * rows)).sum()
  )  # what a perfect sampler is expected to be away; the mutant is 0.35
  assert TOY_B.total_variation(got) < 1.5 * drawn + 0.01  # 0.01: golden for 64 steps


def check_mean(nats, want: float, largest_error: float = 0.01):
  """The mean is `want` within 3 standard errors, and those are small enough to say something."""
  error = float(np.std(nats)) / len(nats) ** 0.5
  assert error < largest_error * want
  assert abs(float(np.mean(nats)) - want) < 3 * error


CHECKS = [
  check_bound_is_the_entropy,
  check_uniform_predictor_costs_log_v,
  check_ends,
  check_chapman_kolmogorov,
  check_steps_end_clean,
]


@every_row
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conformance(process, check):
  check(process)


SAMPLED = [
  row for row in ROWS if isinstance(row.schedule, Linear) and row.prediction != "posterior"
]


@pytest.mark.parametrize("process", SAMPLED, ids=repr)
def test_many_steps_give_the_language(process):
  """With Chapman-Kolmogorov for all rows, one schedule of each kind of step is enough here."""
  check_many_steps_give_the_language(process)


@pytest.mark.parametrize("kind", ["shared", "slanted"])
@pytest.mark.parametrize("process", SAMPLED, ids=repr)
def test_drawn_bound_is_the_entropy(process, kind):
  """The objective itself, with its own draws: within 3 standard errors, which are below 2 %. Per-token times included.

  Random tokens have their cost at small times, hence the power; along a slanted line times are drawn evenly, which GIDD's root of t
  would need far more draws for.
  """
  mixed = isinstance(process, Mixed)
  if kind == "slanted" and mixed and process.mixing == "gidd":
    pytest.skip("its variance under evenly drawn times is too large to say anything")
  timing = Slanted(1.0) if kind == "slanted" else Shared(power=3.0 if mixed else 1.0)
  rows, draws = 50_000, 8 if kind == "slanted" and mixed else 4
  ids = jnp.asarray(TOY_B.sample(np.random.default_rng(3), rows))
  bound = Bound(process, timing, chunks=Chunks(8192))
  draw = jax.jit(lambda key: bound.nats({}, key, Batch(ids), Progress(), exact(process)).sum(1))
  nats = np.concatenate([draw(jax.random.key(5 + i)) for i in range(draws)])
  check_mean(nats, TOY_B.entropy, largest_error=0.02)


@pytest.mark.parametrize("process", (ROWS[0], ROWS[3], ROWS[5]), ids=repr)
def test_bound_of_a_markov_chain(process):
  """A longer language, by forward-backward."""
  chain = MarkovChain.branchy(0, vocab_size=5, length=12)
  process = dataclasses.replace(process, vocab_size=5)
  rows = 40_000
  ids = jnp.asarray(chain.sample(np.random.default_rng(4), rows))

  def predict(inputs, t, layout):
    return exact_prediction(
      meant(process, chain.posterior(masked_evidence(inputs.ids, 5)), inputs.ids, t)
    )

  bound = Bound(process, Shared(), chunks=Chunks(8192))
  check_mean(
    jax.jit(lambda key: bound.nats({}, key, Batch(ids), Progress(), predict).sum(1))(
      jax.random.key(6)
    ),
    chain.entropy,
  )


@pytest.mark.parametrize("process", SAMPLED, ids=repr)
def test_given_tokens_are_free_and_clean(process):
  """Given tokens cost nothing and the network reads them clean; what is left costs H(rest | given)."""
  rows = 60_000
  ids = jnp.asarray(TOY_B.sample(np.random.default_rng(8), rows))
  given = jnp.broadcast_to(jnp.array([True, False]), ids.shape)
  bound = Bound(
    process, Shared(power=3.0 if isinstance(process, Mixed) else 1.0), chunks=Chunks(8192)
  )

  @jax.jit
  def score(batch):
    seen = []

    def predict(inputs, t, layout):
      seen.append((inputs.ids, t))
      return exact(process)(inputs, t)

    return bound.nats({}, jax.random.key(1), batch, Progress(), predict), *seen[0]

  nats, read, t = score(Batch(ids, given=given))
  np.testing.assert_array_equal(read[:, :1], ids[:, :1])
  assert (np.asarray(t)[:, :1] == 0).all() and not np.asarray(nats)[:, :1].any()
  first = TOY_B.probabilities.reshape(V, V).sum(1)
  check_mean(nats.sum(1), TOY_B.entropy + (first * np.log(first)).sum(), largest_error=0.03)


# --- mutants: each breaks one line, and the named check must notice -------------------------------------------------------------


class NoCarryOver(Masked):
  def step(self, params, keys, state, logits, t, s):
    return jnp.where(
      self.moves(params, keys, state, t, s), self.draw(params, keys, state, logits), self.mask_id
    )


class SquaredWeight(Masked):
  def rate(self, params, ids, state, t, logits):
    return super().rate(params, ids, state, t, logits) * weight(self.schedule, t)


class OffByOne(Masked):
  def moves(self, params, keys, state, t, s):
    return super().moves(params, keys, state, t, t - (t - s) / 2)


class SamplesTheMask(Masked):
  def draw(self, params, keys, state, logits):
    with_mask = jnp.concatenate([logits, jnp.max(logits, axis=-1, keepdims=True)], axis=-1)
    return super().draw(params, keys, state, with_mask)


class ScoresEverything(Masked):
  def scored(self, params, state, t):
    return jnp.ones(state.shape, bool)


class CountsItsOwnTokenTwice(Mixed):
  def _own_evidence(self, state, t, vocab_size):
    return jnp.zeros((*state.shape, vocab_size))


class ForgetsTheRatio(Mixed):
  def divergence(self, params, ids, state, t, logits):
    right = super().divergence(params, ids, state, t, logits)
    own = self._against(self._moving(t)[0], ids, state, self.leave_one_out(state, t, logits))[2]
    return right - jnp.where(state == self.mask_id, 0.0, phi(-own))


class NeverDrawsAtRandom(Mixed):
  def _any_token(self, keys):
    return jnp.zeros(keys.shape, jnp.int32)


class MovesTooRarely(Mixed):
  def moves(self, params, keys, state, t, s):
    return super().moves(params, keys, state, t, (t + s) / 2)


class PlainKeep(Mixed):
  """Keeps z_t as if x̂ said nothing about it."""

  def _predicted(self, shares, state, t, logits):
    return jnp.maximum(shares.uniform / self.vocab_size, LEAST)


MIXED = (V, Linear(), "gidd", 0.2)
MUTANTS = [
  (NoCarryOver(V, Linear()), check_chapman_kolmogorov),
  (SquaredWeight(V, Linear()), check_bound_is_the_entropy),
  (SquaredWeight(V, Linear()), check_uniform_predictor_costs_log_v),
  (OffByOne(V, Linear()), check_chapman_kolmogorov),
  (OffByOne(V, Linear()), check_steps_end_clean),
  (SamplesTheMask(V, Linear()), check_steps_end_clean),
  (ScoresEverything(V, Linear()), check_uniform_predictor_costs_log_v),
  (CountsItsOwnTokenTwice(*MIXED, prediction="posterior"), check_bound_is_the_entropy),
  (ForgetsTheRatio(*MIXED), check_bound_is_the_entropy),
  (ForgetsTheRatio(*MIXED), check_uniform_predictor_costs_log_v),
  (NeverDrawsAtRandom(*MIXED), check_chapman_kolmogorov),
  (MovesTooRarely(*MIXED), check_chapman_kolmogorov),
  (PlainKeep(*MIXED), check_chapman_kolmogorov),
  (PlainKeep(*MIXED), check_many_steps_give_the_language),
]


@pytest.mark.parametrize(
  "mutant,check", MUTANTS, ids=lambda value: getattr(value, "__name__", type(value).__name__)
)
def test_mutants_fail(mutant, check):
  with pytest.raises(AssertionError):
    check(mutant)


@pytest.mark.parametrize(
  "make,word",
  [
    (lambda: Mixed(4, Linear(), "half"), "mixing='half'"),
    (lambda: Mixed(4, Linear(), "gidd", 1.0), "share=1.0"),
    (lambda: Mixed(4, Linear(), share=-0.1), "share=-0.1"),
    (lambda: Mixed(4, Linear(), prediction="score"), "prediction='score'"),
    (lambda: Uniform(4, Linear(), prediction="clean"), "prediction='clean'"),
    (lambda: Uniform(4, Linear(), prediction="score", grid=4), "grid=4"),
    (lambda: Uniform(1, Linear()), "vocab_size=1"),
    (lambda: Masked(4, Linear(), prediction="posterior"), "prediction='posterior'"),
    (lambda: Masked(4, Linear(), grid=0), "grid=0"),
  ],
)
def test_bad_choices_are_refused(make, word):
  with pytest.raises(ValueError, match=word):
    make()
