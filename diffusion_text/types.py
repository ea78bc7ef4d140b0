"""The contracts between rooms.

Every other file may import this one. This file imports no other file of the project and names no
published system.

Axis letters, in annotations and in names, are explained only here:

  B   rows of a batch
  L   tokens of a row
  L'  positions that the network reads for a row (>= N, or Q where it reads through a cache)
  N   positions of the state of a row (= L unless a process changes it)
  n   a flat list of positions
  u   positions of a window
  V   vocabulary
  M   candidates of one soft token
  E   width of a diffusion vector
  D   width of the network
  F   width of the MLP
  H   attention heads
  G   key/value heads (G divides H)
  K   width of one head
  Q   queries of one call
  S   sampling steps

Three ideas hold the project together (docs/concepts.md):
  1. Every token has its own time. `t` is [B, N]: 0 = clean, 1 = noise, and a prompt has t = 0.
  2. The network predicts the clean token, for every process.
  3. One rule, over `Layout`, decides which position sees which.

"The engine" is `objective/engine.py`: what all losses share, from times to sums over tokens. "The
loop" is `sampler/loop.py`.

Six choices make a system: process, timing, context, objective, reader, sampler. Members are frozen
dataclasses of plain values: hashable, equal if their options are equal, and static under `jax.jit`.
Arrays live in `params`, one tree for everybody:
{"network": …, "process": …, "timing": …, and the groups of an objective}.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from jaxtyping import Key as KeyArray

Key = KeyArray[Array, ""]  # one typed key (`jax.random.key`)
Keys = KeyArray[Array, "..."]  # an array of typed keys, one per position
Params = Any  # a nested dict of arrays
# z_t: ids [..., N] of a discrete process, vectors [..., N, E] of a continuous one, or a tree of
# such arrays.
State = Any
# The state of a reader between calls: a pytree of arrays of fixed shapes. An argument `memory` of a
# network is something else: what self-conditioning remembers of each token.
Memory = Any
Cache = Any  # the cache of a network: a pytree of arrays
SamplerState = Any  # the state of a sampler between calls: a pytree of arrays of fixed shapes


def pytree(*static: str) -> Callable[[type], type]:
  """A decorator that makes a class a frozen dataclass and a pytree.

  The fields named in `static` are metadata.
  """

  def wrap(cls: type) -> type:
    cls = dataclasses.dataclass(frozen=True)(cls)
    data = [field.name for field in dataclasses.fields(cls) if field.name not in static]
    return jax.tree_util.register_dataclass(cls, data, list(static))

  return wrap


# The inputs of the network.


@pytree()
class Layout:
  """Which position sees which, as three integers per position.

  Query q may see key k if and only if
    segment[q] == segment[k]  and
    ((block[q] == block[k] and noisy[q] == noisy[k]) or (not noisy[k] and block[k] < block[q])).

  Each field is int32 [B, L'] or [1, L'], or None if it is the same for every position. So
  `Layout()` is bidirectional attention over the whole row, at no cost.

  Attributes:
    segment: The document of each position.
    block: The block of each position.
    noisy: 1 = noisy, 0 = clean.
  """

  segment: Array | None = None
  block: Array | None = None
  noisy: Array | None = None


@pytree()
class Inputs:
  """The content of each position. Every channel that is not None is embedded and added.

  Attributes:
    ids: int32 [B, L'], below the `input_sizes` of the process. Or int32 [B, L', M], M candidates
      that are read as one soft token.
    weights: float32 [B, L', M], the share of each candidate (they sum to 1). None if ids is
      [B, L'].
    vectors: float32 [B, L', E], read by a linear map.
    position: int32 [B, L'] or [1, L'], the rotary position of each token. None: 0 … L' - 1.
  """

  ids: Array | None = None
  weights: Array | None = None
  vectors: Array | None = None
  position: Array | None = None

  @property
  def shape(self) -> tuple[int, int]:
    """(B, L')."""
    return (self.ids if self.vectors is None else self.vectors).shape[:2]


class InputSizes(NamedTuple):
  """Sizes of the tables that embed `Inputs`, 0 for an absent channel.

  Attributes:
    ids: All ids are below this number.
    vectors: Numbers of a vector.
  """

  ids: int = 0
  vectors: int = 0


class Span(NamedTuple):
  """Positions start … stop - 1, static and hashable (before Python 3.12 a slice is not)."""

  start: int
  stop: int

  @property
  def size(self) -> int:
    """The number of positions."""
    return self.stop - self.start


@pytree("copies", "tokens", "answers", "one_time")
class Rows:
  """The inputs of the network for B rows.

  Attributes:
    inputs: The content of L' positions.
    t: float32 [B, L'], the time that the network reads at each position.
    layout: The layout of L' positions.
    weights: float32 [B, L'], the weight of each position in the losses of routers. None: equal.
    copies: 2 if the row is a noisy copy and then a clean copy of the same positions, otherwise 1.
    tokens: The positions of the N noisy tokens; empty (start == stop) if they are not read at all.
    answers: The positions with the predictions of the N tokens; empty if the rows only fill a
      cache.
    one_time: True if all positions of a row have the same time. The network then computes what it
      makes of the time once per row. False is never wrong.
  """

  inputs: Inputs
  t: Array
  layout: Layout
  weights: Array | None
  copies: int
  tokens: Span
  answers: Span
  one_time: bool = False


# The outputs of the network.


@pytree("transposed")
class Head:
  """The map from features to logits.

  It is data, so a prediction with a head can be carried through loops and returned from jit.

  Attributes:
    kernel: [D, V], or [V, D] if `transposed` (a tied table, of which no transposed copy is made).
    bias: float32 [V], or None.
    transposed: True if the kernel is [V, D].
  """

  kernel: Array
  bias: Array | None = None
  transposed: bool = False

  def __call__(self, features: Float[Array, "*n D"]) -> Float[Array, "*n V"]:
    """Logits float32. The product runs in the dtype of the features and accumulates in float32."""
    flat = features.reshape(-1, features.shape[-1])
    kernel = self.kernel.astype(features.dtype)
    contracted = 1 if self.transposed else 0
    logits = jax.lax.dot_general(
      flat, kernel, (((1,), (contracted,)), ((), ())), preferred_element_type=jnp.float32
    )
    if self.bias is not None:
      logits = logits + jnp.broadcast_to(self.bias, logits.shape)
    return logits.reshape(*features.shape[:-1], logits.shape[-1])


@pytree()
class IdentityHead:
  """The head of features that are logits already (exact networks in tests)."""

  def __call__(self, features: Float[Array, "*n V"]) -> Float[Array, "*n V"]:
    """The features, unchanged."""
    return features


@pytree("widths", "weights", "space")
class MixedHead:
  """The head of several predictions as one: logits = Σ_k weight_k · logits_k.

  The features of the predictions are concatenated. Classifier-free guidance and mixtures of models
  both use this head.

  Attributes:
    heads: One head per prediction.
    widths: The number of features of each prediction (static).
    weights: One number per head (static).
    space: The quantity that is summed. "logits": the logits. "log_probabilities": the logits after
      normalisation. "probabilities": probabilities; negative sums are set to 0, and the result is
      normalised.
  """

  heads: tuple[Any, ...]
  widths: tuple[int, ...]
  weights: tuple[float, ...]
  space: Literal["logits", "log_probabilities", "probabilities"] = "logits"

  def __call__(self, features: Float[Array, "*n D"]) -> Float[Array, "*n V"]:
    """Logits float32, -inf for a token without probability."""
    ends = [sum(self.widths[: i + 1]) for i in range(len(self.widths))]
    parts = jnp.split(features, ends[:-1], axis=-1)
    logits = [head(part) for head, part in zip(self.heads, parts, strict=True)]
    if self.space == "log_probabilities":
      logits = [jax.nn.log_softmax(one, axis=-1) for one in logits]
    if self.space == "probabilities":
      total = sum(
        w * jax.nn.softmax(one, axis=-1) for w, one in zip(self.weights, logits, strict=True)
      )
      return jax.nn.log_softmax(jnp.log(jnp.maximum(total, 0.0)), axis=-1)
    return sum(w * one for w, one in zip(self.weights, logits, strict=True))


@pytree()
class Prediction:
  """The prediction of the network, as features and a head.

  At V = 32k the head is most of the work: callers compute logits only where they count.

  Attributes:
    features: [B, N, D], of the predicted positions only.
    head: features [..., D] -> logits float32 [..., V] (or [..., output_size]), a pytree.
    losses: name -> float32 scalar, a weighted loss per token of the network itself (its routers).
      The engine adds their sum to the mean that is minimised, and reports each under its name.
    stages: Predictions of the earlier stages of a network with several stages.
    hidden: layer -> [B, N, D], the requested hidden layers.
    fresh: bool [B, N], the positions that this call has predicted (a cached reader predicts some).
      None: all positions.
    reports: name -> float32 scalar that the engine reports and does not minimise.
  """

  features: Array
  head: Any
  losses: Mapping[str, Array] = dataclasses.field(default_factory=dict)
  stages: tuple[Prediction, ...] = ()
  hidden: Mapping[int, Array] = dataclasses.field(default_factory=dict)
  fresh: Array | None = None
  reports: Mapping[str, Array] = dataclasses.field(default_factory=dict)

  @property
  def logits(self) -> Float[Array, "B N V"]:
    """All logits at once, for tests and small vocabularies."""
    return self.head(self.features)


# Data and training.


@pytree()
class Batch:
  """One batch of token rows: numpy arrays on the host, global jax arrays on the devices.

  Attributes:
    ids: int32 [B, L], each below V.
    observed: bool [B, L], tokens that are known: they have t = 0, no loss, and are never altered.
      None: no token is observed.
    dropped: bool [B, L], the observed tokens that the network reads as noise at t = 1. None: the
      network reads all observed tokens.
    weights: float32 [B, L], 0 for padding. None: every token has weight 1.
    segment: int32 [B, L], the document of each token within its row; padding has its own segment.
      None: one document.
    extras: name -> array [B, ...] or [B, L, ...], added by `prepare` for an objective. Timings
      never see extras.
  """

  ids: Array
  observed: Array | None = None
  dropped: Array | None = None
  weights: Array | None = None
  segment: Array | None = None
  extras: Mapping[str, Array] = dataclasses.field(default_factory=dict)


@pytree("parts", "units")
class Progress:
  """The place of a batch within training.

  Attributes:
    step: int32 scalar, the optimizer step.
    part: The number of this microbatch in the global batch of the step. Row j of the microbatch is
      row j · parts + part of the global batch (the trainer interleaves rows, see
      `train.step.split_rows`).
    parts: The number of microbatches of the step.
    units: The number of units that each row of the batch is cut into, for a timing that draws for
      units.
  """

  step: Array | int = 0
  part: Array | int = 0
  parts: int = 1
  units: int = 1


class Loss(NamedTuple):
  """A loss as sums, so that microbatches, devices and evaluation batches add up without bias.

  Attributes:
    total: float32 scalar, summed over tokens (in nats if the objective is a bound). The trainer
      minimises total / count.
    count: float32 scalar, the weight of the scored tokens, which does not depend on params.
    sums: name -> float32 scalar. The trainer reports sum / count under this name.
  """

  total: Array
  count: Array
  sums: Mapping[str, Array]

  def plus(self, value: Float[Array, ""] | float) -> Loss:
    """The loss with a value added to its total."""
    return self._replace(total=self.total + value)


@runtime_checkable
class LossFn(Protocol):
  """The loss of a batch: everything that the trainer knows of diffusion."""

  def __call__(
    self, params: Params, frozen: Params, key: Key, batch: Batch, progress: Progress
  ) -> Loss:
    """The loss of a batch, differentiable in `params` and not in `frozen`."""


@runtime_checkable
class DataIterator(Protocol):
  """Endless batches, with a position that can be saved."""

  def __next__(self) -> Batch:
    """The next batch."""

  def get_state(self) -> bytes:
    """The position before the next batch."""

  def set_state(self, state: bytes) -> None:
    """Goes to a position that `get_state` returned."""


@runtime_checkable
class Tokenizer(Protocol):
  """Text to ids and back, without loss for text without unknown characters.

  Attributes:
    name: The kind of tokenizer.
    vocab_size: V.
    separator: The id that is written between documents: `special["end"]`.
    special: The id of each role, "begin", "end", "mask" and "pad"; None where no token has it.
    fingerprint: A string that is equal for equal tokenizers.
  """

  name: str
  vocab_size: int
  separator: int | None
  special: Mapping[str, int | None]
  fingerprint: str

  def encode(self, text: str) -> Any:
    """Ids int32 [L].

    Raises:
      ValueError: For text that it cannot hold, with the character and its place.
    """

  def decode(self, ids: Any) -> str:
    """The text of ids [L]."""

  def to_bytes(self) -> bytes:
    """The tokenizer as bytes, saved in every checkpoint."""


class DataFacts(NamedTuple):
  """Facts about the data, for members that make their parameters.

  Attributes:
    length: Positions of a row; for a timing, positions of one unit.
    vocab_size: V.
    token_counts: () -> int64 [V], occurrences of each token in the training split.
    document_counts: () -> int64 [V], the number of documents that contain each token.
    words: () -> `data.words.Words` of the split; None where the tokenizer tells no words.
    steps: Optimizer steps of the run.
  """

  length: int
  vocab_size: int
  token_counts: Callable[[], Any] | None = None
  document_counts: Callable[[], Any] | None = None
  steps: int = 1
  words: Callable[[], Any] | None = None


class Times(NamedTuple):
  """One draw of a timing. No gradient flows through it.

  Attributes:
    t: float32 [B, N], the time of each token.
    dt_dtau: float32 [B, N], the derivative of t by the shared clock τ, so that the bound is
      E_τ[dt_dtau · nelbo_rate].
    tau: float32 [B, units], the shared clock of each unit.
    network_time: float32 [B, N], the time that the network reads: t, unless t would reveal the
      token. [B, 1] if all tokens of a row read the same.
  """

  t: Array
  dt_dtau: Array
  tau: Array
  network_time: Array


class TokenCosts(NamedTuple):
  """The cost of each token in one draw, without gradient and before weights.

  Learned timings are fitted to these costs.

  Attributes:
    nats: float32 [B, N], dt_dtau · nelbo_rate; zeros for a process without a bound.
    loss: float32 [B, N], the loss of the objective at the time of the token.
    weight: float32 [B, N], 0 for padding and observed tokens.
    counted: bool [B, N], True where a loss was computed.
  """

  nats: Array
  loss: Array
  weight: Array
  counted: Array


# The six choices, and the network.


@runtime_checkable
class Network(Protocol):
  """A neural network as pure functions. Its fields are its options.

  Attributes:
    remembers: True if the network reads `memory`, so that `remember` and `no_memory` may be called.
    layers: The number of layers, by which costs are counted.
  """

  remembers: bool
  layers: int

  def check(self, model: Model, data: Any) -> None:
    """Raises ValueError, with the fix, for a context or data settings that do not fit."""

  def decays(self, path: tuple[str, ...]) -> bool:
    """True if the parameter at `path` (names from the root) has weight decay."""

  def trains(self, path: tuple[str, ...]) -> bool:
    """True if the parameter of the network at `path` (names from the root) moves in training."""

  def init(self, key: Key) -> Params:
    """The parameters, a nested dict of float32 arrays."""

  def apply(
    self,
    params: Params,
    rows: Rows,
    *,
    memory: Float[Array, "B N D"] | None = None,
    key: Key | None = None,
    hidden_layers: tuple[int, ...] = (),
  ) -> Prediction:
    """The predictions at `rows.answers`.

    Args:
      params: The parameters.
      rows: The inputs.
      memory: The self-conditioning memory of each token.
      key: Turns dropout on.
      hidden_layers: Layers to return in `Prediction.hidden`.
    """

  def cache(self, params: Params, rows: Rows, slots: int) -> Cache:
    """An empty cache with `slots` slots for each of the rows."""

  def extend(
    self,
    params: Params,
    rows: Rows,
    cache: Cache,
    slots: Int[Array, "B Q"],
    *,
    memory: Float[Array, "B Q D"] | None = None,
  ) -> tuple[Prediction, Cache]:
    """(predictions of the Q tokens of `rows` (L' = Q), the next cache).

    The tokens are written into `slots` first and then attend to every written slot. If
    `rows.answers` is empty, only the cache is used.
    """

  def remember(self, params: Params, estimate: Float[Array, "n E"]) -> Float[Array, "n D"]:
    """The self-conditioning memory [n, D] of a clean token's estimate (`Process.estimate`)."""

  def no_memory(self, params: Params) -> Float[Array, " D"]:
    """The memory [D] of a token without an estimate, which `apply` uses if `memory` is None."""


@runtime_checkable
class Process(Protocol):
  """A corruption of clean tokens and its reversal, as pure functions.

  `params` is {} if nothing is learned. Methods of the second to fifth group are elementwise over
  positions: they accept [B, N] or a flat list [n] (states [n, …], outputs [n, V]), with one key per
  position. Callers therefore compute the logits of few positions only, and the draw of a token does
  not depend on its batch.

  Attributes:
    vocab_size: V.
    output_size: Numbers per position of the network's output: V, or E for a process that reads a
      vector.
    input_sizes: Sizes of the tables of `Inputs`.
    estimate_size: Numbers per token of `estimate`.
    mask_id: The id of the mask, or None.
    reads_logits_as: The meaning of the network's output.
    has_bound: True if `nelbo_rate` and `boundary_terms` bound -log p(x).
    rate_at_noise_is_nll: True if `nelbo_rate` at t = 1 is the cross-entropy of the clean token, so
      that times of only 0 and 1 give a bound.
    noise_is_learned: True if `corrupt` makes a discrete draw that depends on trained parameters, so
      that the gradient of the bound needs the estimator of `objective/score_function.py`.
  """

  vocab_size: int
  output_size: int
  input_sizes: InputSizes
  estimate_size: int
  mask_id: int | None
  reads_logits_as: Literal["posterior", "leave_one_out", "score", "vector"]
  has_bound: bool
  rate_at_noise_is_nll: bool
  noise_is_learned: bool

  # Rows.

  def init(self, key: Key, facts: DataFacts) -> Params:
    """The parameters: learned embeddings, counted constants. {} if there are none."""

  def positions(self, length: int) -> int:
    """N, the number of positions of the state of a row of L tokens."""

  def in_positions(self, batch: Batch) -> Batch:
    """The batch with every field in the N positions of the state."""

  def clean(self, params: Params, ids: Int[Array, "*b L"]) -> State:
    """The state of clean tokens, equal to `corrupt` at t = 0."""

  def decode(self, params: Params, state: State) -> Int[Array, "*b L"]:
    """The ids, below V, of a state at t = 0."""

  # Noise.

  def prior(self, params: Params, keys: Keys) -> State:
    """The state at t = 1, one position per key."""

  def corrupt(self, params: Params, keys: Keys, clean_state: State, t: Float[Array, "*n"]) -> State:
    """A draw of q(z_t | clean state), exactly the clean state where t == 0."""

  def round_time(self, t: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """t rounded up to the grid of a process in discrete time; t for other processes."""

  def time_of(self, log_snr: float | Array) -> Float[Array, ""]:
    """The time at which the log signal-to-noise ratio is `log_snr`.

    Raises:
      ValueError: For a process without a signal-to-noise ratio.
    """

  def bound_times(self) -> Mapping[str, float]:
    """Options of `timing.Shared` that keep the variance of a reported bound finite or small."""

  def inputs(self, params: Params, state: State, t: Float[Array, "*n"]) -> Inputs:
    """The inputs of the network for a state [B, N, …]."""

  # Posteriors.

  def posterior(
    self, params: Params, state: State, t: Float[Array, "*n"], output: Float[Array, "*n V"]
  ) -> Float[Array, "*n V"]:
    """log p(x_i = v | z), normalised, with the evidence of z_i included: a token that z_i excludes
    has no chance, whatever the network answers."""

  def leave_one_out(
    self, params: Params, state: State, t: Float[Array, "*n"], output: Float[Array, "*n V"]
  ) -> Float[Array, "*n V"]:
    """log p(x_i = v | z without z_i), normalised."""

  def estimate(
    self, params: Params, state: State, t: Float[Array, "*n"], output: Float[Array, "*n V"]
  ) -> Float[Array, "*n E"]:
    """An estimate of the clean token, [..., estimate_size], for self-conditioning."""

  # Likelihood.

  def has_loss(self, params: Params, state: State, t: Float[Array, "*n"]) -> Bool[Array, "*n"]:
    """True where `nelbo_rate` may be non-zero, so that logits are needed."""

  def nelbo_rate(
    self,
    params: Params,
    clean_state: State,
    state: State,
    t: Float[Array, "*n"],
    output: Float[Array, "*n V"],
  ) -> Float[Array, "*n"]:
    """The integrand of the bound, in nats per unit of time."""

  def boundary_terms(
    self, params: Params, keys: Keys, ids: Int[Array, "B L"], start: float | Array = 0.0
  ) -> Float[Array, "B N"]:
    """The prior and reconstruction terms in nats. No network is called.

    `start` is the time from which on the bound integrates `nelbo_rate`.
    """

  # Reverse.

  def may_change(
    self, params: Params, keys: Keys, state: State, t: Float[Array, "*n"], s: Float[Array, "*n"]
  ) -> Bool[Array, "*n"]:
    """True where `step` with the same keys may change the state for some output."""

  def step(
    self,
    params: Params,
    keys: Keys,
    state: State,
    output: Float[Array, "*n V"],
    t: Float[Array, "*n"],
    s: Float[Array, "*n"],
  ) -> State:
    """A draw of p(z_s | z_t), s <= t. A step to s = 0 draws a clean token."""


class Model(NamedTuple):
  """A probabilistic model of text, hashable and static under jit.

  Attributes:
    network, process, timing, context: The members.
    chunk: Positions whose logits exist at the same time, per device. Memory grows with chunk · V,
      never with B · L · V.
    shards: The number of devices that the rows of a batch are split over.
    self_conditioning: The probability, per row, that a loss makes a second forward pass with the
      first prediction as memory.
  """

  network: Network
  process: Process
  timing: Timing
  context: Context
  chunk: int = 256
  shards: int = 1
  self_conditioning: float = 0.0


@runtime_checkable
class Timing(Protocol):
  """The time of each token. Any timing goes with any process and any context.

  A timing draws for [rows, tokens]. The engine cuts a batch into units (`Context.unit`) before the
  draw and joins the draws again.

  Attributes:
    path: "continuous": t of each token goes from 0 to 1 once while the clock does. "jumps": t is 0
      or 1. "none": neither, so the loss is a surrogate.
  """

  path: Literal["continuous", "jumps", "none"]

  def init(self, key: Key, facts: DataFacts) -> Params:
    """The parameters, {} if nothing is learned. `facts.length` is the length of a unit."""

  def draw(self, params: Params, key: Key, batch: Batch, progress: Progress) -> Times:
    """Times for a training or evaluation batch, as if no token were observed.

    The engine sets t = 0 for observed tokens.
    """

  def grid(
    self, params: Params, clock: Float[np.ndarray, " S1"], lengths: Int[Array, " B"], length: int
  ) -> Float[Array, "B S1 {length}"]:
    """Times [B, steps + 1, length] from 1 to 0 of the steps of a sampler.

    `clock` is the clock before and after each step, from 1 to 0. Row b has the length lengths[b].
    """

  def fit(self, params: Params, times: Times, costs: TokenCosts) -> Float[Array, ""] | float:
    """A scalar of value 0, summed over tokens, whose gradient trains the timing; units: `draw`."""

  def for_bound(self, options: Mapping[str, float]) -> Timing:
    """`Shared` with these options of `Process.bound_times`, or itself: the bound is the same."""


@runtime_checkable
class Context(Protocol):
  """The rows that the network reads, and their layout.

  Attributes:
    unit: The number of positions that are sampled together and share a draw of the timing. None:
      the whole row.
    reads_noisy: True if the rows hold noisy tokens. False: there is no prediction at a noisy token
      for self-conditioning.
    horizon: The number of positions of a group, counted from the start of the row. While sampling,
      a token sees its own group and those before, and none after. None: it sees the whole row.
  """

  unit: int | None
  reads_noisy: bool
  horizon: int | None

  def check(self, model: Model, data: Any) -> None:
    """Raises ValueError, with the fix, for a model or data settings that do not fit."""

  def training_rows(
    self,
    key: Key,
    noisy: Inputs,
    clean: Inputs,
    noise: Inputs,
    times: Times,
    batch: Batch,
    progress: Progress,
  ) -> Rows:
    """The rows of a loss.

    Args:
      key: A random key.
      noisy: Inputs [B, N] of z_t.
      clean: Inputs [B, N] of the clean state.
      noise: Inputs [B, N] of a draw of the prior.
      times: The draw of the timing.
      batch: The batch, in positions.
      progress: The place within training.
    """

  def sampling_rows(
    self, noisy: Inputs, noise: Inputs, t: Float[Array, "B N"], batch: Batch
  ) -> Rows:
    """The rows for the same predictions while sampling. Tokens with t = 0 are clean.

    L' = N, or N + 1 if a position before the row predicts the first token. Readers that gather use
    `Rows.tokens` and `Rows.answers`.
    """

  def positions_read(self, length: int) -> int:
    """The number of positions that the network reads for a training row, for FLOP counts."""


@runtime_checkable
class Objective(Protocol):
  """The loss of training. Its fields are options only; the model is an argument.

  Attributes:
    passes: Forward passes of the network per training step, without self-conditioning.
    trains: The groups of `params` that receive gradient.
    costs_nll: True if the loss of a token is -log p of the clean token, weighted by dt_dtau.
  """

  passes: float
  trains: frozenset[str]
  costs_nll: bool

  def check(self, model: Model) -> None:
    """Raises ValueError, with the fix, for a model that this objective cannot train."""

  def init(self, model: Model, key: Key, facts: DataFacts) -> Mapping[str, Params]:
    """Additional groups of parameters, {} for most objectives."""

  def __call__(
    self, model: Model, params: Params, key: Key, batch: Batch, times: Times, progress: Progress
  ) -> tuple[Loss, TokenCosts | None]:
    """(loss, cost of each token). The costs are None if the objective draws its own times."""


# Sampling.


class Query(NamedTuple):
  """One request to the network while sampling.

  Attributes:
    state: [B, N, …], of the whole row.
    t: float32 [B, N], 0 for finished positions and 1 for positions after the window.
    start: int32 scalar, or a number (`Reader.unrolls`), the first position of the window.
    needs: bool [B, u], the predictions of the window that the sampler will use.
    batch: The batch, in positions (observed, weights, segment).
    noise: [B, N, …], a draw of the prior for each row.
    hidden: bool [B, N], observed positions that this pass must not see. None: no position.
    memory: [B, u, D], the self-conditioning memory of the window, or None.
    told: float32 [B, N], the times that the network reads in place of t. None: t.
  """

  state: State
  t: Array
  start: Array | int
  needs: Array
  batch: Batch
  noise: State
  hidden: Array | None = None
  memory: Array | None = None
  told: Array | None = None


class Cost(NamedTuple):
  """The cost of network calls to each row: numbers, or arrays [B] where rows differ.

  Attributes:
    calls: Network calls.
    token_layers: Positions that the network reads × its layers.
    attention: Pairs of a query and a key × layers.
  """

  calls: Array | float
  token_layers: Array | float
  attention: Array | float

  def plus(self, *others: Cost) -> Cost:
    """The sum of the costs."""
    return Cost(*(sum(parts) for parts in zip(self, *others, strict=True)))

  def times(self, number: Array | float) -> Cost:
    """The cost of as many calls."""
    return Cost(*(number * part for part in self))


@runtime_checkable
class Reader(Protocol):
  """How a sampler calls the network. Its fields are options only.

  `init` and `read` work like optax's init and update: the memory lives in the carry of the loop.
  `reader.reading.Reading` is what most readers inherit.

  Attributes:
    calls: Network calls per read (at most).
    every: A read must be a refresh after this number of reads (1: always, so that nothing is cached
      within a window).
    unrolls: True if `Query.start` must be a number when a read is compiled, so that every window is
      a program of its own.
  """

  calls: int
  every: int
  unrolls: bool

  def check(self, model: Model) -> None:
    """Raises ValueError, with the fix, for a model that this reader cannot call."""

  def init(self, model: Model, params: Params, query: Query) -> Memory:
    """The memory before the first read."""

  def read(
    self, model: Model, params: Params, memory: Memory, query: Query, *, refresh: bool
  ) -> tuple[Prediction, Memory]:
    """(prediction of the window [B, u], next memory). `refresh` is static."""

  def finish(self, model: Model, params: Params, memory: Memory, query: Query) -> Memory:
    """The memory after the window has become clean."""

  def cost(
    self,
    model: Model,
    params: Params,
    memory: Memory,
    query: Query,
    during: Literal["init", "refresh", "read", "finish"],
  ) -> Cost:
    """The cost of `init`, of a read that is a refresh or is none, or of `finish`, with this memory
    before it (None before `init`)."""


class Canvas(NamedTuple):
  """The window, which is all that a sampler decides by (`Sampler.step` also gets the query).

  Attributes:
    state: [B, u, …], the state of the window.
    active: bool [B, u], the tokens to generate.
    keys: [B, u], one key per token.
    call: int32 [B], the number of network calls of each row in this window so far.
    lengths: int32 [B], the number of positions of the window with text (neither padding nor beyond
      the row).
    segment: int32 [B, u], the document of each token. None: one document.
  """

  state: State
  active: Array
  keys: Array
  call: Array
  lengths: Array
  segment: Array | None = None


@runtime_checkable
class Sampler(Protocol):
  """Which tokens change at each step, and to what. Its fields are options only.

  No decision may depend on another row of the batch.

  Attributes:
    extra_calls: Network calls that each step makes itself (a scorer).
  """

  extra_calls: int

  def check(self, model: Model) -> None:
    """Raises ValueError, with the fix, for a model that this sampler cannot sample from."""

  def init(self, model: Model, params: Params, canvas: Canvas) -> SamplerState:
    """The state before the first call of a window, with all draws that are made once per window."""

  def needs(
    self, model: Model, params: Params, canvas: Canvas, state: SamplerState
  ) -> Bool[Array, "B u"]:
    """True for predictions that the next step will use. A row that needs none is done."""

  def times(
    self, model: Model, params: Params, canvas: Canvas, state: SamplerState
  ) -> Float[Array, "B u"]:
    """The time at which each active token stands. All other tokens have time 0."""

  def network_times(
    self, model: Model, params: Params, canvas: Canvas, state: SamplerState
  ) -> Float[Array, "B u"]:
    """What the network reads as the time of each active token: mostly those of `times`."""

  def step(
    self,
    model: Model,
    params: Params,
    canvas: Canvas,
    state: SamplerState,
    prediction: Prediction,
    query: Query,
    needs: Bool[Array, "B u"],
  ) -> tuple[State, SamplerState]:
    """(next state of the window, next state of the sampler).

    The loop freezes inactive tokens and finished rows.
    """
