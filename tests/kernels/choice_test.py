"""Which implementation of attention is used where, and the library's kernel for GPU behind ours."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.context.rows import places
from diffusion_text.kernels import attention as dispatch
from diffusion_text.kernels import layout as layouts
from diffusion_text.kernels.attention import DEFAULT, attention, obstacle
from diffusion_text.kernels.block_sizes import compile_for
from diffusion_text.kernels.reference import reference
from diffusion_text.types import Batch, Layout

TRITON = frozenset(["triton"])


def choice(platform, backends, **asked):
  """Those that may serve, in the order in which they are tried."""
  return tuple(name for name in DEFAULT if obstacle(name, platform, backends, **asked) is None)


def test_choice():
  """By platform, by what jax has, and by what is asked."""
  assert choice("cpu", TRITON) == ("xla",)
  assert choice("tpu", ()) == ("pallas_tpu", "xla")
  assert choice("gpu", TRITON) == choice("cuda", TRITON) == ("pallas_gpu", "cudnn", "xla")
  assert choice("gpu", ()) == ("cudnn", "xla")
  assert choice("gpu", TRITON, lse=True) == ("pallas_gpu", "xla")
  assert choice("gpu", TRITON, window=True) == choice("tpu", (), window=True) == ("xla",)


def test_causal_layouts_are_known_while_tracing():
  known = []

  @jax.jit
  def look(segment):
    causal = layouts.causal(8)
    next_token = Layout(block=places(Batch(segment)))
    for pair in (
      (causal, causal),
      (next_token, next_token),
      (Layout(), Layout()),
      (Layout(segment=segment, block=causal.block), causal),
      (causal, layouts.causal(9)),
      (causal, Layout(block=causal.block + 1)),
      (layouts.block_causal(8, 2), layouts.block_causal(8, 2)),
      (Layout(block=segment), Layout(block=segment)),
    ):
      known.append(layouts.is_causal(*pair))

  look(np.arange(8, dtype=np.int32)[None])
  assert known == [True, True, *[False] * 6]


def arrays():
  random = np.random.default_rng(0)
  return [random.normal(size=(2, 8, heads, 8)).astype(jnp.bfloat16) for heads in (4, 2, 2)]


@pytest.mark.parametrize("layout", [Layout(), layouts.causal(8)], ids=["bidirectional", "causal"])
def test_cudnn_computes_what_the_layout_says(layout, monkeypatch):
  """What is asked of the library, answered by its other implementation; a mutant: the other kind of
  mask."""
  library = jax.nn.dot_product_attention

  def elsewhere(*args, implementation, **options):
    assert implementation == "cudnn"
    return library(*args, implementation="xla", **options)

  monkeypatch.setattr(jax.nn, "dot_product_attention", elsewhere)
  monkeypatch.setattr(dispatch, "backends_of", lambda platform: frozenset())  # no Triton
  q, k, v = arrays()

  @jax.jit
  def three(q, k, v):
    out = attention(q, k, v, layout, layout, scale=0.5)
    expected = reference(q, k, v, layout, layout, scale=0.5, soft_cap=None)[0]
    return out, expected, library(q, k, v, scale=0.5, is_causal=layout.block is None)

  with compile_for("gpu", "NVIDIA H200"):
    out, expected, other = map(np.float32, three(q, k, v))
  np.testing.assert_allclose(out, expected, atol=2e-2)
  assert np.abs(other - expected).max() > 0.1


def test_where_cudnn_cannot_serve():
  """Each reason by name; without cuDNN, types that it lacks and other layouts XLA is used."""
  q, k, v = arrays()
  blocks = layouts.block_causal(8, 2)
  call = functools.partial(attention, q, k, v, implementation="cudnn")
  with pytest.raises(NotImplementedError, match="cudnn: needs a GPU, but the platform is 'cpu'"):
    call(Layout(), Layout())
  with compile_for("gpu"):
    with pytest.raises(NotImplementedError, match="neither bidirectional nor known to be causal"):
      call(blocks, blocks)
    with pytest.raises(NotImplementedError, match="its log-sum-exp has no gradient"):
      call(Layout(), Layout(), return_lse=True)
    with pytest.raises(NotImplementedError, match=r"has no soft_cap, which is 5\.0"):
      call(Layout(), Layout(), soft_cap=5.0)
    with pytest.raises(NotImplementedError, match="bfloat16 or float16, not float32"):
      attention(
        *(x.astype(jnp.float32) for x in (q, k, v)), Layout(), Layout(), implementation="cudnn"
      )
    if not any(device.platform == "gpu" for device in jax.devices()):
      with pytest.raises(NotImplementedError, match="cuDNN is not detected"):
        call(Layout(), Layout())
