"""What pretrained weights are worth as the start of another system, at equal updates of the same
network on the same rows: a table of starts and their controls.

The bound is that of held-out text, with its standard error over rows; the draws of times and noise
are the same for all lines. Beside it stand the entropy of the tokens of samples and of the text,
and how far the network has moved, |W - W_start| / |W_start| over its matrices.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from diffusion_text.core.numerics import cross_entropy
from diffusion_text.core.options import member, option
from diffusion_text.core.prng import row_keys, token_keys
from diffusion_text.experiment import registry
from diffusion_text.experiment import run as runs
from diffusion_text.experiment.build import Experiment, build, config_json
from diffusion_text.experiment.checks import checkpoints
from diffusion_text.objective import engine
from diffusion_text.studies.bound_variance import chosen_decoding
from diffusion_text.studies.convert import convert
from diffusion_text.studies.measures import markdown, pooled_entropy, write
from diffusion_text.train import latest_step
from diffusion_text.types import Batch, Model, Params

log = logging.getLogger(__name__)

HEADER = (
  *("start", "updates", "tokens", "bound, nats/token", "bits/char"),
  *("entropy of samples, nats", "|W - W₀| / |W₀|"),
)


@member
class Settings:
  """How long and on how much text every line is trained and scored."""

  steps: int = option(200, "updates", ge=1)
  rows: int = option(64, "rows of held-out text", ge=2)
  draws: int = option(1, "draws of time and noise per row", ge=1)
  samples: int = option(16, "texts that are drawn; 0: none", ge=0)
  sampler_steps: int = option(32, "calls of a sampler that counts steps", ge=1)


class Start(NamedTuple):
  """A line of the table.

  Attributes:
    pretrained: Whether the network begins with the weights.
    change: config -> None, what the line changes in it.
    share: Its updates, over those of the settings.
    table: What the table of a process of vectors is made of (`convert`); the network is then from
      scratch.
  """

  pretrained: bool = True
  change: Callable[[ConfigDict], Any] = dict
  share: float = 1.0
  table: str | None = None


def _unshifted(config: ConfigDict) -> None:
  config.context.answer_shift = 0


def _at_once(config: ConfigDict) -> None:
  config.context.steps = 1


STARTS: Mapping[str, Start] = {
  "weights": Start(),
  "untrained": Start(share=0.0),
  "scratch": Start(pretrained=False),
  "scratch_longer": Start(pretrained=False, share=3.0),
  "unshifted": Start(change=_unshifted),
  "at_once": Start(change=_at_once),
  "exact": Start(table="exact"),
  "principal": Start(table="principal"),
  "random": Start(table="random"),
}
MEANING = {
  "weights": "weights",
  "untrained": "weights, not trained further",
  "scratch": "scratch (control)",
  "scratch_longer": "scratch, three times the updates",
  "unshifted": "weights, answers at their own position (control)",
  "at_once": "weights, without annealing (control)",
  "exact": "table of the weights",
  "principal": "table of the weights, first principal components",
  "random": "random table (control)",
}


class Line(NamedTuple):
  """What came of a start: numbers of HEADER, the entropy of as many rows of held-out text, and the
  log-SNR at which the bound decodes tokens (of a process that has one: where the bound on
  validation text is lowest, unless the config says where)."""

  start: str
  updates: int
  tokens: int
  nats: float
  nats_error: float
  bits: float
  bits_error: float
  entropy: float | None
  moved: float | None
  text_entropy: float | None
  decode_at: float | None = None


def run(
  source: str, config: ConfigDict, starts: list[str], settings: Settings, workdir: pathlib.Path
) -> str:
  """The table as Markdown, also written to the workdir.

  Args:
    source: Weights as `experiments.convert` reads them, or a workdir of ours.
    config: Of the system; its network is that of the weights.
    starts: Keys of STARTS.
    settings: How long.
    workdir: A workdir of each start is made in it.

  Raises:
    ValueError: for an unknown start, and what `convert` and `train_workdir` raise.
  """
  registry.check_names("--starts", starts, STARTS)
  if (workdir / "adaptation.json").exists():
    raise ValueError(f"--workdir={workdir} holds a result already; use another one")
  lines: list[Line] = []
  for name in starts:
    lines.append(_line(name, source, config, settings, workdir / name))
    gc.collect()  # of large networks no two states should be held
    log.info("%s", report(lines[-1:]))
  text, kept = report(lines), [line._asdict() for line in lines]
  write(workdir, "adaptation", text, lines=kept, settings=dataclasses.asdict(settings))
  return text


def report(lines: list[Line]) -> str:
  """The table."""
  rows = [
    (
      MEANING[line.start] + _decoding(line),
      str(line.updates),
      f"{line.tokens:,}",
      f"{line.nats:.3f} ± {line.nats_error:.3f}",
      f"{line.bits:.3f} ± {line.bits_error:.3f}",
      "" if line.entropy is None else f"{line.entropy:.2f}",
      "" if line.moved is None else f"{line.moved:.3f}",
    )
    for line in lines
  ]
  if lines[0].text_entropy is not None:
    rows.append(("held-out text", "", "", "", "", f"{lines[0].text_entropy:.2f}", ""))
  return markdown(HEADER, rows)


def _decoding(line: Line) -> str:
  """Where the bound of a line decodes tokens, in words; nothing for a process without a log-SNR."""
  return "" if line.decode_at is None else f", decoded at log-SNR {line.decode_at:.2f}"


def _line(
  name: str, source: str, config: ConfigDict, settings: Settings, place: pathlib.Path
) -> Line:
  """Trains and scores one start."""
  start = STARTS[name]
  updates = round(start.share * settings.steps)
  own = ConfigDict(config.to_dict())
  start.change(own)
  own.train.update({"steps": max(updates, 1), "evaluate_every": 10**9, "save_every": 10**9})
  own.evaluate.max_rows = own.evaluate.batch_size
  workdir, first = _begun(start, source, own, place)
  if updates:
    experiment = build(ConfigDict(_config_of(workdir).to_dict()))
    runs.train_workdir(experiment, str(workdir), terminal=False)
    del experiment
  trained = runs.load(str(workdir), _fewer_calls(own, settings))
  how = {"num_draws": settings.draws, "max_rows": settings.rows}
  scored, decode_at = chosen_decoding(trained, **how)
  likelihood = runs.score(scored.experiment, scored.params, split="test", **how)
  return Line(
    start=name,
    updates=trained.step,  # fewer than asked for, where a limit of time ends the run
    tokens=trained.step * trained.experiment.train.batch_size * trained.experiment.data.length,
    nats=likelihood.nats_per_token,
    nats_error=likelihood.standard_error,
    bits=likelihood.bits_per_char,
    bits_error=likelihood.bits_per_char_error,
    entropy=_entropy(trained, settings.samples),
    moved=None if first is None else moved(first, trained.params["network"]),
    text_entropy=_text_entropy(trained.experiment, settings.samples),
    decode_at=decode_at,
  )


def _begun(
  start: Start, source: str, config: ConfigDict, place: pathlib.Path
) -> tuple[pathlib.Path, Params | None]:
  """(a workdir that is to be trained, the network that it begins with; None: from scratch)."""
  if _is_workdir(source):
    return place, _of_workdir(start, source, config, place)
  converted = place / "converted"
  convert(source, str(converted), config, keep_system=True, table=start.table)
  if start.pretrained and start.table is None:
    params = runs.load(str(converted)).params
    return converted, jax.tree.map(np.asarray, params["network"])
  if start.pretrained:
    return converted, None
  text = (converted / "config.json").read_text()
  (place / "config.json").write_text(text)
  return place, None


def _is_workdir(source: str) -> bool:
  return latest_step(checkpoints(source)) is not None


def _config_of(workdir: pathlib.Path) -> ConfigDict:
  """The config of a workdir."""
  return runs.read_run_config(str(workdir))


def _of_workdir(
  start: Start, source: str, config: ConfigDict, place: pathlib.Path
) -> Params | None:
  """Writes the config of a run that begins with the weights of another run of ours, or from scratch
  with its network; returns these weights."""
  if start.table is not None or not start.share:
    raise ValueError(
      f"--from={source} is a workdir: starts that take a table, or train nothing, are of weights"
      " of other libraries; export it first with experiments.export"
    )
  theirs = _config_of(pathlib.Path(source))
  config.model = theirs.model
  for key in ("corpus", "path", "tokenizer", "vocab_size", "tokenizer_path", "length"):
    if key in theirs.data:
      config.data[key] = theirs.data[key]
  params = None
  if start.pretrained:
    config.train.initialize_from = source
    params = jax.tree.map(np.asarray, runs.load(source).params["network"])
  place.mkdir(parents=True)
  (place / "config.json").write_text(config_json(config))
  return params


def _fewer_calls(config: ConfigDict, settings: Settings) -> list[tuple[str, Any]]:
  """What is set to draw samples with few calls, if the sampler counts them."""
  section = config.sampler.to_dict()
  if not registry.counts_steps("sampler", section):
    return []
  changed = registry.with_steps("sampler", section, settings.sampler_steps)
  return [(f"sampler.{key}", value) for key, value in changed.items() if key != "name"]


def _entropy(trained: runs.Trained, samples: int) -> float | None:
  """The entropy of the tokens of samples, in nats; None without any."""
  if not samples:
    return None
  rows = runs.open_rows(trained.experiment.tokenizer, samples, trained.experiment.data.length)
  _, drawn = runs.generate(trained, rows, num=samples, seed=0)
  return pooled_entropy(np.asarray(drawn.ids))


def _text_entropy(experiment: Experiment, rows: int) -> float | None:
  """The entropy of the tokens of so many rows of held-out text, in nats; None for none."""
  if not rows:
    return None
  held = [np.asarray(batch.ids) for batch, _ in runs.held_out(experiment, "test", rows)]
  return pooled_entropy(np.concatenate(held)[:rows])


def moved(first: Params, last: Params) -> float:
  """|last - first| / |first| over the matrices that both have, rows that one lacks left out."""
  far = size = 0.0
  theirs = dict(jax.tree_util.tree_leaves_with_path(last))
  for path, leaf in jax.tree_util.tree_leaves_with_path(first):
    if leaf.ndim < 2 or path not in theirs:
      continue
    here = np.asarray(theirs[path], np.float32)
    rows = min(len(leaf), len(here))
    far += float(np.sum((here[:rows] - leaf[:rows]) ** 2, dtype=np.float64))
    size += float(np.sum(leaf[:rows] ** 2, dtype=np.float64))
  return (far / size) ** 0.5 if size else 0.0


def own_score(
  model: Model, params: Params, ids: Int[Array, "B L"], active: Bool[Array, "B L"]
) -> Float[Array, " B"]:
  """float32 [B]: the mean log-probability that the network gives the tokens of a text which it
  reads as they are, over the `active` ones.

  By this score AR2Diff (arXiv 2401.17181) keeps the best of 8 texts. It is no likelihood: each
  token is read while it is scored.
  """
  batch = Batch(ids, observed=~active)
  process, own = model.process, params["process"]
  t = jnp.zeros(ids.shape, jnp.float32)
  inputs = process.inputs(own, process.clean(own, ids), t)
  keys = token_keys(row_keys(0, ids.shape[0]), ids.shape[1])
  noise = process.inputs(own, process.prior(own, keys), t + 1)
  rows = model.context.sampling_rows(inputs, noise, t, batch)
  answer = model.network.apply(params["network"], rows)

  def log_prob(head, tokens):
    features, ids = tokens
    return -cross_entropy(head(features), ids)

  found = engine.map_tokens(model, log_prob, answer.head, active, (answer.features, ids))
  return jnp.sum(found, axis=1) / jnp.maximum(jnp.sum(active, axis=1), 1)
