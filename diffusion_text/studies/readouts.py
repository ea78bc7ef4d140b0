"""Leave-one-out against the posterior: what should a network of a Gaussian process say? Either
log p(x_i | z without z_i), to which the exact evidence of z_i is added (Plaid, arXiv 2305.18619),
or log p(x_i | z).

A network that is right gives the same bound either way, and so does one whose logits are wrong by a
number that is added, whatever it is: the evidence is added, too. So what is measured on one chain
is what other errors cost: logits that are too flat or too sharp by a factor, and a share of
unigram, below which no probability falls. Noise on the logits is the control. Each bound starts
where it is lowest (`engine.nats`, decode_at), as reported bounds do.
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
from jaxtyping import Array, Float

from diffusion_text.core.options import member, option
from diffusion_text.core.prng import make_key
from diffusion_text.objective import engine
from diffusion_text.process.distance import Distance
from diffusion_text.process.embedding import Embedding
from diffusion_text.process.simplex import Simplex
from diffusion_text.schedules.gaussian import LogSNR
from diffusion_text.studies.chains import Chain, chain_of
from diffusion_text.studies.measures import markdown, mean_and_error, write
from diffusion_text.timing import Shared
from diffusion_text.types import Batch, Model, Params, Prediction, Progress

READINGS = ("posterior", "leave_one_out")
HEADER = ("process", "error of the network", "cost as posterior", "cost as leave-one-out")
HEADER = (*HEADER, "difference", "bounds start at log-SNR")

# (process, chain, **options of the network) -> (a model whose network knows the chain, its
# parameters); the main passes it in, as studies must not import `testing`.
Exact = Callable[..., tuple[Model, Params]]


@member
class Settings:
  """How the study is run."""

  chain: str = option("branchy", "branchy or phrase")
  rows: int = option(256, "texts", ge=2)
  draws: int = option(2, "draws of the bound of each text", ge=1)
  starts: int = option(5, "log-SNRs at which the bound may start, from the path's clear end", ge=1)
  seed: int = option(0, "of everything", ge=0)


class Error(NamedTuple):
  """What is wrong with the logits that a network says.

  Attributes:
    scale: they are multiplied by.
    unigram: share of the frequencies of tokens in their law.
    noise: standard deviation of what is added to each, nats.
  """

  scale: float = 1.0
  unigram: float = 0.0
  noise: float = 0.0


RIGHT = Error()
ERRORS = {
  "logits × 0.5": Error(scale=0.5),
  "logits × 2": Error(scale=2.0),
  "1 % unigram": Error(unigram=0.01),
  "5 % unigram": Error(unigram=0.05),
  "noise of 0.5 nats (control)": Error(noise=0.5),
}


def wrong(
  logits: Float[Array, "B L V"], often: Float[Array, " V"], error: Error
) -> Float[Array, "B L V"]:
  """The logits with an error; the noise is the same in every call."""
  noise = jax.random.normal(make_key(0), logits.shape)
  log_law = jax.nn.log_softmax(error.scale * logits + error.noise * noise, axis=-1)
  mixed = (1 - error.unigram) * jnp.exp(log_law) + error.unigram * often
  return jnp.where(error.unigram > 0, jnp.log(mixed), log_law)


@member
class Erring:
  """A network whose answers, which are logits already, are wrong in a known way."""

  network: Any = option(..., "the network that is right")

  def apply(self, params: Params, rows: Any, **how: Any) -> Prediction:
    """Its prediction, with the error that the parameters name."""
    prediction = self.network.apply(params["right"], rows, **how)
    features = wrong(prediction.features, params["often"], params["error"])
    return dataclasses.replace(prediction, features=features)


def processes(size: int, reading: str) -> dict[str, tuple[Any, dict[str, Any]]]:
  """name -> (process with this reading, options of its exact network), for V = `size`."""
  how = {"vocab_size": size, "prediction": reading}
  low = LogSNR(log_snr_max=4.0, log_snr_min=-16.0)  # distances show at lower log-SNRs
  return {
    "embedding": (Embedding(**how), {}),
    "simplex": (Simplex(**how), {"reads": "softmax"}),
    "distance": (Distance(schedule=low, **how), {"reads": "softmax"}),
  }


@functools.partial(jax.jit, static_argnums=0)
def bound(model: Model, params: Params, key: Any, ids: Any, start: Any) -> Float[Array, " B"]:
  """A draw of the bound of each row, nats, that starts at this log-SNR."""
  nats = engine.nats(model, params, key, Batch(ids), Progress(), decode_at=start)
  return jnp.sum(nats, axis=1)


class Bound(NamedTuple):
  """The lowest bound of a network.

  Attributes:
    rows: float64 [B], nats of each row.
    start: the log-SNR at which it starts.
  """

  rows: np.ndarray
  start: float


def lowest(model: Model, params: Params, ids: Any, settings: Settings) -> Bound:
  """The bound at the start that makes its mean lowest; all starts have the same draws."""
  highest, least = model.process.log_snr_range()
  best: Bound | None = None
  for start in np.linspace(highest, least, settings.starts + 1)[:-1]:
    keys = [make_key(settings.seed + draw) for draw in range(settings.draws)]
    rows = np.mean(
      [bound(model, params, key, ids, jnp.float32(start)) for key in keys], axis=0, dtype=np.float64
    )
    if best is None or rows.mean() < best.rows.mean():
      best = Bound(rows, float(start))
  assert best is not None
  return best


def erring(exact: Exact, chain: Chain, process: Any, options: Any) -> tuple[Model, Params]:
  """(a model whose network can be made wrong, the parameters of the one that is right)."""
  model, params = exact(process, chain, **options)
  timing = Shared().for_bound(process.bound_times())
  often = jnp.asarray(chain.frequencies(), jnp.float32)
  network = {"right": params["network"], "often": often, "error": RIGHT}
  return model._replace(network=Erring(model.network), timing=timing), {
    **params,
    "network": network,
  }


def cells(
  name: str, kind: str, found: dict[str, Bound], right: dict[str, Bound]
) -> tuple[str, ...]:
  """The cells of a line: what the error costs above the network that is right, nats of a row, and
  by how much more as a posterior; all pairs of rows have the same draws.
  """
  costs = [found[reading].rows - right[reading].rows for reading in READINGS]
  pairs = [mean_and_error(rows) for rows in (*costs, costs[0] - costs[1])]
  starts = " / ".join(f"{found[reading].start:.0f}" for reading in READINGS)
  return name, kind, *(f"{mean:.2f} ± {error:.2f}" for mean, error in pairs), starts


def run(settings: Settings, exact: Exact, workdir: pathlib.Path) -> str:
  """The table, written as readouts.md and readouts.json."""
  chain = chain_of(settings.chain)
  ids = chain.sample(np.random.default_rng(settings.seed), settings.rows)
  lines: list[tuple[str, ...]] = []
  text = ""
  for name in processes(len(chain.initial), READINGS[0]):
    made = [
      erring(exact, chain, *processes(len(chain.initial), reading)[name]) for reading in READINGS
    ]

    def bounds(error, made=made):
      of_error = [
        (model, params | {"network": params["network"] | {"error": error}})
        for model, params in made
      ]
      return dict(zip(READINGS, (lowest(*each, ids, settings) for each in of_error), strict=True))

    right = bounds(RIGHT)
    for kind, error in ERRORS.items():
      lines.append(cells(name, kind, bounds(error), right))
    text = markdown(HEADER, lines, left=(0, 1))
    write(workdir, "readouts", text, settings=dataclasses.asdict(settings), lines=lines)
  return text
