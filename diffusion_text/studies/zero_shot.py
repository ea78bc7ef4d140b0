"""A diffusion model as a classifier that was never trained as one (arXiv 2303.16203): a text is of
the class under which its bound is lowest.

The classes are Markov chains that networks know exactly, so that the best that any classifier can
do is known: the class under which the text is likeliest. What is measured is what the draws of the
bound lose, with the same noise for all classes and with noise of its own for each; how many draws
are spared when a class is given up once it is clearly behind; and whether the order of tokens is
seen, by telling texts from the same texts read backwards, which counts of tokens cannot do.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.core.options import member, option
from diffusion_text.core.prng import make_key
from diffusion_text.objective import engine
from diffusion_text.process.embedding import Embedding
from diffusion_text.process.masked import Masked
from diffusion_text.process.uniform import Uniform
from diffusion_text.studies.chains import Chain
from diffusion_text.studies.measures import check_rising, markdown, mean_and_error, write
from diffusion_text.timing import Shared
from diffusion_text.types import Batch, Key, Model, Params, Progress

FEWEST = 4  # draws before a class may be given up
HEADER = ("process", "noise", "draws", "right class", "right direction")
PRUNED = ("process", "right class", "right class, all draws", "draws of each class, mean")

# (process, chain) -> (a model whose network knows the chain, its parameters); the main passes it
# in, as studies must not import `testing`.
Exact = Callable[[Any, Chain], tuple[Model, Params]]


@member
class Settings:
  """How the study is run."""

  classes: int = option(4, "chains that a text may be of", ge=2)
  tokens: int = option(8, "the vocabulary of all chains", ge=2)
  length: int = option(32, "tokens of a text", ge=2)
  apart: float = option(0.4, "standard deviation of the logits between classes", gt=0)
  rows: int = option(512, "texts", ge=2)
  draws: tuple[int, ...] = option((1, 4, 16, 64), "of the bound of each text under each class")
  width: float = option(3.0, "standard errors behind the best after which a class is out", gt=0)
  labelled: int = option(8000, "with --path: pairs that classifiers learn from", ge=64)
  classifier_steps: int = option(400, "with --path: updates of each classifier", ge=1)
  seed: int = option(0, "of everything", ge=0)


class Labelled(NamedTuple):
  """Texts of known class.

  Attributes:
    chains: The classes.
    ids: int32 [B, N].
    label: int [B], the number of the class that a text was drawn from.
  """

  chains: tuple[Chain, ...]
  ids: Int[np.ndarray, "B N"]
  label: Int[np.ndarray, " B"]


def texts(settings: Settings) -> Labelled:
  """Equally many texts of each class. The chains have a common part and one of their own."""
  rng = np.random.default_rng(settings.seed)
  size = settings.tokens
  common = rng.normal(size=(size, size))

  def chain(number: int) -> Chain:
    logits = common + settings.apart * rng.normal(size=(size, size))
    step = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return Chain(f"class {number}", np.full(size, 1 / size), step, settings.length)

  chains = tuple(chain(number) for number in range(settings.classes))
  label = np.arange(settings.rows) % settings.classes
  ids = np.zeros((settings.rows, settings.length), np.int32)
  for number, each in enumerate(chains):
    ids[label == number] = each.sample(rng, int((label == number).sum()))
  return Labelled(chains, ids, label)


def exact_nats(chain: Chain, ids: Int[np.ndarray, "B N"]) -> Float[np.ndarray, " B"]:
  """float64 [B]: -log p of texts under a chain, in nats."""
  law = np.log(chain.initial)[ids[:, 0]] + np.log(chain.transition[ids[:, :-1], ids[:, 1:]]).sum(1)
  return -law


def counted_nats(chain: Chain, ids: Int[np.ndarray, "B N"]) -> Float[np.ndarray, " B"]:
  """float64 [B]: nats of texts by the frequencies of tokens alone, which see no order."""
  return -np.log(chain.frequencies())[ids].sum(1)


@functools.partial(jax.jit, static_argnums=0)
def bound(model: Model, params: Params, key: Key, ids: Array) -> Float[Array, " B"]:
  """A draw of the bound of each text, nats."""
  return engine.nats(model, params, key, Batch(ids), Progress()).sum(axis=1)


def bounds(
  model: Model,
  params: Sequence[Params],
  rows: Sequence[Int[np.ndarray, "B N"]],
  draws: int,
  seed: int,
  *,
  paired: bool,
) -> Float[np.ndarray, "D C B"]:
  """float64 [D, C, B]: draws of the bounds of texts under alternatives.

  Args:
    model: Of all alternatives.
    params: Of each alternative.
    rows: The texts as each alternative has them.
    draws: D, of each bound.
    seed: Of the noise.
    paired: True: all alternatives have the same times and noise at each draw.
  """
  found = np.zeros((draws, len(params), len(rows[0])))
  for draw in range(draws):
    for number, (of_one, ids) in enumerate(zip(params, rows, strict=True)):
      key = jax.random.fold_in(make_key(seed), draw)
      key = key if paired else jax.random.fold_in(key, number)
      found[draw, number] = bound(model, of_one, key, ids)
  return found


class Pruned(NamedTuple):
  """What is chosen when classes are given up on the way.

  Attributes:
    choice: int [B], the class that is left, or the best of those that are.
    draws: int [B], draws that were made for all classes together.
  """

  choice: Int[np.ndarray, " B"]
  draws: Int[np.ndarray, " B"]


def pruned(costs: Float[np.ndarray, "D C B"], width: float) -> Pruned:
  """The choice when a class is given up as soon as its mean is `width` standard errors of the
  differences behind the best one's; a text with one class left needs no more draws.
  """
  alive: Bool[np.ndarray, "C B"] = np.ones(costs.shape[1:], bool)
  spent = np.zeros(costs.shape[2], int)
  columns = np.arange(costs.shape[2])
  for draw in range(1, len(costs) + 1):
    open_rows = alive.sum(0) > 1
    spent += np.where(open_rows, alive.sum(0), 0)
    mean = np.where(alive, costs[:draw].mean(0), np.inf)
    best = mean.argmin(0)
    if draw < FEWEST:
      continue
    behind = costs[:draw] - costs[:draw, best, columns][:, None]
    error = behind.std(0, ddof=1) / draw**0.5
    out = (behind.mean(0) > width * error) & (np.arange(len(alive))[:, None] != best)
    alive &= ~out
  mean = np.where(alive, costs.mean(0), np.inf)
  return Pruned(mean.argmin(0), spent)


def share(right: Bool[np.ndarray, " B"]) -> str:
  """A share of texts with its standard error, as a cell."""
  mean, error = mean_and_error(right.astype(np.float64))
  return f"{mean:.3f} ± {error:.3f}"


def processes(size: int) -> dict[str, Any]:
  """Name -> process, for V = `size`."""
  of_size = {"vocab_size": size}
  return {
    "masked": Masked(**of_size),
    "uniform": Uniform(**of_size),
    "embedding": Embedding(**of_size),
  }


def known(made: Labelled) -> list[tuple[str, ...]]:
  """The lines of what needs no draws: the exact law, and counts of tokens."""
  lines = []
  for name, nats in (("the law itself", exact_nats), ("counts of tokens (control)", counted_nats)):
    costs = np.stack([nats(chain, made.ids) for chain in made.chains])
    own = costs[made.label, np.arange(len(made.label))]
    backwards = np.stack([nats(chain, made.ids[:, ::-1]) for chain in made.chains])
    back = backwards[made.label, np.arange(len(made.label))]
    direction = (own < back - 1e-9) + 0.5 * (np.abs(own - back) <= 1e-9)
    lines.append((name, "", "", share(costs.argmin(0) == made.label), share(direction)))
  return lines


def of_process(
  name: str, process: Any, made: Labelled, exact: Exact, settings: Settings
) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
  """(the lines of a process, with the same noise and with its own, by draws; its line with classes
  given up).
  """
  models = [exact(process, chain) for chain in made.chains]
  model = models[0][0]._replace(timing=Shared().for_bound(process.bound_times()))
  params, most = [each for _, each in models], settings.draws[-1]
  lines = []
  for paired in (True, False):
    how = {"draws": most, "seed": settings.seed, "paired": paired}
    classes = bounds(model, params, [made.ids] * len(params), **how)
    # Each text under its own class, as it is and backwards.
    ahead = np.zeros((most, 2, len(made.ids)))
    for number, of_one in enumerate(params):
      here = made.label == number
      both = [made.ids[here], made.ids[here][:, ::-1].copy()]
      ahead[:, :, here] = bounds(model, [of_one] * 2, both, **how)
    for draws in settings.draws:
      chosen = classes[:draws].mean(0).argmin(0)
      forwards = ahead[:draws].mean(0).argmin(0) == 0
      noise = "the same" if paired else "each its own"
      cells = (share(chosen == made.label), share(forwards))
      lines.append((name, noise, str(draws), *cells))
    if paired:
      left, all_draws = pruned(classes, settings.width), classes.mean(0).argmin(0)
      mean = left.draws.mean() / len(params)
      right = [share(each == made.label) for each in (left.choice, all_draws)]
      given_up = (name, *right, f"{mean:.1f} of {most}")
  return lines, given_up


def run(settings: Settings, exact: Exact, workdir: pathlib.Path) -> str:
  """The two tables, written as zero_shot.md and zero_shot.json."""
  check_rising("draws", settings.draws, "1,4,16,64")
  made = texts(settings)
  lines, given_up = known(made), []
  for name, process in processes(settings.tokens).items():
    more, pruned_line = of_process(name, process, made, exact, settings)
    lines += more
    given_up.append(pruned_line)
  text = f"{markdown(HEADER, lines, left=(0, 1))}\n\n{markdown(PRUNED, given_up)}"
  numbers = {"settings": dataclasses.asdict(settings), "lines": lines, "pruned": given_up}
  write(workdir, "zero_shot", text, **numbers)
  return text
