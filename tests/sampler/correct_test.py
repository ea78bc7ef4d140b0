"""Samplers that go back on what they drew, for every noise: marginals kept, the language reached, and the bias of routing shown."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.core.prng import row_keys, token_keys
from diffusion_text.process.embedding import Embedding
from diffusion_text.process.masked import Masked
from diffusion_text.process.mixed import Mixed
from diffusion_text.process.token_masked import TokenMasked
from diffusion_text.process.uniform import Uniform
from diffusion_text.sampler import correct, remask, routed
from diffusion_text.sampler.ancestral import Ancestral, TauLeaping
from diffusion_text.sampler.correct import PredictorCorrector, SelfCorrecting
from diffusion_text.sampler.loop import Canvas, sample
from diffusion_text.sampler.remask import Remasking
from diffusion_text.sampler.routed import Routed
from diffusion_text.schedules.discrete import Cosine, Linear
from diffusion_text.schedules.gaussian import VPCosine
from diffusion_text.testing.oracle import exact_prediction
from diffusion_text.timing import Shared, Slanted
from diffusion_text.types import Batch
from tests.process.conformance_test import TOY, TOY_B, exact, law, meant, true_logits
from tests.sampler.conformance_test import draw, quick
from tests.sampler.conformance_test import exact as exact_masked

SHARED, V = Shared(), 4
MASKED, UNIFORM = Masked(V, Linear()), Uniform(V, Linear())
GIDD, GAMMA = Mixed(V, Linear(), "gidd", 0.3), Mixed(V, Linear(), "gamma", 0.4)


@dataclasses.dataclass(frozen=True)
class Pair(Shared):
  """A grid of one step per token, t -> s."""

  t: tuple[float, ...] = (0.9, 0.4, 0.5)
  s: tuple[float, ...] = (0.6, 0.1, 0.5)

  def grid(self, steps, length):
    return jnp.array([self.t, self.s, (0.0,) * 3], jnp.float32)


def one_step(policy, process, rows=60_000):
  """(true ids [L], states before and after [rows, L]) of one call with a network that knows the tokens."""
  ids = jnp.broadcast_to(jnp.array([0, 3, 2], jnp.int32), (rows, 3))

  @jax.jit
  def run(keys):
    t = jnp.broadcast_to(jnp.array(policy.timing.t, jnp.float32), ids.shape)
    state = process.corrupt({}, jax.random.key(5), ids, t)
    canvas = Canvas(state, jnp.ones(ids.shape, bool), keys, jnp.int32(0), None)
    canvas = canvas._replace(plan=policy.plan(process, {}, canvas))
    after = policy.advance(
      process, {}, canvas, exact_prediction(true_logits(process, ids, state, t))
    )
    return state, after.state if isinstance(after, Canvas) else after

  return np.asarray(ids[0]), *map(np.asarray, run(token_keys(row_keys(3, rows), 3)))


def check_marginals(policy, process):
  """Chapman-Kolmogorov: from q_t(z | x), a call with the true tokens leads to q_s(z | x)."""
  ids, _, after = one_step(policy, process)
  want = np.asarray(law(process, jnp.array(policy.timing.s)))
  for place, token in enumerate(ids):
    p = want[place, token]
    got = np.bincount(after[:, place], minlength=process.input_size) / len(after)
    assert (np.abs(got - p) < 4.5 * np.sqrt(p * (1 - p) / len(after)) + 1e-4).all(), (place, got, p)


KEEPERS = [
  (Remasking(Pair(), 2, strategy="cap", eta=0.1), MASKED),
  (Remasking(Pair(), 2, strategy="rescale", eta=0.8), MASKED),
  *((PredictorCorrector(Pair(), 2, kappa=0.0), process) for process in (MASKED, UNIFORM)),
  *(
    (PredictorCorrector(Pair(), 2, kappa=0.6), process)
    for process in (MASKED, UNIFORM, GIDD, GAMMA)
  ),
]


@pytest.mark.parametrize("policy,process", KEEPERS, ids=repr)
def test_marginals_are_kept(policy, process):
  check_marginals(policy, process)


class NoisesAtT(PredictorCorrector):
  def advance(self, process, params, canvas, prediction):
    class Late(type(process)):
      def renoise(self, params, keys, ids, s):
        return super().renoise(params, keys, ids, jnp.minimum(s * 1.2, 1.0))

    return super().advance(Late(V, Linear()), params, canvas, prediction)


@pytest.mark.parametrize("process", [MASKED, UNIFORM], ids=repr)
def test_noise_of_another_time_fails(process):
  with pytest.raises(AssertionError):
    check_marginals(NoisesAtT(Pair(), 2, kappa=0.6), process)


def test_remasking_without_more_unmasking_fails(monkeypatch):
  rule = remask.unmask_probability
  monkeypatch.setattr(remask, "unmask_probability", lambda now, after, sigma: rule(now, after, 0.0))
  with pytest.raises(AssertionError):
    check_marginals(Remasking(Pair(), 2, eta=0.1), MASKED)


def remasked(policy):
  """The share of clean tokens at each place that one call makes masks again."""
  _, before, after = one_step(policy, MASKED)
  return ((before < V) & (after == V)).sum(0) / (before < V).sum(0)


def test_psi_remasks_as_remdm_does():
  """sigma = (1 - kappa)(1 - alpha_s); kappa the wrong way round is far off."""
  want = 0.3 * np.array(Pair().s)
  np.testing.assert_allclose(remasked(PredictorCorrector(Pair(), 2, kappa=0.7)), want, atol=0.012)
  assert (np.abs(remasked(PredictorCorrector(Pair(), 2, kappa=0.3)) - want) > 0.03).all()


def on_toy_b(policy, process, rows, jit=jax.jit):
  batch = Batch(jnp.zeros((rows, 2), jnp.int32))
  run = jit(lambda keys: sample(policy, process, {}, exact(process), token_keys(keys, 2), batch))
  return jax.tree.map(np.asarray, run(row_keys(0, rows)))


@pytest.mark.parametrize("process", [MASKED, GIDD], ids=repr)
def test_kappa_one_is_ancestral(process):
  want = on_toy_b(Ancestral(SHARED, 5), process, 40, quick)
  got = on_toy_b(PredictorCorrector(SHARED, 5, kappa=1.0), process, 40, quick)
  jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize(
  "process,most", [(UNIFORM, 0.045), (GIDD, 0.065)], ids=repr
)  # GIDD, ancestral: 0.026 at 96, 0.013 at 384
@pytest.mark.parametrize(
  "policy", [TauLeaping(SHARED, 96), PredictorCorrector(SHARED, 96, kappa=0.95)], ids=repr
)
def test_many_steps_reproduce_the_language(policy, process, most):
  result = on_toy_b(policy, process, 2_000, quick)
  assert (result.ids < V).all() and result.calls == 96
  assert TOY_B.total_variation(TOY_B.histogram(result.ids)) < most


# --- routing -------------------------------------------------------------------------------------------------------------------------


def test_routing_is_biased():
  """It scores the token it drew: far from the language even with a perfect network and one more token per call."""
  assert TOY.total_variation(TOY.histogram(draw(Routed(SHARED, 4), 4_000).ids)) > 0.1  # 0.433


@pytest.mark.parametrize("rate", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 64])
def test_routing_keeps_what_it_says(rate, steps):
  total = jnp.arange(1, 300)
  kept = np.stack(
    [Routed(SHARED, steps, rate=rate).kept(jnp.int32(call), total)[0] for call in range(steps)]
  )
  assert (np.diff(kept, axis=0) >= 0).all() and (kept[-1] == total).all()
  share = np.arange(1, steps + 1) / steps
  share = share if rate == "linear" else 1 - np.cos(np.pi / 2 * share)
  assert (np.abs(kept - share[:, None] * np.asarray(total)) < 1 + 1e-4).all()


@pytest.mark.parametrize("rate", ["linear", "cosine"])
@pytest.mark.parametrize("schedule", [Linear(), Cosine()], ids=repr)
def test_routing_tells_the_time_of_what_it_kept(rate, schedule):
  """Whatever the timing: all tokens at the time at which the schedule keeps the share that was kept."""
  canvas = Canvas(None, jnp.ones((2, 4), bool), None, jnp.int32(0), None)
  times = Routed(Slanted(2.0), 5, rate=rate).plan(Uniform(V, schedule), {}, canvas)
  share = np.arange(6) / 5
  share = share if rate == "linear" else 1 - np.cos(np.pi / 2 * share)
  np.testing.assert_allclose(schedule(times).alpha, np.tile(share[:, None], (1, 4)), atol=2e-6)
  assert (times[0] == 1).all() and (times[-1] == 0).all()


@pytest.mark.parametrize("process", [MASKED, UNIFORM], ids=repr)
def test_routing_masks_the_rest_and_breaks_ties_to_the_left(process):
  """A network with no opinion: equal scores, so call k keeps the leftmost floor(k/S · open) tokens, which need not stay the same."""
  seen = []

  def denoise(inputs, t):
    jax.debug.callback(lambda ids: seen.append(np.asarray(ids)), inputs.ids, ordered=True)
    return exact_prediction(jnp.zeros((*inputs.ids.shape, V)))

  given = jnp.arange(9)[None] == 1
  batch = Batch(jnp.zeros((2, 9), jnp.int32), given=given & jnp.ones((2, 1), bool))
  run = quick(
    lambda keys: sample(Routed(SHARED, 5), process, {}, denoise, token_keys(keys, 9), batch)
  )
  result = run(row_keys(0, 2))
  jax.effects_barrier()
  assert result.calls == 5 and (result.ids < V).all() and (result.ids[:, 1] == 0).all()
  if process is MASKED:
    clean = [(state != V)[0].tolist() for state in seen]
    order = [0, 2, 3, 4, 5, 6, 7, 8]
    for call, row in enumerate(clean):
      assert row == [i == 1 or i in order[: 8 * call // 5] for i in range(9)]


# --- self-correction -----------------------------------------------------------------------------------------------------------------

BEST = jnp.array([1, 0, 3, 2, 1, 0])


def opinion(inputs, t):
  """A network that likes one token at each place, the first place most."""
  liked = jnp.where(jnp.arange(V) == BEST[:, None], jnp.linspace(3.0, 2.0, 6)[:, None], 0.0)
  return exact_prediction(jnp.broadcast_to(liked, (*inputs.ids.shape, V)))


def corrected(policy, rows, process=UNIFORM, first=0, batch=None):
  batch = Batch(jnp.zeros((rows, 6), jnp.int32)) if batch is None else batch
  run = quick(lambda keys: sample(policy, process, {}, opinion, token_keys(keys, 6), batch))
  return jax.tree.map(np.asarray, run(row_keys(0, rows, first=first)))


def check_corrections(policy):
  """From the same draft, one token per row and call, the dearest first, until all are the likeliest; each row stops by itself."""
  draft = corrected(dataclasses.replace(policy, corrections=0), 40)
  done = corrected(policy, 40)
  wrong = (draft.ids != np.asarray(BEST)).sum(1)
  assert 0 < wrong.mean() < 6
  np.testing.assert_array_equal(done.ids, np.tile(BEST, (40, 1)))
  np.testing.assert_array_equal(done.row_calls, 3 + wrong + 1)
  partly = corrected(dataclasses.replace(policy, corrections=2), 40)
  places = [np.nonzero(row)[0][:2].tolist() for row in draft.ids != np.asarray(BEST)]
  assert [np.nonzero(row)[0].tolist() for row in partly.ids != draft.ids] == places


GREEDY = SelfCorrecting(SHARED, 3, corrections=20, correction_temperature=0.0)


def test_corrections_one_by_one():
  check_corrections(GREEDY)


def test_correcting_all_at_once_fails():
  class AllAtOnce(SelfCorrecting):
    def correct(self, process, params, canvas, prediction):
      return canvas._replace(
        state=jnp.where(canvas.open, jnp.argmax(prediction.logits, axis=-1), canvas.state)
      )

  with pytest.raises(AssertionError):
    check_corrections(AllAtOnce(SHARED, 3, corrections=20, correction_temperature=0.0))


def one_call(policy, prediction, call):
  """States [6, 6] after a call at a row of uniform noise at time 1/2, of the same network by any kind of logits."""
  process, canvas = (
    Uniform(V, Linear(), prediction=prediction),
    Canvas(None, jnp.ones((6, 6), bool), None, jnp.int32(call), None),
  )

  @quick
  def run(keys):
    state = UNIFORM.corrupt({}, jax.random.key(1), jnp.tile(BEST, (6, 1)), jnp.full((6, 6), 0.5))
    now = canvas._replace(state=state, keys=token_keys(keys, 6))
    now = now._replace(plan=policy.plan(process, {}, now))
    t = jnp.broadcast_to(policy.times(process, {}, now), (6, 6))
    logits = meant(
      process, jax.nn.log_softmax(opinion(process.inputs({}, state, t), t).logits), state, t
    )
    act = policy.correct if isinstance(policy, SelfCorrecting) else policy.advance
    after = act(process, {}, now, exact_prediction(logits))
    return after.state if isinstance(after, Canvas) else after

  return run(row_keys(0, 6))


def test_routing_is_refused_for_vectors():
  """They keep no token whole that could be counted."""
  process = Embedding(V, VPCosine(), width=4)
  params = process.init(jax.random.key(0))
  denoise = lambda inputs, t: exact_prediction(jnp.zeros((2, 6, V)))
  with pytest.raises(ValueError, match="Embedding keeps no tokens whole"):
    sample(
      Routed(SHARED, 3),
      process,
      params,
      denoise,
      token_keys(row_keys(0, 2), 6),
      Batch(jnp.zeros((2, 6), jnp.int32)),
    )


CALLS = [(GREEDY, 3, correct), (Routed(SHARED, 3), 1, routed)]
by_call = pytest.mark.parametrize("policy,call,module", CALLS, ids=["SelfCorrecting", "Routed"])


@by_call
def test_the_meaning_of_logits_does_not_matter(policy, call, module, monkeypatch):
  want = one_call(policy, "leave_one_out", call)
  for prediction in ("posterior", "score"):
    np.testing.assert_array_equal(one_call(policy, prediction, call), want)
  monkeypatch.setattr(
    module, "leave_one_out", lambda process, state, t, logits: jax.nn.log_softmax(logits)
  )
  assert (one_call(policy, "posterior", call) != want).any(), "the test does not see raw logits"


def test_corrections_of_a_row_are_its_own_and_spare_given_tokens():
  policy = dataclasses.replace(GREEDY, correction_temperature=0.5)
  together, alone = corrected(policy, 6), corrected(policy, 1, first=4)
  np.testing.assert_array_equal(together.ids[4], alone.ids[0])
  assert together.row_calls[4] == alone.row_calls[0] and len(set(together.row_calls)) > 1
  ids, given = jnp.full((6, 6), 2), jnp.tile(jnp.arange(6) < 3, (6, 1))
  kept = corrected(GREEDY, 6, batch=Batch(ids, given=given))
  assert (kept.ids[:, :3] == 2).all() and (kept.ids[:, 3:] == BEST[3:]).all()


def test_corrections_read_the_text_at_their_time():
  seen = []

  def denoise(inputs, t):
    jax.debug.callback(lambda t: seen.append(float(t)), t[0, 0], ordered=True)
    return opinion(inputs, t)

  batch = Batch(jnp.zeros((1, 6), jnp.int32))
  result = quick(lambda keys: sample(GREEDY, UNIFORM, {}, denoise, token_keys(keys, 6), batch))(
    row_keys(0, 1)
  )
  jax.effects_barrier()
  np.testing.assert_allclose(seen, [1, 2 / 3, 1 / 3] + [0.01] * (int(result.calls) - 3), rtol=1e-6)


@pytest.mark.parametrize(
  "make,word",
  [
    (lambda: PredictorCorrector(SHARED, 4, kappa=1.5), "kappa=1.5"),
    (lambda: SelfCorrecting(SHARED, 4, corrections=-1), "corrections=-1"),
    (lambda: SelfCorrecting(SHARED, 4, correction_temperature=-1.0), "temperature=-1.0"),
    (lambda: SelfCorrecting(SHARED, 4, correction_time=0.0), "correction_time=0.0"),
    (lambda: Routed(SHARED, 4, rate="square"), "rate='square'"),
    (lambda: Routed(SHARED, 4, noise_scale=-1.0), "noise_scale=-1.0"),
  ],
)
def test_bad_choices_are_refused(make, word):
  with pytest.raises(ValueError, match=word):
    make()


@pytest.mark.parametrize(
  "process,length,word",
  [
    (MASKED, 4, "Masked.*clean tokens"),
    (TokenMasked(V, Linear()), 4, "TokenMasked.*clean tokens"),
    (Mixed(V, Linear(), "gidd", 0.0), 4, "share=0.0.*clean tokens"),
    (UNIFORM, 1, "1 token"),
  ],
  ids=repr,
)
def test_what_was_never_trained_is_not_corrected(process, length, word):
  canvas = Canvas(None, jnp.ones((1, length), bool), None, jnp.int32(0), None)
  with pytest.raises(ValueError, match=word):
    GREEDY.plan(process, {}, canvas)


def test_a_process_that_cannot_noise_again_is_told_so():
  class Plain:
    def __getattr__(self, name):
      if name in ("guess", "renoise", "leap"):
        raise AttributeError(name)
      return getattr(Masked(3, Linear()), name)

  for policy in (
    PredictorCorrector(SHARED, 4, kappa=0.5),
    SelfCorrecting(SHARED, 4),
    Routed(SHARED, 4),
    TauLeaping(SHARED, 4),
  ):
    with pytest.raises(ValueError, match=r"Plain .* ancestral"):
      draw(policy, 2, process=Plain(), denoise=exact_masked(TOY))
