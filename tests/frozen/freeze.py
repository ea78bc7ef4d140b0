"""Writes what commit 3aad1fc, the last before the seams were rebuilt, makes of its configs.

One .npz per case, in the folder of --out. Without further flags these are the files beside this
script: one config for each pair of a process and an objective. With --all every config is a case.
From the root of the repository:

  git worktree add ../old 3aad1fc
  cd ../old
  PYTHONPATH=. JAX_PLATFORMS=cpu python ../main/tests/frozen/freeze.py --all --out=DIR

Here `main` is the folder of the repository. The files are the same bit for bit each time, with the
same version of jax on the same kind of CPU. A case takes half a minute.

Fields are [B, L] unless something else is said:

  meta                   JSON: case, config, differs (where the config differs from its base), what
                         was zeroed, the step of training, the names of scalars and of leaves
  in/ids given weights segment   the batch
  in/t speed network_time        as the timing drew them: 0 for given tokens; speed is dt / dtau
  in/tau [B, units]      the clock, where a timing has one; in/expected: the cost that it expects
  in/state               z_t, ids or vectors; in/state2: the second draw, where there are two
  in/s, in/step_keys     where a step goes from t, and the data of its keys
  params/…               the parameters that names do not give (`inputs.leaf_value`)
  network/logits [B, L, V]       of the last reading; logits_first: of the first, where the network
                         is told its answer; logits_anchor: of the first of two stages
  process/…              see `old_process`; named as they are today
  objective/scalars      total, count, sums, gradient norms, by the names in meta
  objective/leaf_grad_norms      by the names in meta
  objective/tokens/…     the terms of each token, as the objective sums them

What is not frozen, and is held to theory by other tests:

  - Objectives of configs whose path is learned: functions of the process alone, at the start of the
    path. The same config on a fixed path of the same window is a case of its own.
  - A curriculum whose tokens are soft: they are drawn inside the objective. It is frozen after the
    curriculum, where it is the bound of the hard tokens.
  - More than one appended mask, and rewards: both are drawn inside, so there is at most one mask,
    and the reward has no weight.
  - Draws of times and of noise, and the reconstruction and rounding terms of Gaussian processes.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import pathlib
import pkgutil
import time
from typing import Any

import jax
import numpy as np
from inputs import (
  APPENDED,
  BLOCK,
  CHUNK,
  EXPERTS,
  FIRST_STAGE_LAYERS,
  FIXED_PATH,
  LENGTH,
  NETWORK,
  REWARD_WEIGHT,
  VECTOR_WIDTH,
  VOCABULARY,
  corpus_counts,
)

# The case of each process and objective that occur together.
PAIRS = {
  ("masked", "bound"): "mdlm",
  ("masked", "cross_entropy"): "llada",
  ("masked", "anchored"): "adlm",
  ("masked", "mask_agnostic"): "mask_agnostic",
  ("mixed", "bound"): "hdlm",
  ("mixed", "reweighted"): "gidd",
  ("uniform", "bound"): "udlm",
  ("uniform", "gaussian_curriculum"): "duo",
  ("token_masked", "bound"): "diffusionbert",
  ("token_masked", "reinforce"): "genmd4",
  ("embedding", "bound"): "plaid_fixed",
  ("embedding", "cross_entropy"): "cdcd_fixed",
  ("embedding", "mse_rounding"): "diffusion_lm",
  ("embedding", "reinforced_conditioning"): "trec",
  ("simplex", "cross_entropy"): "tess",
  ("distance", "cross_entropy"): "smoothie",
}
SECTIONS = ("data", "process", "schedule", "timing", "objective", "model")


def configured(case: str) -> Any:
  """The config of a case, made small, and with nothing left to a coin."""
  c = importlib.import_module(f"configs.{FIXED_PATH.get(case, case)}").get_config("micro")
  c.data.update({"length": LENGTH, "tokenizer": "characters", "vocab_size": None})
  c.model.update({**NETWORK, "dropout": 0.0})
  c.objective.chunk = CHUNK
  if c.process.width is not None:
    c.process.width = VECTOR_WIDTH
  if c.model.anchor_layers is not None:
    c.model.anchor_layers = FIRST_STAGE_LAYERS
  if c.model.experts is not None:
    c.model.update(EXPERTS)
  if c.timing.block_size is not None:
    c.timing.block_size = BLOCK
  if c.timing.width is not None:
    c.timing.width = BLOCK
  if c.objective.self_conditioning is not None:
    c.objective.self_conditioning = 1.0
  if c.objective.name == "mask_agnostic":
    c.objective.appended = APPENDED
  if c.objective.name == "reinforced_conditioning":
    c.objective.reward_weight = REWARD_WEIGHT
  if case in FIXED_PATH:
    _fix_path(c)
  return c


def _fix_path(c: Any) -> None:
  """Puts the line through the same window in the place of a learned path."""
  window = {"log_snr_max": c.schedule.log_snr_max, "log_snr_min": c.schedule.log_snr_min}
  for key in c.schedule:
    with c.ignore_type():
      c.schedule[key] = None
  c.schedule.update({"name": "log_snr", **window})


def differing(c: Any) -> dict[str, Any]:
  """{"section.key": value} where a config differs from the base of its size."""
  base = importlib.import_module("configs.base").config("micro")
  return {
    f"{section}.{key}": value
    for section in SECTIONS
    for key, value in c[section].items()
    if value != base[section][key]
  }


def frozen(case: str) -> dict[str, np.ndarray]:
  """Everything of one case, by field."""
  import old_code

  old = old_code.Old(configured(case))
  stored = old.stored()
  fields = {f"in/{name}": value for name, value in stored.items()}
  fields |= {f"params/{name}": leaf for name, leaf in old.stored_params().items()}
  predictions = old.predictions(stored)
  fields |= {f"network/{name}": value for name, value in predictions.items()}
  functions = old.process_functions(stored, predictions["logits"])
  fields |= {f"process/{name}": value for name, value in functions.items()}
  meta = {
    "case": case,
    "config": FIXED_PATH.get(case, case),
    "differs": differing(old.config),
    "learned_path": old.learned_path,
    "progress_step": old.experiment.train.steps,
    "corpus_counts": corpus_counts().tolist(),
    "vocab_size": VOCABULARY,
    "zeroed": ["weighted_ends"],
  }
  if old.gaussian:
    stored["signal"] = np.asarray(functions["signal"])
    meta["zeroed"] += ["reconstruction", "rounding"]
  if not old.learned_path:
    result = {name: np.asarray(value) for name, value in old.objective(stored).items()}
    scalars = sorted(name for name, value in result.items() if value.ndim == 0)
    fields |= {f"objective/{name}": value for name, value in result.items() if value.ndim}
    fields["objective/scalars"] = np.array([result[name] for name in scalars], np.float32)
    meta |= {"leaf_names": old.leaf_names, "scalar_names": scalars}
  fields["meta"] = np.array(json.dumps(meta, sort_keys=True))
  return {name: checked(name, value) for name, value in fields.items()}


def checked(name: str, value: Any) -> np.ndarray:
  """The value as an array. Raises ValueError for a type that a file should not hold, and says so
  where numbers are not finite.
  """
  value = np.asarray(value)
  if value.dtype not in (np.float32, np.int32, np.uint32, np.bool_) and value.dtype.kind != "U":
    raise ValueError(f"{name} is {value.dtype}; use numbers of 32 bits, bools or a text")
  if value.dtype == np.float32 and not np.isfinite(value).all():
    print(f"  not finite: {name}: {np.sum(~np.isfinite(value))} of {value.size}")
  return value


def require_old_code() -> None:
  """Returns nothing. Ends the program where `diffusion_text` is not that of commit 3aad1fc."""
  if importlib.util.find_spec("diffusion_text.build") is None:
    found = importlib.import_module("diffusion_text").__file__
    raise SystemExit(
      f"{found} is not the code of commit 3aad1fc: it has no diffusion_text.build; run this with"
      " PYTHONPATH=. from a worktree of that commit, as the head of this file says"
    )


def config_names() -> list[str]:
  """All configs of the old code. Ends the program if two choices occur together without a case."""
  modules = pkgutil.iter_modules(importlib.import_module("configs").__path__)
  names = sorted(module.name for module in modules if module.name != "base")
  found = {(c.process.name, c.objective.name) for c in map(configured, names)}
  if found != PAIRS.keys():
    raise SystemExit(f"PAIRS and the configs differ by {sorted(found ^ PAIRS.keys())}")
  return names


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--out", type=pathlib.Path, required=True, help="the folder of the files")
  parser.add_argument("--all", action="store_true", help="every config, not one per pair")
  parser.add_argument("--only", help="cases, as in mdlm,trec")
  options = parser.parse_args()
  require_old_code()
  names = config_names()
  cases = list(PAIRS.values())
  if options.all:
    cases += [name for name in names if name not in cases]
  if options.only:
    cases = options.only.split(",")
  options.out.mkdir(parents=True, exist_ok=True)
  for case in cases:
    begun, path = time.time(), options.out / f"{case}.npz"
    np.savez_compressed(path, **frozen(case))
    print(f"{time.time() - begun:.0f} s, {case}: {path.stat().st_size} bytes", flush=True)
    jax.clear_caches()


if __name__ == "__main__":
  main()
