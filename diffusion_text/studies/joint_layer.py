"""The quality of texts with and without the extra layer of `contrib.joint_layer`, where several
tokens are drawn per call: on two Markov chains of known law, with a small masked model.

A text is invalid if it makes a step that the chain never makes. "independent" draws the tokens of a
call from their own distributions. "blind", the control, is a layer that never sees drawn tokens.
"one per call" is the best that the layer could reach. Costs are in calls of the network: a pass of
the layer is 1 / layers of a call.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from diffusion_text import train
from diffusion_text.contrib.joint_layer import GROUP, ORDERS, JointLayer
from diffusion_text.contrib.joint_sampler import Joint
from diffusion_text.core.options import member, option
from diffusion_text.core.prng import row_keys
from diffusion_text.core.trees import split
from diffusion_text.experiment.build import loss
from diffusion_text.experiment.registry import check_names
from diffusion_text.sampler.budget import EvenShare
from diffusion_text.sampler.loop import sample
from diffusion_text.sampler.reveal import Reveal
from diffusion_text.studies.chains import CHAINS, Chain, Quality, as_dicts, masked_model, quality
from diffusion_text.studies.measures import markdown, write
from diffusion_text.types import Batch, DataFacts, Model, Objective, Params, Sampler

HEADER = ("chain", "tokens per call", "drawn", "calls", "cost, calls", "invalid", "bigram TV")
HEADER = (*HEADER, "token entropy, nats")


@member
class Settings:
  """How the study is run."""

  layers: int = option(4, "of the network", ge=1)
  width: int = option(64, "of the network and the layer", ge=2)
  steps: int = option(1200, "updates of the network, of 64 rows", ge=1)
  layer_steps: int = option(400, "updates of each layer, of 32 rows", ge=1)
  own_rows: int = option(
    2048, "rows that the network writes for the layer to learn from; 0: those of the chain", ge=0
  )
  order: str = option("random", "of the places: a score of contrib.joint_layer.ORDERS")
  tokens: tuple[int, ...] = option((2, 4, 8), "K, tokens per call")
  rows: int = option(1024, "texts of each line of the table", ge=2)
  seed: int = option(0, "of everything", ge=0)


class Line(NamedTuple):
  """One line of the table.

  Attributes:
    chain, name: the chain, and how tokens are drawn.
    tokens: K, tokens per call.
    calls: of the network.
    cost: in calls; a pass of the layer is 1 / layers of one.
    quality: of the texts.
  """

  chain: str
  name: str
  tokens: int
  calls: int
  cost: float
  quality: Quality


def fit_group(
  model: Model,
  params: Params,
  objective: Objective,
  batches: Iterable[Batch],
  steps: int,
  *,
  group: str = GROUP,
  seed: int = 0,
  learning_rate: float = 2e-3,
) -> tuple[Params, list[Mapping[str, float]]]:
  """(all parameters, the metrics of each step): one group of parameters is fitted from scratch, all
  others are frozen.
  """
  optimizer = train.make_optimizer(
    learning_rate=learning_rate, steps=steps, warmup_steps=steps // 20
  )
  key = train.named_key(seed, "init", 0)
  facts = DataFacts(1, model.process.vocab_size)
  everything = {**params, **objective.init(model, key, facts)}
  moves = functools.partial(split, everything, lambda path: path[0] == group)
  state = train.create_state(moves, optimizer)
  loss_fn = functools.partial(loss, model, objective)
  step = jax.jit(train.make_train_step(loss_fn, optimizer, seed=seed, ema_decay=0.99))
  reports = []
  for _, batch in zip(range(steps), batches):
    state, metrics = step(state, batch)
    reports.append(metrics)
  return state.eval_params, [{k: float(v) for k, v in each.items()} for each in reports]


def batches_of(rows: Int[np.ndarray, "n N"], size: int, seed: int) -> Iterator[Batch]:
  """Endless batches of `size` rows, drawn with replacement."""
  rng = np.random.default_rng(seed)
  while True:
    yield Batch(rows[rng.integers(0, len(rows), size)])


def texts(
  model: Model, params: Params, sampler: Sampler, chain: Chain, rows: int, seed: int
) -> tuple[Int[np.ndarray, "B N"], int]:
  """(rows, calls)."""
  result = sample(model, params, sampler, row_keys(seed, rows), rows=rows, length=chain.length)
  return np.asarray(result.ids), int(result.calls)


def study(chain: Chain, settings: Settings) -> tuple[list[Line], dict[str, Any]]:
  """(the lines of a chain, what the layers were fitted to: nats per token of text)."""
  order, rows, seed = ORDERS[settings.order](), settings.rows, settings.seed
  sizes = settings.layers, settings.width, settings.steps
  model, params = masked_model(chain, *sizes, seed)
  draw = functools.partial(texts, model, chain=chain, rows=rows, seed=seed)

  def revealed(calls):
    return Reveal(score=order, budget=EvenShare(steps=calls))

  own = chain.sample(np.random.default_rng(seed + 1), 8192)
  if settings.own_rows:
    parts = range(-(-settings.own_rows // rows))
    one = revealed(chain.length)
    own = [texts(model, params, one, chain, rows, seed + 1 + part)[0] for part in parts]
    own = np.concatenate(own)[: settings.own_rows]
  fits, layers = {}, {}
  for name in ("layer", "blind"):
    objective = JointLayer(tokens=max(settings.tokens), score=order, blind=name == "blind")
    batches = batches_of(own, 32, seed)
    layers[name], metrics = fit_group(model, params, objective, batches, settings.layer_steps)
    last = metrics[-max(len(metrics) // 5, 1) :]
    names = ("layer_kl", "independent_kl")
    fits[name] = {each: float(np.mean([row[each] for row in last])) for each in names}
  lines = []

  def add(name, tokens, calls, cost, ids):
    lines.append(Line(chain.name, name, tokens, calls, cost, quality(chain, ids)))

  data = chain.sample(np.random.default_rng(seed + 2), rows)
  add("data", 0, 0, 0.0, data)
  ids, calls = draw(params, revealed(chain.length))
  add("one per call", 1, calls, calls, ids)
  for tokens in settings.tokens:
    calls = -(-chain.length // tokens)
    cost = calls * (1 + (tokens - 1) / settings.layers)
    ids, made = draw(params, revealed(calls))
    add("independent", tokens, made, made, ids)
    ids, made = draw(params, revealed(round(cost)))
    add("independent, equal cost", tokens, made, made, ids)
    for name in ("blind", "layer"):
      ids, made = draw(layers[name], Joint(steps=calls, score=order, blind=name == "blind"))
      add(name, tokens, made, cost, ids)
  return lines, fits


def table(lines: Sequence[Line]) -> str:
  """The lines in Markdown."""
  rows = []
  for line in lines:
    invalid, _, distance, entropy = line.quality.cells()
    what = (line.chain, str(line.tokens or "–"), line.name, str(line.calls), f"{line.cost:.1f}")
    rows.append((*what, invalid, distance, entropy))
  return markdown(HEADER, rows, left=(0, 2))


def run(names: Sequence[str], settings: Settings, workdir: pathlib.Path) -> str:
  """The table of all chains, which is also written to the workdir.

  Raises:
    ValueError: for a chain or an order that is unknown.
  """
  check_names("--chains", names, CHAINS)
  if settings.order not in ORDERS:
    raise ValueError(f"order={settings.order!r} is unknown; use one of {', '.join(ORDERS)}")
  lines, fits = [], {}
  for name in names:
    found, fits[name] = study(CHAINS[name](), settings)
    lines += found
  said = [
    f"{name}: the layer is {fit['layer']['layer_kl']:.4f} nats per token from the network asked"
    f" anew, independent tokens are {fit['layer']['independent_kl']:.4f}, the blind layer"
    f" {fit['blind']['layer_kl']:.4f}"
    for name, fit in fits.items()
  ]
  text = "\n".join((table(lines), "", *said))
  kept = {"settings": dataclasses.asdict(settings), "fits": fits, "lines": as_dicts(lines)}
  write(workdir, "joint_layer", text, **kept)
  return text
