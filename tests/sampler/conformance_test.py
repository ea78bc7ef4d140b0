"""Every sampler × every property, with the exact denoiser of a toy language and no training; and mutants that must fail."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.core.prng import row_keys, token_keys
from diffusion_text.process.embedding import Embedding
from diffusion_text.process.gaussian import Gaussian
from diffusion_text.process.masked import Masked
from diffusion_text.process.mixed import Mixed
from diffusion_text.process.uniform import Uniform
from diffusion_text.sampler.ancestral import Ancestral, EventDriven, TauLeaping
from diffusion_text.sampler.control import LogitControl
from diffusion_text.sampler.correct import PredictorCorrector, SelfCorrecting
from diffusion_text.sampler.guidance import Guidance
from diffusion_text.sampler.loop import NOT_DRAWN, Canvas, sample
from diffusion_text.sampler.multistep import Multistep
from diffusion_text.sampler.order import ORDERS, Ordered
from diffusion_text.sampler.remask import Remasking
from diffusion_text.sampler.routed import Routed
from diffusion_text.schedules.discrete import Cosine, Linear
from diffusion_text.schedules.gaussian import VPCosine
from diffusion_text.testing.oracle import Enumerable, MarkovChain, exact_prediction, masked_evidence
from diffusion_text.timing import Shared, Slanted
from diffusion_text.types import Batch
from tests.process.conformance_test import TOY
from tests.process.golden_test import ancestral_law

PROCESS = Masked(3, Linear())
SHARED = Shared()
# For tiny runs, of which nearly all the time is compilation.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def exact(language):
  def denoise(inputs, t):
    del t
    return exact_prediction(language.posterior(masked_evidence(inputs.ids, language.vocab_size)))

  return denoise


def draw(policy, rows, process=PROCESS, language=TOY, seed=0, batch=None, denoise=None):
  length = language.sequences.shape[1] if isinstance(language, Enumerable) else language.length
  batch = Batch(jnp.zeros((rows, length), jnp.int32)) if batch is None else batch
  jit = quick if rows <= 500 else jax.jit
  run = jit(
    lambda keys: sample(
      policy, process, {}, denoise or exact(language), token_keys(keys, length), batch
    )
  )
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


@pytest.mark.parametrize(
  "process,timing", [(PROCESS, SHARED), (Masked(3, Cosine()), Slanted(2.0))], ids=repr
)
@pytest.mark.parametrize("kind", [Ancestral, EventDriven])
def test_many_steps_reproduce_the_language(kind, process, timing):
  rows = 20_000
  got = TOY.histogram(draw(kind(timing, 64), rows, process=process).ids)
  assert (
    TOY.total_variation(got) < noise_floor(TOY.probabilities, rows) + 0.015
  )  # 64 steps: 0.00996 for the linear grid


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
        {},
        jax.vmap(jax.vmap(lambda k: jax.random.fold_in(k, canvas.call)))(canvas.keys),
        canvas.state,
        logp,
      )
      return jnp.take_along_axis(logp, jnp.minimum(token, 2)[..., None], axis=-1)[..., 0]

    def advance(self, process, params, canvas, prediction):
      keys = jax.vmap(jax.vmap(lambda k: jax.random.fold_in(k, canvas.call)))(canvas.keys)
      waiting = self._waiting(process, params, canvas)
      score = jnp.where(waiting, self._score(canvas, prediction, waiting), -jnp.inf)
      best = jnp.argsort(jnp.argsort(-score, axis=1), axis=1) == 0
      return jnp.where(
        waiting & best, process.draw(params, keys, canvas.state, prediction.logits), canvas.state
      )

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
ANY_NOISE = (Ancestral, TauLeaping, PredictorCorrector, Routed, SelfCorrecting)
CALLS = {EventDriven: range(1, 7), SelfCorrecting: range(7, 10)}  # the others make 6


@functools.cache
def compiled(policy):
  """The sampler of the chain with masks; of a mixture, by a network that goes by the token before, where tokens are corrected."""
  made = []

  def follows(inputs, t):
    return exact_prediction(3.0 * jax.nn.one_hot((jnp.roll(inputs.ids, 1, axis=1) + 1) % 5, 5))

  mixed = isinstance(policy, SelfCorrecting)
  every = TestEverySampler
  process, network = (
    (Mixed(5, Linear(), "gidd", 0.3), follows) if mixed else (every.FIVE, exact(every.CHAIN))
  )

  def denoise(inputs, t):
    jax.debug.callback(lambda: made.append(1))
    return network(inputs, t)

  return quick(
    lambda keys, *batch: sample(
      policy, process, {}, denoise, keys, Batch(batch[0], given=batch[1], weights=batch[2])
    )
  ), made


STEERED = LogitControl(Ancestral(SHARED, 6), lambda soft: jnp.sum(soft[..., 0] ** 2, axis=1), 2.0)


@pytest.mark.parametrize(
  "policy", [*POLICIES, STEERED], ids=lambda p: f"{type(p).__name__}-{getattr(p, 'order', '')}"
)
class TestEverySampler:
  CHAIN = MarkovChain.branchy(1, vocab_size=5, length=12)
  FIVE = Masked(5, Linear())

  def draw(self, policy, rows, seed=0, first=0, ids=None, given=None, weights=None):
    """(sample, number of times that the network ran)."""
    run, made = compiled(policy)
    made.clear()
    fill = lambda value, default: jnp.full((rows, 12), default) if value is None else value
    keys = token_keys(row_keys(seed, rows, first=first), 12)
    result = jax.tree.map(
      np.asarray, run(keys, fill(ids, 0), fill(given, False), fill(weights, 1.0))
    )
    jax.effects_barrier()
    return result, len(made)

  def test_given_tokens_and_padding_are_never_altered(self, policy):
    ids = jnp.asarray(self.CHAIN.sample(np.random.default_rng(0), 6))
    given = jax.random.bernoulli(jax.random.key(3), 0.5, ids.shape)
    weights = jnp.ones(ids.shape).at[:, -2:].set(0.0)
    result, _ = self.draw(policy, 6, ids=ids, given=given, weights=weights)
    kept = np.asarray(given) | (np.asarray(weights) == 0)
    np.testing.assert_array_equal(result.ids[kept], np.asarray(ids)[kept])
    assert (result.committed[kept] == NOT_DRAWN).all() and (result.committed[~kept] >= 0).all()
    assert (result.ids < 5).all() and (result.committed < result.calls).all()

  def test_a_row_does_not_depend_on_its_batch(self, policy):
    """And the number of calls reported is the number of times that the network really ran."""
    together, made = self.draw(policy, 6)
    assert made == int(together.calls) == int(together.row_calls.max())
    assert int(together.calls) in CALLS.get(type(policy), [6])
    alone, _ = self.draw(policy, 1, first=5)
    np.testing.assert_array_equal(alone.ids[0], together.ids[5])
    assert int(alone.row_calls[0]) == int(together.row_calls[5])

  def test_greedy_is_deterministic(self, policy):
    """Temperature 0 leaves no randomness in *what*; only *when* may differ between seeds, so compare at one token per call."""
    if not isinstance(policy, Ordered) or policy.order == "random":
      pytest.skip("the order itself is random")
    greedy = dataclasses.replace(policy, guidance=Guidance(temperature=0))
    first, second = (self.draw(greedy, 6, seed=seed)[0].ids for seed in (0, 1))
    np.testing.assert_array_equal(first, second)


@dataclasses.dataclass(frozen=True)
class Walk(Shared):
  """A grid given as it is: one compilation serves the grids of several timings."""

  times: jax.Array | None = None

  def grid(self, steps, length):
    return self.times


LIKED = jnp.array([2, 0, 3, 1])


def believed(policy, process, logit, timings):
  """For each timing, a sample of two rows by a network that always likes the same four tokens by this logit."""
  likes = exact_prediction(jnp.broadcast_to(logit * jax.nn.one_hot(LIKED, 4), (2, 4, 4)))
  batch = Batch(jnp.zeros((2, 4), jnp.int32))

  @quick
  def run(times):
    walk = dataclasses.replace(policy, timing=Walk(times=times))
    return sample(
      walk,
      process,
      process.init(jax.random.key(0)),
      lambda inputs, t: likes,
      token_keys(row_keys(1, 2), 4),
      batch,
    )  # this prior shows some already

  return [run(timing.grid(policy.steps, 4)) for timing in timings]


def check_certain(policy, process):
  for result in believed(policy, process, 30.0, [SHARED, Slanted(2.0)]):
    assert (result.ids == LIKED).all() and (result.committed >= 0).all()


CERTAIN = [
  *(
    (policy, Masked(4, Linear()))
    for policy in POLICIES
    if getattr(policy, "order", "margin") == "margin"
  ),
  *((policy, Uniform(4, Linear())) for policy in POLICIES),
  *((policy, Mixed(4, Linear(), "gidd", 0.3)) for policy in POLICIES),
]
CERTAIN += [
  (Multistep(SHARED, 6), noise)
  for noise in (Masked(4, Linear()), Embedding(4, VPCosine(), width=4))
]
CERTAIN = [(dataclasses.replace(policy, steps=3), process) for policy, process in CERTAIN]


@pytest.mark.parametrize(
  "policy,process", CERTAIN, ids=lambda x: f"{type(x).__name__}-{getattr(x, 'order', '')}"
)
def test_a_certain_network_is_believed(policy, process):
  """Whatever the noise and the timing, its token is drawn everywhere; samplers that cannot work on a process say so."""
  works = (
    type(policy) in ANY_NOISE
    if isinstance(process, Mixed)
    else not isinstance(policy, SelfCorrecting)
  )
  works = isinstance(process, Gaussian) if isinstance(policy, Multistep) else works
  if works:
    return check_certain(policy, process)
  with pytest.raises(ValueError, match=type(process).__name__):
    check_certain(policy, process)


def test_routing_by_the_times_of_the_timing_would_be_noticed():
  """Tokens at t = 0 that went back to noise would be taken for clean ones."""

  class Walks(Routed):
    plan = Ancestral.plan

  with pytest.raises(AssertionError):
    check_certain(Walks(SHARED, 3, rate="cosine", noise_scale=1.0), Uniform(4, Linear()))


def test_guidance_of_uniform_noise():
  """One step from pure noise is the likeliest token wherever guidance leaves no other."""
  one = lambda **options: (
    believed(Ancestral(SHARED, 1, **options), Uniform(4, Linear()), 1.0, [SHARED])[0].ids == LIKED
  ).all()
  assert not one()
  assert one(greedy_tail=True) and one(guidance=Guidance(top_p=1e-6))


@pytest.mark.parametrize("kind", ANY_NOISE, ids=lambda kind: kind.__name__)
def test_scores_of_uniform_noise_are_not_guided(kind):
  """They are ratios to the token shown, whose own logit means nothing; those of masks are a law up to a factor."""
  make = lambda **options: kind(
    SHARED, 2, **options, **({"kappa": 0.5} if kind is PredictorCorrector else {})
  )
  canvas = Canvas(None, jnp.ones((1, 4), bool), None, jnp.int32(0), None)
  scores = Uniform(4, Linear(), prediction="score")
  make().plan(scores, {}, canvas)
  for options in (
    dict(greedy_tail=True),
    dict(guidance=Guidance(temperature=0.5)),
    dict(guidance=Guidance(top_p=0.9)),
  ):
    with pytest.raises(
      ValueError, match=r"Uniform with prediction='score'.*greedy_tail=.*temperature=.*top_p="
    ):
      make(**options).plan(scores, {}, canvas)
    make(**options).plan(Uniform(4, Linear()), {}, canvas)
    if kind is not SelfCorrecting:
      make(**options).plan(Masked(4, Linear(), prediction="score"), {}, canvas)


def test_event_driven_calls_match_theory():
  """S(1 - (1 - 1/S)^L) calls per row on a linear grid, however many rows there are: 226 at S = 1000, L = 256."""
  chain_length, steps, rows = 256, 1000, 64
  batch = Batch(jnp.zeros((rows, chain_length), jnp.int32))
  denoise = lambda inputs, t: exact_prediction(jnp.zeros((*inputs.ids.shape, 3)))
  result = jax.jit(
    lambda keys: sample(
      EventDriven(SHARED, steps), PROCESS, {}, denoise, token_keys(keys, chain_length), batch
    )
  )(row_keys(0, rows))
  expected = steps * (1 - (1 - 1 / steps) ** chain_length)
  assert expected == pytest.approx(226.0, abs=0.1)
  assert float(result.row_calls.mean()) == pytest.approx(
    expected, abs=2.5
  )  # standard error about 0.6
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


@pytest.mark.parametrize(
  "bad", [dict(temperature=-1.0), dict(top_p=0.0), dict(top_p=1.5), dict(temperature=float("nan"))]
)
def test_bad_guidance_is_refused(bad):
  with pytest.raises(ValueError, match=next(iter(bad))):
    Guidance(**bad)


def test_rare_tokens_keep_their_share():
  """100 tokens of probability 1e-5 each are drawn 1e-3 of the time in all: 200 000 draws, within 4 standard errors."""
  from diffusion_text.core.prng import draw_categorical

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
