"""A network whose depth is a loop, and its wavefront: what it computes, that a cache changes
nothing, that the wavefront comes to the tokens of sequential decoding where the core has a fixed
point, and a rule of freezing that does not.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.context import Full, NextToken
from diffusion_text.contrib.recurrent_depth import RecurrentDepth, everywhere
from diffusion_text.contrib.wavefront import NextTokenRow, Wavefront, WavefrontReader, noise_of
from diffusion_text.core.options import member
from diffusion_text.core.prng import row_keys, stream
from diffusion_text.objective import Bound, engine
from diffusion_text.process.masked import Masked
from diffusion_text.process.uniform import Uniform
from diffusion_text.reader.cached import Cached
from diffusion_text.reader.rows import rows_of
from diffusion_text.reader.whole_row import WholeRow
from diffusion_text.sampler.budget import EvenShare
from diffusion_text.sampler.grid import Grid
from diffusion_text.sampler.host import host_sample
from diffusion_text.sampler.loop import sample
from diffusion_text.sampler.reveal import Reveal
from diffusion_text.sampler.score import LeftToRight
from diffusion_text.timing import AtNoise
from diffusion_text.types import Batch, Layout, Model, Progress, Query, Rows, Span

V, L, B, D = 11, 12, 5, 16
PROCESS = Masked(vocab_size=V)
SIZES = {"input_sizes": PROCESS.input_sizes, "output_size": V, "attention": ("xla",)}
SIZES |= {"width": D, "heads": 2, "mlp_width": 32, "scan_layers": False}


def network_of(recurrences=16, **changes):
  return RecurrentDepth(**{**SIZES, "layers": 2 + recurrences, **changes})


def model_of(context=None, **changes):
  context = NextTokenRow() if context is None else context
  return Model(network_of(**changes), PROCESS, AtNoise(), context, chunk=64)


@functools.cache
def params_of(gain=0.3, seed=1):
  """Parameters without zeros but for the bias of the head, which would speak for every place;
  `gain` is how much of a state the core hears.
  """
  random = np.random.default_rng(seed)

  def draw(path, leaf):
    name = path[-1].key
    noise = random.normal(size=leaf.shape)
    if name == "scale":
      return np.float32(1 + 0.1 * noise)
    if name == "embedding":
      return np.float32(noise if path[0].key == "prelude" else noise / 2)
    if name == "bias":
      return np.zeros(leaf.shape, np.float32)
    return np.float32(leaf.shape[-2] ** -0.5 * noise)

  shapes = jax.eval_shape(network_of().init, jax.random.key(0))
  made = jax.tree_util.tree_map_with_path(draw, shapes)
  made["core"]["embedding"][:D] *= gain
  made["coda"]["head"]["kernel"] *= 2
  return {"network": made, "process": {}, "timing": {}}


def causal(ids):
  """Rows of these ids, each seen by itself and those after it."""
  length = ids.shape[1]
  place = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), ids.shape)
  inputs = PROCESS.inputs({}, jnp.asarray(ids), jnp.zeros(ids.shape))
  inputs = type(inputs)(ids=inputs.ids, position=place)
  everything = Span(0, length)
  return Rows(inputs, jnp.zeros(ids.shape), Layout(block=place), None, 1, everything, everything)


IDS = np.random.default_rng(1).integers(0, V, (B, L)).astype(np.int32)


# The network.


def test_it_is_a_prelude_a_loop_and_a_coda():
  """r iterations of one core, written out; another number gives another answer."""
  network, params, rows = network_of(recurrences=3), params_of()["network"], causal(IDS)

  @jax.jit
  def both(params, rows):
    parts = network.parts
    embedded = parts["prelude"].apply(params["prelude"], rows).features
    state = jnp.zeros_like(embedded)
    for _ in range(3):
      asked = everywhere(rows, jnp.concatenate([state, embedded], axis=-1))
      state = parts["core"].apply(params["core"], asked).features
    want = parts["coda"].apply(params["coda"], everywhere(rows, state)).logits
    return network.apply(params, rows).logits, want, network_of().apply(params, rows).logits

  got, want, deeper = both(params, rows)
  np.testing.assert_allclose(got, want, atol=1e-5)
  assert np.abs(got - deeper).max() > 0.01
  assert network.layers == 1 + 3 + 1


def test_a_cache_changes_nothing():
  """Token by token, each iteration against its own keys; keys of another iteration would show."""
  network, params, rows = network_of(recurrences=3), params_of()["network"], causal(IDS)

  @jax.jit
  def extended(params, rows):
    cache = network.cache(params, rows, L)
    answers = []
    for slots in np.split(np.broadcast_to(np.arange(L), (B, L)), 3, axis=1):
      part = jax.tree.map(lambda leaf, place=slots[0]: leaf[:, place], rows)
      prediction, cache = network.extend(params, part, cache, jnp.asarray(slots))
      answers.append(prediction.logits)
    return jnp.concatenate(answers, axis=1), network.apply(params, rows).logits

  got, want = extended(params, rows)
  np.testing.assert_allclose(got, want, atol=1e-4)


def test_training_reaches_every_parameter_and_draws_the_depth():
  """Everything has a gradient, another key has another depth, and how far back gradients go changes
  them, but not the loss.
  """
  params = params_of()

  @functools.partial(jax.jit, static_argnums=0)
  def run(back, params, key):
    model, batch = model_of(recurrences=3, back=back), Batch(jnp.asarray(IDS))

    def total(params):
      times = engine.draw_times(model, params, stream(key, "times"), batch, Progress())
      return Bound()(model, params, key, batch, times, Progress())[0].total

    return jax.value_and_grad(total)(params)

  keys = [jax.random.key(seed) for seed in range(4)]
  short, long = ([run(back, params, key) for key in keys] for back in (2, 8))
  for leaf in jax.tree.leaves(short[0][1]["network"]):
    assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0
  losses = [float(loss) for loss, _ in short]
  assert len(set(losses)) == 4
  np.testing.assert_allclose(losses, [float(loss) for loss, _ in long], rtol=1e-5)
  gradients = [[each[1]["network"]["core"]["embedding"] for each in some] for some in (short, long)]
  assert np.abs(np.subtract(*gradients)).max() > 1e-3


def test_iterations_in_training_are_r_on_average():
  counts = jax.vmap(network_of(recurrences=4).drawn_count)(
    jax.random.split(jax.random.key(0), 8000)
  )
  assert counts.min() == 1
  assert abs(counts.mean() - 4) < 4 * counts.std() / 8000**0.5


def test_rows_that_are_one_window_are_trained_as_next_token():
  params, batch = params_of(), Batch(jnp.asarray(IDS))

  def nats(context):
    model = model_of(context, recurrences=2)
    key = jax.random.key(0)
    return jax.jit(lambda p: engine.nats(model, p, key, batch, Progress()))(params)

  np.testing.assert_array_equal(nats(NextTokenRow()), nats(NextToken()))


# Sequential decoding and the wavefront.

OBSERVED = np.arange(L) < np.array([[0], [3], [1], [5], [L]])
LENGTHS = np.array([[L], [L], [L - 2], [L], [L]])
PADDED = np.float32(np.arange(L) < LENGTHS)
PROMPTS = Batch(IDS, observed=OBSERVED, weights=PADDED, segment=np.int32(PADDED == 0))


@functools.cache
def sequential():
  """Greedy, one token after the other, against a cache."""
  sampler, reader = Grid(steps=1, temperature=0.0), Cached()
  model = model_of(NextToken())
  return tokens(sample(model, params_of(), sampler, row_keys(0, B), batch=PROMPTS, reader=reader))


def tokens(result):
  return np.asarray(result.ids)


def wave_of(sampler=None, reader=None, rows=slice(None), params=None, run=sample):
  sampler = Wavefront(temperature=0.0, exit=1e-4, patience=64) if sampler is None else sampler
  reader = WavefrontReader(inner=3) if reader is None else reader
  keys = row_keys(0, B)[rows]
  batch = jax.tree.map(lambda leaf: leaf[rows], PROMPTS)
  params = params_of() if params is None else params
  return run(model_of(), params, sampler, keys, batch=batch, reader=reader)


def test_two_reads_of_a_whole_row_are_what_the_docstring_says():
  """e and s of each read, written out: no old e before the first read, and less noise later."""
  reader, model, params = WavefrontReader(inner=2), model_of(), params_of()
  network, own = model.network, params["network"]
  everywhere = jnp.ones((B, L), bool)

  def query_of(ids):
    return Query(ids, jnp.zeros((B, L)), jnp.int32(0), everywhere, Batch(ids), jnp.full((B, L), V))

  @jax.jit
  def both(params, first, second):
    memory = reader.init(model, params, query_of(first))
    place = jnp.broadcast_to(jnp.arange(L), (B, L))
    state, old, found = memory.state, 0.0, []
    for read, (ids, ema) in enumerate(((first, 0.0), (second, 0.1))):
      answer, memory = reader.read(model, params, memory, query_of(ids))
      rows = rows_of(model, params, query_of(ids))
      old = (1 - ema) * network.embed(own, rows) + ema * old
      share = 0.5 / (1 + 2 * read)
      state = (1 - share) * state + share * noise_of(place, jnp.full((B, L), 2 * read), state)
      state = network.iterate(own, rows, state, old, 2)
      found.append((answer.logits, network.answer(own, rows, state).logits))
    return found

  for got, want in both(params, IDS, IDS[::-1].copy()):
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_one_window_has_the_tokens_of_next_token():
  """Left to right without a cache: the same texts."""
  sampler = Reveal(score=LeftToRight(), budget=EvenShare(steps=L), temperature=0.0)
  result = sample(model_of(), params_of(), sampler, row_keys(0, B), batch=PROMPTS)
  np.testing.assert_array_equal(tokens(result), sequential())


@pytest.mark.parametrize("inner,headway,width", [(3, 1, 128), (2, 3, 4)])
def test_the_wavefront_comes_to_the_tokens_of_sequential_decoding(inner, headway, width):
  """The core has a fixed point, so whoever waits until it is reached gets it."""
  sampler = Wavefront(temperature=0.0, exit=1e-4, patience=64, headway=headway)
  result = wave_of(sampler, WavefrontReader(inner=inner, width=width))
  np.testing.assert_array_equal(tokens(result), sequential())
  made = [set(row[~known]) for row, known in zip(sequential()[:3], OBSERVED)]
  assert min(map(len, made)) >= 4, "texts that say something"


def test_it_is_wider_than_it_is_deep():
  """Many positions are in the wave at once: fewer reads than tokens times reads of a token."""
  alone = wave_of(reader=WavefrontReader(inner=3, width=1))
  wide = wave_of()
  assert int(wide.calls) < 0.5 * int(alone.calls)
  np.testing.assert_array_equal(tokens(wide), tokens(alone))


def test_a_position_that_never_settles_is_frozen_after_its_patience():
  impatient = Wavefront(temperature=0.0, exit=0.0, patience=3)
  result = wave_of(impatient, WavefrontReader(inner=1, width=1))
  made = (~OBSERVED & (PADDED > 0)).sum(1)
  np.testing.assert_array_equal(result.row_calls, 3 * made)


def test_a_row_alone_is_that_row_in_a_batch():
  """With other prompts and lengths beside it, while states have not settled (an early exit)."""
  early = Wavefront(temperature=1.0, exit=0.2, patience=3)
  together = wave_of(early)
  for row in range(B):
    alone = wave_of(early, rows=slice(row, row + 1))
    np.testing.assert_array_equal(tokens(alone)[0], tokens(together)[row])
    np.testing.assert_array_equal(alone.row_calls[0], together.row_calls[row])
    np.testing.assert_array_equal(alone.committed[0], together.committed[row])


def test_the_hosts_loop_is_the_compiled_loop():
  def last(*arguments, **options):
    generator = host_sample(*arguments, **options)
    while True:
      try:
        next(generator)
      except StopIteration as end:
        return end.value

  early = Wavefront(temperature=1.0, exit=0.2, patience=3)
  one, other = wave_of(early), wave_of(early, run=last)
  np.testing.assert_array_equal(tokens(one), tokens(other))
  np.testing.assert_array_equal(one.row_calls, other.row_calls)


@member
class UpToTheLast(Wavefront):
  """Freezes everything up to the last settled position, as released (the mutant)."""

  def frozen(self, wave, settled, changed):
    place = jnp.arange(wave.shape[1])
    first = jnp.argmax(wave, axis=1)
    last = jnp.max(jnp.where(settled, place + 1, 0), axis=1)
    return jnp.maximum(last - first, 0)


@member
class BehindAChange(Wavefront):
  """Freezes positions that have read a token which has changed since (the mutant)."""

  def frozen(self, wave, settled, changed):
    return super().frozen(wave, settled, jnp.zeros_like(changed))


@pytest.mark.parametrize("cls", [Wavefront, UpToTheLast, BehindAChange])
def test_only_what_has_settled_from_the_left_is_frozen(cls):
  wave = np.array([[0, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0], [0] * 6], bool)
  settled = np.array([[0, 1, 0, 1, 0, 0], [0, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0], [0] * 6], bool)
  changed = np.array([[0, 0, 0, 0, 1, 0], [0, 0, 1, 0, 1, 0], [0, 0, 0, 0, 0, 0], [0] * 6], bool)
  found = np.asarray(cls().frozen(*map(jnp.asarray, (wave, settled, changed))))
  right = [1, 2, 2, 0]
  assert (found == right).all() == (cls is Wavefront), found


def test_freezing_what_has_not_settled_has_other_tokens():
  """Where states settle slowly and at different speeds the released rule parts from sequential
  decoding sooner."""
  slow = params_of(gain=1.0)
  rules = [cls(temperature=0.0, exit=0.1, patience=64) for cls in (Wavefront, UpToTheLast)]
  one, other = (wave_of(rule, WavefrontReader(inner=1), params=slow) for rule in rules)
  assert (tokens(one) != tokens(other)).any()
  assert (one.row_calls >= other.row_calls).all() and one.calls > other.calls


def test_what_does_not_fit_is_refused():
  model, masked = model_of(), Wavefront()
  for wrong, fix in (
    (model._replace(context=NextToken()), "next_token_row"),
    (model._replace(context=Full()), "next_token_row"),
  ):
    with pytest.raises(ValueError, match=fix):
      masked.check(wrong)
    with pytest.raises(ValueError, match=fix):
      WavefrontReader().check(wrong)
  with pytest.raises(ValueError, match=r"process\.name='masked'"):
    masked.check(model._replace(process=Uniform(vocab_size=V)))
  with pytest.raises(ValueError, match=r"reader\.name='wavefront'"):
    wave_of(masked, WholeRow())
  for wrong in ({"experts": 2}, {"time_conditioning": "adaln"}, {"tie_embeddings": True}):
    more = {"experts_per_token": 1, "expert_width": 4} if "experts" in wrong else {}
    with pytest.raises(ValueError, match=next(iter(wrong))):
      network_of(**wrong, **more)
  with pytest.raises(ValueError, match="use layers=6"):
    RecurrentDepth(**SIZES, layers=7, core=2)
