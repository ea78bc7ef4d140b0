"""Mixture of experts: each token's MLP is a few of many, chosen by a router (LLaDA-MoE, arXiv 2509.24389; OLMoE, arXiv 2409.02060).

p = softmax(router · x) over all experts, in float32; out = Σ of the k largest p_e · MLP_e(x), not renormalised, plus an MLP that every
token passes if there is a shared width. Exact: no expert has a capacity, and no token is dropped.

Two losses of the router, over the counted tokens of a batch whatever their noise (its rows hold evenly spread times):
  balance  N · Σ_e f_e P_e, f the share of choices that fell on e (they sum to one), P the mean of p; 1 when even, up to N
  z        the mean of (log Σ_e e^logit)²
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from diffusion_text.model.layers import MLP
from diffusion_text.model.parallel import mesh_sizes, token_spec
from diffusion_text.model.partition import split
from diffusion_text.types import Array, Auxiliary


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Sizes and weights of losses; config keys `model.experts`, `.experts_per_token`, `.expert_width`, `.shared_width`, `.balance_weight`,
  `.router_z_weight`."""

  experts: int  # N
  per_token: int  # k
  width: int  # F of each expert
  shared: int  # F of the MLP that every token passes; 0: none
  balance: float
  z: float

  def __post_init__(self):
    if not 1 <= self.per_token <= self.experts:
      raise ValueError(
        f"model.experts_per_token={self.per_token} must be at least 1 and at most model.experts={self.experts}"
      )
    if self.width < 1 or self.shared < 0:
      raise ValueError(
        f"model.expert_width={self.width} must be positive and model.shared_width={self.shared} not negative"
      )
    if self.balance < 0 or self.z < 0:
      raise ValueError(
        f"model.balance_weight={self.balance} and model.router_z_weight={self.z} must not be negative; 0.01 and 0.001 are usual"
      )

  def auxiliary(self, routing: Routing) -> Auxiliary:
    """What the routers of all layers add to the loss; routing: stacked over layers."""
    balance, z = jnp.mean(routing.balance), jnp.mean(routing.z)
    return Auxiliary(
      self.balance * balance + self.z * z, {"router_balance": balance, "router_z": z}
    )


class Routing(NamedTuple):
  """The two losses of a router, float32 scalars; see above."""

  balance: Array
  z: Array


class Experts(nnx.Module):
  """x [B, L, D] -> [B, L, D] in its dtype, and the router's losses. Weights: router [D, N]; up, gate [N, D, F]; down [N, F, D]."""

  def __init__(
    self,
    width: int,
    mixture: Mixture,
    activation: str,
    *,
    std: float,
    std_out: Callable[[int], float],
    rngs: nnx.Rngs,
  ):
    experts, hidden, shared = mixture.experts, mixture.width, mixture.shared
    self.per_token = mixture.per_token
    draw = lambda std, *shape: nnx.Param(
      std * jax.random.truncated_normal(rngs.params(), -3, 3, shape, jnp.float32)
    )
    self.router = draw(std, width, experts)
    self.up = draw(std, experts, width, hidden)
    self.gate = draw(std, experts, width, hidden) if activation == "swiglu" else None
    self.down = draw(std_out(hidden), experts, hidden, width)
    self.shared = (
      MLP(width, shared, activation, std=std, std_out=std_out(shared), rngs=rngs)
      if shared
      else None
    )

  def __call__(self, x: Array, counted: Array | None) -> tuple[Array, Routing]:
    """counted: float32 [B or 1, L], what each token weighs in the router's losses, 0 for padding; None: all the same."""
    logits = jnp.einsum(
      "bld,dn->bln", x.astype(jnp.float32), self.router[...], precision=jax.lax.Precision.HIGHEST
    )
    p = jax.nn.softmax(logits)
    share, chosen = jax.lax.top_k(p, self.per_token)
    weights = [
      None if w is None else w[...].astype(x.dtype) for w in (self.up, self.gate, self.down)
    ]
    out = mixture(x, share.astype(x.dtype), chosen, *weights)
    if self.shared is not None:
      out = out + self.shared(x)
    return out, routing(logits, p, chosen, counted)


def routing(
  logits_BxLxN: Array, p_BxLxN: Array, chosen_BxLxk: Array, counted: Array | None
) -> Routing:
  """The router's losses of one layer."""
  experts = p_BxLxN.shape[-1]
  weight = jnp.broadcast_to(jnp.float32(1) if counted is None else counted, p_BxLxN.shape[:2])
  total = jnp.sum(weight)
  mean = lambda values: (
    jnp.einsum("bl,bl...->...", weight, values) / jnp.where(total > 0, total, 1.0)
  )
  picked = (
    jnp.sum(chosen_BxLxk[..., None] == jnp.arange(experts), axis=2, dtype=jnp.float32)
    / chosen_BxLxk.shape[-1]
  )
  z = jax.nn.logsumexp(logits_BxLxN, axis=-1) ** 2
  return Routing(experts * jnp.sum(mean(picked) * mean(p_BxLxN)), mean(z))


def mixture(
  x: Array,
  share: Array,
  chosen: Array,
  up: Array,
  gate: Array | None,
  down: Array,
  local: Callable | None = None,
) -> Array:
  """Σ_j share[..., j] · MLP_{chosen[..., j]}(x): x [B, L, D], share and chosen [B, L, k] -> [B, L, D].

  On a mesh every device has the tokens of its rows and positions, all experts of its part of the expert axis, and of each its part
  over tensor; the parts of the result are summed over both. No token travels, which costs what tensor parallelism does.
  """
  sizes = mesh_sizes()
  experts, hidden = split("experts", up.shape[0], sizes), split("expert_mlp", up.shape[2], sizes)

  def part(x, share, chosen, up, gate, down):
    first = jax.lax.axis_index(experts) * up.shape[0] if experts else 0
    flat = lambda a: a.reshape(-1, a.shape[-1])
    out = every_expert(flat(x), flat(share), flat(chosen) - first, up, gate, down).reshape(x.shape)
    return jax.lax.psum(out, experts + hidden) if experts + hidden else out

  if all(size == 1 for size in sizes.values()):
    return part(x, share, chosen, up, gate, down)
  tokens, inner = token_spec(*x.shape[:2], None), hidden or None
  in_specs = (
    tokens,
    tokens,
    tokens,
    *[PartitionSpec(experts or None, None, inner)] * 2,
    PartitionSpec(experts or None, inner),
  )
  return jax.shard_map(part, in_specs=in_specs, out_specs=tokens, check_vma=False)(
    x, share, chosen, up, gate, down
  )


def _activated(hidden: Array, gated: Array | None) -> Array:
  return jax.nn.gelu(hidden) if gated is None else jax.nn.silu(gated) * hidden


def every_expert(
  x_TxD: Array, share_Txk: Array, expert_Txk: Array, up: Array, gate: Array | None, down: Array
) -> Array:
  """All experts on all tokens [T, D], one expert after the other; numbers outside of 0 … N-1 add nothing.

  N / k times the work that a token needs, in plain products that every compiler knows. Sorting the tokens by expert for
  `jax.lax.ragged_dot` would be worse: on TPU it compiles to N products of all T·k rows (16 times the FLOPs of the sorted rows at N =
  16, 16384 rows, libtpu's program for v5e), k times the work done here, and on CPU likewise. What is missing is a grouped kernel.
  """

  def one(total, each):
    number, up, gate, down = each
    share = jnp.sum(jnp.where(expert_Txk == number, share_Txk, 0), axis=1)[:, None]
    return total + share * (
      _activated(x_TxD @ up, None if gate is None else x_TxD @ gate) @ down
    ), None

  # Made anew in the backward pass: kept, the hidden layers would take N / k times those of one MLP.
  return jax.lax.scan(
    jax.checkpoint(one), jnp.zeros_like(x_TxD), (jnp.arange(up.shape[0]), up, gate, down)
  )[0]


def counted_tokens(weights_BxL: Array | None, shape: tuple[int, int]) -> Array | None:
  """float32 [B, L']: the weights of a batch, for what a network reads of it: rows of L' positions that begin with the L tokens, or
  hold them several times over. None stays None."""
  if weights_BxL is None or weights_BxL.shape == shape:
    return weights_BxL
  copies, rest = divmod(shape[1], weights_BxL.shape[1])
  return jnp.pad(jnp.tile(weights_BxL, (1, copies)), ((0, 0), (0, rest)))
