"""Attention over layouts: one call, several implementations tried in order."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Collection, Sequence
from typing import Literal

from jaxtyping import Array, Float

from diffusion_text.kernels import layout as layouts
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
# From first to last choice. On GPU: our kernel for any layout while Pallas has its Triton backend,
# the library's kernel where the layout is plain, XLA. None has been timed on a GPU. A kernel for
# Pallas' Mosaic GPU backend would stand before these: jax's own asks for a CUDA runtime when it is
# traced, so that nothing of it can be checked where there is none.
DEFAULT = ("pallas_tpu", "pallas_gpu", "cudnn", "xla")

Kind = Literal["bidirectional", "causal", "other"]


def kind_of(q_layout: Layout, k_layout: Layout) -> Kind:
  """What is known of who sees whom before anything is computed."""
  if layouts.is_bidirectional(q_layout, k_layout):
    return "bidirectional"
  return "causal" if layouts.is_causal(q_layout, k_layout) else "other"


def choice(
  platform: str,
  backends: Collection[str],
  kind: Kind,
  names: Sequence[str] = DEFAULT,
) -> tuple[str, ...]:
  """Of `names`, those that may serve, in order: the first that does not refuse shapes or types is
  used.

  Args:
    platform: "cpu", "tpu", "gpu" or "cuda".
    backends: what jax has for that platform, see `backends_of`.
    kind: of the layout.
    names: implementations in the order in which they are tried.
  """
  return tuple(name for name in names if _obstacle(name, platform, backends, kind) is None)


def backends_of(platform: str) -> frozenset[str]:
  """Which backends of Pallas for GPU this jax has: "triton" or none."""
  return _gpu_backends() if platform in ("gpu", "cuda") else frozenset()


@functools.cache
def _gpu_backends() -> frozenset[str]:
  found = importlib.util.find_spec("jax.experimental.pallas.triton") is not None
  return frozenset(["triton"] if found else [])


def _obstacle(name: str, platform: str, backends: Collection[str], kind: Kind) -> str | None:
  """Why this implementation cannot serve at all; None: it may."""
  if name == "pallas_tpu" and platform != "tpu":
    return f"needs a TPU, but the platform is {platform!r}"
  if name in ("pallas_gpu", "cudnn") and platform not in ("gpu", "cuda"):
    return f"needs a GPU, but the platform is {platform!r}"
  if name == "pallas_gpu" and "triton" not in backends:
    return "this jax has no Triton backend of Pallas"
  if name == "cudnn" and kind == "other":
    return "the layout is neither bidirectional nor known to be causal"
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
  platform, kind = target()[0], kind_of(q_layout, k_layout)
  reasons = []
  for name in (implementation,) if isinstance(implementation, str) else implementation:
    if name not in IMPLEMENTATIONS:
      raise ValueError(f"implementation={name!r} is not one of {sorted(IMPLEMENTATIONS)}")
    obstacle = _obstacle(name, platform, backends_of(platform), kind)
    if window is not None and name not in WITH_WINDOW:
      obstacle = "it has no window of positions"
    if return_lse and name == "cudnn":
      obstacle = "its log-sum-exp has no gradient"
    if obstacle is not None:
      reasons.append(f"{name}: {obstacle}")
      continue
    near = {} if window is None else {"window": window}
    try:
      out, lse = IMPLEMENTATIONS[name](q, k, v, q_layout, k_layout, **options, **near)
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
