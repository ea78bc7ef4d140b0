"""Every objective × what all of them promise; then the options of each against the formula written out, and mutants that must fail."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.objective import OBJECTIVES, Bound
from diffusion_text.objective.bound import Chunks, noised, scored_weights
from diffusion_text.objective.cross_entropy import CrossEntropy
from diffusion_text.objective.mask_agnostic import MaskAgnostic
from diffusion_text.objective.reweighted import Reweighted
from diffusion_text.process.masked import Masked
from diffusion_text.process.mixed import Mixed
from diffusion_text.process.token_masked import TokenMasked
from diffusion_text.process.uniform import Uniform
from diffusion_text.schedules.discrete import Linear, Polynomial
from diffusion_text.timing import LeftToRight, PerBlock, Shared
from diffusion_text.types import Batch, Layout, Prediction, Progress

V, B, L = 7, 4, 12
START = Progress()
# Programs run once on small arrays: compiling them well takes longer than running them badly.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
IDS = jax.random.randint(jax.random.key(0), (B, L), 0, V)
BATCHES = {
  "plain": Batch(IDS),
  "given": Batch(IDS, given=jax.random.bernoulli(jax.random.key(3), 0.3, IDS.shape)),
  "padded": Batch(IDS, weights=(jnp.arange(L) < 9).astype(jnp.float32) * jnp.ones((B, 1))),
}
BATCHES["both"] = dataclasses.replace(BATCHES["given"], weights=BATCHES["padded"].weights)
PARAMS = {
  "table": jax.random.normal(jax.random.key(1), (V + 1, 5)),
  "out": jax.random.normal(jax.random.key(2), (5, V)),
  "crowd": jax.random.normal(jax.random.key(4), (5,)) / 10,
}
MASKED, MIXED, SMOOTH = Masked(V, Linear()), Mixed(V, Polynomial(2.0)), Polynomial(2.0)
ROWS = {  # every objective, with a process that it takes and options that are not the defaults
  "bound": Bound(MASKED, Shared(), auxiliary=0.01),
  "cross_entropy": CrossEntropy(MASKED, Shared(), "linear", label_smoothing=0.1, focusing=1.0),
  "gaussian_curriculum": OBJECTIVES["gaussian_curriculum"](
    Uniform(V, Linear()), Shared(), 100, candidates=4, temperature=0.3
  ),
  "mask_agnostic": MaskAgnostic(MASKED, Shared(), appended=3),
  "reinforce": OBJECTIVES["reinforce"](TokenMasked(V, Linear()), Shared()),
  "reweighted": Reweighted(MIXED, Shared()),
}
every_row = pytest.mark.parametrize("name", ROWS)


def predict_with(params, seen=None):
  """A network of one table, whose answers also depend on how many masks each token sees; `seen` collects what it is given."""

  def predict(inputs, t, layout: Layout) -> Prediction:
    if seen is not None:
      seen.append((inputs, t, layout))
    embedded = params["table"][inputs.ids]
    if inputs.weights is not None:
      embedded = jnp.einsum("blm,blmd->bld", inputs.weights, embedded)
    segment = (
      jnp.zeros(inputs.ids.shape[:2], jnp.int32) if layout.segment is None else layout.segment
    )
    masks = (inputs.ids == V).astype(jnp.float32).reshape(*segment.shape, -1).max(-1)
    crowd = jnp.einsum(
      "bqk,bk->bq", (segment[:, :, None] == segment[:, None]).astype(jnp.float32), masks
    )
    return Prediction(
      embedded + crowd[..., None] * params["crowd"], lambda features: features @ params["out"]
    )

  return predict


def call(objective, batch, key=9, progress=START, params=PARAMS, seen=None):
  process = objective.process.init(jax.random.key(0))
  return objective(process, jax.random.key(key), batch, progress, predict_with(params, seen))


def test_every_objective_has_a_row():
  # One needs a network of two stages, one vectors, one vectors and to be read twice: each has its own tests.
  elsewhere = {"anchored", "mse_rounding", "reinforced_conditioning"}
  assert set(OBJECTIVES) - elsewhere == set(ROWS)


def check_chunks(objective):
  """Value and gradient do not depend on how the rows are cut into chunks and shards."""
  loss = lambda p, chunks: (
    call(dataclasses.replace(objective, chunks=chunks), BATCHES["both"], params=p).total
  )
  one, many = (
    jit(jax.value_and_grad(loss), static_argnums=1)(PARAMS, chunks)
    for chunks in (Chunks(48), Chunks(5, shards=4))
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), one, many)
  assert float(one[0]) > 0


@pytest.mark.parametrize(
  "name", ["gaussian_curriculum", "reinforce"]
)  # of the others the formulas below say more
def test_values_and_gradients_do_not_depend_on_chunks(name):
  check_chunks(ROWS[name])


@functools.cache
def traced(name):
  """(batch, part of 4) -> (loss, what the network was given, call by call)."""

  def run(batch, part):
    seen = []
    return call(ROWS[name], batch, progress=Progress(part=part, parts=4), seen=seen), seen

  return jit(run)


@every_row
def test_given_and_padded_tokens_cost_nothing(name):
  """The count is the scored weight; what a padded token is does not matter; given tokens are read clean at t = 0."""
  batch, given = BATCHES["both"], np.asarray(BATCHES["both"].given)
  loss, seen = traced(name)(batch, 0)
  other, _ = traced(name)(dataclasses.replace(batch, ids=IDS.at[:, 9:].set(0)), 0)
  assert float(loss.count) == float(scored_weights(batch).sum()) == (~given[:, :9]).sum()
  np.testing.assert_allclose(float(loss.total), float(other.total), rtol=1e-5)
  for inputs, t, _ in seen:
    ids, weights = (
      (inputs.ids[..., None], 1.0) if inputs.weights is None else (inputs.ids, inputs.weights)
    )
    share = np.where(np.asarray(ids)[:, :L] == np.asarray(IDS)[..., None], weights, 0.0).sum(-1)
    np.testing.assert_array_equal(share[given], 1.0)
    assert not np.broadcast_to(t, inputs.ids.shape[:2])[:, :L][given].any()


@every_row
def test_microbatches_draw_different_noise_at_evenly_spread_times(name):
  seen = [traced(name)(BATCHES["padded"], part)[1][0] for part in range(4)]
  times = np.sort(np.concatenate([np.asarray(t)[:, 0] for _, t, _ in seen]))
  np.testing.assert_allclose(np.diff(times), np.diff(times).mean(), atol=1e-5)
  assert not np.array_equal(seen[0][0].ids, seen[1][0].ids)


@every_row
def test_a_uniform_predictor_costs_log_v(name):
  """What is reported as the bound, and the loss itself where it is one: over all times, for the curriculum too."""
  process = dataclasses.replace(ROWS[name].process, schedule=SMOOTH)
  objective = dataclasses.replace(
    ROWS[name], process=process, timing=Shared(2.0), chunks=Chunks(8192)
  )
  if name == "gaussian_curriculum":
    objective = dataclasses.replace(objective, low=0.0, high=1.0)
  batch = Batch(jax.random.randint(jax.random.key(5), (512, 16), 0, V))
  flat = lambda inputs, t, layout: Prediction(
    jnp.zeros((*inputs.ids.shape[:2], V)), lambda features: features
  )
  process = objective.process.init(jax.random.key(0))
  sums = jit(lambda key: objective(process, key, batch, Progress(), flat).sums)
  draws = [sums(jax.random.key(seed)) for seed in range(12)]
  nats = np.array(
    [float(d["surrogate" if name == "gaussian_curriculum" else "bound"]) for d in draws]
  ) / (512 * 16)
  error = nats.std() / len(nats) ** 0.5
  print(f"{name}: {nats.mean():.4f} +- {error:.4f}, log V = {np.log(V):.4f}")
  assert error < 0.02 and abs(nats.mean() - np.log(V)) < 3 * error + 1e-4


def full_logits(params, objective, batch, cost, key=9):
  """Σ weight · cost(ids, state, t, logits) over the scored tokens, with every logit in memory, for the draw of the objective."""
  noise = noised(
    objective.process,
    objective.timing,
    {},
    jax.random.key(key),
    batch,
    Progress(),
    predict_with(params),
  )
  t = jnp.broadcast_to(noise.times.t, IDS.shape)
  counts = objective.process.scored({}, noise.state, t) * scored_weights(batch)
  return jnp.sum(counts * cost(batch.ids, noise.state, t, noise.prediction.logits))


def ce(ids, logits):
  return -jnp.take_along_axis(jax.nn.log_softmax(logits), ids[..., None], -1)[..., 0]


def focal(ids, logits, power):
  p = jnp.exp(-ce(ids, logits))
  return (1 - p) ** power * ce(ids, logits)


def smoothed(ids, logits, share):
  target = (1 - share) * jax.nn.one_hot(ids, V) + share / V
  return -jnp.sum(target * jax.nn.log_softmax(logits), axis=-1)


def check_formula(objective, cost):
  """Value and gradient, in chunks that do not fit and over shards."""
  batch, objective = BATCHES["both"], dataclasses.replace(objective, chunks=Chunks(5, shards=2))
  ours = jit(jax.value_and_grad(lambda p: call(objective, batch, params=p).total))(PARAMS)
  theirs = jit(jax.value_and_grad(lambda p: full_logits(p, objective, batch, cost)))(PARAMS)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-4, atol=3e-4), ours, theirs)


FORMULAS = {
  "smoothed": (
    CrossEntropy(MASKED, Shared(), "linear", label_smoothing=0.1),
    lambda ids, z, t, logits: (1 - t) * smoothed(ids, logits, 0.1),
  ),
  "focused": (
    CrossEntropy(MASKED, Shared(), focusing=0.5),
    lambda ids, z, t, logits: focal(ids, logits, 0.5),
  ),
  "auxiliary": (
    Bound(MASKED, Shared(2.0), auxiliary=0.3),
    lambda ids, z, t, logits: 2 * jnp.sqrt(t) * (1 / jnp.maximum(t, 1e-7) + 0.3) * ce(ids, logits),
  ),
  "reweighted": (
    Reweighted(MIXED, Shared(2.0), max_weight=1.5),
    lambda ids, z, t, logits: (
      2
      * jnp.sqrt(t)
      * jnp.where(
        z == V, 1.5, jnp.where(z == ids, 0.2 / 0.9 / V * jnp.exp(jax.nn.sigmoid(-t) / 2), 1.0)
      )
      * MIXED.divergence({}, ids, z, t, logits)
    ),
  ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_formulas(name):
  check_formula(*FORMULAS[name])


class ConstantWeight(CrossEntropy):
  def cost(self, logits, ids):
    weight = focal(ids, logits, self.focusing) / ce(ids, logits)
    return jax.lax.stop_gradient(weight) * ce(ids, logits)


class SmoothsTheOthersOnly(CrossEntropy):
  def cost(self, logits, ids):
    return smoothed(ids, logits, self.label_smoothing * V / (V - 1))


class AuxiliaryInTheBound(Bound):
  def __call__(self, *args):
    loss = super().__call__(*args)
    return loss._replace(sums={"bound": loss.total})


class Unclipped(Reweighted):
  def __post_init__(self):
    object.__setattr__(self, "max_weight", 2.0)


def like(cls, name):
  objective, cost = FORMULAS[name]
  return cls(
    **{field.name: getattr(objective, field.name) for field in dataclasses.fields(objective)}
  ), cost


@pytest.mark.parametrize(
  "mutant,name",
  [(ConstantWeight, "focused"), (SmoothsTheOthersOnly, "smoothed"), (Unclipped, "reweighted")],
)
def test_mutants_of_the_formulas_fail(mutant, name):
  with pytest.raises(AssertionError):
    check_formula(*like(mutant, name))


def test_focusing_by_hand():
  """One token of probability p: loss (1 - p)^γ · CE, slope in CE as the docstring says, finite for a token that is certain."""
  objective, logits = CrossEntropy(MASKED, Shared(), focusing=2.0), jnp.log(jnp.array([0.25, 0.75]))
  assert float(objective.cost(logits, jnp.int32(0))) == pytest.approx(0.75**2 * np.log(4), rel=1e-5)
  slope = (
    jax.grad(lambda x: objective.cost(jnp.array([0.0, x]), jnp.int32(0)))(jnp.log(3.0)) / 0.75
  )  # dCE / dx = 1 - p
  assert float(slope) == pytest.approx(0.75**2 + 2 * np.log(4) * 0.25 * 0.75, rel=1e-5)
  for power in (0.5, 1.0, 3.0):
    certain = dataclasses.replace(objective, focusing=power)
    value, slope = jax.value_and_grad(lambda x, certain=certain: certain.cost(x, jnp.int32(0)))(
      jnp.array([60.0, 0.0])
    )
    assert float(value) == 0 and np.isfinite(np.asarray(slope)).all()


def check_auxiliary_is_not_reported(cls):
  plain, hybrid = (
    call(cls(MASKED, Shared(), auxiliary=weight), BATCHES["padded"]) for weight in (0.0, 0.3)
  )
  assert float(hybrid.sums["bound"]) == pytest.approx(float(plain.total), rel=1e-6)
  assert float(hybrid.total) > float(plain.total)
  args = {}, jax.random.key(9), BATCHES["padded"], Progress(), predict_with(PARAMS)
  np.testing.assert_array_equal(
    *(cls(MASKED, Shared(), auxiliary=weight).nats(*args) for weight in (0.0, 0.3))
  )


def test_auxiliary_is_not_reported():
  check_auxiliary_is_not_reported(Bound)
  with pytest.raises(AssertionError):
    check_auxiliary_is_not_reported(AuxiliaryInTheBound)


def test_surrogates_report_the_bound_of_the_same_draw():
  for objective in (ROWS["cross_entropy"], ROWS["mask_agnostic"], ROWS["reweighted"]):
    bound = call(Bound(objective.process, Shared()), BATCHES["padded"])
    assert float(call(objective, BATCHES["padded"]).sums["bound"]) == pytest.approx(
      float(bound.total), rel=1e-5
    )


def check_mask_agnostic(cls, batch):
  """Value and gradient equal the formula with every logit in memory, given how many masks the second call appended."""
  objective = cls(MASKED, Shared(), agreement=0.7, appended=4, chunks=Chunks(5, shards=2))
  end = L - 1 if batch.weights is None else 8
  own = np.zeros((B, L), int) if batch.segment is None else np.asarray(batch.segment)

  def ours(p):
    seen = []
    loss = call(objective, batch, params=p, seen=seen)
    return loss.total, seen

  def formula(p, appended):
    def cost(ids, z, t, logits):
      crowd = (
        masks_seen(z, own)
        + jnp.where(own == own[:, end : end + 1], appended[:, None], 0)[..., None]
      )
      others = (p["table"][z] + crowd * p["crowd"]) @ p["out"]
      return (
        ce(ids, logits) + 0.7 * jnp.abs(jax.nn.softmax(logits) - jax.nn.softmax(others)).sum(-1) / 2
      )

    return full_logits(p, objective, batch, cost)

  (value, [(row, _, _), (longer, t, layout)]), gradient = jit(
    jax.value_and_grad(ours, has_aux=True)
  )(PARAMS)
  np.testing.assert_array_equal(longer.ids[:, :L], row.ids)
  assert (np.asarray(longer.ids)[:, L:] == V).all() and (np.asarray(t)[:, L:] == 1).all()
  appended = (np.asarray(layout.segment)[:, L:] == own[:, end : end + 1]).sum(1)
  assert appended.min() >= 1 and len(set(appended)) > 1
  np.testing.assert_array_equal(np.asarray(longer.position)[:, L], end + 1)
  theirs, slope = jit(jax.value_and_grad(formula))(PARAMS, jnp.asarray(appended))
  np.testing.assert_allclose(value, theirs, rtol=3e-4)
  # Documents without an appended mask are read alike twice: at equal distributions the variation has a kink, and rounding takes a side.
  for name, mine in gradient.items():
    assert np.linalg.norm(mine - slope[name]) <= 5e-3 * np.linalg.norm(slope[name]), name


def masks_seen(state, segment):
  return ((segment[:, :, None] == segment[:, None]) * (state == V)[:, None]).sum(-1)[..., None]


PACKED = jnp.where(jnp.arange(L) < 5, 1, 2) * jnp.ones((B, 1), jnp.int32)
DOCUMENTS = {
  "one": BATCHES["plain"],
  "packed and padded": Batch(
    IDS, weights=BATCHES["padded"].weights, segment=jnp.where(jnp.arange(L) < 9, PACKED, 0)
  ),
}


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_mask_agnostic(kind):
  check_mask_agnostic(MaskAgnostic, DOCUMENTS[kind])


def test_agreement_is_free_for_a_network_blind_to_the_number_of_masks():
  total = lambda cls, params: float(
    call(cls(MASKED, Shared()), BATCHES["given"], params=params).total
  )
  blind = {**PARAMS, "crowd": jnp.zeros(5)}
  assert total(MaskAgnostic, blind) == pytest.approx(total(CrossEntropy, blind), rel=1e-6)
  crowded = {
    **PARAMS,
    "crowd": -PARAMS["table"][V] / 24,
  }  # enough masks turn the answer to a mask around
  assert total(MaskAgnostic, crowded) > 1.03 * total(CrossEntropy, crowded)


class SeesHiddenMasks(MaskAgnostic):
  def read_longer(self, params, key, batch, inputs, times, predict):
    all_seen = lambda inputs, t, layout: predict(
      inputs, t, Layout(segment=jnp.zeros_like(layout.segment))
    )
    return super().read_longer(params, key, batch, inputs, times, all_seen)


class AppendsToThePadding(MaskAgnostic):
  def read_longer(self, params, key, batch, inputs, times, predict):
    return super().read_longer(
      params, key, dataclasses.replace(batch, weights=None), inputs, times, predict
    )


@pytest.mark.parametrize(
  "mutant,kind", [(SeesHiddenMasks, "one"), (AppendsToThePadding, "packed and padded")]
)
def test_mask_agnostic_mutants_fail(mutant, kind):
  with pytest.raises(AssertionError):
    check_mask_agnostic(mutant, DOCUMENTS[kind])


@pytest.mark.parametrize(
  "make,match",
  [
    (lambda: CrossEntropy(MASKED, Shared(), label_smoothing=1.0), r"label_smoothing=1\.0"),
    (lambda: CrossEntropy(MASKED, Shared(), focusing=-1.0), r"focusing=-1\.0"),
    (lambda: Bound(MASKED, Shared(), auxiliary=-0.1), r"auxiliary=-0\.1"),
    (lambda: OBJECTIVES["reinforce"](MASKED, Shared()), "learned noise.*Masked"),
    (lambda: Reweighted(MASKED, Shared()), "divergence.*Masked"),
    (
      lambda: Reweighted(Uniform(V, Linear()), Shared()),
      "of process.mixing=.gidd. in continuous time",
    ),
    (
      lambda: Reweighted(dataclasses.replace(MIXED, grid=10), Shared()),
      "of process.mixing=.gidd. in continuous time",
    ),
    (lambda: Reweighted(MIXED, Shared(), 2.0, 1.0), r"min_weight=2\.0"),
    (
      lambda: MaskAgnostic(Uniform(V, Linear(), prediction="posterior"), Shared()),
      "Uniform has none",
    ),
    (lambda: call(MaskAgnostic(MASKED, PerBlock(4)), BATCHES["plain"]), "one bidirectional block"),
    (lambda: MaskAgnostic(MASKED, Shared(), appended=0), "appended=0"),
    (
      lambda: OBJECTIVES["gaussian_curriculum"](MASKED, Shared(), 10),
      "uniform noise, not of Masked",
    ),
    (
      lambda: OBJECTIVES["gaussian_curriculum"](Uniform(V, Linear()), LeftToRight(), 10),
      "LeftToRight",
    ),
    (
      lambda: OBJECTIVES["gaussian_curriculum"](Uniform(V, Linear()), Shared(), 100, 0.0),
      r"curriculum=0\.0",
    ),
    (
      lambda: OBJECTIVES["gaussian_curriculum"](Uniform(V, Linear()), Shared(), 10, candidates=8),
      "candidates=8.*vocab_size=7",
    ),
    (
      lambda: OBJECTIVES["gaussian_curriculum"](Uniform(V, Linear()), Shared(), 10, 0.5, 0.0),
      r"temperature=0\.0",
    ),
    (
      lambda: OBJECTIVES["gaussian_curriculum"](
        Uniform(V, Linear()), Shared(), 10, low=0.9, high=0.1
      ),
      r"low=0\.9",
    ),
  ],
)
def test_bad_options_are_refused(make, match):
  with pytest.raises(ValueError, match=match):
    make()
