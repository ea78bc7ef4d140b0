"""What one extra layer is worth where several tokens are drawn per call: two Markov chains of known
law, a small masked model, the layer, and what the layer is compared with.

A text is invalid if it makes a step that the chain never makes. "independent" draws the tokens of a
call from their own distributions; "blind" is the layer that was fitted without seeing the drawn
tokens, the control; "one per call" is the ceiling. Costs are in calls of the network: a pass of the
layer is 1 / layers of a call.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from diffusion_text import train
from diffusion_text.context import Full
from diffusion_text.contrib.joint_layer import GROUP, ORDERS, JointLayer
from diffusion_text.contrib.joint_sampler import Joint
from diffusion_text.core.options import member, option
from diffusion_text.core.prng import row_keys
from diffusion_text.core.trees import split
from diffusion_text.experiment.api import fit
from diffusion_text.experiment.build import loss
from diffusion_text.model.transformer import Transformer
from diffusion_text.objective import Bound
from diffusion_text.process.masked import Masked
from diffusion_text.sampler.budget import EvenShare
from diffusion_text.sampler.loop import sample
from diffusion_text.sampler.reveal import Reveal
from diffusion_text.timing import Shared
from diffusion_text.types import Batch, DataFacts, Model, Objective, Params, Sampler

HEADER = ("chain", "tokens per call", "drawn", "calls", "cost, calls", "invalid", "bigram TV")
HEADER = (*HEADER, "token entropy, nats")


class Chain(NamedTuple):
  """A Markov chain.

  Attributes:
    name: of the table.
    initial: float64 [V].
    transition: float64 [V, V], row = from.
    length: N, tokens of a row.
  """

  name: str
  initial: Float[np.ndarray, " V"]
  transition: Float[np.ndarray, "V V"]
  length: int

  def sample(self, rng: np.random.Generator, rows: int) -> Int[np.ndarray, "B N"]:
    """Independent rows."""
    ids = [rng.choice(len(self.initial), rows, p=self.initial)]
    cumulative = np.cumsum(self.transition, axis=1)
    for _ in range(self.length - 1):
      u = rng.random((rows, 1))
      ids.append(np.minimum((u > cumulative[ids[-1]]).sum(1), len(self.initial) - 1))
    return np.stack(ids, axis=1).astype(np.int32)

  def invalid(self, ids: Int[np.ndarray, "B N"]) -> Bool[np.ndarray, " B"]:
    """True for a row with a step that never happens."""
    return (self.transition[ids[:, :-1], ids[:, 1:]] == 0).any(1)

  def bigrams(self) -> Float[np.ndarray, "V V"]:
    """The share of each pair of neighbours, over all places of a row."""
    law, total = self.initial, np.zeros_like(self.transition)
    for _ in range(self.length - 1):
      total += law[:, None] * self.transition
      law = law @ self.transition
    return total / (self.length - 1)


def branchy(seed: int = 0) -> Chain:
  """8 tokens, 3 possible successors each, rows of 32."""
  rng = np.random.default_rng(seed)
  transition = np.zeros((8, 8))
  for row in transition:
    row[rng.choice(8, 3, replace=False)] = rng.dirichlet(np.ones(3))
  return Chain("branchy", rng.dirichlet(np.ones(8)), transition, 32)


def phrase() -> Chain:
  """4 phrases of 6 tokens, one after the other in any order, rows of 48 that begin anywhere."""
  transition = np.zeros((24, 24))
  for token in range(24):
    if token % 6 < 5:
      transition[token, token + 1] = 1
    else:
      transition[token, ::6] = 1 / 4
  return Chain("phrase", np.full(24, 1 / 24), transition, 48)


CHAINS: dict[str, Callable[[], Chain]] = {"branchy": branchy, "phrase": phrase}


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
  """One line of the table; the numbers after the name are K, calls, the cost in calls, the share of
  invalid rows and its standard error, the distance of bigrams and the entropy of tokens.
  """

  chain: str
  name: str
  tokens: int
  calls: int
  cost: float
  invalid: float
  error: float
  distance: float
  entropy: float


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
  """(all parameters, with those of a group fitted from scratch to the frozen others; the metrics of
  each step).
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
  """Endless batches, drawn with replacement."""
  rng = np.random.default_rng(seed)
  while True:
    yield Batch(rows[rng.integers(0, len(rows), size)])


def trained(chain: Chain, settings: Settings) -> tuple[Model, Params]:
  """The masked model of a chain, and its parameters."""
  process = Masked(vocab_size=len(chain.initial))
  network = Transformer(
    layers=settings.layers,
    width=settings.width,
    heads=max(settings.width // 32, 1),
    input_sizes=process.input_sizes,
    output_size=process.output_size,
    scan_layers=True,  # some twenty programs are compiled
  )
  model = Model(network, process, Shared(), Full(), chunk=512)
  facts = DataFacts(chain.length, process.vocab_size, steps=settings.steps)
  rng = np.random.default_rng(settings.seed)
  batches = (Batch(chain.sample(rng, 64)) for _ in range(settings.steps))
  params = fit(model, Bound(), batches, facts, learning_rate=3e-3, seed=settings.seed)
  return model, params


def texts(
  model: Model, params: Params, sampler: Sampler, chain: Chain, rows: int, seed: int
) -> tuple[Int[np.ndarray, "B N"], int]:
  """(rows, calls)."""
  result = sample(model, params, sampler, row_keys(seed, rows), rows=rows, length=chain.length)
  return np.asarray(result.ids), int(result.calls)


def measured(
  chain: Chain, name: str, tokens: int, calls: int, cost: float, ids: Int[np.ndarray, "B N"]
) -> Line:
  """The line of these texts."""
  invalid = chain.invalid(ids)
  pairs = np.zeros_like(chain.transition)
  np.add.at(pairs, (ids[:, :-1].reshape(-1), ids[:, 1:].reshape(-1)), 1)
  distance = 0.5 * np.abs(pairs / pairs.sum() - chain.bigrams()).sum()
  share = np.bincount(ids.reshape(-1), minlength=len(chain.initial)) / ids.size
  entropy = -(share * np.log(np.maximum(share, 1e-30))).sum()
  error = invalid.std(ddof=1) / len(ids) ** 0.5
  return Line(chain.name, name, tokens, calls, cost, invalid.mean(), error, distance, entropy)


def study(chain: Chain, settings: Settings) -> tuple[list[Line], dict[str, Any]]:
  """(the lines of a chain, what the layers were fitted to: nats per token of text)."""
  order, rows, seed = ORDERS[settings.order](), settings.rows, settings.seed
  model, params = trained(chain, settings)
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
  data = chain.sample(np.random.default_rng(seed + 2), rows)
  lines = [measured(chain, "data", 0, 0, 0.0, data)]
  ids, calls = draw(params, revealed(chain.length))
  lines.append(measured(chain, "one per call", 1, calls, calls, ids))
  for tokens in settings.tokens:
    calls = -(-chain.length // tokens)
    cost = calls * (1 + (tokens - 1) / settings.layers)
    ids, made = draw(params, revealed(calls))
    lines.append(measured(chain, "independent", tokens, made, made, ids))
    ids, made = draw(params, revealed(round(cost)))
    lines.append(measured(chain, "independent, equal cost", tokens, made, made, ids))
    for name in ("blind", "layer"):
      ids, made = draw(layers[name], Joint(steps=calls, score=order, blind=name == "blind"))
      lines.append(measured(chain, name, tokens, made, cost, ids))
  return lines, fits


def table(lines: Sequence[Line]) -> str:
  """A markdown table."""
  rows = [HEADER, ("---", "---:", "---", *["---:"] * 5)]
  for line in lines:
    numbers = (f"{line.calls}", f"{line.cost:.1f}", f"{line.invalid:.3f} ± {line.error:.3f}")
    rows.append((line.chain, str(line.tokens or "–"), line.name, *numbers))
    rows[-1] += (f"{line.distance:.3f}", f"{line.entropy:.3f}")
  return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def run(names: Sequence[str], settings: Settings, workdir: pathlib.Path) -> str:
  """The table of all chains, which is also written to the workdir.

  Raises:
    ValueError: for a chain or an order that is unknown.
  """
  if unknown := set(names) - set(CHAINS):
    raise ValueError(f"chains={sorted(unknown)} are unknown; use some of {', '.join(CHAINS)}")
  if settings.order not in ORDERS:
    raise ValueError(f"order={settings.order!r} is unknown; use one of {', '.join(ORDERS)}")
  workdir.mkdir(parents=True, exist_ok=True)
  lines, fits = [], {}
  for name in names:
    found, fits[name] = study(CHAINS[name](), settings)
    lines += found
  kept = {"settings": dataclasses.asdict(settings), "fits": fits}
  kept["lines"] = [line._asdict() for line in lines]
  (workdir / "joint_layer.json").write_text(json.dumps(kept, indent=2, default=float))
  said = [
    f"{name}: the layer is {fit['layer']['layer_kl']:.4f} nats per token from the network asked"
    f" anew, independent tokens are {fit['layer']['independent_kl']:.4f}, the blind layer"
    f" {fit['blind']['layer_kl']:.4f}"
    for name, fit in fits.items()
  ]
  text = "\n".join((table(lines), "", *said))
  (workdir / "joint_layer.md").write_text(text + "\n")
  return text
