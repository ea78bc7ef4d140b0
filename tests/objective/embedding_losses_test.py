"""The losses of embedding diffusion: each term against its definition, what its gradient reaches, and the bound beside them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.model.transformer import Network, TransformerConfig
from diffusion_text.objective import OBJECTIVES, Bound, CrossEntropy
from diffusion_text.objective.bound import Chunks
from diffusion_text.objective.embedding_losses import EmbeddingLosses
from diffusion_text.process.embedding import Embedding
from diffusion_text.process.masked import Masked
from diffusion_text.process.simplex import Simplex
from diffusion_text.schedules.discrete import Linear
from diffusion_text.schedules.gaussian import LogSNR, SquareRoot, VPCosine
from diffusion_text.testing.oracle import exact_prediction
from diffusion_text.timing import PerBlock, Shared
from diffusion_text.types import Batch, Inputs, Layout, Prediction, Progress

V, B, L, E = 7, 6, 8, 4
IDS = jax.random.randint(jax.random.key(0), (B, L), 0, V)
GIVEN = jnp.broadcast_to(jnp.arange(L) < 2, (B, L))
BATCH = Batch(
  IDS, given=GIVEN, weights=jnp.broadcast_to((jnp.arange(L) < 7).astype(jnp.float32), (B, L))
)
COUNTS = np.asarray(~GIVEN & (BATCH.weights > 0))
PROCESS = Embedding(V, VPCosine(), width=E, norm="none")
LEFT_OUT = dataclasses.replace(PROCESS, prediction="leave_one_out")
SIMPLEX = Simplex(V, VPCosine(offset=1e-4))
OUT = jax.random.normal(jax.random.key(2), (V, V))  # more rows than a vector has numbers


def predict_with(net, seen):
  """A linear network, blind to the other positions, that keeps what it is asked."""

  def predict(inputs, t, layout):
    seen.append((inputs.vectors, jnp.broadcast_to(t, inputs.shape)))
    return Prediction(inputs.vectors, lambda features: features @ net)

  return predict


@functools.partial(jax.jit, static_argnums=0)
def call(objective, params, net):
  """(the loss, what the network was asked)."""
  seen = []
  return objective(params, jax.random.key(9), BATCH, Progress(), predict_with(net, seen)), seen[0]


def expected(process, params, net, seen, weight):
  """(mse, anchor) [B, L] by their definitions, z being undone from what the network read."""
  vectors, t = seen
  gain = process.schedule(t[..., None])
  logits = vectors @ net
  if isinstance(process, Embedding):
    table = np.asarray(params["embedding"])
    z = np.asarray(vectors * jnp.sqrt(gain.alpha**2 + gain.sigma**2))
    clues = -np.sum((z[..., None, :] - np.asarray(gain.alpha)[..., None] * table) ** 2, -1) / (
      2 * np.asarray(gain.sigma) ** 2
    )
    logits = logits + (clues if process.prediction == "leave_one_out" else 0)
    x, mean = table[np.asarray(IDS)], jax.nn.softmax(logits) @ table
    mse = np.mean((x - np.asarray(mean)) ** 2, -1)
  else:
    mse = np.mean(4 * (np.eye(V)[np.asarray(IDS)] - np.asarray(jax.nn.softmax(logits))) ** 2, -1)
  anchor = -np.take_along_axis(
    np.asarray(jax.nn.log_softmax(logits)), np.asarray(IDS)[..., None], -1
  )[..., 0]
  return weight(np.asarray(gain.alpha / gain.sigma)[..., 0] ** 2) * mse, anchor


def check_terms(cls, process):
  """Every term, summed over the scored tokens alone, and the total; the bound is that of `Bound`."""
  params, net = process.init(jax.random.key(1)), OUT[: process.size]
  for weighting, weight in (
    ("uniform", lambda snr: 1.0),
    ("snr", lambda snr: np.minimum(snr, 3.0)),
  ):
    limit = {"max_weight": 3.0} if weighting == "snr" else {}
    objective = cls(
      process, Shared(), Chunks(5), weighting, rounding_weight=0.5, anchor_weight=2.0, **limit
    )
    loss, seen = call(objective, params, net)
    mse, anchor = expected(process, params, net, seen, weight)
    clean = process.inputs(params, process.encode(params, IDS), jnp.zeros((B, L))).vectors
    np.testing.assert_array_equal(
      seen[0][:, :2], clean[:, :2], err_msg="given tokens are read clean"
    )
    assert float(loss.sums["mse"]) == pytest.approx((mse * COUNTS).sum(), rel=2e-3)
    assert float(loss.sums["anchor"]) == pytest.approx((anchor * COUNTS).sum(), rel=2e-3)
    prior = (np.asarray(process.prior_cost(params, IDS)) * COUNTS).sum()
    assert float(loss.sums["prior"]) == pytest.approx(prior, rel=1e-4)
    total = sum(
      float(loss.sums[name]) * w
      for name, w in (("mse", 1), ("anchor", 2), ("rounding", 0.5), ("prior", 1))
    )
    assert float(loss.total) == pytest.approx(total, rel=1e-5)
    assert float(loss.count) == COUNTS.sum()
    bound, _ = call(Bound(process, Shared(), Chunks(5)), params, net)
    assert float(loss.sums["bound"]) == pytest.approx(float(bound.total), rel=1e-4)


@pytest.mark.parametrize(
  "process", [PROCESS, LEFT_OUT, SIMPLEX], ids=["embedding", "leave-one-out", "simplex"]
)
def test_terms(process):
  check_terms(EmbeddingLosses, process)


def test_targets_are_weights():
  """Regressing the noise or v is regressing x with another weight (VP paths); min-SNR cuts it off."""
  t, rng = jnp.linspace(0.1, 0.9, 5), np.random.default_rng(0)
  gain, x, guess, noise = PROCESS.schedule(t), *rng.normal(size=(3, 5))
  z = gain.alpha * x + gain.sigma * noise
  guessed = (z - gain.alpha * guess) / gain.sigma
  square = lambda of: np.asarray(of) ** 2
  want = {"uniform": square(x - guess), "snr": square(noise - guessed)}
  want["v"] = square(gain.alpha * (noise - guessed) - gain.sigma * (x - guess))
  for name, value in want.items():
    weight = EmbeddingLosses(PROCESS, Shared(), weighting=name).weight({}, t)
    np.testing.assert_allclose(weight * square(x - guess), value, rtol=1e-3)
    assert (
      EmbeddingLosses(PROCESS, Shared(), weighting=name, max_weight=0.5).weight({}, t).max() <= 0.5
    )


def test_cross_entropy_reads_the_posterior():
  """Of Gaussian processes it is the anchor of the same draw, the evidence that the logits leave out included (score interpolation)."""
  params, net = LEFT_OUT.init(jax.random.key(1)), OUT[:E]
  plain, _ = call(CrossEntropy(LEFT_OUT, Shared()), params, net)
  losses, _ = call(EmbeddingLosses(LEFT_OUT, Shared()), params, net)
  assert float(plain.total) == pytest.approx(float(losses.sums["anchor"]), rel=1e-5)
  assert float(plain.sums["bound"]) == pytest.approx(float(losses.sums["bound"]), rel=1e-5)


def test_read_out_by_inner_products():
  """Trap 7, published numbers: both cross-entropies rise to log V as the table shrinks, and weigh against the mse."""
  scales = (1.0, 0.5, 0.1, 0.01)
  terms = [collapse(scale, "inner") for scale in scales]
  mse, rounding, anchor = (
    np.array([each[name] for each in terms]) for name in ("mse", "rounding", "anchor")
  )
  np.testing.assert_allclose(
    rounding, (1.30, 2.95, 4.53, 4.604), rtol=0.12
  )  # of another table of the same law
  np.testing.assert_allclose(anchor, (3.45, 4.32, 4.604, 4.605), rtol=0.05)
  assert (mse + rounding)[0] < (mse + rounding)[2] and (mse + anchor)[0] < (mse + anchor)[2]
  assert terms[0]["bound"] == pytest.approx(collapse(1.0)["bound"], rel=1e-4), (
    "the read-out is no part of the bound"
  )


class ScoresGivenTokens(EmbeddingLosses):
  def __call__(self, params, key, batch, progress, predict):
    return super().__call__(params, key, dataclasses.replace(batch, given=None), progress, predict)


class SumsOverTheVector(EmbeddingLosses):
  def weight(self, params, t):
    return super().weight(params, t) * self.process.size


@pytest.mark.parametrize("mutant", [ScoresGivenTokens, SumsOverTheVector])
def test_mutants_of_the_terms_fail(mutant):
  with pytest.raises(AssertionError):
    check_terms(mutant, PROCESS)


def check_gradients(process):
  """Trap 7: rounding and prior reach the embedding and not the network; mse and the anchor reach both."""
  params, net = process.init(jax.random.key(1)), OUT[: process.size]

  def size(which, rounding, anchor, mse):
    objective = EmbeddingLosses(
      process, Shared(), max_weight=mse, rounding_weight=rounding, anchor_weight=anchor
    )
    gradient = jax.grad(lambda p: call(objective, p["table"], p["net"])[0].total)(
      {"table": params, "net": net}
    )
    return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient[which]))

  none = 1e-12  # the mse cannot be left out, only weighed down
  assert size("net", 1.0, 0.0, none) < 1e-6 and size("table", 1.0, 0.0, none) > 1e-4
  assert size("net", 0.0, 1.0, none) > 1e-2 and size("table", 0.0, 1.0, none) > 1e-3
  assert size("net", 0.0, 0.0, 1.0) > 1e-2 and size("table", 0.0, 0.0, 1.0) > 1e-2


class StopsAtTheEmbedding(Embedding):
  def table(self, params):
    return jax.lax.stop_gradient(super().table(params))


def test_what_gradients_reach():
  close = LogSNR(2.0, -6.0)  # at a log-SNR of 10 rounding is certain and teaches nothing
  check_gradients(dataclasses.replace(PROCESS, schedule=close))
  with pytest.raises(AssertionError):
    check_gradients(StopsAtTheEmbedding(V, close, width=E, norm="none"))


@functools.cache
def collapse(scale, readout="posterior"):
  """Each term per token of V = 100 independent tokens, 8 numbers each times `scale`, under the best denoiser (which is the evidence)."""
  size, rows = 100, 400
  process = Embedding(size, SquareRoot(4.209, -15.41), "leave_one_out", width=8, norm="none")
  params = jax.tree.map(lambda table: scale * table, process.init(jax.random.key(3)))
  ids = jax.random.randint(jax.random.key(4), (rows, 4), 0, size)
  blind = lambda inputs, t, layout: exact_prediction(jnp.zeros((*inputs.shape, size)))
  objective = EmbeddingLosses(process, Shared(), Chunks(1600), readout=readout)
  loss = jax.jit(
    lambda params: objective(params, jax.random.key(5), Batch(ids), Progress(), blind)
  )(params)
  return {name: float(value / loss.count) for name, value in loss.sums.items()}


def test_mse_alone_collapses_the_embedding_and_the_other_terms_hold_it():
  """Trap 7, on the sqrt chain: mse falls to 0 with the table, both cross-entropies rise to log V."""
  scales = (1.0, 0.5, 0.1, 0.01)
  terms = [collapse(scale) for scale in scales]
  mse, rounding, anchor = (
    np.array([each[name] for each in terms]) for name in ("mse", "rounding", "anchor")
  )
  np.testing.assert_allclose(
    mse, (0.598, 0.205, 0.0099, 0.0001), rtol=0.12
  )  # of another table of the same law
  for entropy in (rounding, anchor):
    assert (np.diff(entropy) > 0).all() and entropy[-1] == pytest.approx(np.log(100), abs=0.05)
  assert (
    mse[0] > mse[2]
    and (mse + rounding)[0] < (mse + rounding)[2]
    and (mse + anchor)[0] < (mse + anchor)[2]
  )


def micro(process):
  config = TransformerConfig(
    V, process.input_size, layers=1, width=16, heads=2, kv_heads=2, mlp_width=16, norm="rmsnorm", activation="gelu", rope_base=1e4,
    qk_norm=False, tie_embeddings=False, time_conditioning="adaln", time_width=8, dropout=0.0, dtype="float32", scan_layers=False,
    remat="none", attention=("xla",),
  )  # fmt: skip
  network = Network.create(config)
  noisy = lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(leaf.size), leaf.shape)
  return network, jax.tree.map(noisy, network.init(jax.random.key(6)))


@pytest.mark.parametrize(
  "process,timing,name",
  [
    (PROCESS, Shared(), "mse_rounding"),
    (LEFT_OUT, PerBlock(4), "bound"),
    (SIMPLEX, Shared(), "cross_entropy"),
    (SIMPLEX, PerBlock(4), "mse_rounding"),
  ],
  ids=["Diffusion-LM", "Plaid in blocks", "TESS", "SSD-LM"],
)
def test_objectives_train_the_transformer(process, timing, name):
  """Through the one network, noisy ‖ clean rows included: finite gradients for every weight, of the embedding too."""
  network, net = micro(process)
  params = process.init(jax.random.key(1))

  def total(p):
    predict = lambda inputs, t, layout: network.apply(p["net"], inputs, t, layout, None)
    return OBJECTIVES[name](process, timing)(
      p["table"], jax.random.key(9), BATCH, Progress(), predict
    ).total

  gradients = jax.jit(jax.grad(total))({"table": params, "net": net})
  for leaf in jax.tree.leaves(gradients):
    assert np.isfinite(np.asarray(leaf)).all()
  assert float(jnp.abs(gradients["net"]["embedding"]).max()) > 0
  if name != "cross_entropy":
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradients["table"]))


def test_the_network_reads_a_one_hot_vector_as_the_token():
  network, params = micro(SIMPLEX)
  t = jnp.full((B, L), 0.5)
  hard = network.apply(params, Inputs(IDS), t, Layout(), None).logits
  soft = network.apply(params, Inputs(vectors=jax.nn.one_hot(IDS, V)), t, Layout(), None).logits
  np.testing.assert_allclose(soft, hard, atol=1e-5)
  with pytest.raises(ValueError, match="vectors of 9 numbers do not fit input_size=7"):
    network.apply(params, Inputs(vectors=jnp.zeros((B, L, 9))), t, Layout(), None)
  with pytest.raises(ValueError, match="tie_embeddings=True needs a row"):
    dataclasses.replace(network.config, input_size=4, tie_embeddings=True)


@pytest.mark.parametrize(
  "make,match",
  [
    (
      lambda: EmbeddingLosses(Masked(V, Linear()), Shared()),
      "of vectors, which Masked has none of",
    ),
    (
      lambda: EmbeddingLosses(PROCESS, Shared(), weighting="inverse_time"),
      "weighting='inverse_time'",
    ),
    (lambda: EmbeddingLosses(PROCESS, Shared(), readout="nearest"), "readout='nearest'"),
    (lambda: EmbeddingLosses(PROCESS, Shared(), max_weight=0.0), r"max_weight=0\.0"),
    (lambda: EmbeddingLosses(PROCESS, Shared(), rounding_weight=-1.0), r"rounding_weight=-1\.0"),
  ],
)
def test_bad_options_are_refused(make, match):
  with pytest.raises(ValueError, match=match):
    make()
