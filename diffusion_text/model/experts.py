"""Mixture of experts: each token's MLP is a few of many, chosen by a router.

LLaDA-MoE, arXiv 2509.24389; OLMoE, arXiv 2409.02060. p = softmax(router · x) over all experts, in
float32; out = Σ of the k largest p_e · MLP_e(x), not renormalised, plus an MLP that every token
passes if there is a shared width. Exact: no expert has a capacity, and no token is dropped.

Two losses of the router, over the tokens of a batch by their weights, whatever their noise (its
rows hold evenly spread times):
  balance  N · Σ_e f_e P_e, f the share of choices that fell on e (they sum to one), P the mean of
           p; 1 when even, up to N
  z        the mean of (log Σ_e e^logit)²

Reported, not minimised, for each level of noise: the load of the fullest expert, see `loads`. A
mixture that is balanced on the whole may still send all clean tokens to one expert.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from diffusion_text.kernels.grouped import grouped_matmul
from diffusion_text.model.layers import MLP
from diffusion_text.model.options import TransformerOptions
from diffusion_text.model.parallel import mesh_sizes, token_spec
from diffusion_text.model.partition import split

# Levels of noise: clean tokens, and then quarters of the time, each by its upper end.
LEVELS = ("clean", "t25", "t50", "t75", "t100")


class Routing(NamedTuple):
  """The losses and the loads of a router, see above: balance and z, float32 scalars, and load,
  float32 [levels]. Those of several layers have an axis of layers in front.
  """

  balance: Array
  z: Array
  load: Array


def router_losses(config: TransformerOptions, routing: Routing) -> dict[str, Float[Array, ""]]:
  """Name -> weight · loss, the mean over the routers of all layers: `Prediction.losses`."""
  return {
    "router_balance": config.balance_weight * jnp.mean(routing.balance),
    "router_z": config.router_z_weight * jnp.mean(routing.z),
  }


def router_loads(routing: Routing) -> dict[str, Float[Array, ""]]:
  """Name -> load at a level of noise, the mean over the routers of all layers."""
  mean = jnp.mean(routing.load, axis=0)
  return {f"router_load_{level}": mean[number] for number, level in enumerate(LEVELS)}


class Experts(nnx.Module):
  """The experts of a layer and their router: router [D, N]; up, gate [N, D, F]; down [N, F, D]."""

  def __init__(self, config: TransformerOptions, *, std: float, depth: float, rngs: nnx.Rngs):
    width, experts, hidden = config.width, config.experts, config.expert_width
    shared = config.shared_width
    self.per_token = config.experts_per_token

    def draw(std, *shape):
      return nnx.Param(std * jax.random.truncated_normal(rngs.params(), -3, 3, shape, jnp.float32))

    self.router = draw(std, width, experts)
    self.up = draw(std, experts, width, hidden)
    self.gate = draw(std, experts, width, hidden) if config.activation == "swiglu" else None
    self.down = draw(hidden**-0.5 / depth, experts, hidden, width)
    every_token = None
    if shared:
      out = shared**-0.5 / depth
      every_token = MLP(width, shared, config.activation, std=std, std_out=out, rngs=rngs)
    self.shared = every_token

  def __call__(
    self, x: Float[Array, "B L D"], weights: Float[Array, "#B L"] | None, t: Float[Array, "B L"]
  ) -> tuple[Float[Array, "B L D"], Routing]:
    """([B, L, D] in the dtype of x, the losses and the loads of the router).

    Args:
      x: the stream of each token.
      weights: what each token weighs in the losses, 0 for padding; None: all the same.
      t: the time of each token.
    """
    exact = jax.lax.Precision.HIGHEST
    wide = x.astype(jnp.float32)
    logits = jnp.einsum("bld,dn->bln", wide, self.router[...], precision=exact)
    p = jax.nn.softmax(logits)
    share, chosen = jax.lax.top_k(p, self.per_token)
    up, gate, down = (
      None if w is None else w[...].astype(x.dtype) for w in (self.up, self.gate, self.down)
    )
    out = mixture(x, share.astype(x.dtype), chosen, up, gate, down)
    if self.shared is not None:
      out = out + self.shared(x)
    return out, routing(logits, p, chosen, weights, t)


def routing(
  logits: Float[Array, "B L N"],
  p: Float[Array, "B L N"],
  chosen: Int[Array, "B L k"],
  weights: Float[Array, "#B L"] | None,
  t: Float[Array, "B L"],
) -> Routing:
  """The losses and the loads of the router of one layer."""
  experts = p.shape[-1]
  weight = jnp.broadcast_to(jnp.float32(1) if weights is None else weights, p.shape[:2])
  total = jnp.sum(weight)

  def mean(values):
    return jnp.einsum("bl,bl...->...", weight, values) / jnp.where(total > 0, total, 1.0)

  picked = jnp.sum(chosen[..., None] == jnp.arange(experts), axis=2, dtype=jnp.float32)
  picked = picked / chosen.shape[-1]
  z = jax.nn.logsumexp(logits, axis=-1) ** 2
  return Routing(experts * jnp.sum(mean(picked) * mean(p)), mean(z), loads(picked, weight, t))


def loads(
  picked: Float[Array, "B L N"], weight: Float[Array, "B L"], t: Float[Array, "B L"]
) -> Float[Array, " levels"]:
  """float32 [levels]: N times the share of choices that fell on the fullest expert, at each of
  `LEVELS`. It is 1 where all experts are chosen alike, N where one expert is chosen alone, and 0
  where the batch has no token of this level.

  Args:
    picked: the share of a token's choices that fell on each expert.
    weight: what each token weighs.
    t: the time of each token.
  """
  at_level = jnp.ceil(t * (len(LEVELS) - 1))[..., None] == jnp.arange(len(LEVELS))
  chosen = jnp.einsum("bls,bln->sn", weight[..., None] * at_level, picked)
  total = jnp.sum(chosen, axis=1)
  return picked.shape[-1] * jnp.max(chosen, axis=1) / jnp.where(total > 0, total, 1.0)


def mixture(
  x: Float[Array, "B L D"],
  share: Float[Array, "B L k"],
  chosen: Int[Array, "B L k"],
  up: Float[Array, "N D F"],
  gate: Float[Array, "N D F"] | None,
  down: Float[Array, "N F D"],
) -> Float[Array, "B L D"]:
  """Σ_j share[..., j] · MLP_{chosen[..., j]}(x).

  On a mesh every device has the tokens of its rows and positions, all experts of its part of the
  expert axis, and of each its part over tensor; the parts of the result are summed over both. No
  token travels, because all E devices of an expert axis hold the same tokens, as those of a tensor
  axis do. An all-to-all would move k / E copies of each token there and back and then gather the
  results, where the sum moves each result twice. A device computes only the choices that fell on
  its own experts.
  """
  sizes = mesh_sizes()
  experts = split("experts", up.shape[0], sizes)
  hidden = split("expert_mlp", up.shape[2], sizes)

  def flat(a):
    return a.reshape(-1, a.shape[-1])

  def part(x, share, chosen, up, gate, down):
    first = jax.lax.axis_index(experts) * up.shape[0] if experts else 0
    out = own_experts(flat(x), flat(share), flat(chosen) - first, up, gate, down).reshape(x.shape)
    return jax.lax.psum(out, experts + hidden) if experts + hidden else out

  if all(size == 1 for size in sizes.values()):
    return part(x, share, chosen, up, gate, down)
  tokens = token_spec(*x.shape[:2], None)
  inner = hidden or None
  wide = PartitionSpec(experts or None, None, inner)
  in_specs = (tokens, tokens, tokens, wide, wide, PartitionSpec(experts or None, inner))
  sharded = jax.shard_map(part, in_specs=in_specs, out_specs=tokens, check_vma=False)
  return sharded(x, share, chosen, up, gate, down)


def own_experts(
  x: Float[Array, "T D"],
  share: Float[Array, "T k"],
  expert: Int[Array, "T k"],
  up: Float[Array, "N D F"],
  gate: Float[Array, "N D F"] | None,
  down: Float[Array, "N F D"],
) -> Float[Array, "T D"]:
  """[T, D]: the results of the experts of each token, weighted by `share` and summed. Choices
  outside of 0 … N-1 add nothing and cost nothing.

  There is one row per token and choice. Rows are sorted by expert, so that each expert is one
  product with a run of rows (`kernels.grouped`).
  """
  tokens, per_token = expert.shape
  experts = up.shape[0]
  here = (expert >= 0) & (expert < experts)
  number = jnp.where(here, expert, experts).reshape(-1)
  order = jnp.argsort(number)
  place = jnp.argsort(order)
  sizes = jnp.sum(number[:, None] == jnp.arange(experts), axis=0, dtype=jnp.int32)
  rows = jnp.repeat(x, per_token, axis=0, total_repeat_length=tokens * per_token)
  rows = _permuted(rows, order, place)
  hidden = grouped_matmul(rows, up, sizes)
  hidden = _activated(hidden, None if gate is None else grouped_matmul(rows, gate, sizes))
  out = _permuted(grouped_matmul(hidden, down, sizes), place, order)
  return jnp.einsum("tk,tkd->td", jnp.where(here, share, 0), out.reshape(tokens, per_token, -1))


@jax.custom_vjp
def _permuted(
  rows: Float[Array, "M D"], order: Int[Array, " M"], place: Int[Array, " M"]
) -> Float[Array, "M D"]:
  """rows[order], where `place` is the inverse of the permutation `order`.

  The gradient is cotangent[place]. The gradient that jax derives is a sum by index, which is
  slower: jax does not know that no row is taken twice.
  """
  del place
  return rows[order]


def _permuted_forward(rows, order, place):
  return rows[order], place


def _permuted_backward(place, cotangent):
  return cotangent[place], None, None


_permuted.defvjp(_permuted_forward, _permuted_backward)


def _activated(hidden: Array, gated: Array | None) -> Array:
  return jax.nn.gelu(hidden) if gated is None else jax.nn.silu(gated) * hidden
