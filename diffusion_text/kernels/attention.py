"""Attention over layouts: one call, several implementations tried in order."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Array, Float

from diffusion_text.kernels import pallas_gpu, pallas_tpu, reference, xla
from diffusion_text.kernels.layout import Window
from diffusion_text.types import Layout

# Each takes (q, k, v, q_layout, k_layout, *, scale, soft_cap) and returns (out, lse), or raises
# NotImplementedError.
IMPLEMENTATIONS = {
  "pallas_tpu": pallas_tpu.attention,
  "pallas_gpu": pallas_gpu.attention,
  "xla": xla.attention,
  "reference": reference.reference,
}
# Of these, those that also take `window`. The Pallas kernels have no positions to go by.
WITH_WINDOW = ("xla", "reference")
DEFAULT = ("pallas_tpu", "pallas_gpu", "xla")


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
  reasons = []
  for name in (implementation,) if isinstance(implementation, str) else implementation:
    if name not in IMPLEMENTATIONS:
      raise ValueError(f"implementation={name!r} is not one of {sorted(IMPLEMENTATIONS)}")
    if window is not None:
      if name not in WITH_WINDOW:
        reasons.append(f"{name}: it has no window of positions")
        continue
      options["window"] = window
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
