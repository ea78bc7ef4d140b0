"""How the loop asks the network: told its own last answer, once with and once without the given tokens (traps 6, 11 and 14)."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.core.prng import fold, row_keys, token_keys
from diffusion_text.process.masked import Masked
from diffusion_text.process.simplex import Simplex
from diffusion_text.sampler import asking
from diffusion_text.sampler.ancestral import Ancestral
from diffusion_text.sampler.block import WholeRow, sample_blocks
from diffusion_text.sampler.guidance import Guidance
from diffusion_text.sampler.loop import PRIOR, sample
from diffusion_text.schedules.discrete import Linear
from diffusion_text.schedules.gaussian import VPCosine
from diffusion_text.timing import Shared
from diffusion_text.types import Batch, Inputs, Prediction

V, B, L, D, STEPS = 5, 3, 4, 6, 3
IDS = jax.random.randint(jax.random.key(0), (B, L), 0, V)
GIVEN = jnp.broadcast_to(jnp.arange(L) == 0, (B, L))
BATCH = Batch(
  IDS, given=GIVEN, weights=jnp.broadcast_to((jnp.arange(L) < 3).astype(jnp.float32), (B, L))
)
SIMPLEX, MASKED = Simplex(V, VPCosine(), projection="sample"), Masked(V, Linear())
KEYS = iter(jax.random.split(jax.random.key(4), 4))
IN, RECALL, OUT, MIX = (
  jax.random.normal(key, shape) for key, shape in zip(KEYS, ((V + 1, D), (V, D), (D, V), (L, L)))
)  # every token reads all others, so that the condition matters


def network(inputs, t, seen):
  vectors = (
    jax.nn.one_hot(inputs.ids, V + 1)
    if inputs.vectors is None
    else jnp.pad(inputs.vectors, ((0, 0), (0, 0), (0, 1)))
  )
  features = jnp.einsum("ij,bjd->bid", MIX, vectors @ IN)
  if inputs.recalled is not None:
    features = features + jnp.where(inputs.recalls[..., None], inputs.recalled, 0.0)
  jax.debug.callback(
    lambda *what: seen.append(jax.tree.map(np.asarray, what)), inputs, t, ordered=True
  )
  return Prediction(
    features, lambda features: features @ OUT, None, lambda estimates: estimates @ RECALL
  )


def run(process, scale):
  """(the sample, what the network was asked: (inputs, t) of each call)."""
  seen = []
  policy = Ancestral(Shared(), STEPS, Guidance(guidance_scale=scale))
  draw = jax.jit(
    lambda keys, batch: sample(
      policy, process, {}, lambda inputs, t: network(inputs, t, seen), keys, batch, recalls=D
    )
  )
  result = draw(token_keys(row_keys(0, B), L), BATCH)
  jax.effects_barrier()
  return result, seen


def answer(inputs):
  """The network's probabilities again, by hand."""
  told = np.where(inputs.recalls[..., None], inputs.recalled, 0.0)
  return jax.nn.softmax((jnp.einsum("ij,bjd->bid", MIX, inputs.vectors @ IN[:V]) + told) @ OUT)


def check_memory():
  """Each reading is told of its own last answer, and of none at first; known tokens are told nothing and come back as they were."""
  result, seen = run(SIMPLEX, scale=2.0)
  readings = seen[::2], seen[1::2]
  prior = jax.vmap(lambda key: SIMPLEX.prior({}, key, (1, L))[0])(
    fold(token_keys(row_keys(0, B), L)[:, 0], PRIOR)
  )
  for number, calls in enumerate(readings):
    assert len(calls) == STEPS
    assert not calls[0][0].recalls.any()
    for (before, _), (now, t) in itertools.pairwise(calls):
      noisy = np.broadcast_to(t, (B, L)) > 0
      np.testing.assert_array_equal(now.recalls, noisy)
      want = np.asarray(answer(before) @ RECALL)
      np.testing.assert_allclose(now.recalled[noisy], want[noisy], rtol=1e-3, atol=1e-4)
    known = np.asarray(GIVEN)
    for inputs, t in calls:
      if number == 0:
        np.testing.assert_array_equal(inputs.vectors[known], jax.nn.one_hot(IDS, V)[known])
      else:  # hidden: the row's own prior, at t = 1, at every call alike
        assert (t[known] == 1).all()
        np.testing.assert_allclose(inputs.vectors[known], jax.nn.softmax(prior)[known], atol=1e-6)
  kept = ~np.asarray((~GIVEN) & (BATCH.weights > 0))
  np.testing.assert_array_equal(np.asarray(result.ids)[kept], np.asarray(IDS)[kept])
  assert (
    int(result.calls) == len(seen) == STEPS * len(readings)
    and (np.asarray(result.row_calls) == len(seen)).all()
  )


def test_memory():
  check_memory()


class OneMemoryForBoth(asking.Asking):
  def __call__(self, state, t, memories):
    prediction, (memory, *rest) = super().__call__(state, t, memories)
    return prediction, (memory,) * (1 + len(rest))


def test_a_memory_that_is_shared_would_be_noticed(monkeypatch):
  monkeypatch.setattr("diffusion_text.sampler.loop.Asking", OneMemoryForBoth)
  with pytest.raises(AssertionError):
    check_memory()


def test_masked_tokens_are_guided_and_told_too():
  """Masks stand for hidden tokens; what is known, given or drawn, is told nothing."""
  result, seen = run(MASKED, scale=3.0)
  for inputs, t in seen[1::2]:
    assert (inputs.ids[np.asarray(GIVEN)] == V).all() and (t[np.asarray(GIVEN)] == 1).all()
  for inputs, _ in seen[2:]:
    assert not (inputs.recalls & (inputs.ids != V)).any()
  assert seen[2][0].recalls.any() and int(result.calls) == 2 * STEPS


def test_blocks_are_told_of_their_own_answers():
  """Within the row that a block is read in, clean blocks and those to come are told nothing, and each block begins anew."""
  seen = []
  noise = MASKED.inputs({}, MASKED.prior({}, jax.random.key(0), (1, L)), jnp.ones((1, L)))
  reader = WholeRow(lambda inputs, t: network(inputs, t, seen), noise)
  policy = Ancestral(Shared(), STEPS)
  run = jax.jit(
    lambda keys: sample_blocks(policy, MASKED, {}, reader, keys, Batch(IDS), 2, recalls=D).calls
  )
  assert int(run(token_keys(row_keys(0, B), L))) == 2 * STEPS
  jax.effects_barrier()
  for number, (inputs, _) in enumerate(seen):
    block, call = divmod(number, STEPS)
    own = np.arange(L) // 2 == block
    assert not inputs.recalls[:, ~own].any()
    assert call > 1 or inputs.recalls[:, own].any() == call
    assert not (inputs.recalls & (inputs.ids != V)).any()


def test_nothing_given_costs_one_call():
  """Both answers would be the same one."""
  policy = Ancestral(Shared(), STEPS, Guidance(guidance_scale=2.0))
  denoise = lambda inputs, t: network(inputs, t, [])
  shape = jax.eval_shape(
    lambda keys: sample(policy, MASKED, {}, denoise, keys, Batch(IDS)),
    jax.eval_shape(lambda: token_keys(row_keys(0, B), L)),
  )
  assert shape.ids.shape == (B, L)
  ask = functools.partial(
    asking.Asking, MASKED, {}, denoise, policy.guidance, noise=None, width=0, chunk=4
  )
  assert ask(hidden=None).calls == 1 and ask(hidden=GIVEN).calls == 2


def softmax(*logits):
  return jax.nn.softmax(jnp.array(logits))


def test_golden_spaces():
  """Trap 14: the same w in two spaces, and negative mass cut off and the rest divided by its sum."""
  u, c = jnp.array([2.0, 0, 0, 0]), jnp.array([3.0, 1, 0, 0])
  both = lambda **how: jax.nn.softmax(Guidance(guidance_scale=2.0, **how).combine(c, u))
  np.testing.assert_allclose(both(), [0.8533, 0.1155, 0.0156, 0.0156], atol=5e-5)
  np.testing.assert_allclose(
    2 * softmax(*c) - softmax(*u), [0.9083, 0.1229, -0.0156, -0.0156], atol=5e-5
  )
  np.testing.assert_allclose(
    both(guidance_space="probabilities"), np.array([0.9083, 0.1229, 0, 0]) / 1.0312, atol=1e-4
  )
  for space in ("logits", "probabilities"):
    for scale, alone in ((0.0, u), (1.0, c)):
      got = jax.nn.softmax(Guidance(guidance_scale=scale, guidance_space=space).combine(c, u))
      np.testing.assert_allclose(got, jax.nn.softmax(alone), atol=1e-6)


def test_a_guided_prediction_is_a_prediction():
  make = lambda features: Prediction(features, lambda features: features @ OUT)
  c, u = (
    make(jax.random.normal(jax.random.key(1), (B, L, D))),
    make(jax.random.normal(jax.random.key(2), (B, L, D))),
  )
  guidance = Guidance(guidance_scale=2.5)
  both = asking.guided(guidance, c, u)
  np.testing.assert_allclose(
    both.unembed(both.features[0, 1]), guidance.combine(c.logits, u.logits)[0, 1], atol=1e-5
  )


def test_guidance_in_blocks_is_refused():
  policy = Ancestral(Shared(), STEPS, Guidance(guidance_scale=2.0))
  reader = WholeRow(lambda inputs, t: network(inputs, t, []), Inputs(IDS[:1]))
  with pytest.raises(ValueError, match=r"guidance_scale=2\.0.*no second reading"):
    sample_blocks(policy, MASKED, {}, reader, token_keys(row_keys(0, B), L), BATCH, 2)


@pytest.mark.parametrize("bad", [dict(guidance_scale=-1.0), dict(guidance_space="score")])
def test_bad_guidance_is_refused(bad):
  with pytest.raises(ValueError, match=next(iter(bad))):
    Guidance(**bad)
