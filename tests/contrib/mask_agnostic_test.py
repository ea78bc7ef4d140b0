"""The mask-agnostic loss against the formula with all logits in memory, and mutants that fail."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.context import Blocks, Causal, Full, NextToken
from diffusion_text.contrib.mask_agnostic import MaskAgnostic
from diffusion_text.core.prng import stream
from diffusion_text.objective import Bound, CrossEntropy, engine
from diffusion_text.process.masked import Masked
from diffusion_text.process.uniform import Uniform
from diffusion_text.testing.table_network import TableNetwork
from diffusion_text.timing import Shared
from diffusion_text.types import Batch, InputSizes, Model, Progress

V, B, L = 7, 8, 12
MASKED = Masked(vocab_size=V)
START = Progress()
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
IDS = np.random.default_rng(0).integers(0, V, (B, L)).astype(np.int32)
REAL = np.broadcast_to((np.arange(L) < 9).astype(np.float32), (B, L))
PACKED = np.where(np.arange(L) < 5, 1, 2) * np.ones((B, 1), np.int32)
DOCUMENTS = {
  "one": Batch(IDS),
  "packed and padded": Batch(IDS, weights=REAL, segment=np.where(REAL > 0, PACKED, 0)),
}
NET = jax.tree.map(np.asarray, TableNetwork.params(jax.random.key(1), InputSizes(ids=V + 1), V, V))


def model_of(network=None, context=None, process=MASKED, **options):
  network = TableNetwork(mask_id=V) if network is None else network
  return Model(network, process, Shared(), Full() if context is None else context, **options)


def loss_of(objective, network, batch, model, key=9):
  params, key = {"network": network, "process": {}, "timing": {}}, jax.random.key(key)
  times = engine.draw_times(model, params, stream(key, "times"), batch, START)
  return objective(model, params, key, batch, times, START)


def masks_seen(state, segment):
  same = segment[:, :, None] == segment[:, None]
  return (same * (state == V)[:, None]).sum(-1)[..., None]


def check_rows(row, longer, batch):
  """(the tokens of the last one's document, [B, L], how many masks are in it, [B]).

  The second reading is the first with masks after its last token.
  """
  end = L - 1 if batch.weights is None else 8
  own = np.zeros((B, L), np.int32) if batch.segment is None else batch.segment
  tail = slice(row.t.shape[1], None)
  np.testing.assert_array_equal(np.asarray(longer.inputs.ids)[:, : tail.start], row.inputs.ids)
  assert (np.asarray(longer.inputs.ids)[:, tail] == V).all() and (longer.t[:, tail] == 1).all()
  assert not np.asarray(longer.weights)[:, tail].any(), "masks that are appended weigh nothing"
  in_document = np.asarray(longer.layout.segment)[:, tail] == own[:, end : end + 1]
  appended = in_document.sum(1)
  assert appended.min() >= 1 and len(set(appended)) > 1
  position = np.asarray(longer.inputs.position)
  np.testing.assert_array_equal(position[:, tail.start], position[:, row.tokens.start + end] + 1)
  return own == own[:, end : end + 1], appended


FORMS = {"published": "inverse_time", "one_reading": "uniform"}  # and their weights of time


def check_mask_agnostic(cls, batch, form="published"):
  """Value and gradient equal the formula with all logits in memory, for the number of masks that
  were appended.
  """
  objective = cls(form=form, weighting=FORMS[form], agreement=0.7, appended=4)
  network = TableNetwork(mask_id=V, router=0.2)
  model = model_of(network, chunk=5, shards=2)

  def ours(net):
    loss, _ = loss_of(objective, net, batch, model)
    first, second = (rows for rows, _, _ in network.calls[-2:])
    return loss.total, (loss.sums, first, second)

  (value, (sums, row, longer)), gradient = jit(jax.value_and_grad(ours, has_aux=True))(NET)
  in_document, appended = check_rows(row, longer, batch)
  state, t = np.asarray(row.inputs.ids), np.asarray(row.t)
  own = np.zeros((B, L), np.int32) if batch.segment is None else batch.segment

  def formula(net):
    table = jnp.asarray(net["table"])
    seen = masks_seen(state, own)
    crowd = seen + jnp.where(in_document, appended[:, None], 0)[..., None]
    logits = (table[state] + seen * net["crowd"]) @ net["out"]
    others = (table[state] + crowd * net["crowd"]) @ net["out"]

    def nll(logits):
      return -jnp.take_along_axis(jax.nn.log_softmax(logits), batch.ids[..., None], -1)[..., 0]

    apart = 0.7 * jnp.abs(jax.nn.softmax(logits) - jax.nn.softmax(others)).sum(-1) / 2
    weights = np.ones((B, L)) if batch.weights is None else batch.weights
    masked = (state == V) * (t > 0) * weights
    if form == "one_reading":
      return jnp.sum(masked * (nll(logits) + apart))
    number = np.maximum(masked.sum(1), 1)
    cost = (nll(logits) + nll(others)) / 2 / t + t * apart
    # Every row is the mean over its masks; it weighs as much as it has tokens.
    return jnp.sum(weights.sum(1) * jnp.sum(masked * cost, axis=1) / number)

  theirs, slope = jit(jax.value_and_grad(formula))(NET)
  router = float(sums["router"])
  np.testing.assert_allclose(value - router, theirs, rtol=3e-4)
  # Where no mask is appended to a document the two readings are one: at equal distributions the
  # variation has a kink, and rounding takes a side. "table" and "crowd" have the router's too.
  miss = np.linalg.norm(gradient["out"] - slope["out"])
  alike = 5e-3 if in_document.all() else 0.15
  assert miss <= alike * np.linalg.norm(slope["out"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", DOCUMENTS)
def test_mask_agnostic(kind, form):
  check_mask_agnostic(MaskAgnostic, DOCUMENTS[kind], form)


class SeesHiddenMasks(MaskAgnostic):
  """Shows every appended mask to every token."""

  def lengthen(self, *args):
    rows = super().lengthen(*args)
    layout = dataclasses.replace(rows.layout, segment=jnp.zeros_like(rows.layout.segment))
    return dataclasses.replace(rows, layout=layout)


class AppendsToThePadding(MaskAgnostic):
  """Takes padding for text."""

  def lengthen(self, model, params, key, batch, rows, progress):
    batch = dataclasses.replace(batch, weights=None)
    return super().lengthen(model, params, key, batch, rows, progress)


class PerToken(MaskAgnostic):
  """Divides by all tokens."""

  def per_masked(self, *args):
    return jnp.ones_like(super().per_masked(*args))


class OneForAll(MaskAgnostic):
  """Weighs the cross-entropy alike at all times."""

  def weight(self, t):
    return jnp.ones_like(t)


@pytest.mark.parametrize(
  "mutant,kind",
  [
    (SeesHiddenMasks, "one"),
    (AppendsToThePadding, "packed and padded"),
    (PerToken, "one"),
    (OneForAll, "one"),
  ],
)
def test_mutants_fail(mutant, kind):
  with pytest.raises(AssertionError):
    check_mask_agnostic(mutant, DOCUMENTS[kind])


def test_agreement_is_free_for_a_network_blind_to_the_number_of_masks():
  model = model_of(chunk=48)
  blind = NET | {"crowd": np.zeros(5, np.float32)}
  crowded = NET | {"crowd": -NET["table"][V] / 24}  # enough masks turn the answer to a mask around

  @jit
  def totals(net):
    objectives = MaskAgnostic(form="one_reading"), CrossEntropy(), Bound()
    losses = [loss_of(o, net, Batch(IDS), model)[0] for o in objectives]
    return [loss.total for loss in losses], losses[0].sums["bound"]

  (agnostic, plain, bound), reported = totals(blind)
  assert float(agnostic) == pytest.approx(float(plain), rel=1e-6)
  assert float(reported) == pytest.approx(float(bound), rel=1e-5)
  (agnostic, plain, bound), reported = totals(crowded)
  assert float(agnostic) > 1.03 * float(plain)
  assert float(reported) == pytest.approx(float(bound), rel=1e-5)


@pytest.mark.parametrize(
  "make,match",
  [
    (lambda: MaskAgnostic(appended=0), "appended"),
    (lambda: MaskAgnostic(agreement=-1.0), "agreement"),
    (
      lambda: MaskAgnostic().check(model_of(process=Uniform(vocab_size=V))),
      "appends masks, and Uniform.* has none",
    ),
    (lambda: MaskAgnostic().check(model_of(context=Blocks(size=4))), "one bidirectional block"),
    (lambda: MaskAgnostic().check(model_of(context=NextToken())), "one bidirectional block"),
    (
      lambda: loss_of(MaskAgnostic(), NET, Batch(IDS), model_of(context=Causal())),
      "one bidirectional block",
    ),
  ],
)
def test_what_does_not_fit_is_refused(make, match):
  with pytest.raises(ValueError, match=match):
    make()


def test_shifted_answers_are_lengthened_too():
  """A row that begins with a token of noise has its masks at the same places of the text."""
  network = TableNetwork(mask_id=V)
  model = model_of(network, Full(answer_shift=1), chunk=48)

  @jit
  def run(net):
    loss_of(MaskAgnostic(appended=4), net, DOCUMENTS["one"], model)
    return [rows for rows, _, _ in network.calls[-2:]]

  row, longer = run(NET)
  assert row.t.shape == (B, L + 1) and longer.answers == row.answers == (0, L)
  check_rows(row, longer, DOCUMENTS["one"])
