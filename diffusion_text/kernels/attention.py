"""Attention over layouts: one call, several implementations tried in order."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Collection, Sequence

from jaxtyping import Array, Float

from diffusion_text.kernels import reference, xla
from diffusion_text.kernels.block_sizes import target
from diffusion_text.kernels.layout import Window
from diffusion_text.types import Layout


def _imported(module: str) -> Callable[..., tuple[Array, Array | None]]:
  """`attention` of a module that is imported when it is called: Pallas takes long to import."""

  def call(*args, **options):
    found = importlib.import_module(f"diffusion_text.kernels.{module}")
    return found.attention(*args, **options)

  return call


# Each takes (q, k, v, q_layout, k_layout, *, scale, soft_cap) and returns (out, lse), or raises
# NotImplementedError.
IMPLEMENTATIONS = {
  "pallas_tpu": _imported("pallas_tpu"),
  "pallas_gpu": _imported("pallas_gpu"),
  "cudnn": _imported("cudnn"),
  "xla": xla.attention,
  "reference": reference.reference,
}
# Of these, those that also take `window`. The Pallas kernels have no positions to go by.
WITH_WINDOW = ("xla", "reference")
# Those that give None in place of the log-sum-exp.
WITHOUT_LSE = ("cudnn",)
# From first to last choice. On GPU: our kernel for any layout while Pallas has its Triton backend,
# the library's kernel where the layout is plain, XLA. None has been timed on a GPU. A kernel for
# Pallas' Mosaic GPU backend would stand before these: jax's own asks for a CUDA runtime when it is
# traced, so that nothing of it can be checked where there is none.
DEFAULT = ("pallas_tpu", "pallas_gpu", "cudnn", "xla")


def backends_of(platform: str) -> frozenset[str]:
  """The backends of Pallas that this jax has for the platform: "triton" on GPU, or none."""
  return _gpu_backends() if platform in ("gpu", "cuda") else frozenset()


@functools.cache
def _gpu_backends() -> frozenset[str]:
  found = importlib.util.find_spec("jax.experimental.pallas.triton") is not None
  return frozenset(["triton"] if found else [])


def obstacle(
  name: str, platform: str, backends: Collection[str], *, window: bool = False, lse: bool = False
) -> str | None:
  """Why the implementation `name` cannot serve, whatever its arrays and layouts are; None: it may.

  Args:
    name: of an implementation.
    platform: "cpu", "tpu", "gpu" or "cuda".
    backends: what jax has for this platform, see `backends_of`.
    window: True if there is a window of positions.
    lse: True if the log-sum-exp is asked for.
  """
  if name == "pallas_tpu" and platform != "tpu":
    return f"needs a TPU, but the platform is {platform!r}"
  if name in ("pallas_gpu", "cudnn") and platform not in ("gpu", "cuda"):
    return f"needs a GPU, but the platform is {platform!r}"
  if name == "pallas_gpu" and "triton" not in backends:
    return "this jax has no Triton backend of Pallas"
  if window and name not in WITH_WINDOW:
    return "it has no window of positions"
  if lse and name in WITHOUT_LSE:
    return "its log-sum-exp has no gradient"
  return None


def attention(
  q: Float[Array, "B L H K"],
  k: Float[Array, "B S G K"],
  v: Float[Array, "B S G K"],
  q_layout: Layout,
  k_layout: Layout,
  *,
  scale: float | None = None,
  soft_cap: float | None = None,
  window: Window | None = None,
  implementation: str | Sequence[str] = DEFAULT,
  return_lse: bool = False,
) -> Array | tuple[Float[Array, "B L H K"], Float[Array, "B L H"]]:
  """softmax(scale · q kᵀ) v over the keys that the layouts let each query see; [B, L, H, K] in q's
  dtype.

  L queries, S keys, H heads; head h reads key/value head h // (H // G). The softmax is float32.
  `window` hides keys that are too far away.
  `scale` None is 1/√K; `soft_cap` c bounds the scores to c·tanh(s / c). `return_lse` adds the
  float32 [B, L, H] log-sum-exp of the scores, differentiable too. A query that sees no key gets
  zeros, and a log-sum-exp of -1e30.

  `implementation` names the candidates, tried in order: one that cannot run here raises
  NotImplementedError and the next is tried; any other error propagates. NotImplementedError with
  every reason if none can; ValueError for shapes that do not fit.
  """
  _check(q, k, v, q_layout, k_layout)
  _check_window(q, k, window)
  options = {"scale": scale, "soft_cap": soft_cap}
  if window is not None:
    options["window"] = window
  platform = target()[0]
  backends = backends_of(platform)
  reasons = []
  for name in (implementation,) if isinstance(implementation, str) else implementation:
    if name not in IMPLEMENTATIONS:
      raise ValueError(f"implementation={name!r} is not one of {sorted(IMPLEMENTATIONS)}")
    reason = obstacle(name, platform, backends, window=window is not None, lse=return_lse)
    if reason is not None:
      reasons.append(f"{name}: {reason}")
      continue
    try:
      out, lse = IMPLEMENTATIONS[name](q, k, v, q_layout, k_layout, **options)
    except NotImplementedError as reason:
      reasons.append(f"{name}: {reason}")
      continue
    return (out, lse) if return_lse else out
  raise NotImplementedError(
    f"no implementation of attention can run; add 'xla', which always can. {'; '.join(reasons)}"
  )


def _check(q, k, v, q_layout, k_layout):
  if (
    q.ndim != 4
    or k.ndim != 4
    or k.shape != v.shape
    or q.shape[0] != k.shape[0]
    or q.shape[3] != k.shape[3]
  ):
    raise ValueError(
      f"q {q.shape}, k {k.shape}, v {v.shape} must be [B, L, H, K], [B, S, G, K] and [B, S, G, K]"
    )
  if not q.dtype == k.dtype == v.dtype:
    raise ValueError(f"q, k, v have dtypes {q.dtype}, {k.dtype}, {v.dtype}; cast them to one")
  if q.shape[2] % k.shape[2]:
    raise ValueError(f"{k.shape[2]} key/value heads must divide {q.shape[2]} query heads")
  for name, layout, (B, L) in (
    ("q_layout", q_layout, q.shape[:2]),
    ("k_layout", k_layout, k.shape[:2]),
  ):
    for field in (layout.segment, layout.block, layout.noisy):
      if field is not None and (
        field.ndim != 2 or field.shape[0] not in (1, B) or field.shape[1] != L
      ):
        raise ValueError(f"{name} has a field of shape {field.shape}; it must be [1 or {B}, {L}]")


def _check_window(q, k, window):
  if window is None:
    return
  for name, position, (B, L) in (
    ("query", window.query, q.shape[:2]),
    ("key", window.key, k.shape[:2]),
  ):
    if position.ndim != 2 or position.shape[0] not in (1, B) or position.shape[1] != L:
      raise ValueError(f"window.{name} has the shape {position.shape}; it must be [1 or {B}, {L}]")
