"""Showing the network the time: what each choice may see."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.kernels import layout as layouts
from diffusion_text.testing.small_transformer import noisy_parameters, rows_of, small_transformer
from diffusion_text.types import Inputs, InputSizes, Layout

CHOICES = ("adaln", "layerwise", "prefix")
IDS = np.random.default_rng(5).integers(0, 12, (3, 10)).astype(np.int32)
T = np.full((3, 10), 0.4, np.float32)
BLOCKS = {
  "bidirectional": Layout(),
  "causal": layouts.causal(10),
  "noisy ‖ clean": layouts.noisy_clean(5, 2),
}


@functools.cache
def network_of(choice, **change):
  change = ({"time_in_head": True} if choice == "adaln" else {}) | change
  return small_transformer(time_conditioning=choice, **change)


@functools.cache
def parameters_of(choice):
  return noisy_parameters(network_of(choice))


@functools.partial(jax.jit, static_argnums=0)
def logits_of(network, params, ids, t, layout):
  return network.apply(params, rows_of(Inputs(ids), t, layout)).logits


def whole(layout, length=10):
  """The layout with every field set, so that all layouts run one program."""
  return layouts.materialise(layout, length)


def test_none_ignores_the_time_and_has_no_parameters_for_it():
  network = network_of("none")
  params = noisy_parameters(network)

  def at(t):
    return logits_of(network, params, IDS, t, whole(Layout()))

  np.testing.assert_array_equal(at(T), at(T + 0.5))
  assert "time" not in params


@pytest.mark.parametrize("choice", CHOICES)
def test_every_position_reads_the_time(choice):
  """Another time changes the answer at every position, under every layout."""
  for layout in BLOCKS.values():
    args = (network_of(choice), parameters_of(choice), IDS)
    first, other = (np.asarray(logits_of(*args, t, whole(layout))) for t in (T, T + 0.5))
    assert (np.abs(first - other).max(axis=(0, 2)) > 1e-3).all()


@pytest.mark.parametrize("choice", CHOICES)
def test_gradients_reach_every_parameter_of_the_time(choice):
  def loss(params):
    return jnp.sum(network_of(choice).apply(params, rows_of(Inputs(IDS))).logits ** 2)

  gradient = jax.jit(jax.grad(loss))(parameters_of(choice))
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
    assert float(np.abs(leaf).max()) > 0, jax.tree_util.keystr(path)


@pytest.mark.parametrize("choice", ["adaln", "layerwise"])
def test_time_is_per_token(choice):
  """In a causal row one token's own time changes nothing before it, and itself."""
  layout = whole(layouts.causal(10))

  def at(t):
    return np.asarray(logits_of(network_of(choice), parameters_of(choice), IDS, t, layout))

  other = T.copy()
  other[:, 4] = 0.9
  change = np.abs(at(other) - at(T)).max(axis=(0, 2))
  assert (change[:4] < 1e-5).all() and change[4] > 1e-2


@pytest.mark.parametrize("choice", ("adaln", "layerwise"))
def test_one_time_of_a_row_is_read_once(choice):
  """The same answers for less; where the rows say so and it is untrue, other answers."""
  network, params = network_of(choice), parameters_of(choice)

  @functools.partial(jax.jit, static_argnums=0)
  def answers(one_time, t):
    rows = dataclasses.replace(rows_of(Inputs(IDS), t, Layout()), one_time=one_time)
    return network.apply(params, rows).logits

  np.testing.assert_allclose(answers(True, T), answers(False, T), rtol=1e-5, atol=1e-5)
  several = np.linspace(0.1, 0.9, T.size, dtype=np.float32).reshape(T.shape)
  assert np.abs(answers(True, several) - answers(False, several)).max() > 1e-3
  work = [answers.lower(one, T).cost_analysis()["flops"] for one in (True, False)]
  assert work[0] < 0.9 * work[1]


def test_before_training():
  """Predictions are uniform, and a layerwise map changes nothing: zeros, at any time."""
  plain, layerwise = network_of("none"), network_of("layerwise")
  params = noisy_parameters(plain)
  made = jax.jit(layerwise.init)(jax.random.key(0))
  np.testing.assert_array_equal(logits_of(layerwise, made, IDS, T, whole(Layout())), 0.0)
  both = made | {name: params[name] for name in params if name != "blocks"}
  both["blocks"] = made["blocks"] | params["blocks"]
  layout = whole(Layout())
  np.testing.assert_array_equal(
    logits_of(layerwise, both, IDS, T, layout), logits_of(plain, params, IDS, T + 0.3, layout)
  )


class TestPrefix:
  NETWORK = small_transformer(time_conditioning="prefix")

  def at(self, ids=IDS, t=T, layout=None, network=NETWORK):
    layout = layout or Layout()  # as it is: the prefix goes by which fields are set
    return np.asarray(logits_of(network, parameters_of("prefix"), ids, t, layout))

  def test_the_row_reads_the_mean_time_of_its_tokens_that_are_not_clean(self):
    some = np.array([[0.2, 0.6, 0, 0, 0.4, 0, 0, 0, 0, 0]] * 3, np.float32)
    np.testing.assert_allclose(self.at(t=some), self.at(), atol=2e-4)
    assert np.isfinite(self.at(t=0 * some)).all()

  def test_scanned_unrolled_and_two_stages(self):
    scanned = self.at(network=self.NETWORK.like(scan_layers=True))
    np.testing.assert_allclose(scanned, self.at(), atol=2e-5)
    two = self.NETWORK.like(first_stage_layers=1)
    shapes = jax.eval_shape(two.apply, noisy_parameters(two), rows_of(Inputs(IDS)))
    assert shapes.features.shape == shapes.stages[0].features.shape == (3, 10, 32)

  def test_it_is_one_more_token_before_the_others(self):
    """Against a network without time that reads a row with a token before it, whose embedding is
    what the prefix holds."""
    params = parameters_of("prefix")
    plain = small_transformer(input_sizes=InputSizes(13))

    def hidden(x, layer):
      return x @ layer["kernel"] + layer["bias"]

    def silu(x):
      return x / (1 + np.exp(-x))

    angles = 1000 * 0.4 * 10_000.0 ** (-np.arange(128) / 128)
    waves = np.concatenate([np.cos(angles), np.sin(angles)])
    held = silu(hidden(silu(hidden(waves, params["time"]["inner"])), params["time"]["outer"]))
    prefix = np.float32(hidden(held, params["prefix"]))
    same = {name: params[name] for name in ("blocks", "final_norm", "head")}
    same["embedding"] = np.concatenate([params["embedding"], prefix[None]])
    position = np.arange(-1, 10, dtype=np.int32)[None]
    longer = Inputs(np.pad(IDS, ((0, 0), (1, 0)), constant_values=12), position=position)
    expected = jax.jit(plain.apply)(same, rows_of(longer)).logits[:, 1:]
    np.testing.assert_allclose(self.at(), expected, atol=2e-4)

  @pytest.mark.parametrize("layout", ["causal", "noisy ‖ clean"])
  def test_no_token_is_seen_through_it(self, layout):
    """Changing a token changes exactly the answers that the layout lets see it, over layers."""
    layout = BLOCKS[layout]
    mask = np.asarray(layouts.visible(layout, layout))[0]
    sees = np.linalg.matrix_power(mask.astype(int), 2) > 0
    base = self.at(layout=layout)
    for token in range(10):
      ids = IDS.copy()
      ids[:, token] = (ids[:, token] + 1) % 12
      change = np.abs(self.at(ids, layout=layout) - base).max(axis=(0, 2))
      np.testing.assert_array_equal(change > 1e-6, sees[:, token])

  def test_layouts_without_fields_and_positions_that_are_given(self):
    apply = jax.jit(self.NETWORK.apply)
    given = Inputs(IDS, position=np.arange(10, dtype=np.int32)[None])
    params = parameters_of("prefix")
    logits = [apply(params, rows_of(inputs)).logits for inputs in (given, Inputs(IDS))]
    np.testing.assert_array_equal(*logits)
    np.testing.assert_allclose(logits[0], self.at(), atol=1e-5)

  def test_padding_on_the_right_changes_nothing(self):
    """A padded row is the shorter row: neither what stands in the padding nor its time is read. A
    whole row of padding is finite."""
    segment = np.ones((3, 10), np.int32)
    segment[:, 6:] = 0
    times = np.array([[0.2, 0.6, 0, 0, 0.4, 0, 0.9, 0.9, 0.9, 0.9]] * 3, np.float32)
    ids, t = IDS[:, :6], times[:, :6]
    short = self.at(ids, t)
    padded = self.at(t=times, layout=Layout(segment=segment))[:, :6]
    np.testing.assert_allclose(padded, short, atol=2e-4)
    assert np.abs(self.at(t=times)[:, :6] - short).max() > 1e-2  # the segment is what does it
    np.testing.assert_array_equal(
      self.at(layout=Layout(segment=0 * segment)), self.at(layout=Layout(segment=0 * segment + 1))
    )
    blocks = dataclasses.replace(layouts.causal(10), segment=segment)
    np.testing.assert_allclose(
      self.at(t=times, layout=blocks)[:, :6], self.at(ids, t, layouts.causal(6)), atol=2e-4
    )

  def test_caches_are_refused(self):
    with pytest.raises(ValueError, match=r"'prefix'.*a cache"):
      self.NETWORK.cache(parameters_of("prefix"), rows_of(Inputs(IDS)), 10)
