"""What it means that noise is a mask, another token, both, or Gaussian: measured for each process
on one Markov chain that its network knows exactly.

*The bound by place.* For an exact network the bound of a row is the entropy of the chain, whatever
the process. How it is shared among the tokens of a row is the process's own.

*The level of noise.* At each time t: how uncertain a token still is, as a share of its entropy, and
what the bound pays there per unit of t, for the first token and for one in the middle.

*What parallel calls lose.* A call from t to s draws each token on its own from p(z_s,i | z_t),
where the truth is p(z_s | z_t) of the whole row. The total correlation that is lost,

  E[log p(z_s | z_t) - Σ_i log p(z_s,i | z_t)],

adds up over T calls to the divergence of samples from data at most. With e_t(i, v) = log q(z_t,i |
v), and Z the sum over all rows of p(x) exp Σ_i e(i, x_i), it is

  E[log Z(e_s) - log Z(e_t) - Σ_i log Σ_v p(x_i = v | z_t) exp(e_s(i, v) - e_t(i, v))],

as the path from z_s to z_t does not depend on the text. Of Gaussian processes it is that of steps
which draw a token and move towards it (the projection "sample"), not of steps towards the mean.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_text.core.numerics import NEVER
from diffusion_text.core.options import member, option
from diffusion_text.core.prng import fold, make_key, position_keys, stream
from diffusion_text.objective import engine
from diffusion_text.process.discrete import is_token
from diffusion_text.process.embedding import Embedding
from diffusion_text.process.masked import Masked
from diffusion_text.process.mixed import Mixed
from diffusion_text.process.simplex import Simplex
from diffusion_text.process.uniform import Uniform
from diffusion_text.studies.chains import Chain, chain_of
from diffusion_text.studies.measures import markdown, mean_and_error, write
from diffusion_text.timing import Shared
from diffusion_text.types import Batch, Keys, Model, Params, Progress, State, Times

# (process, chain, **options of the network) -> (a model whose network knows the chain, its
# parameters); the main passes it in, as studies must not import `testing`.
Exact = Callable[..., tuple[Model, Params]]


@member
class Settings:
  """How the study is run."""

  chain: str = option("branchy", "branchy or phrase")
  calls: tuple[int, ...] = option((2, 4, 8, 16, 32), "T")
  times: tuple[float, ...] = option((0.1, 0.3, 0.5, 0.7, 0.9), "t")
  rows: int = option(1024, "texts of each number", ge=2)
  draws: int = option(8, "draws of the bound of each text", ge=1)
  seed: int = option(0, "of everything", ge=0)


def check(settings: Settings) -> None:
  """Raises ValueError for times and calls that are none."""
  if not all(0 < time <= 1 for time in settings.times):
    raise ValueError(f"times={settings.times} must be above 0 and at most 1; 0.1,0.5,0.9 is usual")
  if min(settings.calls, default=0) < 1:
    raise ValueError(f"calls={settings.calls} must be numbers from 1 on; 2,8,32 is usual")


def processes(size: int) -> dict[str, tuple[Any, dict[str, Any]]]:
  """name -> (process, options of its exact network), for V = `size`."""
  return {
    "masked": (Masked(vocab_size=size), {}),
    "uniform": (Uniform(vocab_size=size), {}),
    "mixed, peaked 0.2": (Mixed(vocab_size=size, share=0.2), {}),
    "mixed, gamma 0.2": (Mixed(vocab_size=size, mixing="gamma", share=0.2), {}),
    "embedding": (Embedding(vocab_size=size), {}),
    "simplex": (Simplex(vocab_size=size), {"reads": "softmax"}),
  }


def log_sum(
  log_initial: Float[Array, " V"],
  log_transition: Float[Array, "V V"],
  evidence: Float[Array, "B L V"],
) -> Float[Array, " B"]:
  """log Z: of the sum over all rows of p(x) exp Σ_i evidence(i, x_i)."""

  def forward(alpha, here):
    ahead = jax.nn.logsumexp(alpha[..., :, None] + log_transition, axis=-2) + here
    return ahead, None

  places = jnp.moveaxis(evidence, -2, 0)
  last, _ = jax.lax.scan(forward, log_initial + places[0], places[1:])
  return jax.nn.logsumexp(last, axis=-1)


def evidence_of(
  process: Any, params: Params, ids: Int[Array, "B L"], state: State, t: Float[Array, "B L"]
) -> Float[Array, "B L V"]:
  """log q(z_i | x_i = v) less its largest value; at t = 0, where the state shows `ids`, certain of
  these.
  """
  certain = jnp.where(is_token(ids, process.vocab_size), 0.0, NEVER)
  evidence = jnp.maximum(process.evidence(params["process"], state, t), NEVER)
  evidence = evidence - jnp.max(evidence, axis=-1, keepdims=True)
  return jnp.where(t[..., None] > 0, evidence, certain)


def answer(
  model: Model, params: Params, ids: Int[Array, "B L"], state: State, t: Float[Array, "B L"]
) -> Float[Array, "B L V"]:
  """What the network says of a state at the times t."""
  times = Times(t, jnp.ones_like(t), t[:, :1], t)
  clean = model.process.clean(params["process"], ids)
  how = {"corrupted": (clean, state), "dropout": False}
  made = engine.read(model, params, make_key(0), Batch(ids), times, Progress(), **how)
  return made.prediction.head(made.prediction.features)


@functools.partial(jax.jit, static_argnums=0)
def one_call(
  model: Model, params: Params, keys: Keys, ids: Int[Array, "B L"], state: State, t: Any, s: Any
) -> tuple[State, Float[Array, " B"]]:
  """(z_s, a draw of q(z_s | z_t, x); a draw of the correlation that a call from t to s loses)."""
  process, language = model.process, params["network"]["language"]
  chain = language["log_initial"], language["log_transition"]
  t, s = jnp.full(ids.shape, t), jnp.full(ids.shape, s)
  # What a network would say that knows the text, so that the step is that of the true token.
  known = jnp.where(is_token(ids, process.vocab_size), 0.0, NEVER)
  after = process.step(params["process"], keys, state, known, t, s)
  before_it = evidence_of(process, params, ids, state, t)
  after_it = evidence_of(process, params, ids, after, s)
  output = answer(model, params, ids, state, t)
  said = process.posterior(params["process"], state, t, output)
  alone = jax.nn.logsumexp(said + after_it - before_it, axis=-1)
  lost = log_sum(*chain, after_it) - log_sum(*chain, before_it) - jnp.sum(alone, axis=-1)
  return after, lost


def lost(
  model: Model, params: Params, ids: Int[np.ndarray, "B L"], calls: int, seed: int
) -> Float[np.ndarray, " B"]:
  """float64 [B]: a draw per row of the total correlation that T = `calls` calls lose, nats."""
  keys = position_keys(stream(make_key(seed), "path"), *ids.shape)
  process, of_process = model.process, params["process"]
  clock = np.linspace(1, 0, calls + 1, dtype=np.float32)
  state = process.corrupt(
    of_process, fold(keys, calls), process.clean(of_process, jnp.asarray(ids)), jnp.ones(ids.shape)
  )
  total = np.zeros(len(ids))
  for step in range(calls):
    at = (fold(keys, step), ids, state, clock[step], clock[step + 1])
    state, nats = one_call(model, params, *at)
    total += np.asarray(nats, np.float64)
  return total


@functools.partial(jax.jit, static_argnums=0)
def at_level(
  model: Model, params: Params, keys: Keys, ids: Int[Array, "B L"], t: Any
) -> tuple[Float[Array, "B L"], Float[Array, "B L"]]:
  """(the entropy of each token given a draw of z_t, the rate of the bound there)."""
  process, of_process = model.process, params["process"]
  t = jnp.full(ids.shape, t)
  clean = process.clean(of_process, ids)
  state = process.corrupt(of_process, keys, clean, t)
  output = answer(model, params, ids, state, t)
  said = process.posterior(of_process, state, t, output)
  uncertain = -jnp.sum(jnp.exp(said) * said, axis=-1)
  return uncertain, process.nelbo_rate(of_process, clean, state, t, output)


@functools.partial(jax.jit, static_argnums=0)
def bound(model: Model, params: Params, key: Any, ids: Int[Array, "B L"]) -> Float[Array, "B L"]:
  """A draw of the bound of each token, nats."""
  return engine.nats(model, params, key, Batch(ids), Progress())


class Level(NamedTuple):
  """A process at a level of noise.

  Attributes:
    time: t.
    undecided: the entropy of tokens given z_t, as a share of their entropy without it.
    first, middle: what the bound pays per unit of t for these tokens, nats, with standard errors.
  """

  time: float
  undecided: float
  first: tuple[float, float]
  middle: tuple[float, float]


class Measured(NamedTuple):
  """A process on a chain.

  Attributes:
    name: of the process.
    row, first, middle: the bound of a row and of two of its tokens, nats, with standard errors.
    levels: one per time.
    lost: (nats of a row, the standard error), one per number of calls.
  """

  name: str
  row: tuple[float, float]
  first: tuple[float, float]
  middle: tuple[float, float]
  levels: tuple[Level, ...]
  lost: tuple[tuple[float, float], ...]


def measure(name: str, process: Any, options: Any, exact: Exact, settings: Settings) -> Measured:
  """All numbers of a process."""
  chain = chain_of(settings.chain)
  model, params = exact(process, chain, **options)
  ids = chain.sample(np.random.default_rng(settings.seed), settings.rows)
  middle = chain.length // 2
  scoring = model._replace(timing=Shared().for_bound(process.bound_times()))
  draws = [make_key(settings.seed + draw) for draw in range(settings.draws)]
  nats = np.mean([bound(scoring, params, key, ids) for key in draws], axis=0, dtype=np.float64)
  keys = position_keys(stream(make_key(settings.seed), "levels"), *ids.shape)
  alone = unigram_entropy(chain)
  levels = []
  for number, time in enumerate(settings.times):
    found = at_level(model, params, fold(keys, number), ids, jnp.float32(time))
    uncertain, rate = (np.asarray(leaf, np.float64) for leaf in found)
    share = float(uncertain.mean() / alone)
    ends = mean_and_error(rate[:, 0]), mean_and_error(rate[:, middle])
    levels.append(Level(time, share, *ends))
  return Measured(
    name,
    mean_and_error(nats.sum(axis=1)),
    mean_and_error(nats[:, 0]),
    mean_and_error(nats[:, middle]),
    tuple(levels),
    tuple(
      mean_and_error(lost(model, params, ids, calls, settings.seed)) for calls in settings.calls
    ),
  )


def unigram_entropy(chain: Chain) -> float:
  """Nats of a token of which nothing is known but its place, averaged over places."""
  laws = chain.laws()
  return float(-(laws * np.log(np.maximum(laws, 1e-300))).sum(axis=1).mean())


def tables(settings: Settings, found: list[Measured]) -> str:
  """The two tables in Markdown."""

  def said(pair: tuple[float, float], digits: int = 2) -> str:
    return f"{pair[0]:.{digits}f} ± {pair[1]:.{digits}f}"

  header = ("process", "bound, nats/row", "first token", "middle token")
  header = (*header, *(f"lost, T = {calls}" for calls in settings.calls))
  rows = [
    (x.name, said(x.row), said(x.first, 3), said(x.middle, 3), *(said(each) for each in x.lost))
    for x in found
  ]
  levels = [
    (x.name, kind, *cells)
    for x in found
    for kind, cells in (
      ("undecided", [f"{each.undecided:.2f}" for each in x.levels]),
      ("rate, first", [said(each.first) for each in x.levels]),
      ("rate, middle", [said(each.middle) for each in x.levels]),
    )
  ]
  times = ("process", "", *(f"t = {time:g}" for time in settings.times))
  return markdown(header, rows) + "\n\n" + markdown(times, levels, left=(0, 1))


def run(settings: Settings, exact: Exact, workdir: pathlib.Path) -> str:
  """The tables, written as discreteness.md and, with the numbers, discreteness.json."""
  check(settings)
  size, found, text = len(chain_of(settings.chain).initial), [], ""
  for name, (process, options) in processes(size).items():
    found.append(measure(name, process, options, exact, settings))
    text = tables(settings, found)
    kept = {"settings": dataclasses.asdict(settings), "lines": [x._asdict() for x in found]}
    write(workdir, "discreteness", text, **kept)
  return text
