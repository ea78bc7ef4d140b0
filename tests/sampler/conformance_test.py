"""Every sampler × every property, with the exact denoiser of a toy language and no training; and mutants that must fail."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.draws import row_keys, token_keys
from diffusion_text.evaluate.oracle import Enumerable, MarkovChain, exact_prediction, masked_evidence
from diffusion_text.process.masked import Masked
from diffusion_text.sampler.ancestral import Ancestral, EventDriven, TauLeaping
from diffusion_text.sampler.correct import PredictorCorrector, SelfCorrecting
from diffusion_text.sampler.guidance import Guidance
from diffusion_text.sampler.loop import NOT_DRAWN, sample
from diffusion_text.sampler.order import ORDERS, Ordered
from diffusion_text.sampler.remask import Remasking
from diffusion_text.sampler.routed import Routed
from diffusion_text.schedules import Cosine, Linear
from diffusion_text.timing import Shared, Slanted
from diffusion_text.types import Batch
from tests.process.conformance_test import TOY
from tests.process.golden_test import ancestral_law

PROCESS = Masked(3, Linear())
SHARED = Shared()


def exact(language):
  def denoise(inputs, t):
    del t
    return exact_prediction(language.posterior(masked_evidence(inputs.ids, language.vocab_size)))

  return denoise


def draw(policy, rows, process=PROCESS, language=TOY, seed=0, batch=None, denoise=None):
  length = language.sequences.shape[1] if isinstance(language, Enumerable) else language.length
  batch = Batch(jnp.zeros((rows, length), jnp.int32)) if batch is None else batch
  run = jax.jit(lambda keys: sample(policy, process, {}, denoise or exact(language), token_keys(keys, length), batch))
  return jax.tree.map(np.asarray, run(row_keys(seed, rows)))


def noise_floor(law, rows):
  """Expected total variation between a law and the histogram of `rows` draws from it, and some."""
  return 0.5 * np.sqrt(2 * law * (1 - law) / (np.pi * rows)).sum() * 1.25


@pytest.mark.parametrize("steps", [4, 16])
@pytest.mark.parametrize("kind", [Ancestral, EventDriven])
def test_grid_samplers_have_the_law_of_their_grid(kind, steps):
  """Both follow the exact law of `steps` ancestral steps (which the golden numbers pin), not merely something near."""
  law, rows = ancestral_law(steps), 60_000
  got = TOY.histogram(draw(kind(SHARED, steps), rows).ids)
  assert 0.5 * np.abs(got - law).sum() < noise_floor(law, rows)


@pytest.mark.parametrize("process,timing", [(PROCESS, SHARED), (Masked(3, Cosine()), Slanted(2.0))], ids=repr)
@pytest.mark.parametrize("kind", [Ancestral, EventDriven])
def test_many_steps_reproduce_the_language(kind, process, timing):
  rows = 20_000
  got = TOY.histogram(draw(kind(timing, 64), rows, process=process).ids)
  assert TOY.total_variation(got) < noise_floor(TOY.probabilities, rows) + 0.015  # 64 steps: 0.00996 for the linear grid


@pytest.mark.parametrize("order", ORDERS)
def test_one_token_per_call_is_exact_in_any_order(order):
  """Choose the position by the distribution, then draw: exact at temperature 1 (discrete.md, section 8)."""
  rows = 40_000
  result = draw(Ordered(SHARED, 4, order), rows)
  assert result.calls == 4
  assert TOY.total_variation(TOY.histogram(result.ids)) < noise_floor(TOY.probabilities, rows)


def test_drawn_token_order_is_biased_and_would_be_noticed():
  """The published rule (score the drawn token) as a mutant: the test above must reject it (TV 0.431 in discrete.md, 7.8)."""

  @dataclasses.dataclass(frozen=True)
  class ScoresTheDraw(Ordered):
    def _score(self, canvas, prediction, waiting):
      logp = jax.nn.log_softmax(prediction.logits)
      token = PROCESS.draw(
        {}, jax.vmap(jax.vmap(lambda k: jax.random.fold_in(k, canvas.call)))(canvas.keys), canvas.state, logp
      )
      return jnp.take_along_axis(logp, jnp.minimum(token, 2)[..., None], axis=-1)[..., 0]

    def advance(self, process, params, canvas, prediction):
      keys = jax.vmap(jax.vmap(lambda k: jax.random.fold_in(k, canvas.call)))(canvas.keys)
      waiting = self._waiting(process, params, canvas)
      score = jnp.where(waiting, self._score(canvas, prediction, waiting), -jnp.inf)
      best = jnp.argsort(jnp.argsort(-score, axis=1), axis=1) == 0
      return jnp.where(waiting & best, process.draw(params, keys, canvas.state, prediction.logits), canvas.state)

  result = draw(ScoresTheDraw(SHARED, 4, "max_prob"), 20_000)
  assert TOY.total_variation(TOY.histogram(result.ids)) > 0.3


POLICIES = [
  Ancestral(SHARED, 6),
  EventDriven(SHARED, 6),
  *(Ordered(SHARED, 6, order) for order in ORDERS),
  TauLeaping(SHARED, 6),
  Remasking(SHARED, 6, strategy="conf", loop=(0.7, 0.2, 0.8)),
  PredictorCorrector(SHARED, 6, kappa=0.7),
  Routed(SHARED, 6, rate="cosine", noise_scale=1.0),
  SelfCorrecting(SHARED, 6, corrections=3),
]
CALLS = {EventDriven: range(1, 7), SelfCorrecting: range(7, 10)}  # the others make 6


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: f"{type(p).__name__}-{getattr(p, 'order', '')}")
class TestEverySampler:
  CHAIN = MarkovChain.branchy(1, vocab_size=5, length=12)
  FIVE = Masked(5, Linear())

  def test_given_tokens_and_padding_are_never_altered(self, policy):
    ids = jnp.asarray(self.CHAIN.sample(np.random.default_rng(0), 16))
    given = jax.random.bernoulli(jax.random.key(3), 0.5, ids.shape)
    weights = jnp.ones(ids.shape).at[:, -2:].set(0.0)
    batch = Batch(ids, given=given, weights=weights)
    result = draw(policy, 16, self.FIVE, self.CHAIN, batch=batch)
    kept = np.asarray(given) | (np.asarray(weights) == 0)
    np.testing.assert_array_equal(result.ids[kept], np.asarray(ids)[kept])
    assert (result.committed[kept] == NOT_DRAWN).all()
    assert (result.ids < 5).all()

  def test_a_row_does_not_depend_on_its_batch(self, policy):
    together = draw(policy, 8, self.FIVE, self.CHAIN)
    batch = Batch(jnp.zeros((1, 12), jnp.int32))
    run = jax.jit(lambda keys: sample(policy, self.FIVE, {}, exact(self.CHAIN), token_keys(keys, 12), batch))
    for row in (0, 5):
      alone = run(row_keys(0, 1, first=row))
      np.testing.assert_array_equal(alone.ids[0], together.ids[row])
      assert int(alone.row_calls[0]) == int(together.row_calls[row])

  def test_calls_are_counted_as_made(self, policy):
    """The number reported is the number of times that the network really ran."""
    made = []

    def denoise(inputs, t):
      jax.debug.callback(lambda: made.append(1))
      return exact(self.CHAIN)(inputs, t)

    result = draw(policy, 4, self.FIVE, self.CHAIN, denoise=denoise)
    jax.effects_barrier()
    assert len(made) == int(result.calls) == int(result.row_calls.max())
    assert int(result.calls) in CALLS.get(type(policy), [6])

  def test_committed_tells_when_each_token_came(self, policy):
    result = draw(policy, 8, self.FIVE, self.CHAIN)
    assert (result.committed >= 0).all() and (result.committed < result.calls).all()

  def test_greedy_is_deterministic(self, policy):
    """Temperature 0 leaves no randomness in *what*; only *when* may differ between seeds, so compare at one token per call."""
    if not isinstance(policy, Ordered) or policy.order == "random":
      pytest.skip("the order itself is random")
    greedy = dataclasses.replace(policy, guidance=Guidance(temperature=0))
    first, second = (draw(greedy, 2, self.FIVE, self.CHAIN, seed=seed).ids for seed in (0, 1))
    np.testing.assert_array_equal(first, second)


def test_event_driven_calls_match_theory():
  """S(1 - (1 - 1/S)^L) calls per row on a linear grid, however many rows there are: 226 at S = 1000, L = 256."""
  chain_length, steps, rows = 256, 1000, 64
  batch = Batch(jnp.zeros((rows, chain_length), jnp.int32))
  denoise = lambda inputs, t: exact_prediction(jnp.zeros((*inputs.ids.shape, 3)))
  result = jax.jit(
    lambda keys: sample(EventDriven(SHARED, steps), PROCESS, {}, denoise, token_keys(keys, chain_length), batch)
  )(row_keys(0, rows))
  expected = steps * (1 - (1 - 1 / steps) ** chain_length)
  assert expected == pytest.approx(226.0, abs=0.1)
  assert float(result.row_calls.mean()) == pytest.approx(expected, abs=2.5)  # standard error about 0.6
  assert int(result.calls) == int(result.row_calls.max())


def test_event_driven_tells_the_network_the_time_of_each_row():
  """At a row's event the time is the grid time at which its tokens are revealed, so time-conditioned networks see what they expect."""
  seen = []

  def denoise(inputs, t):
    jax.debug.callback(lambda ids, t: seen.append((ids, t)), inputs.ids, t)
    return exact(TOY)(inputs, t)

  draw(EventDriven(SHARED, 8), 50, denoise=denoise)
  jax.effects_barrier()
  for ids, t in seen:
    assert np.isin(t * 8, np.arange(9)).all()
    live = (ids == 3).any(1)
    assert (t[live] > 0).all()


@pytest.mark.parametrize("rows_open", [1, 3, 5, 12])
@pytest.mark.parametrize("steps", [1, 2, 5, 12, 40])
def test_even_quota_empties_every_row(steps, rows_open):
  """For every number of open tokens and steps the shares add up, and no call is wasted."""
  chain = TestEverySampler.CHAIN
  given = jnp.arange(12)[None] >= jnp.array([rows_open, 12])[:, None]
  batch = Batch(jnp.asarray(chain.sample(np.random.default_rng(1), 2)), given=given)
  result = draw(Ordered(SHARED, steps, "margin"), 2, Masked(5, Linear()), chain, batch=batch)
  assert (result.ids < 5).all()
  np.testing.assert_array_equal(result.row_calls, [min(steps, rows_open), min(steps, 12)])


def test_top_p_keeps_the_crossing_token():
  logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
  kept = lambda p: np.isfinite(Guidance(top_p=p)(logits)).tolist()
  assert kept(0.5) == [True, False, False, False]
  assert kept(0.51) == [True, True, False, False]
  assert kept(0.96) == [True, True, True, True]
  assert kept(1e-6) == [True, False, False, False]


@pytest.mark.parametrize("bad", [dict(temperature=-1.0), dict(top_p=0.0), dict(top_p=1.5), dict(temperature=float("nan"))])
def test_bad_guidance_is_refused(bad):
  with pytest.raises(ValueError, match=next(iter(bad))):
    Guidance(**bad)


def test_rare_tokens_keep_their_share():
  """100 tokens of probability 1e-5 each are drawn 1e-3 of the time in all: 200 000 draws, within 4 standard errors."""
  from diffusion_text.draws import draw_categorical

  logits = jnp.log(jnp.concatenate([jnp.array([1 - 1e-3]), jnp.full((100,), 1e-5)]))
  ids = jax.jit(lambda keys: draw_categorical(keys, jnp.broadcast_to(logits, (*keys.shape, 101))))(
    token_keys(row_keys(0, 200), 1000)
  )
  rare = float((np.asarray(ids) > 0).mean())
  assert rare == pytest.approx(1e-3, abs=4 * (1e-3 / 200_000) ** 0.5)


def test_a_process_that_cannot_reveal_is_told_so():
  class Plain:
    def __getattr__(self, name):
      if name in ("draw", "arrival"):
        raise AttributeError(name)
      return getattr(PROCESS, name)

  for policy in (EventDriven(SHARED, 4), Ordered(SHARED, 4)):
    with pytest.raises(ValueError, match=r"Plain .* ancestral"):
      draw(policy, 2, process=Plain())
