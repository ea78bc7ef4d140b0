"""Free scores of the hybrids whose mask absorbs: the bound of exact scores is the entropy, that of
wrong ones is what the score entropy says, and steps read them as the law that they are of.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.core.options import member
from diffusion_text.process.mixed import Mixed
from diffusion_text.process.mixture import Shares
from diffusion_text.process.scores import entropy_at_mask, entropy_at_token
from diffusion_text.testing.languages import Enumerable
from diffusion_text.testing.two_tokens import mixture_law, two_token_bound

TOY = Enumerable.dirichlet(1, 0.7, 4, 2)
V = TOY.vocab_size
MIXINGS = [{"mixing": "gamma", "share": 0.2}, {"mixing": "epsilon", "share": 0.3}]


def scores_of(process, log_p, state, t):
  """The scores of a law of the clean token: log q̂_v / q̂_z at a token, log V q̂_v at the mask."""
  clean, _, uniform = process._survivors(t)
  chance = clean[..., None] * jnp.exp(log_p) + (uniform / V)[..., None]
  own = jnp.take_along_axis(chance, jnp.minimum(state, V - 1)[..., None], axis=-1)
  masked = (state == V)[..., None]
  return jnp.log(chance) - jnp.where(masked, -jnp.log(float(V)), jnp.log(own))


class AnswersInScores:
  """A process for networks that say a law, which it is told as scores, off by a factor."""

  reads_logits_as = "leave_one_out"

  def __init__(self, process, factor=1.0):
    self.process, self.factor = process, factor
    self.mask_id, self.round_time = process.mask_id, process.round_time

  def nelbo_rate(self, params, clean_state, state, t, output):
    """Of the scores."""
    inside = jnp.clip(t, 1e-6, 1 - 1e-6)
    scores = scores_of(self.process, output, state, inside) + jnp.log(self.factor)
    return self.process.nelbo_rate(params, clean_state, state, t, scores)


def bound(process, factor=1.0):
  asked = AnswersInScores(process, factor)
  return two_token_bound(asked, mixture_law(process.shares, V, masks=True), TOY)


@pytest.mark.parametrize("options", MIXINGS, ids=lambda options: options["mixing"])
def test_the_bound_of_exact_scores_is_the_entropy(options):
  process = Mixed(V, prediction="score", **options)
  assert bound(process) == pytest.approx(TOY.entropy, abs=2e-4)
  assert bound(process, factor=1.3) > TOY.entropy + 0.03


@pytest.mark.parametrize("options", MIXINGS, ids=lambda options: options["mixing"])
def test_scores_of_a_law_cost_what_the_law_costs(options):
  """Of any law, right or wrong: and a step reads the law off the scores."""
  rng = np.random.default_rng(0)
  log_p = jax.nn.log_softmax(jnp.asarray(2 * rng.normal(size=(60, V)), jnp.float32))
  ids = jnp.asarray(rng.integers(0, V, 60), jnp.int32)
  state = jnp.asarray(rng.integers(0, V + 1, 60), jnp.int32)
  t = jnp.asarray(rng.uniform(0.05, 0.95, 60), jnp.float32)
  free, law = Mixed(V, prediction="score", **options), Mixed(V, **options)
  scores = scores_of(free, log_p, state, t)
  want = law.nelbo_rate({}, ids, state, t, log_p)
  np.testing.assert_allclose(free.nelbo_rate({}, ids, state, t, scores), want, rtol=2e-3, atol=1e-4)
  read = jnp.exp(free.leave_one_out({}, state, t, scores))
  np.testing.assert_allclose(read, jnp.exp(log_p), atol=2e-4)
  keys = jax.random.split(jax.random.key(0), 60)
  stepped = [
    process.step({}, keys, state, output, t, t / 2)
    for process, output in ((free, scores), (law, log_p))
  ]
  np.testing.assert_array_equal(*stepped)
  if options["mixing"] == "gamma":
    rate, slope = jax.value_and_grad(lambda y: free.nelbo_rate({}, ids, state, t, y).sum())(scores)
    assert np.isfinite(rate) and np.isfinite(slope).all()


def entropy_by_hand(r, s):
  return np.sum(s - r * np.log(s) + r * np.log(r) - r)


def test_the_score_entropy_by_hand():
  """Three tokens at clean share 0.6: at the true token, at a wrong one, at the mask."""
  process = Mixed(3, prediction="score", mixing="gamma", share=0.1)
  shares = process._survivors(jnp.float32([0.4] * 3))
  shares = Shares(jnp.full(3, 0.6), shares.mask, jnp.full(3, 0.4))
  q = np.array([0.6 + 0.4 / 3, 0.4 / 3, 0.4 / 3])
  s = np.array([0.5, 0.8, 0.3])
  scores = jnp.log(jnp.asarray([s] * 3, jnp.float32))
  state = jnp.array([0, 1, 3])
  found = entropy_at_token(shares, jnp.zeros(3, jnp.int32), state, scores)
  want = [entropy_by_hand(np.delete(q / q[z], z), np.delete(s, z)) for z in (0, 1)]
  np.testing.assert_allclose(found[:2], want, rtol=1e-5)
  found = entropy_at_mask(shares, jnp.zeros(3, jnp.int32), scores + jnp.log(3.0))
  np.testing.assert_allclose(found, entropy_by_hand(q, s), rtol=1e-5)


@member
class PureChains(Mixed):
  """The ratios of the released code: those of the two chains by themselves, at the whole noise.

  At masks 1 / (e^σ - 1) for the true token and 0 for others, times 1 - share; at tokens those of
  uniform noise, times the share.
  """

  def nelbo_rate(self, params, clean_state, state, t, output):
    """Their score entropy, by the same scores."""
    t = jnp.clip(t, 1e-5, 1 - 1e-5)
    alpha, noise = self.schedule(t)
    ratio, lost = alpha / noise, self.shares(t).mask
    log_s = output - jnp.log(V) + jnp.log((1 - lost) / lost)[..., None]  # over the mask's own
    true = jnp.take_along_axis(log_s, clean_state[..., None], -1)[..., 0]
    at_mask = jnp.exp(log_s).sum(-1) - ratio * true + ratio * (jnp.log(ratio) - 1)
    uniform = Shares(alpha, 0 * alpha, noise)
    at_token = entropy_at_token(uniform, clean_state, state, output) / V
    cost = jnp.where(state == V, (1 - self.share) * at_mask, self.share * at_token)
    return cost / alpha  # dσ/dt


def test_the_ratios_of_the_released_code_are_those_of_other_chains():
  """By them exact scores cost less than the entropy, which is no bound: 1 % at the published share
  of 0.01. At a share of 0 they are right.
  """
  costs = [
    bound(PureChains(V, prediction="score", mixing="gamma", share=share))
    for share in (1e-4, 0.01, 0.2)
  ]
  assert costs[0] == pytest.approx(TOY.entropy, abs=2e-3)
  assert costs[1:] == pytest.approx([2.0908, 1.8436], abs=1e-3)


def test_scores_are_refused_where_the_mask_does_not_absorb():
  with pytest.raises(ValueError, match="scores are of masks that absorb"):
    Mixed(V, prediction="score")
  with pytest.raises(ValueError, match="scores are of masks that absorb"):
    Mixed(V, prediction="score", mixing="gamma", time_steps=4)
