"""Several tokens per call by one extra layer: a perfect layer has the law of one token per call, a
layer that has learned nothing or sees nothing draws independent tokens, and the fit says by how
much they differ.
"""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.context import Blocks, Full
from diffusion_text.contrib import joint_layer
from diffusion_text.contrib.joint_layer import GROUP, JointLayer, Places, layer_of
from diffusion_text.contrib.joint_sampler import Joint
from diffusion_text.core.options import member, option
from diffusion_text.core.prng import row_keys, stream
from diffusion_text.model.transformer import Transformer
from diffusion_text.objective import engine
from diffusion_text.process.masked import Masked
from diffusion_text.process.uniform import Uniform
from diffusion_text.reader.cached import Cached
from diffusion_text.sampler.budget import EvenShare
from diffusion_text.sampler.loop import sample
from diffusion_text.sampler.reveal import Reveal
from diffusion_text.sampler.score import Entropy, LeftToRight, Random
from diffusion_text.testing import (
  Enumerable,
  ExactNetwork,
  check_objective,
  check_sampler,
  exact_params,
)
from diffusion_text.timing import AtNoise, Shared
from diffusion_text.types import (
  Batch,
  DataFacts,
  Head,
  Inputs,
  Model,
  Network,
  Prediction,
  Progress,
)

V, L, ROWS = 3, 4, 8_000
TOY = Enumerable.dirichlet(0, 0.5, V, L)
PROCESS = Masked(vocab_size=V)
ORDERS = {"random": Random(), "entropy": Entropy()}


@member
class Shows(ExactNetwork):
  """The exact network, whose features also say what stands at each place."""

  shift: int = option(0, "how many places too far right the layer sees a drawn token", ge=0)

  layers: ClassVar[int] = 1
  width: ClassVar[int] = 2 * V + 1
  remembers: ClassVar[bool] = False

  def apply(self, params, rows, **options):
    """The law of each token, and the id that stands there."""
    law = ExactNetwork.apply(self, params, rows, **options).features
    shown = jax.nn.one_hot(rows.inputs.ids, V + 1)
    kernel = jnp.concatenate([jnp.eye(V), jnp.zeros((V + 1, V))])
    return Prediction(jnp.concatenate([law, shown], axis=-1), Head(kernel))

  def like(self, **changes):
    """A layer that asks this network anew."""
    assert (changes["layers"], changes["output_size"]) == (1, V)
    return Perfect(self)


class Perfect(Network):
  """What the network says with the drawn tokens written in, less what it said without them; a share
  of that, `params["scale"]`.
  """

  remembers, layers = False, 1

  def __init__(self, network):
    self.network = network

  def init(self, key):
    """All of the correction."""
    del key
    return {"scale": jnp.float32(1.0), "language": exact_params(TOY)["network"]}

  def apply(self, params, rows, *, memory=None, key=None, hidden_layers=()):
    """The correction."""
    features = rows.inputs.vectors * Shows.width**0.5
    law, shown = features[..., :V], features[..., V:]
    ids = jnp.argmax(shown, axis=-1)
    drawn = jnp.roll(rows.inputs.ids, self.network.shift, axis=1)
    ids = jnp.where(drawn < V, drawn, ids)
    asked = Inputs(ids=ids)
    rows = type(rows)(**{**vars(rows), "inputs": asked, "t": jnp.float32(ids == V)})
    language = jax.lax.stop_gradient(params["language"])
    said = ExactNetwork.apply(self.network, language, rows).features
    return Prediction(params["scale"] * (said - law), Head(jnp.eye(V)))


def model_of(timing=None, **options):
  timing = Shared() if timing is None else timing
  return Model(Shows(PROCESS, **options), PROCESS, timing, Full(), chunk=8192)


def params_of(scale=1.0):
  params = exact_params(TOY)
  own = {"scale": jnp.float32(scale), "language": params["network"]}
  return {**params, GROUP: own}


@functools.cache
def draw(sampler, scale=1.0, shift=0, rows=ROWS):
  model = model_of(shift=shift)
  result = sample(model, params_of(scale), sampler, row_keys(0, rows), rows=rows, length=L)
  return jax.tree.map(np.asarray, result)


def distance(ids):
  """Total variation to the language over what chance alone would give; below 1.25: the same law."""
  return TOY.total_variation(TOY.histogram(ids)) / TOY.chance_distance(len(ids))


# The sampler.


def test_the_laws_of_every_sampler():
  """With the perfect layer even two calls have the law of the language."""
  sampler = Joint(steps=2, score=Entropy())
  check_sampler(sampler, model_of(), params_of(), TOY, calls=2, slack=0.0)


@pytest.mark.parametrize("name", ORDERS)
def test_one_token_per_call_is_revealing(name):
  """Token by token, whatever the layer says, as it is not asked."""
  one = draw(Joint(steps=L, score=ORDERS[name]), scale=3.0, rows=64)
  other = draw(Reveal(score=ORDERS[name], budget=EvenShare(steps=L)), rows=64)
  np.testing.assert_array_equal(one.ids, other.ids)
  np.testing.assert_array_equal(one.committed, other.committed)


@pytest.mark.parametrize("name", ORDERS)
def test_a_layer_that_corrects_nothing_draws_independent_tokens(name):
  """Token by token those of as many at once, with an uneven share (2, 1, 1)."""
  one = draw(Joint(steps=3, score=ORDERS[name]), scale=0.0, rows=64)
  other = draw(Reveal(score=ORDERS[name], budget=EvenShare(steps=3)), rows=64)
  np.testing.assert_array_equal(one.ids, other.ids)
  np.testing.assert_array_equal(one.committed, other.committed)
  assert one.calls == 3


@pytest.mark.parametrize("name", ORDERS)
def test_a_perfect_layer_has_the_joint_law_in_one_call(name):
  """All four tokens at one call."""
  assert distance(draw(Joint(steps=1, score=ORDERS[name])).ids) < 1.25


def marginals(ids):
  return np.stack([np.bincount(place, minlength=V) for place in ids.T]) / len(ids)


def test_without_the_drawn_tokens_the_perfect_layer_draws_independent_tokens():
  """The control: the law is the product of the marginals of the language, and not the language."""
  ids = draw(Joint(steps=1, blind=True)).ids
  law = np.einsum("m,mlv->lv", TOY.probabilities, np.eye(V)[TOY.sequences])
  product = np.prod(law[np.arange(L), TOY.sequences], axis=1)
  chance = 0.5 * np.sqrt(2 * product * (1 - product) / (np.pi * ROWS)).sum()
  assert 0.5 * np.abs(TOY.histogram(ids) - product).sum() < 1.25 * chance
  assert distance(ids) > 10
  np.testing.assert_allclose(marginals(ids), law, atol=0.03)


def test_a_layer_that_sees_the_tokens_one_place_off_is_noticed():
  assert distance(draw(Joint(steps=1), shift=1).ids) > 3


@member
class ByTheDrawnToken(Joint):
  """Chooses the places by the probability of a token that was drawn there (the mutant)."""

  def _drawn(self, model, params, canvas, prediction, t, keys, places):
    size = t.shape[1]

    def one(step, drawn):
      layer = joint_layer.read_layer(model, params, prediction.features, drawn, None)
      logits = prediction.head(prediction.features) + layer.head(layer.features)
      log_p = jax.nn.log_softmax(logits)
      draw = jax.vmap(jax.vmap(jax.random.categorical))
      ids = draw(jax.vmap(jax.vmap(lambda k: jax.random.fold_in(k, step)))(keys), log_p)
      best = jnp.where(drawn < V, -jnp.inf, jnp.take_along_axis(log_p, ids[..., None], 2)[..., 0])
      chosen = jnp.arange(size) == jnp.argmax(best, axis=1)[:, None]
      return jnp.where(chosen, ids, drawn)

    return jax.lax.fori_loop(0, size, one, jnp.full(t.shape, V, jnp.int32))


def test_places_by_the_drawn_token_have_another_law():
  assert distance(draw(ByTheDrawnToken(steps=1)).ids) > 3


def test_the_even_share_of_rows_with_prompts():
  """Each row draws what it has to, in as many calls as it needs, and nothing else."""
  observed = np.arange(L) < np.array([[0], [1], [2], [3], [4]])
  ids = TOY.sample(np.random.default_rng(0), 5)
  batch = Batch(ids, observed=observed)
  result = sample(model_of(), params_of(), Joint(steps=3), row_keys(0, 5), batch=batch)
  np.testing.assert_array_equal(result.row_calls, [3, 3, 2, 1, 0])
  np.testing.assert_array_equal(np.where(observed, result.ids, 0), np.where(observed, ids, 0))
  assert result.ids.max() < V


# The fit.


def loss_of(objective, model, params, rows=4096, seed=0):
  key = jax.random.key(seed)

  @jax.jit
  def run(params, key, batch):
    times = engine.draw_times(model, params, stream(key, "times"), batch, Progress())
    return objective(model, params, key, batch, times, Progress())[0]

  return jax.device_get(run(params, key, Batch(TOY.systematic(rows))))


def mutual_information():
  """E[KL(p(x_j | x_i) ‖ p(x_j))] in nats, over two places of the language in any order."""
  one = np.eye(V)[TOY.sequences]  # [M, L, V]
  pair = np.einsum("m,miv,mjw->ijvw", TOY.probabilities, one, one)
  alone = np.einsum("m,miv->iv", TOY.probabilities, one)
  ratio = np.log(np.maximum(pair, 1e-30) / (alone[:, None, :, None] * alone[None, :, None, :]))
  information = (pair * ratio).sum((2, 3))
  return np.mean([information[i, j] for i in range(L) for j in range(L) if i != j])


@pytest.mark.parametrize("draws", ["network", "data"])
def test_the_fit_of_two_tokens_is_their_mutual_information(draws):
  """From noise: what independent tokens lose, exactly; a perfect layer loses nothing."""
  objective = JointLayer(tokens=2, draws=draws)
  loss = loss_of(objective, model_of(AtNoise()), params_of())
  assert loss.count == 4096 * L
  assert loss.sums["independent_kl"] / 4096 == pytest.approx(mutual_information(), rel=0.05)
  assert loss.total == loss.sums["layer_kl"] and abs(loss.total) / 4096 < 1e-5


def test_a_blind_layer_loses_what_independent_tokens_lose():
  """From any state: the layer that sees nothing or corrects nothing."""
  for objective, scale in ((JointLayer(tokens=4, blind=True), 1.0), (JointLayer(tokens=4), 0.0)):
    loss = loss_of(objective, model_of(), params_of(scale), rows=64)
    assert loss.total == pytest.approx(loss.sums["independent_kl"], rel=1e-4)
  shifted = loss_of(JointLayer(tokens=4), model_of(shift=1), params_of(), rows=64)
  assert shifted.total > 0.1 * shifted.sums["independent_kl"], "a token at a wrong place"


def test_all_tokens_in_any_order_cost_the_total_correlation():
  """Σ over the chain of what independent tokens lose is KL(language ‖ product of marginals); the
  perfect layer, which sees all tokens drawn so far, loses nothing.
  """
  for score in (Random(), LeftToRight()):
    loss = loss_of(JointLayer(tokens=L, score=score), model_of(AtNoise()), params_of())
    one = np.eye(V)[TOY.sequences]
    alone = np.einsum("m,miv->iv", TOY.probabilities, one)
    total = -(alone * np.log(alone)).sum() - TOY.entropy
    assert loss.sums["independent_kl"] / 4096 == pytest.approx(total, rel=0.05)
    assert abs(loss.total) / 4096 < 1e-5


def test_the_laws_of_every_objective():
  """The gradient reaches the layer alone."""
  objective = JointLayer(tokens=3)
  params = params_of(0.5)
  check_objective(objective, model_of(), params, TOY, exact_law=False, exact_gradient=False)


def test_the_layer_of_a_transformer_starts_as_no_correction_and_learns():
  """Its gradient is there, and none reaches the network."""
  options = {"input_sizes": PROCESS.input_sizes, "output_size": V, "attention": ("xla",)}
  network = Transformer(layers=2, width=16, heads=2, **options)
  model = Model(network, PROCESS, Shared(), Full(), chunk=64)
  key = jax.random.key(1)
  made = network.init(key)
  made["head"]["kernel"] = jax.random.normal(key, (16, V))
  params = {"network": made, "process": {}, "timing": {}}
  objective = JointLayer(tokens=3)
  params |= objective.init(model, key, DataFacts(L, V))
  assert layer_of(model).layers == 1
  batch = Batch(TOY.systematic(16))

  @jax.jit
  def run(params):
    times = engine.draw_times(model, params, key, batch, Progress())
    loss, backward = jax.vjp(
      lambda p: objective(model, p, key, batch, times, Progress())[0], params
    )
    one = jax.tree.map(jnp.zeros_like, loss)._replace(total=jnp.float32(1.0))
    return loss, backward(one)[0]

  loss, gradient = run(params)
  assert (
    loss.total == pytest.approx(float(loss.sums["independent_kl"]), rel=1e-5) and loss.total > 0
  )
  sizes = {name: max(abs(x).max() for x in jax.tree.leaves(g)) for name, g in gradient.items() if g}
  assert sizes["network"] == 0 < sizes[GROUP]


# What does not fit.


def test_what_does_not_fit_is_refused():
  good = model_of()
  for wrong, fix in (
    (good._replace(network=ExactNetwork(PROCESS)), "model.name='transformer'"),
    (good._replace(process=Uniform(vocab_size=V)), "process.name='masked'"),
    (good._replace(context=Blocks(size=2)), "context.name='full'"),
  ):
    for part in (Joint(), JointLayer()):
      with pytest.raises(ValueError, match=fix):
        part.check(wrong)
  with pytest.raises(ValueError, match="no blocks"):
    sample(good, params_of(), Joint(), row_keys(0, 2), rows=2, length=L, block=2)
  with pytest.raises(ValueError, match="whole_row"):
    reader = Cached(policy="some", queries=2, every=2)
    sample(good, params_of(), Joint(), row_keys(0, 2), rows=2, length=L, reader=reader)


def test_places_are_the_best_that_wait():
  score = jnp.float32([[0.1, 0.9, 0.5, 0.9], [0.3, 0.2, 0.1, 0.0]])
  waiting = jnp.array([[True, True, True, True], [False, True, False, True]])
  found = joint_layer.first_places(score, waiting, 3, jnp.array([2, 3]))
  want = Places(np.array([[1, 3, 2], [1, 3, 0]]), np.array([[1, 1, 0], [1, 1, 0]], bool))
  np.testing.assert_array_equal(found.exists, want.exists)
  np.testing.assert_array_equal(found.place[found.exists], want.place[want.exists])
