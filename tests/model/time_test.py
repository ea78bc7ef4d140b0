"""Telling the network the time: what each choice may see, and that the old spelling still loads."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.kernels import layout as layouts
from diffusion_text.model.transformer import TIME_CONDITIONING, Network, Past, TransformerConfig
from diffusion_text.types import Inputs, Layout
from tests.model.transformer_test import IDS, SMALL, T, logits_of, noisy_params

TOLD = [choice for choice in TIME_CONDITIONING if choice != "none"]
BLOCKS = {
  "bidirectional": Layout(),
  "causal": layouts.causal(10),
  "noisy ‖ clean": layouts.noisy_clean(5, 2),
}


def conditioned(choice, **change):
  return dataclasses.replace(SMALL, time_conditioning=choice, **change)


def test_old_spelling():
  assert conditioned(False) == conditioned("none") and conditioned(True) == conditioned("adaln")
  assert TransformerConfig(**dataclasses.asdict(conditioned(True))).time_conditioning == "adaln"


def test_none_ignores_the_time_and_has_no_parameters_for_it():
  np.testing.assert_array_equal(logits_of(SMALL, t=T), logits_of(SMALL, t=T + 0.5))
  assert "time" not in Network.create(SMALL).init(jax.random.key(0))


@pytest.mark.parametrize("choice", TOLD)
@pytest.mark.parametrize("layout", BLOCKS)
def test_every_position_reads_the_time(choice, layout):
  """One time for all, given as [B, 1] or [B, L], is the same, and another time changes the answer at every position."""
  at = lambda t: logits_of(conditioned(choice), t=t, layout=BLOCKS[layout])
  one = at(T)
  np.testing.assert_allclose(
    at(jnp.full((3, 10), 0.4)), one, atol=1e-4
  )  # a mean rounds, and 1000·t is turned into waves
  assert one.shape == (3, 10, 11)
  assert (np.abs(np.asarray(one - at(T + 0.5))).max(axis=(0, 2)) > 1e-3).all()


@pytest.mark.parametrize("choice", TOLD)
def test_gradients_reach_every_parameter_of_the_time(choice):
  network = Network.create(conditioned(choice))
  loss = lambda params: jnp.sum(network.apply(params, Inputs(IDS), T, Layout(), None).logits ** 2)
  for path, leaf in jax.tree_util.tree_leaves_with_path(
    jax.jit(jax.grad(loss))(noisy_params(network))
  ):
    assert float(jnp.abs(leaf).max()) > 0, jax.tree_util.keystr(path)


@pytest.mark.parametrize("choice", ["adaln", "layerwise"])
def test_time_is_per_token(choice):
  """In a causal row one token's own time changes nothing before it, and itself."""
  at = lambda t: np.asarray(logits_of(conditioned(choice), t=t, layout=layouts.causal(10)))
  change = np.abs(at(jnp.full((3, 10), 0.4).at[:, 4].set(0.9)) - at(jnp.full((3, 10), 0.4))).max(
    axis=(0, 2)
  )
  assert (change[:4] < 1e-5).all() and change[4] > 1e-2


def test_an_untrained_layerwise_map_changes_nothing():
  """Zeros at first: the features are those of the network without a time input, whatever the time."""
  network = Network.create(conditioned("layerwise"))
  plain = Network.create(SMALL).init(jax.random.key(0))
  params = network.init(jax.random.key(0))
  params = params | {name: plain[name] for name in plain if name != "blocks"}
  params["blocks"] = params["blocks"] | plain["blocks"]
  features = lambda network, params, t: (
    network.apply(params, Inputs(IDS), t, Layout(), None).features
  )
  np.testing.assert_array_equal(
    features(network, params, T), features(Network.create(SMALL), plain, T + 0.3)
  )


class TestPrefix:
  CONFIG = conditioned("prefix")

  def test_the_row_reads_the_mean_time_of_its_tokens_that_are_not_clean(self):
    some = jnp.array([[0.2, 0.6, 0, 0, 0.4, 0, 0, 0, 0, 0]] * 3)
    np.testing.assert_allclose(
      logits_of(self.CONFIG, t=some), logits_of(self.CONFIG, t=T), atol=1e-4
    )
    assert np.isfinite(logits_of(self.CONFIG, t=0 * some)).all()

  def test_scanned_unrolled_and_two_stages(self):
    np.testing.assert_allclose(
      logits_of(dataclasses.replace(self.CONFIG, scan_layers=True)),
      logits_of(self.CONFIG),
      atol=2e-5,
    )
    two = dataclasses.replace(self.CONFIG, anchor_layers=1)
    prediction = Network.create(two).apply(
      noisy_params(Network.create(two)), Inputs(IDS), T, Layout(), None
    )
    assert prediction.features.shape == prediction.anchor.features.shape == (3, 10, 32)

  def test_it_is_one_more_token_before_the_others(self):
    """Against a network without time that reads a row with a token before it, whose embedding is what the prefix holds."""
    params = noisy_params(Network.create(self.CONFIG))
    plain = Network.create(dataclasses.replace(SMALL, input_size=13))
    hidden = lambda x, layer: x @ layer["kernel"] + layer["bias"]
    angles = 1000 * 0.4 * 10_000.0 ** (-np.arange(128) / 128)
    waves = np.concatenate([np.cos(angles), np.sin(angles)]).astype(np.float32)
    held = jax.nn.silu(
      hidden(jax.nn.silu(hidden(waves, params["time"]["inner"])), params["time"]["outer"])
    )
    table = jnp.concatenate([params["embedding"], hidden(held, params["prefix"])[None]])
    same = {name: params[name] for name in ("blocks", "final_norm", "head")} | {"embedding": table}
    longer = Inputs(jnp.pad(IDS, ((0, 0), (1, 0)), constant_values=12), jnp.arange(-1, 10)[None])
    expected = plain.apply(same, longer, T, Layout(), None).logits[:, 1:]
    np.testing.assert_allclose(logits_of(self.CONFIG, params=params), expected, atol=1e-4)

  @pytest.mark.parametrize(
    "layout", [layouts.causal(10), layouts.noisy_clean(5, 2)], ids=["causal", "noisy ‖ clean"]
  )
  def test_no_token_is_seen_through_it(self, layout):
    """Changing a token changes exactly the answers that the layout lets see it, over any number of layers."""
    mask = np.asarray(layouts.visible(layout, layout))[0]
    sees = np.linalg.matrix_power(mask.astype(int), 2) > 0
    for token in range(10):
      change = logits_of(self.CONFIG, IDS.at[:, token].set((IDS[:, token] + 1) % 12), layout=layout)
      change = np.abs(np.asarray(change - logits_of(self.CONFIG, layout=layout))).max(axis=(0, 2))
      np.testing.assert_array_equal(change > 1e-6, sees[:, token])

  def test_positions_of_the_others_are_as_given(self):
    given = Inputs(IDS, jnp.arange(10, dtype=jnp.int32)[None])
    network = Network.create(self.CONFIG)
    logits = network.apply(noisy_params(network), given, T, Layout(), None).logits
    np.testing.assert_array_equal(logits, logits_of(self.CONFIG))

  def test_padding_on_the_right_changes_nothing(self):
    """A padded row is the shorter row: neither what stands in the padding nor its time is read. A whole row of padding is finite."""
    segment = jnp.ones((3, 10), jnp.int32).at[:, 6:].set(0)
    times = jnp.array([[0.2, 0.6, 0, 0, 0.4, 0, 0.9, 0.9, 0.9, 0.9]] * 3)
    params = noisy_params(Network.create(self.CONFIG))
    at = lambda ids, t, layout: np.asarray(
      logits_of(self.CONFIG, ids, params=params, t=t, layout=layout)
    )
    short = at(IDS[:, :6], times[:, :6], Layout())
    np.testing.assert_allclose(at(IDS, times, Layout(segment=segment))[:, :6], short, atol=1e-4)
    assert (
      np.abs(at(IDS, times, Layout())[:, :6] - short).max() > 1e-2
    )  # and the segment is what does it
    np.testing.assert_array_equal(
      at(IDS, T, Layout(segment=0 * segment)), at(IDS, T, Layout(segment=0 * segment + 1))
    )
    blocks = dataclasses.replace(layouts.causal(10), segment=segment)
    np.testing.assert_allclose(
      at(IDS, times, blocks)[:, :6], at(IDS[:, :6], times[:, :6], layouts.causal(6)), atol=1e-4
    )

  def test_caches_are_refused(self):
    network = Network.create(self.CONFIG)
    keys = jnp.zeros((2, 3, 4, 4, 8))
    with pytest.raises(ValueError, match=r"'prefix'.*a cache"):
      network.extend(noisy_params(network), Inputs(IDS), T, Layout(), Past(keys, keys, Layout()))
