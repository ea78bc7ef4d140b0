"""The exact network: each part of a layout, and each slot of a cache, decides what it answers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.core.numerics import NEVER
from diffusion_text.core.options import member
from diffusion_text.process.masked import Masked
from diffusion_text.testing.exact_network import ExactNetwork, exact_params
from diffusion_text.testing.languages import Enumerable, MarkovChain
from diffusion_text.types import Inputs, InputSizes, Layout, Rows, Span

LANGUAGE = Enumerable.dirichlet(0, 0.5, 3, 4)
MASK = 3
MASKED = Masked(3)
NETWORK = ExactNetwork(MASKED)
PARAMS = exact_params(LANGUAGE)["network"]
IDS = np.array([[0, 3, 2, 3], [3, 3, 1, 0], [3, 3, 3, 3]], np.int32)
BIDIRECTIONAL = Layout()
apply = jax.jit(ExactNetwork.apply, static_argnums=0)
extend = jax.jit(ExactNetwork.extend, static_argnums=0)


def rows_of(ids, layout=BIDIRECTIONAL, position=None, answers=None, t=None):
  length = ids.shape[1]
  times = np.float32(ids == MASK) if t is None else t
  answers = Span(0, length) if answers is None else answers
  return Rows(Inputs(ids=ids, position=position), times, layout, None, 1, Span(0, length), answers)


def conditional(known, place):
  """p(x_place | the tokens of `known`, a dict from place to id), by counting."""
  weight = LANGUAGE.probabilities.copy()
  for at, token in known.items():
    weight = weight * (LANGUAGE.sequences[:, at] == token)
  law = np.array([weight[LANGUAGE.sequences[:, place] == v].sum() for v in range(3)])
  return law / law.sum()


def answers(rows, network=NETWORK, params=PARAMS):
  return np.exp(apply(network, params, rows).logits)


def known_of(row, places=range(4)):
  return {i: row[i] for i in places if row[i] != MASK}


def test_it_sees_all_of_a_row_without_a_layout():
  got = answers(rows_of(IDS))
  want = [[conditional(known_of(row), i) for i in range(4)] for row in IDS]
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_blocks_hide_what_comes_later():
  block = np.arange(4)[None]
  got = answers(rows_of(IDS, Layout(block=block)))
  want = [[conditional(known_of(row, range(i + 1)), i) for i in range(4)] for row in IDS]
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_segments_and_positions_make_documents():
  """Two documents of two tokens: each reads the first two places of the language, alone."""
  segment, position = np.array([[0, 0, 1, 1]]), np.array([[0, 1, 0, 1]])
  got = answers(rows_of(IDS, Layout(segment=segment), position=position))
  for row, law in zip(IDS, got):
    for i in range(4):
      start = 2 * (i // 2)
      known = {j: row[start + j] for j in range(2) if row[start + j] != MASK}
      np.testing.assert_allclose(law[i], conditional(known, i - start), atol=1e-6)


def test_a_noisy_copy_sees_the_clean_copy_of_earlier_blocks_only():
  clean = np.array([[0, 1, 2, 1]], np.int32)
  ids = np.concatenate([np.full((1, 4), MASK), clean], 1).astype(np.int32)
  place = np.tile(np.arange(4), (1, 2))
  layout = Layout(block=place // 2, noisy=np.int32(np.arange(8)[None] < 4))
  got = answers(rows_of(ids, layout, position=place, answers=Span(0, 4)))
  assert got.shape == (1, 4, 3)
  for i in range(4):
    known = {j: clean[0, j] for j in range(2 * (i // 2))}
    np.testing.assert_allclose(got[0, i], conditional(known, i), atol=1e-6)


def test_a_shift_answers_the_next_place():
  """Positions one to the left, seen causally: every query answers the token after its own."""
  network = ExactNetwork(MASKED, answer_shift=1)
  ids = np.array([[MASK, 0, 2, 1]], np.int32)  # the noise symbol, then tokens 0, 1 and 2
  position = np.arange(-1, 3)[None]
  got = answers(rows_of(ids, Layout(block=position), position=position), network)
  known = [{}, {0: 0}, {0: 0, 1: 2}, {0: 0, 1: 2, 2: 1}]
  want = [conditional(known[i], i) for i in range(4)]
  np.testing.assert_allclose(got[0], want, atol=1e-6)


def test_a_cache_filled_block_by_block_answers_as_the_whole_row():
  layout = Layout(block=np.arange(4)[None] // 2)
  whole = rows_of(IDS, layout)
  want = answers(whole)
  cache = NETWORK.cache(PARAMS, whole, 4)
  slots = np.array([2, 0, 3, 1])  # any slots will do
  got = []
  for start in (0, 2):
    cut = slice(start, start + 2)
    place = np.broadcast_to(np.arange(start, start + 2), (3, 2))
    some = rows_of(IDS[:, cut], Layout(block=layout.block[:, cut]), position=place)
    prediction, cache = extend(NETWORK, PARAMS, some, cache, np.broadcast_to(slots[cut], (3, 2)))
    got.append(np.exp(prediction.logits))
  np.testing.assert_allclose(np.concatenate(got, 1), want, atol=1e-6)
  # The slot of the first token is taken by the third: the first is forgotten.
  place = np.broadcast_to(np.arange(2, 4), (3, 2))
  stale = rows_of(IDS[:, 2:], Layout(block=layout.block[:, 2:]), position=place)
  wrong = np.broadcast_to(np.array([2, 3]), (3, 2))
  prediction, _ = extend(NETWORK, PARAMS, stale, cache, wrong)
  assert np.abs(np.exp(prediction.logits) - want[:, 2:]).max() > 0.05


def test_a_chain_answers_as_its_list():
  chain = MarkovChain.branchy(1, vocab_size=3, length=4, successors=2)
  rows = rows_of(IDS, Layout(block=np.arange(4)[None] // 2))
  got = answers(rows, params=exact_params(chain)["network"])
  want = answers(rows, params=exact_params(chain.enumerated())["network"])
  np.testing.assert_allclose(got, want, atol=1e-6)


@member
class Flips:
  """A token stays with probability 1 - t, and is otherwise one of all three."""

  reads_logits_as: str = "leave_one_out"
  vocab_size = 3
  estimate_size = 3
  mask_id = None

  def evidence(self, params, state, t):
    same = state[..., None] == jnp.arange(3)
    return jnp.log(jnp.where(same, 1 - t[..., None], 0.0) + t[..., None] / 3)


@pytest.mark.parametrize("means", ["posterior", "leave_one_out", "score"])
def test_what_outputs_mean(means):
  process = Flips(means)
  ids, t = IDS % 3, np.float32([[0.3, 0.6, 0.9, 0.2]] * 3)
  got = apply(ExactNetwork(process), PARAMS, rows_of(ids, t=t)).logits
  likelihood = np.exp(process.evidence({}, ids, t))
  for row in range(3):
    each = likelihood[row][np.arange(4), LANGUAGE.sequences]  # [M, L]
    for i in range(4):
      others = np.delete(each, i, axis=1).prod(1) * LANGUAGE.probabilities
      own = others * each[:, i] if means == "posterior" else others
      law = np.array([own[LANGUAGE.sequences[:, i] == v].sum() for v in range(3)])
      want = np.log(law / law.sum())
      if means == "score":
        turned = np.where(np.eye(3) > 0, 1 - t[row, i], 0.0) + t[row, i] / 3
        want = np.log(turned @ (law / law.sum()))
        want = want - want[ids[row, i]]
      np.testing.assert_allclose(got[row, i], want, atol=2e-5)


@member
class Blurred:
  """A token is a point on a line, read through a scale that depends on the time."""

  vocab_size = 3
  estimate_size = 3
  mask_id = None
  reads_logits_as = "posterior"
  input_sizes = InputSizes(vectors=1)

  def clean(self, params, ids):
    return params["table"][ids]

  def inputs(self, params, state, t):
    return Inputs(vectors=state / (1 + t[..., None]))

  def evidence(self, params, state, t):
    return -((state - params["table"][:, 0]) ** 2) / (2 * jnp.maximum(t, 1e-3)[..., None] ** 2)


def test_vectors():
  process = Blurred()
  table = np.float32([[-1.0], [0.2], [1.0]])
  params = exact_params(LANGUAGE, {"table": table})["network"]
  t = np.float32([[0.0, 0.5, 1.0, 0.7]])
  state = np.float32([[[0.2], [0.4], [-2.0], [1.1]]])
  rows = dataclasses.replace(
    rows_of(np.zeros((1, 4), np.int32), t=t), inputs=process.inputs({}, state, t)
  )
  got = apply(ExactNetwork(process), params, rows).logits
  clues = np.array(process.evidence({"table": table}, state, t))
  clues[0, 0] = [NEVER, 0, NEVER]  # at t = 0 the token is known
  np.testing.assert_allclose(got, LANGUAGE.posterior(jnp.asarray(clues)), atol=1e-5)


def test_extras_of_a_network():
  network = ExactNetwork(MASKED, router=2.0, echo=0.5, staged=True)
  rows = rows_of(IDS)
  run = jax.jit(lambda memory: network.apply(PARAMS, rows, memory=memory, hidden_layers=(1,)))
  plain, none = run(jnp.full((3, 4, 3), 0.5)), apply(network, PARAMS, rows)
  np.testing.assert_array_equal(plain.features, none.features)
  assert np.abs(run(jnp.zeros((3, 4, 3))).features - none.features).max() > 0.01
  assert float(plain.losses["router"]) > 0
  np.testing.assert_array_equal(plain.stages[0].features, plain.hidden[1])
  assert hash(network) == hash(ExactNetwork(MASKED, router=2.0, echo=0.5, staged=True))


def test_it_draws_a_language_of_its_own():
  params = ExactNetwork(MASKED, length=2).init(jax.random.key(0))
  assert params["language"]["sequences"].shape == (9, 2)
  assert jax.nn.logsumexp(params["language"]["log_p"]) == pytest.approx(0, abs=1e-5)


def test_scores_cannot_be_shifted():
  with pytest.raises(ValueError, match="answer_shift=1: scores compare"):
    ExactNetwork(Flips("score"), answer_shift=1)
