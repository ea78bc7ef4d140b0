"""Every context: who sees whom against the rule written out, where answers stand, and the laws.

A new context is one line of ROWS, and one of RULES.
"""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.context import CONTEXTS, Annealed, Blocks, Causal, Full, NextToken
from diffusion_text.context import rows as parts
from diffusion_text.kernels.layout import visible
from diffusion_text.process.masked import Masked
from diffusion_text.testing.check_context import check_context
from diffusion_text.timing import AtNoise, Hyperschedule, Shared
from diffusion_text.types import Batch, Inputs, Model, Progress, Span, Times
from tests.context.broken_blocks import SeesItsOwnCleanBlock, SegmentForgotten

B, N = 3, 8
SEGMENT = np.array([[0] * 8, [1, 1, 1, 2, 2, 2, 2, 2], [5, 5, 5, 5, 5, 3, 3, 0]], np.int32)
NOISY, CLEAN, NOISE = 10, 20, 30  # which row of inputs an id comes from
PLACE = np.arange(N)

# name -> (context, options of `check_context`)
CHEAP = ("options", "spans", "no_answer_shown", "sampling", "horizon", "dropped")
ROWS = {
  "full": (Full(), {"only": (*CHEAP, "packed")}),
  "full, shifted": (Full(answer_shift=1), {"answer_shift": 1, "packed": False}),
  "causal": (Causal(), {"exact_law": False, "only": (*CHEAP, "bound")}),
  "blocks of 1": (Blocks(size=1), {"only": CHEAP}),
  "blocks of 2": (Blocks(size=2), {}),
  "blocks of 2, causal": (Blocks(size=2, clean="causal"), {"only": (*CHEAP, "bound")}),
  "next_token": (NextToken(), {"answer_shift": 1}),
  "annealed": (Annealed(steps=10), {"only": CHEAP}),
  "annealed, shifted": (Annealed(steps=10, answer_shift=1), {"answer_shift": 1, "only": CHEAP}),
}


def inputs(first, shape=(B, N)):
  """Ids that say what they are and where they come from."""
  return Inputs(ids=jnp.asarray(np.broadcast_to(first + np.arange(shape[1]), shape), jnp.int32))


def times(t, network_time=None):
  t = jnp.asarray(np.broadcast_to(t, (B, N)), jnp.float32)
  told = t if network_time is None else jnp.asarray(network_time, jnp.float32)
  return Times(t, jnp.ones_like(t), t[:, :1], told)


def batch_of(**fields):
  return Batch(np.zeros((B, N), np.int32), **fields)


def trained(context, batch=None, t=0.5, step=0, noisy=None, network_time=None):
  """The rows of a loss."""
  noisy = inputs(NOISY) if noisy is None else noisy
  batch = batch_of() if batch is None else batch
  return context.training_rows(
    jax.random.key(0),
    noisy,
    inputs(CLEAN),
    inputs(NOISE),
    times(t, network_time),
    batch,
    Progress(step=step),
  )


def sampled(context, t, batch=None):
  batch = batch_of() if batch is None else batch
  t = jnp.asarray(np.broadcast_to(t, (B, N)), jnp.float32)
  return context.sampling_rows(inputs(NOISY), inputs(NOISE), t, batch)


def sees(rows):
  """bool [B, answers, tokens of the row]: what each answer is made from, as the layout says."""
  length = rows.inputs.shape[1]
  mask = visible(rows.layout, rows.layout)
  mask = np.ones((1, 1, 1), bool) if mask is None else np.asarray(mask)
  mask = np.broadcast_to(mask, (B, length, length))
  return mask[:, rows.answers.start : rows.answers.stop]


def document(row, i, j):
  return SEGMENT[row, i] == SEGMENT[row, j]


def begins(row, i):
  """The first place of the document of token i."""
  return min(j for j in range(N) if document(row, i, j))


# name -> (row, token i, the id of an input) -> whether the answer for token i may see it
RULES = {
  "full": lambda row, i, kind, j: kind == NOISY and document(row, i, j),
  "causal": lambda row, i, kind, j: kind == NOISY and document(row, i, j) and j <= i,
  "blocks of 1": lambda row, i, kind, j: (
    document(row, i, j) and (j == i if kind == NOISY else kind == CLEAN and j < i)
  ),
  "blocks of 2": lambda row, i, kind, j: (
    document(row, i, j)
    and (j // 2 == i // 2 if kind == NOISY else kind == CLEAN and j // 2 < i // 2)
  ),
  "blocks of 2, causal": lambda row, i, kind, j: (
    document(row, i, j)
    and (j // 2 == i // 2 if kind == NOISY else kind == CLEAN and j // 2 < i // 2)
  ),
  "next_token": lambda row, i, kind, j: (
    document(row, i, j) and (j < i if kind == CLEAN else kind == NOISE and j == begins(row, i))
  ),
  "annealed": lambda row, i, kind, j: kind == NOISY and document(row, i, j) and j <= i,
  # Where token i - 1 stands, or the noise before the row.
  "annealed, shifted": lambda row, i, kind, j: (
    document(row, max(i - 1, 0), j) and (j < i if kind == NOISY else kind == NOISE and j == 0)
  ),
}


def check_visibility(context, rule):
  """The layout of training rows shows each answer what the rule says, by kind and place."""
  rows = trained(context, batch_of(segment=SEGMENT))
  ids, mask = np.asarray(rows.inputs.ids), sees(rows)
  for row in range(B):
    for i in range(N):
      shown = {int(x) for x in ids[row][mask[row, i]]}
      everything = [first + j for first in (NOISY, CLEAN, NOISE) for j in range(N)]
      want = {x for x in everything if rule(row, i, x // 10 * 10, x % 10)}
      assert shown == want, (row, i, shown, want)


@pytest.mark.parametrize("name", RULES)
def test_who_sees_whom(name):
  check_visibility(ROWS[name][0], RULES[name])


def test_clean_tokens_of_causal_blocks_see_their_left():
  """In training rows and in finished blocks while sampling; otherwise they see their block too."""
  batch = batch_of(segment=SEGMENT)
  left = (SEGMENT[:, :, None] == SEGMENT[:, None]) & (PLACE[:, None] >= PLACE)
  for clean, want in (("causal", left), ("blocks", left | (PLACE[:, None] // 4 == PLACE // 4))):
    context = Blocks(size=4, clean=clean)
    want = want & (SEGMENT[:, :, None] == SEGMENT[:, None])
    for rows, start in ((trained(context, batch), N), (sampled(context, 0.0, batch), 0)):
      mask = np.asarray(visible(rows.layout, rows.layout))[:, start:]
      np.testing.assert_array_equal(mask[..., start:], want)
      assert not mask[..., :start].any()


class ReadsItself(NextToken):
  def sampling_rows(self, noisy, noise, t, batch):
    rows = super().sampling_rows(noisy, noise, t, batch)
    return dataclasses.replace(rows, inputs=noisy)


class CountsFromTheFirstToken(Annealed):
  """Causal rows in which the noise before the row is as late as its first token."""

  def training_rows(self, key, noisy, clean, noise, times, batch, progress):
    rows = super().training_rows(key, noisy, clean, noise, times, batch, progress)
    block = jnp.maximum(rows.layout.block, 0)
    return dataclasses.replace(rows, layout=dataclasses.replace(rows.layout, block=block))


class RunsIntoTheNextDocument(NextToken):
  """The first token of a document reads the last one of the document before."""

  def sampling_rows(self, noisy, noise, t, batch):
    one = dataclasses.replace(batch, segment=None)
    rows = super().sampling_rows(noisy, noise, t, one)
    layout = dataclasses.replace(rows.layout, segment=batch.segment)
    return dataclasses.replace(rows, layout=layout)


@pytest.mark.parametrize("mutant, name", [
  (SegmentForgotten(size=2), "blocks of 2"),
  (SeesItsOwnCleanBlock(size=2), "blocks of 2"),
  (Blocks(size=4), "blocks of 2"),
  (SeesItsOwnCleanBlock(size=2, clean="causal"), "blocks of 2, causal"),
  (Causal(), "full"),
  (Annealed(steps=10, answer_shift=0), "annealed, shifted"),
  (CountsFromTheFirstToken(steps=10, answer_shift=1), "annealed, shifted"),
  (ReadsItself(), "next_token"),
  (RunsIntoTheNextDocument(), "next_token"),
])  # fmt: skip
def test_wrong_layouts_are_noticed(mutant, name):
  with pytest.raises(AssertionError):
    check_visibility(mutant, RULES[name])


def test_the_tables_have_every_context():
  assert {type(context) for context, _ in ROWS.values()} == set(CONTEXTS.values())
  assert set(RULES) == set(ROWS) - {"full, shifted"}


@pytest.mark.parametrize("name", ROWS)
def test_laws_through_the_exact_network(name):
  context, options = ROWS[name]
  check_context(context, **{"rows": 512, "draws": 8, "largest_error": 0.3, **options})


class OneTooFar(Full):
  """Answers one position after the one that is right."""

  def sampling_rows(self, noisy, noise, t, batch):
    rows = super().sampling_rows(noisy, noise, t, batch)
    return dataclasses.replace(rows, answers=rows.tokens)


class ShowsDroppedTokens(Blocks):
  def training_rows(self, key, noisy, clean, noise, times, batch, progress):
    batch = dataclasses.replace(batch, dropped=None)
    return super().training_rows(key, noisy, clean, noise, times, batch, progress)


class FinishedBlocksAreNoisy(Blocks):
  """At sampling, no block is a context of another one."""

  def sampling_rows(self, noisy, noise, t, batch):
    rows = super().sampling_rows(noisy, noise, t, batch)
    noisy_everywhere = jnp.ones_like(rows.layout.noisy)
    return dataclasses.replace(
      rows, layout=dataclasses.replace(rows.layout, noisy=noisy_everywhere)
    )


@pytest.mark.parametrize("mutant, law, options", [
  (OneTooFar(answer_shift=1), "bound", {"answer_shift": 1, "largest_error": 0.5}),
  (ShowsDroppedTokens(size=2), "dropped", {}),
  (FinishedBlocksAreNoisy(size=2), "sampling", {}),
  (SeesItsOwnCleanBlock(size=2), "no_answer_shown", {}),
])  # fmt: skip
def test_mutants_of_the_laws_fail(mutant, law, options):
  with pytest.raises(AssertionError):
    check_context(mutant, only=(law,), **options)


def test_answers_stand_where_the_tokens_are_asked():
  """Shifted answers stand one position before their tokens, which begin after a token of noise."""
  plain, shifted = trained(Full()), trained(Full(answer_shift=1), t=0.25)
  assert (plain.tokens, plain.answers) == (Span(0, N), Span(0, N))
  assert (shifted.tokens, shifted.answers) == (Span(1, N + 1), Span(0, N))
  np.testing.assert_array_equal(shifted.inputs.ids[0], [NOISE, *(NOISY + PLACE)])
  np.testing.assert_array_equal(shifted.inputs.position[0], np.arange(N + 1) - 1)
  np.testing.assert_array_equal(shifted.t[0], [1.0, *[0.25] * N])
  halves, next_token = trained(Blocks(size=4)), trained(NextToken())
  assert (halves.copies, halves.tokens, halves.answers) == (2, Span(0, N), Span(0, N))
  np.testing.assert_array_equal(halves.inputs.position[0], [*PLACE, *PLACE])
  assert (next_token.tokens, next_token.answers) == (Span(0, 0), Span(0, N))
  np.testing.assert_array_equal(next_token.inputs.ids[0], [NOISE, *(CLEAN + PLACE[:-1])])
  np.testing.assert_array_equal(next_token.t[0], [1.0, *[0.0] * (N - 1)])


@pytest.mark.parametrize("name", [name for name in ROWS if name != "next_token"])
def test_the_network_is_told_network_time(name):
  """Never t, which may tell the token; noisy‖clean rows are told 0 of what is clean."""
  told = np.random.default_rng(0).random((B, N)).astype(np.float32)
  rows = trained(ROWS[name][0], t=0.5, network_time=told)
  t = np.asarray(rows.t)
  np.testing.assert_array_equal(t[:, rows.tokens.start : rows.tokens.stop], told)
  assert rows.copies == 1 or not t[:, N:].any()


@pytest.mark.parametrize("name", ROWS)
def test_routers_are_told_which_tokens_count(name):
  """Weights of the batch, for each copy; 0 for a position that holds no token of the text."""
  context = ROWS[name][0]
  weights = np.random.default_rng(0).integers(0, 2, (B, N)).astype(np.float32)
  rows = trained(context, batch_of(weights=weights))
  want = np.concatenate([weights] * rows.copies, axis=1)
  extra = rows.inputs.shape[1] - want.shape[1]
  np.testing.assert_array_equal(rows.weights, np.pad(want, ((0, 0), (extra, 0))))
  assert sampled(context, 1.0, batch_of(weights=weights)).weights is not None
  without = trained(context).weights
  assert without is None if not extra else not without[:, 0].any() and without[:, 1:].all()


def test_soft_tokens_stand_beside_hard_ones():
  """Where the noisy half holds soft tokens, the clean half holds the hard ids as soft tokens."""
  soft = Inputs(
    ids=jnp.zeros((B, N, 3), jnp.int32) + 7, weights=jnp.full((B, N, 3), 1 / 3, jnp.float32)
  )
  rows = trained(Blocks(size=4), noisy=soft).inputs
  assert rows.ids.shape == rows.weights.shape == (B, 2 * N, 3)
  np.testing.assert_array_equal(rows.ids[:, :N], soft.ids)
  np.testing.assert_array_equal(rows.ids[0, N:, 0], CLEAN + PLACE)
  np.testing.assert_array_equal(rows.weights[0, N:], [[1, 0, 0]] * N)
  shifted = trained(Full(answer_shift=1), noisy=soft).inputs
  np.testing.assert_array_equal(shifted.weights[0, 0], [1, 0, 0])
  assert int(shifted.ids[0, 0, 0]) == NOISE


def test_dropped_tokens_are_noise_in_the_clean_copy_too():
  dropped = np.broadcast_to(PLACE < 2, (B, N))
  batch = batch_of(observed=dropped, dropped=dropped)
  rows = trained(Blocks(size=4), batch)
  want = np.where(PLACE < 2, NOISE + PLACE, CLEAN + PLACE)
  np.testing.assert_array_equal(rows.inputs.ids[0, N:], want)
  np.testing.assert_array_equal(rows.t[0, N:], PLACE < 2)
  shifted = trained(NextToken(), batch)
  np.testing.assert_array_equal(shifted.inputs.ids[0, 1:], want[:-1])
  np.testing.assert_array_equal(shifted.t[0], [1.0, 1.0, 1.0, *[0.0] * 5])


def test_blocks_are_noisy_until_they_are_finished():
  """The window and what comes after it are noisy; a hidden prompt is as finished as its block."""
  rows = sampled(Blocks(size=2), np.where(PLACE < 4, 0.0, np.where(PLACE < 6, PLACE % 2, 1.0)))
  np.testing.assert_array_equal(rows.layout.noisy[0], [0, 0, 0, 0, 1, 1, 1, 1])
  np.testing.assert_array_equal(rows.layout.block[0], PLACE // 2)
  observed = np.broadcast_to(PLACE < 2, (B, N))
  hidden = sampled(Blocks(size=2), np.where(PLACE < 4, PLACE < 2, 1.0), batch_of(observed=observed))
  np.testing.assert_array_equal(hidden.layout.noisy[0], [0, 0, 0, 0, 1, 1, 1, 1])


@pytest.mark.parametrize("name", ROWS)
def test_segments_stay_in_sampling_rows(name):
  rows = sampled(ROWS[name][0], 1.0, batch_of(segment=SEGMENT))
  np.testing.assert_array_equal(rows.layout.segment[:, -N:], SEGMENT)


def full_rows(step, part=0, count=64, parts_of_step=1, context=None):
  """bool [count]: rows of an annealed context whose first token sees the last one."""
  context = Annealed(steps=100) if context is None else context
  t = jnp.full((count, N), 0.5)
  rows = context.training_rows(
    jax.random.key(4),
    inputs(NOISY, (count, N)),
    inputs(CLEAN, (count, N)),
    inputs(NOISE, (count, N)),
    Times(t, t, t[:, :1], t),
    Batch(np.zeros((count, N), np.int32)),
    Progress(step=step, part=part, parts=parts_of_step),
  )
  block = np.asarray(rows.layout.block)
  assert ((block == 0).all(1) | (block == PLACE).all(1)).all()
  return (block == 0).all(1)


class CoinsOfTheMicrobatch(Annealed):
  def training_rows(self, key, noisy, clean, noise, times, batch, progress):
    alone = Progress(step=progress.step)
    return super().training_rows(key, noisy, clean, noise, times, batch, alone)


def check_coins(context):
  whole = full_rows(50, context=context)
  for part in range(2):
    mine = full_rows(50, part=part, count=32, parts_of_step=2, context=context)
    np.testing.assert_array_equal(mine, whole[part::2])


def test_annealing_goes_from_causal_to_full_by_a_coin_per_row():
  shares = [full_rows(step).mean() for step in (0, 25, 75, 100, 10**6)]
  assert shares[0] == 0 and shares[3] == shares[4] == 1
  assert abs(shares[1] - 0.25) < 0.2 and abs(shares[2] - 0.75) < 0.2
  assert sampled(Annealed(steps=100), 1.0).layout.block is None
  np.testing.assert_array_equal(full_rows(50, context=Annealed(train_steps=200)), full_rows(50))


def test_annealed_rows_end_as_full_rows():
  """Field by field, but for a block that is 0 everywhere."""
  for shift in (0, 1):
    last, full = trained(Annealed(steps=5, answer_shift=shift), step=5), Full(answer_shift=shift)
    assert not np.asarray(last.layout.block).any()
    last = dataclasses.replace(last, layout=dataclasses.replace(last.layout, block=None))
    want = trained(full)
    assert (last.tokens, last.answers, last.copies) == (want.tokens, want.answers, want.copies)
    jax.tree.map(np.testing.assert_array_equal, last, want)


def test_microbatches_toss_the_coins_of_the_whole_batch():
  check_coins(Annealed(steps=100))
  with pytest.raises(AssertionError):
    check_coins(CoinsOfTheMicrobatch(steps=100))


def test_what_is_read_is_what_is_counted():
  for context, _ in ROWS.values():
    assert trained(context).inputs.shape[1] == context.positions_read(N)
    assert sampled(context, 1.0).inputs.shape[1] - N == getattr(context, "answer_shift", 0)


def test_soft_helper_leaves_vectors_alone():
  vectors = Inputs(vectors=jnp.zeros((B, N, 2)))
  assert parts.soft(vectors, 3) is vectors


def data(length=N, packing="stream"):
  return types.SimpleNamespace(length=length, packing=packing)


def model(context, timing=None, self_conditioning=0.0):
  timing = Shared() if timing is None else timing
  return Model(None, Masked(3), timing, context, self_conditioning=self_conditioning)


REFUSED = [
  (Blocks(size=3), {}, data(), "size=3 must divide length=8; use a length of 6 or 9"),
  (Blocks(size=16), {}, data(), "size=16 must divide length=8; use a length of 16"),
  (Full(answer_shift=1), {}, data(packing="documents"), "answer_shift=1.*'documents'.*next_token"),
  (NextToken(), {}, data(), "each must be at t = 1.*use timing.name='at_noise'"),
  (
    NextToken(),
    {"timing": AtNoise(), "self_conditioning": 0.5},
    data(),
    "self_conditioning=0.5.*use train.self_conditioning=0",
  ),
]


@pytest.mark.parametrize("context, options, of, match", REFUSED)
def test_what_theory_forbids_is_refused(context, options, of, match):
  with pytest.raises(ValueError, match=match):
    context.check(model(context, **options), of)


def test_what_fits_is_not_refused():
  for context, timing in [
    (Full(answer_shift=1), Shared()),
    (Causal(), Hyperschedule(kind="wave", width=2)),
    (Blocks(size=4), Shared()),
    (NextToken(), AtNoise()),
    (Annealed(steps=3), Shared()),
  ]:
    context.check(model(context, timing), data())
  with pytest.raises(ValueError, match="size"):
    Blocks(size=0)
  with pytest.raises(ValueError, match="answer_shift"):
    Full(answer_shift=2)
  with pytest.raises(ValueError, match=r"use Annealed\(steps=…\)"):
    Annealed()
