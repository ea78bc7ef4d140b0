"""Slowed rotary positions and sliding windows, as config.json of the library transformers has them,
in our options and back.

`rope_scaling` and, in newer files, `rope_parameters` (which holds `rope_theta` too), of the types
linear, dynamic, llama3 and yarn; `sliding_window` with `use_sliding_window`, `max_window_layers` or
`layer_types`. The library's code was read for the keys and their defaults. The factor of YaRN is
that of the file, as in the newest version; some earlier ones took the ratio of
`max_position_embeddings` to `original_max_position_embeddings` instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from diffusion_text.model.pretrained.family import Config, need, refuse

# Types of scaling, and the keys that each may have beside "factor".
KNOWN = {
  "default": (),
  "linear": (),
  "dynamic": ("original_max_position_embeddings",),
  "llama3": ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
  "yarn": (
    *("original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"),
    *("mscale", "mscale_all_dim", "truncate"),
  ),
}
SLIDING, FULL = "sliding_attention", "full_attention"


def rope_options(config: Config) -> dict[str, Any]:
  """Our options of rotary positions: their base, and how they are slowed.

  Raises:
    ValueError: for a type of scaling that is unknown, and for keys that are missing or unknown.
  """
  section = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
  base = float(config.get("rope_theta") or section.pop("rope_theta", None) or 10_000.0)
  section.pop("rope_theta", None)
  refuse(dict(config) | section, partial_rotary_factor=(1, None))
  section.pop("partial_rotary_factor", None)
  kind = section.pop("rope_type", None) or section.get("type") or "default"
  section.pop("type", None)
  if kind not in KNOWN:
    raise ValueError(
      f"config.json scales rotary positions by rope_type={kind!r}, which the transformer here does"
      f" not do; it reads {', '.join(KNOWN)} (in rope_scaling or rope_parameters)"
    )
  wrong = sorted(section.keys() - {"factor", *KNOWN[kind]})
  if wrong:
    raise ValueError(
      f"config.json gives {wrong[0]}={section[wrong[0]]!r} to rope_type={kind!r}, which has the"
      f" keys factor{''.join(', ' + key for key in KNOWN[kind])}; remove it, if it is not used"
    )
  if kind == "default":
    return {"rope_base": base}
  options = {"rope_base": base, "rope_kind": kind}
  if kind != "linear":
    # For "dynamic" the library reads the longest row alone, in old versions and new ones.
    trained = None if kind == "dynamic" else section.get("original_max_position_embeddings")
    options["rope_trained_length"] = trained or need(config, "max_position_embeddings")
  options["rope_factor"] = _factor(config, section, kind)
  if kind == "llama3":
    options["rope_slow_turns"] = float(_of(section, kind, "low_freq_factor"))
    options["rope_fast_turns"] = float(_of(section, kind, "high_freq_factor"))
  if kind == "yarn":
    options["rope_slow_turns"] = float(section.get("beta_slow") or 1)
    options["rope_fast_turns"] = float(section.get("beta_fast") or 32)
    options["rope_gain"] = _gain(section, options["rope_factor"])
    options["rope_whole_pairs"] = bool(section.get("truncate", True))
  return options


def rope_config(options: Mapping[str, Any]) -> dict[str, Any]:
  """The keys of config.json for these options, the inverse of `rope_options`."""
  written = {"rope_theta": options["rope_base"]}
  kind = options.get("rope_kind", "plain")
  if kind == "plain":
    return written
  # Older versions of the library read "type".
  section = {"rope_type": kind, "type": kind, "factor": options["rope_factor"]}
  if kind != "linear":
    length = options["rope_trained_length"]
    section["original_max_position_embeddings"] = length
    longer = 1 if kind == "dynamic" else options["rope_factor"]
    written["max_position_embeddings"] = int(length * longer)
  if kind == "llama3":
    section["low_freq_factor"] = options["rope_slow_turns"]
    section["high_freq_factor"] = options["rope_fast_turns"]
  if kind == "yarn":
    section["beta_slow"] = options["rope_slow_turns"]
    section["beta_fast"] = options["rope_fast_turns"]
    section["attention_factor"] = options["rope_gain"]
    section["truncate"] = options["rope_whole_pairs"]
  return written | {"rope_scaling": section}


def window_options(config: Config, layers: int) -> dict[str, Any]:
  """Our options of windows, {} if no layer has one.

  Raises:
    ValueError: for kinds of layers that are unknown, or not as many as there are layers.
  """
  size = config.get("sliding_window")
  if not config.get("use_sliding_window", True) or size is None:
    return {}
  kinds = config.get("layer_types")
  if kinds is None:  # of Qwen2, the first ones see all
    first = need(config, "max_window_layers") if "use_sliding_window" in config else 0
    kinds = [SLIDING if number >= first else FULL for number in range(layers)]
  wrong = [kind for kind in kinds if kind not in (SLIDING, FULL)]
  if wrong or len(kinds) != layers:
    raise ValueError(
      f"config.json has layer_types={kinds!r} for {layers} layers; give one of {SLIDING!r} and"
      f" {FULL!r} for each layer"
    )
  full = tuple(number for number, kind in enumerate(kinds) if kind == FULL)
  return {} if len(full) == layers else {"window": int(size), "full_layers": full}


def window_config(options: Mapping[str, Any]) -> dict[str, Any]:
  """The keys of config.json for these options, in the manner of Qwen2 and Qwen3."""
  size, full = options.get("window", 0), options.get("full_layers", ())
  if not size:
    return {"use_sliding_window": False, "sliding_window": None}
  layers = options["layers"]
  first = next((number for number in range(layers) if number not in full), layers)
  kinds = [FULL if number in full else SLIDING for number in range(layers)]
  return {
    "use_sliding_window": True,
    "sliding_window": size,
    "max_window_layers": first,
    "layer_types": kinds,
  }


def _of(section: Mapping[str, Any], kind: str, key: str) -> Any:
  if section.get(key) is None:
    raise ValueError(f"config.json lacks {key!r} of rope_type={kind!r}; is the file complete?")
  return section[key]


def _factor(config: Config, section: Mapping[str, Any], kind: str) -> float:
  """The factor; of yarn, where it is not given, how many times as long rows may be."""
  trained = section.get("original_max_position_embeddings")
  if section.get("factor") is None and kind == "yarn" and trained:
    return need(config, "max_position_embeddings") / trained
  return float(_of(section, kind, "factor"))


def _gain(section: Mapping[str, Any], factor: float) -> float:
  """What cosines and sines are multiplied by (YaRN, arXiv 2309.00071; `mscale` is of DeepSeek)."""
  if section.get("attention_factor") is not None:
    return float(section["attention_factor"])

  def grown(scale):
    return 0.1 * scale * math.log(factor) + 1.0

  both = section.get("mscale"), section.get("mscale_all_dim")
  return grown(both[0]) / grown(both[1]) if all(both) else grown(1.0)
