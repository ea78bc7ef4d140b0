"""The field's own small networks that read the noise: SEDD (arXiv 2310.16834), UDLM (arXiv
2412.10193), Duo (arXiv 2506.10892), GIDD (arXiv 2503.04482), and MDLM if it is trained with time.

One network, a DiT with rotary positions. With c = silu(W₂ silu(W₁ waves(σ))), the embedding of one
number σ, each layer computes

  x + gate · attention(norm(x) · (1 + scale) + shift)      and the same with the MLP

where (shift, scale, gate) of both are a linear map of c; the last norm is shifted and scaled alike.
All of it is copied, no array is worked into others. What differs is what σ is, and what the logits
are:

  SEDD   σ = -log(1 - 0.999 t) or σ₀^(1-t) σ₁^t. With a mask, its output is a log-score: the logits
         - log(e^σ - 1) - log(V - 1), V being the rows of the table, of which the last is the mask,
         and 0 at the token that is read. Ours (`process/scores.py`) are log(V s), so the bias of
         our head is theirs plus log(V / (V - 1)), and the terms of σ are the process's. Without a
         mask its output is the logits themselves, as ours is. Our geometric schedule begins without
         noise, theirs at σ₀, and the network is told theirs
  UDLM   σ = -log(1 - 0.999 t); the logits are of the clean token given the others, no mask
  Duo    as UDLM
  GIDD   σ = t; the logits are of the clean token, and that of the mask is never answered. Random
         tokens are all but the mask there; here (`process/mixed.py`) they are all rows, one in V of
         which is the mask's as a token. That is a bound too, of a process that differs by as much

The networks see one σ per row; ours sees the time of each token, which is the same where a row has
one time, as in training, scoring and sampling without a prompt. Tokens of a prompt have t = 0 here.

Networks and names as in the released code (read; of GIDD in a copy of it), config.json of SEDD, Duo
and GIDD recalled. Held by a reference in tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from diffusion_text.model.pretrained import dit
from diffusion_text.model.pretrained.family import (
  Architecture,
  Config,
  Family,
  Folding,
  Names,
  need,
  refuse,
)
from diffusion_text.model.pretrained.mapping import Entry, layer_entries
from diffusion_text.types import Params

LAYER = dit.LAYER | {
  "adaLN_modulation.weight": ("modulation", "kernel"),
  "adaLN_modulation.bias": ("modulation", "bias"),
}
ONCE = {
  "sigma_map.mlp.0.weight": ("time", "inner", "kernel"),
  "sigma_map.mlp.0.bias": ("time", "inner", "bias"),
  "sigma_map.mlp.2.weight": ("time", "outer", "kernel"),
  "sigma_map.mlp.2.bias": ("time", "outer", "bias"),
  "output_layer.adaLN_modulation.weight": ("final_modulation", "kernel"),
  "output_layer.adaLN_modulation.bias": ("final_modulation", "bias"),
}
BUFFERS = (r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$",)
LOGIT_BIAS = "logit_bias"  # of GIDD: added to the logit of the token that is read


def network_options(config: Config, signal: str) -> dict[str, Any]:
  """The options of the network: those of `dit` without its time, and the time.

  Args:
    config: of the checkpoint, its keys at the top.
    signal: our `time_signal`.
  """
  refuse(config, causal=(False,), cfg=(False,), num_classes=(None,))
  width, heads = dit.size(config), need(config, "n_heads")
  return {
    "layers": need(config, "n_blocks"),
    "width": width,
    "heads": heads,
    "kv_heads": heads,
    "mlp_width": 4 * width,
    "norm": "layernorm",
    "norm_eps": 1e-5,
    "activation": "gelu",
    "mlp_bias": True,
    "head_bias": True,
    "time_conditioning": "adaln",
    "time_width": need(config, "cond_dim"),
    "time_signal": signal,
    "time_in_head": True,
  }


def entries(architecture: Architecture, names: Names, plus: float = 0.0) -> list[Entry]:
  """See `Family`. `plus` is added to the bias of the head."""
  layers, base = architecture.options["layers"], dit.base_of(names)
  once = [(base + name, path) for name, path in ONCE.items()]
  return [
    Entry(f"{base}vocab_embed.embedding", ("embedding",)),
    *(Entry(name, path, transposed=path[-1] == "kernel") for name, path in once),
    *layer_entries(layers, base + "blocks.{}.", LAYER),
    *dit.joined_entries(layers, base),
    Entry(f"{base}output_layer.norm_final.weight", ("final_norm", "scale")),
    Entry(f"{base}output_layer.linear.weight", ("head", "kernel"), transposed=True),
    Entry(f"{base}output_layer.linear.bias", ("head", "bias"), plus=plus),
  ]


def config_of(architecture: Architecture, kind: str) -> dict[str, Any]:
  """The keys of config.json that these networks share."""
  options = architecture.options
  return {
    "model_type": kind,
    "hidden_dim": options["width"],
    "n_blocks": options["layers"],
    "n_heads": options["heads"],
    "cond_dim": options["time_width"],
    "dropout": 0.0,
    "time_conditioning": True,
    "vocab_size": architecture.vocab_size,
  }


# MDLM, UDLM and Duo: the noise of the linear schedule.


def _is_timed_mdlm(config: Config) -> bool:
  return config.get("model_type") == "mdlm" and bool(config.get("time_conditioning"))


def mdlm_architecture(config: Config, names: Names) -> Architecture:
  """See `Family`."""
  del names
  rows = need(config, "vocab_size")
  mask = config.get("mask_token_id", rows - 1)
  return Architecture(network_options(config, "loglinear"), rows, mask)


def mdlm_config(architecture: Architecture) -> dict[str, Any]:
  """See `Family`."""
  return config_of(architecture, "mdlm") | {"mask_token_id": architecture.mask_id}


def uniform_architecture(config: Config, names: Names) -> Architecture:
  """See `Family`. No token is a mask, also where the tokenizer has one."""
  del names
  refuse(config, time_conditioning=(True,))
  return Architecture(network_options(config, "loglinear"), need(config, "vocab_size"))


def uniform_process(config: Config) -> dict[str, Any]:
  """See `Family`."""
  del config
  return {"name": "uniform"}


def _uniform(name: str, model_types: tuple[str, ...]) -> Family:
  return Family(
    name=name,
    model_types=model_types,
    reads="whole",
    architecture=uniform_architecture,
    entries=entries,
    config=lambda architecture: config_of(architecture, name),
    buffers=BUFFERS,
    process=uniform_process,
  )


MDLM = Family(
  name="mdlm_timed",
  model_types=("mdlm",),
  matches=_is_timed_mdlm,
  reads="whole",
  architecture=mdlm_architecture,
  entries=entries,
  config=mdlm_config,
  buffers=BUFFERS,
)
UDLM = _uniform("udlm", ("udlm",))
DUO = _uniform("duo", ("duo", "DUO"))

# SEDD, whose config.json has sections and no model_type.


def _is_sedd(config: Config) -> bool:
  return config.get("model_type") == "sedd" or {"graph", "noise", "tokens"} <= config.keys()


def _sedd_kind(config: Config) -> tuple[bool, dict[str, Any]]:
  """(whether there is a mask, our options of the noise)."""
  graph, noise = need(config, "graph"), need(config, "noise")
  refuse(graph, type=("absorb", "uniform"))
  refuse(noise, type=("loglinear", "geometric"))
  absorbs = need(graph, "type") == "absorb"
  refuse(need(config, "model"), scale_by_sigma=(absorbs,))
  if need(noise, "type") == "loglinear":
    return absorbs, {"time_signal": "loglinear"}
  sigmas = float(need(noise, "sigma_min")), float(need(noise, "sigma_max"))
  return absorbs, {"time_signal": "geometric", "time_sigmas": sigmas}


def sedd_architecture(config: Config, names: Names) -> Architecture:
  """See `Family`."""
  del names
  absorbs, noise = _sedd_kind(config)
  tokens = need(config, "tokens")
  options = network_options(need(config, "model"), noise["time_signal"]) | noise
  return Architecture(options, tokens + absorbs, tokens if absorbs else None)


def sedd_entries(architecture: Architecture, names: Names) -> list[Entry]:
  """See `Family`."""
  rows = architecture.vocab_size
  masked = architecture.mask_id is not None
  return entries(architecture, names, plus=math.log(rows / (rows - 1)) if masked else 0.0)


def sedd_config(architecture: Architecture) -> dict[str, Any]:
  """See `Family`."""
  shared, options = config_of(architecture, "sedd"), architecture.options
  absorbs = architecture.mask_id is not None
  signal = options.get("time_signal")
  noise = {"type": signal if signal in ("loglinear", "geometric") else "loglinear"}
  if signal == "geometric":
    noise |= dict(zip(("sigma_min", "sigma_max"), options["time_sigmas"]))
  model = {key: shared[key] for key in ("n_blocks", "n_heads", "cond_dim", "dropout")}
  model |= {"hidden_size": shared["hidden_dim"], "scale_by_sigma": absorbs}
  return {
    "model_type": "sedd",
    "graph": {"type": "absorb" if absorbs else "uniform"},
    "noise": noise,
    "model": model,
    "tokens": architecture.vocab_size - absorbs,
  }


def sedd_process(config: Config) -> dict[str, Any]:
  """See `Family`."""
  absorbs, noise = _sedd_kind(config)
  process = {"name": "masked" if absorbs else "uniform", "prediction": "score"}
  if noise["time_signal"] == "geometric":
    low, high = noise["time_sigmas"]
    process["schedule"] = {"name": "geometric", "sigma_min": low, "sigma_max": high}
  return process


SEDD = Family(
  name="sedd",
  model_types=("sedd",),
  matches=_is_sedd,
  reads="whole",
  architecture=sedd_architecture,
  entries=sedd_entries,
  config=sedd_config,
  buffers=BUFFERS,
  process=sedd_process,
)

# GIDD: the time itself, and masks and random tokens together.


def gidd_architecture(config: Config, names: Names) -> Architecture:
  """See `Family`. config.json does not say which token is the mask: the tokenizer does."""
  del names
  mask = config.get("mask_token_id")
  return Architecture(network_options(config, "time"), need(config, "vocab_size"), mask)


def gidd_config(architecture: Architecture) -> dict[str, Any]:
  """See `Family`."""
  written = config_of(architecture, "gidd")
  written |= {"hidden_size": written.pop("hidden_dim")}
  mask = architecture.mask_id
  return written if mask is None else written | {"mask_token_id": mask}


def gidd_process(config: Config) -> dict[str, Any]:
  """See `Family`."""
  return {"name": "mixed", "mixing": "peaked", "share": float(need(config, "p_uniform"))}


def _logit_bias_shape(
  config: Config, architecture: Architecture, names: Names
) -> dict[str, tuple[int, ...]]:
  del config, architecture
  return {name: (1, 1, 1) for name in names if name.endswith(LOGIT_BIAS)}


def _check_logit_bias(params: Params, read: Callable[[str], np.ndarray], names: Names) -> None:
  del params
  for name in (name for name in names if name.endswith(LOGIT_BIAS)):
    bias = float(read(name).reshape(()))
    if bias:
      raise ValueError(
        f"{name} is {bias}: it is added to the logit of each token that is read, which the"
        " transformer here does not do; 0 is published"
      )


GIDD = Family(
  name="gidd",
  model_types=("gidd",),
  reads="whole",
  architecture=gidd_architecture,
  entries=entries,
  config=gidd_config,
  buffers=BUFFERS,
  process=gidd_process,
  folding=Folding(_logit_bias_shape, (), _check_logit_bias, lambda params: iter(())),
)
