"""Error injection: wrong tokens are planted in right rows of a Markov chain, and a sampler goes on
from there. Which errors does it repair, and which right tokens does it damage?

Every row begins as whole text at time `time` of its process, as if the sampler had come so far, and
is sampled to its end in `calls` calls. Nobody says how many tokens are wrong, or where. The network
knows the chain exactly, but for a thousandth of any other step, without which it could not read
impossible rows. What is measured is therefore what process and sampler allow, not what a trained
network does.

Two controls: masked diffusion that takes no token back, which can repair nothing; and a network
that knows the frequencies of tokens and nothing of their neighbours.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from diffusion_text.core.options import member, option
from diffusion_text.core.prng import draw_uniform, row_keys, streams
from diffusion_text.process.embedding import Embedding
from diffusion_text.process.masked import Masked
from diffusion_text.process.mixed import Mixed
from diffusion_text.process.uniform import Uniform
from diffusion_text.reader.whole_row import WholeRow
from diffusion_text.sampler.adaptive_correction import AdaptiveCorrection
from diffusion_text.sampler.budget import EvenShare
from diffusion_text.sampler.grid import Grid
from diffusion_text.sampler.loop import Loop
from diffusion_text.sampler.records import Carry, Fixed
from diffusion_text.sampler.remasking import Remasking
from diffusion_text.sampler.renoising import Renoising
from diffusion_text.sampler.reveal import Reveal
from diffusion_text.sampler.revise import RunningConfidence
from diffusion_text.sampler.score import Random
from diffusion_text.sampler.self_correcting import SelfCorrecting
from diffusion_text.studies.chains import SMOOTHING, Chain, chain_of
from diffusion_text.studies.measures import joined, markdown, mean_and_error, pooled_entropy, write
from diffusion_text.timing import Shared
from diffusion_text.types import Batch, Keys, Params, Timing

HEADER = ("process", "sampler", "from t", "repaired", "damaged", "possible rows")
HEADER = (*HEADER, "token entropy, nats", "calls")
NOBODY = "nobody: as planted"
CORRECTION_TIME = 0.01  # at which self-correction reads whole text
UNKNOWN = -1e3  # the log-probability of a token that no call has drawn

# (process, chain, timing) -> (a model whose network knows the chain, its parameters); the main
# passes it in, as studies must not import `testing`.
Exact = Callable[[Any, Chain, Timing], tuple[Any, Params]]


@member
class Settings:
  """How the study is run."""

  chain: str = option("phrase", "phrase or branchy")
  errors: tuple[int, ...] = option((1, 2, 4, 8), "wrong tokens of a row")
  calls: int = option(16, "of each sampler", ge=2)
  time: float = option(0.1, "at which samplers begin with the whole text", ge=0.001, le=0.99)
  rows: int = option(512, "rows of each line", ge=2)
  seed: int = option(0, "of everything", ge=0)


def check(settings: Settings, chain: Chain) -> None:
  """Raises ValueError for numbers of errors that a row cannot have."""
  if not settings.errors or not all(1 <= count <= chain.length for count in settings.errors):
    raise ValueError(
      f"errors={settings.errors} must be between 1 and the {chain.length} tokens of a row; 1,2,4,8"
      " is usual"
    )


@member
class Late(Shared):
  """`Shared` times, whose sampler begins at `start` in place of 1."""

  start: float = option(..., "the time of the first step", gt=0, le=1)

  def grid(self, params: Params, clock: Any, lengths: Any, length: int) -> Float[Array, "B S1 L"]:
    """The times of a sampler, all of them `start` times as large."""
    return self.start * super().grid(params, clock, lengths, length)


class Start(NamedTuple):
  """How a sampler begins.

  Attributes:
    time: of its first step.
    noised: whether the text is noised to that time first; else it stands as it is.
    resumed: steps that a `Reveal` has behind it; None for other samplers.
  """

  time: float
  noised: bool = False
  resumed: int | None = None


class Line(NamedTuple):
  """A process and a sampler: their names in the table, and the members.

  Attributes:
    start: how the sampler begins.
    knows: whether the network knows the chain, or the frequencies of its tokens only.
  """

  process: str
  sampler: str
  members: tuple[Any, Any]
  start: Start
  knows: bool = True


def lines(settings: Settings, chain: Chain) -> Iterator[Line]:
  """Every line of the table."""
  calls, start, size = settings.calls, Start(settings.time), len(chain.initial)
  whole = Start(CORRECTION_TIME)
  masked, uniform = Masked(vocab_size=size), Uniform(vocab_size=size)
  grid = Grid(steps=calls)
  yield Line("masked", "grid (control)", (masked, grid), start)
  yield Line("masked", "grid, noised first (blind)", (masked, grid), start._replace(noised=True))
  for strategy in ("rescale", "conf"):
    sampler = Remasking(steps=calls, strategy=strategy, eta=1.0)
    yield Line("masked", f"remasking, {strategy} 1", (masked, sampler), start)
  yield running_confidence(masked, settings, chain.length)
  yield Line("uniform", "grid", (uniform, grid), start)
  renoising = Renoising(steps=calls, strategy="rescale", eta=0.1)
  yield Line("uniform", "renoising, rescale 0.1", (uniform, renoising), start)
  corrects = self_correction(calls)
  peaked = Mixed(vocab_size=size, share=0.2)
  yield Line("uniform", "self-correction", (uniform, corrects), whole)
  yield Line("mixed, peaked 0.2", "grid", (peaked, grid), start)
  yield Line("mixed, peaked 0.2", "self-correction", (peaked, corrects), whole)
  scrambled = Mixed(vocab_size=size, mixing="epsilon", share=0.2)
  adaptive = AdaptiveCorrection(steps=calls, eta=0.1)
  yield Line("mixed, epsilon 0.2", "adaptive correction, 0.1", (scrambled, adaptive), start)
  vectors = Embedding(vocab_size=size)
  # The time at which a token can just be told from the others; less noise than that, and more.
  told = float(vectors.bound_times()["about"])
  for name, time in (("less", told - 0.05), ("first", told), ("more", told + 0.05)):
    noised = Start(min(max(time, 0.001), 1.0), noised=True)
    yield Line("embedding", f"grid, noised {name}", (vectors, grid), noised)
  yield Line("uniform", "grid, frequencies only (control)", (uniform, grid), start, knows=False)


def self_correction(calls: int) -> SelfCorrecting:
  """One step to clean text, and corrections with the other calls."""
  return SelfCorrecting(
    steps=1, corrections=calls - 1, patience=calls, correction_time=CORRECTION_TIME
  )


def running_confidence(masked: Masked, settings: Settings, length: int) -> Line:
  """The line of running confidence: the last `calls` of as many steps as lead from there to `time`,
  but of one step per token at most, as that sampler has no more. The tokens that it begins without
  are any; those that it begins with have no confidence, and so are the first to be taken back.
  """
  steps = min(max(round(settings.calls / settings.time), settings.calls + 1), length)
  if steps <= settings.calls:
    raise ValueError(
      f"calls={settings.calls} must be fewer than the {length} tokens of a row; use 16"
    )
  revise = RunningConfidence(steps=steps)
  reveal = Reveal(score=Random(), budget=EvenShare(steps=1), revise=revise)
  start = Start(settings.calls / steps, noised=True, resumed=steps - settings.calls)
  return Line("masked", "running confidence", (masked, reveal), start)


def known_by(line: Line, chain: Chain) -> Chain:
  """The chain that the network of a line knows."""
  step, first = chain.transition, chain.initial
  if not line.knows:
    first = chain.frequencies()
    step = np.tile(first, (len(first), 1))
  size = len(first)
  step, first = ((1 - SMOOTHING) * law + SMOOTHING / size for law in (step, first))
  return chain._replace(transition=step, initial=first)


def planted(
  ids: Int[np.ndarray, "B L"], count: int, size: int, rng: np.random.Generator
) -> tuple[Int[np.ndarray, "B L"], Bool[np.ndarray, "B L"]]:
  """(the rows with `count` wrong tokens each, where these stand): any places, any other token."""
  rows, length = ids.shape
  where = np.argsort(rng.random((rows, length)), axis=1) < count
  other = (ids + rng.integers(1, size, ids.shape)) % size
  return np.where(where, other, ids).astype(np.int32), where


def begun(loop: Loop, start: Start, params: Params, fixed: Fixed, text: Int[Array, "B L"]) -> Carry:
  """The carry of a loop that begins with a text, in place of noise; observed tokens stay clean."""
  process, of_process = loop.model.process, params["process"]
  state = process.clean(of_process, text)
  if start.noised:
    times = jnp.where(fixed.active, start.time, 0.0)
    state = process.corrupt(of_process, streams(fixed.keys, "noised"), state, times)
  carry = loop.start(params, fixed)._replace(state=state)
  own = loop.sampler.init(loop.model, params, loop.canvas(fixed, carry))
  if start.resumed is not None:
    waiting = state == process.mask_id
    unknown = UNKNOWN - draw_uniform(streams(fixed.keys, "unknown"))  # in random order
    own = own._replace(
      waiting=waiting,
      level=waiting.astype(jnp.float32),
      step=jnp.full_like(own.step, start.resumed),
      recorded=jnp.where(waiting, 0.0, unknown),
    )
  return carry._replace(sampler=own)


@functools.partial(jax.jit, static_argnums=(0, 1))
def corrected(
  loop: Loop,
  start: Start,
  params: Params,
  keys: Keys,
  text: Int[Array, "B L"],
  observed: Bool[Array, "B L"] | None = None,
) -> tuple[Int[Array, "B L"], Int[Array, " B"]]:
  """(the text after the sampler has gone on from it, the calls of each row). observed: tokens that
  it may not change; None: none.
  """
  fixed = loop.fixed(params, keys, Batch(text, observed))
  carry = begun(loop, start, params, fixed, text)
  made = loop.finish(params, fixed, loop.until_clean(params, fixed, carry))
  return made.ids, made.row_calls


class Repairs(NamedTuple):
  """What became of planted errors: shares with their standard errors.

  Attributes:
    errors: wrong tokens of a row.
    repaired: of these, the share that is the token that was there before.
    damaged: of all other tokens, the share that is not.
    possible: the share of rows that the chain can produce.
    entropy: of all tokens together, nats.
    calls: network calls of a row.
  """

  errors: int
  repaired: tuple[float, float]
  damaged: tuple[float, float]
  possible: tuple[float, float]
  entropy: float
  calls: float


def judged(
  chain: Chain,
  right: Int[np.ndarray, "B L"],
  made: Int[np.ndarray, "B L"],
  where: Bool[np.ndarray, "B L"],
  calls: float,
) -> Repairs:
  """What became of the errors that stood at `where` in rows [B, L] that were `right`."""
  same, count = made == right, int(where[0].sum())
  damaged = (~same & ~where).sum(axis=1) / max(where.shape[1] - count, 1)
  return Repairs(
    errors=count,
    repaired=mean_and_error((same & where).sum(axis=1) / count),
    damaged=mean_and_error(damaged),
    possible=mean_and_error(~chain.invalid(made)),
    entropy=pooled_entropy(made),
    calls=calls,
  )


def repairs(line: Line, chain: Chain, exact: Exact, settings: Settings) -> Iterator[Repairs]:
  """What becomes of each number of errors."""
  process, sampler = line.members
  model, params = exact(process, known_by(line, chain), Late(start=line.start.time))
  sampler.check(model)
  loop = Loop(model, sampler, WholeRow())
  keys = row_keys(settings.seed, settings.rows)
  rng = np.random.default_rng(settings.seed)
  right = chain.sample(rng, settings.rows)
  for count in settings.errors:
    wrong, where = planted(right, count, len(chain.initial), rng)
    made, calls = corrected(loop, line.start, params, keys, wrong)
    yield judged(chain, right, np.asarray(made), where, float(np.mean(calls)))


def cells(line: Line, found: Sequence[Repairs]) -> tuple[str, ...]:
  """The cells of a line of the table: a share for each number of errors, and after them the largest
  of their standard errors.
  """
  shares = [joined(pairs) for pairs in zip(*(each[1:4] for each in found), strict=True)]
  time = f"{line.start.time:.2f}" if line.sampler != NOBODY else "–"
  entropies = " / ".join(f"{each.entropy:.3f}" for each in found)
  calls = f"{np.mean([each.calls for each in found]):.1f}"
  return line.process, line.sampler, time, *shares, entropies, calls


def run(settings: Settings, exact: Exact, workdir: pathlib.Path) -> str:
  """The table, written as repairs.md and, with the numbers, repairs.json."""
  chain = chain_of(settings.chain)
  check(settings, chain)
  rng = np.random.default_rng(settings.seed)
  right = chain.sample(rng, settings.rows)
  found = []
  for count in settings.errors:
    wrong, where = planted(right, count, len(chain.initial), rng)
    found.append(judged(chain, right, wrong, where, 0.0))
  rows = [cells(Line("–", NOBODY, (None, None), Start(settings.time)), found)]
  numbers, text = [], ""
  said = (
    f"Shares for {' / '.join(map(str, settings.errors))} wrong tokens of {chain.length} in a row."
  )
  for line in lines(settings, chain):
    found = list(repairs(line, chain, exact, settings))
    rows.append(cells(line, found))
    numbers += [{"line": line[:2], **each._asdict()} for each in found]
    text = f"{said}\n\n{markdown(HEADER, rows, left=(0, 1))}"
    write(workdir, "repairs", text, settings=dataclasses.asdict(settings), lines=numbers)
  return text
