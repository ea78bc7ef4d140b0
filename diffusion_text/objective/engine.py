"""What every loss shares: times, noise, readings of the network, and sums over tokens whose logits
exist a chunk at a time.

  1. `draw_times`    one time per token, on the process's grid: 0 where observed, 1 where dropped
  2. `corrupted`     z_t ~ q(z_t | x): the one place where noise enters
  3. `read`          the context's rows through the network; twice if the model conditions on itself
  4. `token_loss`    an objective's loss of each token, with the bound of the same draw beside it
  5. `add_boundary`  prior and reconstruction terms of the bound
  6. `fit_times`     what each token cost, for a timing that learns from it

`nats` is the bound itself, in nats per token, for evaluation:

  -log p(x) <= boundary terms + E_τ[ Σ_i dt_dtau_i · nelbo_rate_i ]      (VDM, arXiv 2107.00630)

Randomness comes from named streams of the loss's key, with one key per row of the global batch and
position. So a loss does not depend on devices or microbatches, and adding a stream changes no
other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from diffusion_text.context.memory import remembered
from diffusion_text.core.chunked import map_rows, sum_rows
from diffusion_text.core.numerics import (
  cross_entropy,
  flatten_tokens,
  select,
  unflatten_tokens,
)
from diffusion_text.core.prng import position_keys, row_coins, stream, streams
from diffusion_text.types import (
  Batch,
  Inputs,
  Key,
  Loss,
  Model,
  Objective,
  Params,
  Prediction,
  Process,
  Progress,
  Rows,
  Span,
  State,
  Times,
  TokenCosts,
)

# (consts, params of the process, row, output, nats)
#   -> (minimise [n], the loss at that time [n], what is reported: name -> [n])
TokenFn = Callable[
  [Any, Params, "TokenRow", Array, Array], tuple[Array, Array, Mapping[str, Array]]
]


# Which tokens count, and which prompts are hidden.


def scored_weights(batch: Batch) -> Float[Array, "B N"]:
  """The weight of each token in a loss: 0 for padding and for observed tokens."""
  weights = jnp.ones(batch.ids.shape, jnp.float32) if batch.weights is None else batch.weights
  return weights if batch.observed is None else jnp.where(batch.observed, 0.0, weights)


def drop_prompts(batch: Batch, key: Key, progress: Progress, probability: float) -> Batch:
  """The batch in which a coin per row decides that the network is shown none of its observed
  tokens, but noise at t = 1.

  Classifier-free guidance needs it (arXiv 2207.12598): the sampler's unconditional reading hides
  the prompt in the same way. Observed tokens are scored in neither case. Raises ValueError for a
  probability out of [0, 1], and where no token is observed.
  """
  if not 0 <= probability <= 1:
    raise ValueError(
      f"train.prompt_dropout={probability} is a probability and must be in [0, 1]; 0.1 is usual"
    )
  if not probability:
    return batch
  if batch.observed is None:
    raise ValueError(
      f"train.prompt_dropout={probability} hides observed tokens, and these rows have none;"
      " leave it at 0, or use data with prompts"
    )
  coins = row_coins(stream(key, "prompt_dropout"), batch.ids.shape[0], progress, probability)
  return dataclasses.replace(batch, dropped=batch.observed & coins[:, None])


def check_readings(model: Model) -> None:
  """Raises ValueError for a probability of self-conditioning that is none, or for which the context
  has no use.
  """
  probability = model.self_conditioning
  if not 0 <= probability <= 1:
    raise ValueError(
      f"train.self_conditioning={probability} is a probability and must be in [0, 1]; 0.5 is usual"
    )
  if probability and not model.context.reads_noisy:
    raise ValueError(
      f"train.self_conditioning={probability} with {model.context}: a network that reads clean"
      " tokens alone gives no answer on noisy ones to be shown; use another context, or 0"
    )


def is_bound(model: Model, objective: Objective) -> bool:
  """True if what the objective reports as "bound" bounds -log p(x)."""
  if model.timing.path == "continuous":
    return model.process.has_bound
  nll = objective.costs_nll or model.process.rate_at_noise_is_nll
  return model.timing.path == "jumps" and nll


# Times.


def draw_times(model: Model, params: Params, key: Key, batch: Batch, progress: Progress) -> Times:
  """Times of a batch, [B, N] each: 0 where observed, 1 where dropped, on the process's grid. `key`
  is the stream of the times. `network_time` is [B, 1] where the timing says so and no token is
  observed.

  A timing draws for units of `context.unit` positions as if they were rows. Raises ValueError if
  the unit does not divide the row.
  """
  positions = model.process.in_positions(batch)
  rows, length = positions.ids.shape
  size = length if model.context.unit is None else model.context.unit
  if length % size:
    raise ValueError(
      f"context.size={size} must divide the {length} positions of a row; use"
      f" {_divisor(length, size)}, or rows of {-(-length // size) * size}"
    )
  units = _in_units(dataclasses.replace(positions, dropped=None, extras={}), size)
  cut = dataclasses.replace(progress, units=length // size)
  drawn = model.timing.draw(params["timing"], key, units, cut)
  if cut.units > 1 or positions.observed is not None or positions.dropped is not None:
    every = jnp.broadcast_to(drawn.network_time, drawn.t.shape)
    drawn = drawn._replace(network_time=every)
  times = jax.lax.stop_gradient(jax.tree.map(lambda leaf: leaf.reshape(rows, -1), drawn))

  def fixed(t: Array) -> Array:
    t = model.process.round_time(t)
    t = t if positions.observed is None else jnp.where(positions.observed, 0.0, t)
    return t if positions.dropped is None else jnp.where(positions.dropped, 1.0, t)

  return times._replace(t=fixed(times.t), network_time=fixed(times.network_time))


def fit_times(
  model: Model, params: Params, times: Times, costs: TokenCosts | None
) -> Float[Array, ""] | float:
  """A scalar of value 0, whose gradient fits the timing to the costs; 0.0 if there are none."""
  if costs is None:
    return 0.0
  size = times.t.shape[1] if model.context.unit is None else model.context.unit
  every = jnp.broadcast_to(times.network_time, times.t.shape)
  units = _in_units(times._replace(tau=times.t, network_time=every), size)
  units = units._replace(tau=times.tau.reshape(-1, 1))
  return model.timing.fit(params["timing"], units, _in_units(costs, size))


def _in_units(tree: Any, size: int) -> Any:
  """Every leaf [B, N] as [B · N / size, size]."""
  return jax.tree.map(lambda leaf: leaf.reshape(-1, size), tree)


def _divisor(length: int, size: int) -> int:
  """The largest divisor of the length that is at most `size`."""
  return max(number for number in range(1, size + 1) if length % number == 0)


# Noise, and what the network reads.


class Noised(NamedTuple):
  """A batch that has been corrupted and read.

  Attributes:
    clean: the clean state [B, N, …].
    state: z_t [B, N, …].
    times: [B, N] each.
    rows: what the network read.
    prediction: that of the network; of the second reading where there are two.
    first: with self-conditioning, (the prediction of the first reading, bool [B]: the rows whose
      second reading was conditioned on it); otherwise None.
  """

  clean: State
  state: State
  times: Times
  rows: Rows
  prediction: Prediction
  first: tuple[Prediction, Array] | None


def corrupted(
  model: Model, params: Params, key: Key, batch: Batch, times: Times, progress: Progress
) -> tuple[State, State]:
  """(the clean state, z_t), [B, N, …] each. Dropped tokens are a draw of the prior: corruption
  alone may leave a trace of them.
  """
  process, own = model.process, params["process"]
  positions = process.in_positions(batch)
  keys = position_keys(stream(key, "noise"), *positions.ids.shape, progress)
  clean = process.clean(own, batch.ids)
  state = process.corrupt(own, keys, clean, times.t)
  if positions.dropped is not None:
    state = select(positions.dropped, process.prior(own, streams(keys, "prior")), state)
  return clean, state


def read(
  model: Model,
  params: Params,
  key: Key,
  batch: Batch,
  times: Times,
  progress: Progress,
  *,
  corrupted: tuple[State, State] | None = None,
  noisy: Inputs | None = None,
  change_rows: Callable[[Rows], Rows] | None = None,
  hidden_layers: tuple[int, ...] = (),
  dropout: bool = True,
) -> Noised:
  """The batch, corrupted and read by the network.

  Where the model conditions on itself (Analog Bits, arXiv 2208.04202) the network is read twice at
  the same state and times: without a prediction, and then, in the rows whose coin says so, with
  what it keeps of its first one. The first prediction is held constant, and the map by which it is
  kept is trained. The bound holds for whatever is computed from z_t and t, so that of the second
  prediction is a bound. It is not the likelihood of a sampler that hands on the prediction of its
  previous step.

  Args:
    key: the key of the loss; streams of it are drawn here.
    corrupted: (clean state, z_t), if they are there already.
    noisy: what the network reads in place of `process.inputs(z_t)`.
    change_rows: changes the rows before they are read.
    hidden_layers: layers of the network that the prediction should hold.
    dropout: False for evaluation.
  """
  process, own = model.process, params["process"]
  clean, state = _states(model, params, key, batch, times, progress, corrupted)
  noisy = process.inputs(own, state, times.t) if noisy is None else noisy
  rows = _rows(model, params, key, batch, times, progress, clean, noisy)
  rows = rows if change_rows is None else change_rows(rows)
  key_dropout = jax.random.fold_in(stream(key, "dropout"), progress.part) if dropout else None

  def ask(memory: Array | None, layers: tuple[int, ...]) -> Prediction:
    return model.network.apply(
      params["network"], rows, memory=memory, key=key_dropout, hidden_layers=layers
    )

  if not model.self_conditioning:
    return Noised(clean, state, times, rows, ask(None, hidden_layers), None)
  told = rows_told(model, key, batch.ids.shape[0], progress)
  first = jax.lax.stop_gradient(ask(None, ()))
  # Of tokens that have a loss, in the rows that are told.
  where = process.has_loss(own, state, times.t) & told[:, None]
  held = jax.lax.stop_gradient((state, times.t))
  of_process = params | {"process": jax.lax.stop_gradient(own)}
  memory = remembered(model, of_process, first, *held, where, shards=model.shards)
  return Noised(clean, state, times, rows, ask(memory, hidden_layers), (first, told))


def rows_told(model: Model, key: Key, rows: int, progress: Progress) -> Bool[Array, " rows"]:
  """bool [rows]: the rows that `read` shows their own first prediction."""
  return row_coins(stream(key, "self_conditioning"), rows, progress, model.self_conditioning)


def _states(model, params, key, batch, times, progress, states):
  """The states that were handed over, or new ones."""
  if states is not None:
    return states
  return corrupted(model, params, key, batch, times, progress)


def _rows(model, params, key, batch, times, progress, clean, noisy) -> Rows:
  """The rows of the context."""
  process, own = model.process, params["process"]
  positions = process.in_positions(batch)
  keys = position_keys(stream(key, "prior"), *positions.ids.shape, progress)
  zeros = jnp.zeros(positions.ids.shape, jnp.float32)
  clean = process.inputs(own, clean, zeros)
  noise = process.inputs(own, process.prior(own, keys), zeros + 1)
  every = jnp.broadcast_to(times.network_time, times.t.shape)
  rows = model.context.training_rows(
    *(stream(key, "context"), noisy, clean, noise),
    *(times._replace(network_time=every), positions, progress),
  )
  # Where the context reads the tokens and nothing else.
  bare = rows.tokens == Span(0, rows.t.shape[1])
  return dataclasses.replace(rows, one_time=bare and times.network_time.shape[1] == 1)


# Sums over tokens.


class TokenRow(NamedTuple):
  """Tokens as a flat list.

  Attributes:
    features: [n, D].
    ids: int32 [n], the true tokens.
    clean, state: the clean state and z_t, [n, …].
    t, dt_dtau, weight: float32 [n].
    extra: what the objective brought, a tree of [n, …].
  """

  features: Array
  ids: Array
  clean: State
  state: State
  t: Array
  dt_dtau: Array
  weight: Array
  extra: Any


def posterior_logits(
  process: Process, process_params: Params, row: TokenRow, output: Float[Array, "n V"]
) -> Float[Array, "n V"]:
  """Logits of p(x_i | z), own evidence included, whatever the process takes the output to mean."""
  if process.reads_logits_as == "posterior":
    return output  # normalising it would take one more pass over the vocabulary
  return process.posterior(process_params, row.state, row.t, output)


def map_tokens(
  model: Model, fn: Callable[[Any, Any], Any], consts: Any, where: Bool[Array, "B N"], tree: Any
) -> Any:
  """`fn(consts, rows)` of the tokens where `where` holds, zeros elsewhere: a tree of [B, N, …] from
  a tree of [B, N, …].

  Tokens reach `fn` as flat lists, `model.chunk` at a time; it must not close over traced arrays
  (see `core.chunked.map_rows`).
  """
  flat = map_rows(
    fn, consts, where.reshape(-1), flatten_tokens(tree), chunk=model.chunk, shards=model.shards
  )
  return unflatten_tokens(flat, where.shape)


def token_rows(
  model: Model, params: Params, batch: Batch, noised: Noised, extra: Any = None
) -> tuple[Bool[Array, "B N"], TokenRow]:
  """(which tokens have a loss, all tokens as [B, N, …])."""
  positions = model.process.in_positions(batch)
  weights, times = scored_weights(positions), noised.times
  where = model.process.has_loss(params["process"], noised.state, times.t) & (weights > 0)
  return where, TokenRow(
    features=noised.prediction.features,
    ids=positions.ids,
    clean=noised.clean,
    state=noised.state,
    t=times.t,
    dt_dtau=times.dt_dtau,
    weight=weights,
    extra=extra,
  )


def token_loss(
  model: Model,
  params: Params,
  batch: Batch,
  noised: Noised,
  fn: TokenFn,
  *,
  extra: Any = None,
  consts: Any = None,
  other_readings: Sequence[Prediction] = (),
  everywhere: bool = False,
) -> tuple[Loss, TokenCosts]:
  """(Σ weight · minimise over the tokens that have a loss, what each token cost). Logits exist for
  `model.chunk` tokens at a time.

  Reported are the bound of the same draw without its boundary terms, for a process that has one,
  and what `fn` reports, each as Σ weight · value; an own "bound" of `fn` takes the place of the
  other. Losses of the network itself (routers) are added once per token of text, as the mean over
  the readings.

  Args:
    fn: (consts, params of the process, row, output, nats) -> (minimise, loss at that time, {name:
      what is reported}), [n] each. `nats` is dt_dtau · nelbo_rate, and `output` what the network
      answered, [n, V]. It must not close over traced arrays.
    extra: a tree of [B, N, …] that `fn` finds in `row.extra`.
    consts: arrays that all tokens read, with gradient.
    other_readings: further predictions that the loss uses.
    everywhere: whether `fn` is asked of every token with a weight, not only of those that have a
      loss by the process; the others have a rate of 0.
  """
  process = model.process
  where, rows = token_rows(model, params, batch, noised, extra)

  def score(all_consts, row: TokenRow):
    head, process_params, own = all_consts
    output = head(row.features)
    nats = jnp.zeros_like(row.t)
    if process.has_bound:
      rate = process.nelbo_rate(process_params, row.clean, row.state, row.t, output)
      nats = row.dt_dtau * rate
    minimise, at_time, reported = fn(own, process_params, row, output, nats)
    reported = {"bound": nats, **reported} if process.has_bound else reported
    return row.weight * minimise, (nats, at_time, dict(reported))

  all_consts = noised.prediction.head, params["process"], consts
  asked = (rows.weight > 0 if everywhere else where).reshape(-1)
  total, (nats, at_time, reported) = sum_rows(
    score, all_consts, asked, flatten_tokens(rows), chunk=model.chunk, shards=model.shards
  )
  flat_weight = rows.weight.reshape(-1)
  sums = {name: jnp.sum(flat_weight * value) for name, value in reported.items()}
  loss = Loss(total, jnp.sum(scored_weights(batch)), sums)
  nats, at_time = unflatten_tokens((nats, at_time), where.shape)
  costs = TokenCosts(nats, at_time, rows.weight, where)
  return _with_network_losses(loss, (noised.prediction, *other_readings)), costs


def _with_network_losses(loss: Loss, readings: Sequence[Prediction]) -> Loss:
  """The loss plus the losses of the network itself, which are no part of a bound.

  `sums` gets these losses and the reports of the network by name: means over `readings`, times the
  count of tokens.
  """
  total, sums = loss.total, dict(loss.sums)
  for name in readings[0].losses:
    value = loss.count * sum(reading.losses[name] for reading in readings) / len(readings)
    total, sums[name] = total + value, value
  for name in readings[0].reports:
    sums[name] = loss.count * sum(reading.reports[name] for reading in readings) / len(readings)
  return Loss(total, loss.count, sums)


# The bound.


def start_time(model: Model, decode_at: float | Array | None) -> Array | float:
  """The time from which on rates are counted: that of the log-SNR `decode_at`, or 0."""
  return 0.0 if decode_at is None else model.process.time_of(decode_at)


def boundary_terms(
  model: Model,
  params: Params,
  key: Key,
  batch: Batch,
  progress: Progress,
  start: Array | float = 0.0,
) -> Float[Array, "B N"]:
  """Nats: weight · prior and reconstruction terms of each token."""
  weights = scored_weights(model.process.in_positions(batch))
  keys = position_keys(stream(key, "boundary"), *weights.shape, progress)
  return weights * model.process.boundary_terms(params["process"], keys, batch.ids, start)


def add_boundary(
  model: Model,
  params: Params,
  key: Key,
  batch: Batch,
  progress: Progress,
  loss: Loss,
  *,
  start: Array | float = 0.0,
  minimised: bool,
) -> Loss:
  """The loss with the boundary terms in its "bound" and, if `minimised`, in its total; as it is
  where the process has no bound.
  """
  if not model.process.has_bound:
    return loss
  terms = jnp.sum(boundary_terms(model, params, key, batch, progress, start))
  total = loss.total + terms if minimised else loss.total
  return Loss(total, loss.count, {**loss.sums, "bound": loss.sums["bound"] + terms})


def nats(
  model: Model,
  params: Params,
  key: Key,
  batch: Batch,
  progress: Progress,
  *,
  decode_at: float | Array | None = None,
) -> Float[Array, "B N"]:
  """One unbiased draw of the bound, weighted, of each token; 0 for padding and observed tokens.

  Under a timing whose path jumps, a token is read once, from noise, and costs -log p(x_i | z): the
  rate itself where `rate_at_noise_is_nll`, the cross-entropy of the posterior where it is not.

  Args:
    decode_at: the log-SNR at which tokens are decoded, so that no rate is counted at clearer times;
      None: the path's own end.
  """
  process, start = model.process, start_time(model, decode_at)
  times = draw_times(model, params, stream(key, "times"), batch, progress)
  noised = read(model, params, key, batch, times, progress, dropout=False)
  by_jump = model.timing.path == "jumps" and not process.rate_at_noise_is_nll

  def cost(consts, row: TokenRow):
    head, process_params, start = consts
    output = head(row.features)
    if by_jump:
      logits = posterior_logits(process, process_params, row, output)
      return row.weight * row.dt_dtau * cross_entropy(logits, row.ids)
    rate = process.nelbo_rate(process_params, row.clean, row.state, row.t, output)
    return row.weight * row.dt_dtau * jnp.where(row.t > start, rate, 0.0)

  where, rows = token_rows(model, params, batch, noised)
  consts = noised.prediction.head, params["process"], start
  rates = map_tokens(model, cost, consts, where, rows)
  return rates + boundary_terms(model, params, key, batch, progress, start)
