"""Schedules against values computed by hand, the decay mask, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.train.optimizer import make_optimizer, make_schedule

GOLDEN = {
  ("constant", 0): {0: 1.0, 50: 1.0, 100: 1.0},
  ("constant", 10): {0: 0.0, 5: 0.5, 10: 1.0, 100: 1.0},
  ("cosine", 0): {0: 1.0, 50: 0.55, 100: 0.1, 200: 0.1},
  ("cosine", 20): {0: 0.0, 10: 0.5, 20: 1.0, 60: 0.55, 100: 0.1},
  ("wsd", 0): {0: 1.0, 80: 1.0, 90: 0.55, 100: 0.1, 200: 0.1},
  ("wsd", 10): {0: 0.0, 5: 0.5, 10: 1.0, 79: 1.0, 80: 1.0, 85: 0.775, 100: 0.1},
}


@pytest.mark.parametrize(("name", "warmup"), GOLDEN)
def test_schedule_values(name, warmup):
  decay = 20 if name == "wsd" else None
  rate = make_schedule(
    learning_rate=2.0, steps=100, schedule=name, warmup_steps=warmup, decay_steps=decay
  )
  for step, fraction in GOLDEN[name, warmup].items():
    np.testing.assert_allclose(
      rate(jnp.int32(step)), 2 * fraction, rtol=1e-6, atol=1e-7, err_msg=f"step {step}"
    )


def test_wsd_decays_over_the_last_tenth_by_default():
  rate = make_schedule(learning_rate=1.0, steps=1000, schedule="wsd", final_fraction=0.0)
  np.testing.assert_allclose([rate(900), rate(950), rate(1000)], [1.0, 0.5, 0.0], atol=1e-6)


@pytest.mark.parametrize(
  ("bad", "says"),
  [
    ({"schedule": "linear"}, "schedule='linear' is unknown; use one of"),
    ({"warmup_steps": 101}, "warmup_steps=101 must lie between 0 and steps=100"),
    ({"decay_steps": 5}, "decay_steps=5 is read by schedule='wsd' only"),
    (
      {"schedule": "wsd", "warmup_steps": 60, "decay_steps": 50},
      "decay_steps=50 must be at least 1 and fit",
    ),
    ({"final_fraction": 1.5}, "final_fraction=1.5"),
    ({"learning_rate": 0.0}, "learning_rate=0.0 must be above 0"),
    ({"steps": 0}, "steps=0 must be at least 1"),
    ({"b2": 1.0}, "b2=1.0 must lie in"),
    ({"eps": 0.0}, "eps=0.0"),
    ({"weight_decay": -0.1}, "weight_decay=-0.1 must not be negative"),
    ({"clip_norm": 0.0}, "clip_norm=0.0 must be above 0; None turns it off"),
  ],
)
def test_errors_quote_the_value(bad, says):
  with pytest.raises(ValueError, match=says.replace("(", r"\(")):
    make_optimizer(**({"learning_rate": 1e-3, "steps": 100} | bad))


def test_only_kernels_decay_even_when_scales_are_stacked():
  params = {
    "layers": {"kernel": jnp.ones((2, 3, 3)), "scale": jnp.ones((2, 3)), "bias": jnp.ones((2, 3))},
    "embedding": {"embedding": jnp.ones((5, 3))},
  }
  optimizer = make_optimizer(learning_rate=0.1, steps=10, schedule="constant", weight_decay=0.5)
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = optimizer.update(zeros, optimizer.init(params), params)
  np.testing.assert_allclose(updates["layers"]["kernel"], -0.05, rtol=1e-6)
  for still in (
    updates["layers"]["scale"],
    updates["layers"]["bias"],
    updates["embedding"]["embedding"],
  ):
    np.testing.assert_array_equal(still, 0)


def test_first_update_is_adam_by_hand_and_clipping_bounds_its_moments():
  params, gradient = {"w": {"bias": jnp.zeros(2)}}, {"w": {"bias": jnp.array([30.0, -40.0])}}
  optimizer = make_optimizer(
    learning_rate=0.1, steps=10, schedule="constant", clip_norm=5.0, eps=1e-30
  )
  updates, state = optimizer.update(gradient, optimizer.init(params), params)
  # m / sqrt(v) is the sign at the first step.
  np.testing.assert_allclose(updates["w"]["bias"], [-0.1, 0.1], rtol=1e-5)
  moments = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (2,)]
  # Clipped from norm 50 to 5.
  np.testing.assert_allclose(moments[0], [0.1 * 3.0, 0.1 * -4.0], rtol=1e-5)


def test_what_is_not_clipped_has_no_part_in_the_norm():
  """A large gradient that is not clipped changes no other moments, and is not scaled down."""
  params = {"network": {"bias": jnp.zeros(2)}, "timing": {"levels": jnp.zeros(3)}}
  optimizer = make_optimizer(
    learning_rate=0.1, steps=10, clip_norm=5.0, clips=lambda path: path[0] != "timing"
  )

  def moments(size):
    gradient = {"network": {"bias": jnp.array([3.0, 0.0])}, "timing": {"levels": jnp.full(3, size)}}
    assert float(optimizer.norm(gradient)) == 3.0
    adam = optimizer.update(gradient, optimizer.init(params), params)[1][1]
    return adam.mu["network"]["bias"], adam.mu["timing"]["levels"]

  for size in (0.0, 1e4):
    network, timing = moments(size)
    np.testing.assert_allclose(network, [0.3, 0.0], rtol=1e-5)
    np.testing.assert_allclose(timing, 0.1 * size, rtol=1e-5)
