"""The contracts. Every other file may import this one; it imports none of ours and names no published system.

Axis letters, in annotations and in names, explained only here:

  B  rows of a batch            L  tokens of a row              N  positions of the state (= L unless a process says otherwise)
  u  positions of a window      V  vocabulary                   M  candidates of one soft token
  D  width of the network       H  attention heads              G  key/value heads (G divides H)
  K  width of one head          F  width of the MLP             E  width of a diffusion vector
  Q  queries of one call        S  sampling steps               n  a flat list of positions
  L' positions that the network reads for a row (L' >= N)

Three ideas hold the project together (docs/concepts.md):
  1. every token has its own time: `t` is [B, N]; 0 = clean, 1 = noise; a prompt is t = 0;
  2. the network predicts the clean token, whatever the process is;
  3. one rule, over `Layout`, decides who sees whom.

Six choices make a system: process, timing, context, objective, reader, sampler. Members are frozen dataclasses of plain
values: hashable, equal when their options are equal, static under `jax.jit`. Arrays live in `params`, one tree for everybody:
{"network": …, "process": …, "timing": …, and the groups of an objective}.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from jaxtyping import Key as KeyArray

Key = KeyArray[Array, ""]  # one typed key (`jax.random.key`)
Keys = KeyArray[Array, "..."]  # an array of them, one per position
Params = Any  # a nested dict of arrays
State = Any  # z_t: ids [..., N] for discrete processes, vectors [..., N, E] for continuous ones, or a tree of such arrays
Memory = Any  # what a reader carries from call to call: a pytree of arrays of fixed shapes
Cache = Any  # a network's own pytree
SamplerState = Any  # what a sampler carries from call to call: a pytree of arrays of fixed shapes


def pytree(*static: str) -> Callable[[type], type]:
  """A decorator that makes a class a frozen dataclass and a pytree; the fields named in `static` are metadata."""

  def wrap(cls: type) -> type:
    cls = dataclasses.dataclass(frozen=True)(cls)
    data = [field.name for field in dataclasses.fields(cls) if field.name not in static]
    return jax.tree_util.register_dataclass(cls, data, list(static))

  return wrap


# What the network reads.


@pytree()
class Layout:
  """Who sees whom, as three integers per position.

  Query q may see key k if and only if
    segment[q] == segment[k]  and
    ((block[q] == block[k] and noisy[q] == noisy[k]) or (not noisy[k] and block[k] < block[q])).

  Each field is int32 `[B, L']` or `[1, L']`, or None, which means "the same for every position". So `Layout()` is
  bidirectional attention over the whole row, at no cost.
  """

  segment: Array | None = None
  block: Array | None = None
  noisy: Array | None = None  # 1 = noisy, 0 = clean


@pytree()
class Inputs:
  """What stands at each position. Every channel that is present is embedded, and the embeddings are summed.

  Attributes:
    ids: int32 [B, L'], below the process's `input_sizes`; or int32 [B, L', M], M candidates that are read as one soft token.
    weights: float32 [B, L', M], the share of each candidate (they sum to 1); None when ids is [B, L'].
    vectors: float32 [B, L', E], read by a linear map.
    position: int32 [B, L'] or [1, L'], the rotary position of each token; None means 0 … L'-1.
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
  """Sizes of the tables that embed `Inputs`: ids below `ids`, vectors of `vectors` numbers; 0 where the channel is absent."""

  ids: int = 0
  vectors: int = 0


class Span(NamedTuple):
  """Positions start … stop - 1, static and hashable (a slice is not, before Python 3.12)."""

  start: int
  stop: int

  @property
  def size(self) -> int:
    """The number of positions."""
    return self.stop - self.start


@pytree("copies", "tokens", "answers")
class Rows:
  """What the network reads for B rows.

  Attributes:
    inputs: of L' positions.
    t: float32 [B, L'], the time that the network is shown at each position.
    layout: of L' positions.
    weights: float32 [B, L'], what each position weighs in the losses of routers; None: all the same.
    copies: 2 if the row is a noisy copy and then a clean copy of the same positions, else 1.
    tokens: where the N noisy tokens stand; empty (start == stop) if they are not read at all.
    answers: where the N tokens are answered; empty if the rows are only remembered (a cache is filled).
  """

  inputs: Inputs
  t: Array
  layout: Layout
  weights: Array | None
  copies: int
  tokens: Span
  answers: Span


# What the network answers.


@pytree("transposed")
class Head:
  """The map from features to logits, as data: a prediction that holds one can be carried through loops and returned from jit.

  Attributes:
    kernel: [D, V], or [V, D] if `transposed` (a table that is tied, which is never materialised the other way round).
    bias: float32 [V], or None.
  """

  kernel: Array
  bias: Array | None = None
  transposed: bool = False

  def __call__(self, features: Float[Array, "*n D"]) -> Float[Array, "*n V"]:
    """Logits float32; the product runs in the dtype of the features and accumulates in float32."""
    flat = features.reshape(-1, features.shape[-1])
    kernel = self.kernel.astype(features.dtype)
    contracted = 1 if self.transposed else 0
    logits = jax.lax.dot_general(
      flat, kernel, (((1,), (contracted,)), ((), ())), preferred_element_type=jnp.float32
    )
    if self.bias is not None:
      logits = logits + self.bias
    return logits.reshape(*features.shape[:-1], logits.shape[-1])


@pytree()
class IdentityHead:
  """Features that are logits already (exact networks in tests)."""

  def __call__(self, features: Float[Array, "*n V"]) -> Float[Array, "*n V"]:
    """The features."""
    return features


@pytree("widths", "weights", "space")
class MixedHead:
  """Several predictions as one: features are concatenated, and the logits are Σ_k weight_k · logits_k.

  Classifier-free guidance and mixtures of models are both this.

  Attributes:
    heads: one per prediction.
    widths: how many features each of them has (static).
    weights: one number per head (static).
    space: what is combined. "logits": the logits as they are. "log_probabilities": after normalisation. "probabilities":
      probabilities, those below 0 cut off and the rest divided by their sum.
  """

  heads: tuple[Any, ...]
  widths: tuple[int, ...]
  weights: tuple[float, ...]
  space: Literal["logits", "log_probabilities", "probabilities"] = "logits"

  def __call__(self, features: Float[Array, "*n D"]) -> Float[Array, "*n V"]:
    """Logits float32; -inf where no probability is left."""
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
  """The network's answer, before the vocabulary is touched. At V = 32k the head is most of the work, so whoever reads the answer
  computes logits only for the positions that count.

  Attributes:
    features: [B, N, D], of the answered positions only.
    head: features [..., D] -> logits float32 [..., V] (or [..., output_size]); a pytree.
    losses: name -> float32 scalar per token, the network's own losses (routers), already weighted: the engine adds their sum
      to the mean that is minimised, and reports each under its name.
    stages: answers of earlier stages, of a network that has several.
    hidden: layer -> [B, N, D], the hidden layers that were asked for.
    fresh: bool [B, N], positions that were answered by this call (a cached reader answers some); None: all.
  """

  features: Array
  head: Any
  losses: Mapping[str, Array] = dataclasses.field(default_factory=dict)
  stages: tuple[Prediction, ...] = ()
  hidden: Mapping[int, Array] = dataclasses.field(default_factory=dict)
  fresh: Array | None = None

  @property
  def logits(self) -> Float[Array, "B N V"]:
    """All logits at once: for tests and small vocabularies."""
    return self.head(self.features)


# Data and training.


@pytree()
class Batch:
  """One batch of token rows; numpy arrays on the host, global jax arrays on the devices.

  Attributes:
    ids: int32 [B, L], each below V.
    observed: bool [B, L], tokens that are known: t = 0, never scored, never altered. None: no token is observed.
    dropped: bool [B, L], the observed tokens that the network is not shown: noise at t = 1. None: it is shown all of them.
    weights: float32 [B, L], 0 = padding. None: every token counts 1.
    segment: int32 [B, L], the document of each token within its row; padding has one of its own. None: one document.
    extras: name -> array [B, ...] or [B, L, ...], what `prepare` has added for an objective. Timings never see extras.
  """

  ids: Array
  observed: Array | None = None
  dropped: Array | None = None
  weights: Array | None = None
  segment: Array | None = None
  extras: Mapping[str, Array] = dataclasses.field(default_factory=dict)


@pytree("parts", "units")
class Progress:
  """Where in training a loss is asked for.

  Attributes:
    step: int32 scalar, the optimizer step.
    part, parts: this is microbatch `part` of `parts` of the step's global batch. Row j of it is row j · parts + part of the
      global batch (the trainer interleaves, see `train.split_rows`).
    units: how many units each row of the batch has been cut into, where a timing draws for units.
  """

  step: Array | int = 0
  part: Array | int = 0
  parts: int = 1
  units: int = 1


class Loss(NamedTuple):
  """A loss as sums, so that microbatches, devices and evaluation batches add up without bias.

  Attributes:
    total: float32 scalar, summed over tokens (nats if the objective is a bound); what is minimised is total / count.
    count: float32 scalar, the weight of the tokens that were scored; does not depend on params.
    sums: name -> float32 scalar; the trainer reports sum / count under that name.
  """

  total: Array
  count: Array
  sums: Mapping[str, Array]

  def plus(self, value: Float[Array, ""] | float) -> Loss:
    """The loss with a value added to its total."""
    return self._replace(total=self.total + value)


class LossFn(Protocol):
  """All that the trainer knows of diffusion."""

  def __call__(
    self, params: Params, frozen: Params, key: Key, batch: Batch, progress: Progress
  ) -> Loss:
    """The loss of a batch, differentiable in params; `frozen` holds what is read and never moved."""


class DataIterator(Protocol):
  """Endless batches, with a position that can be saved."""

  def __next__(self) -> Batch:
    """The next batch."""

  def get_state(self) -> bytes:
    """The position, before the next batch is drawn."""

  def set_state(self, state: bytes) -> None:
    """Goes to a position that `get_state` gave."""


class Tokenizer(Protocol):
  """Text to ids and back, without loss for text that it knows."""

  name: str
  vocab_size: int
  separator: int
  fingerprint: str

  def encode(self, text: str) -> Any:
    """int32 [L]. Raises ValueError, with the character and its place, for text that it cannot hold."""

  def decode(self, ids: Any) -> str:
    """The text of ids [L]."""

  def to_bytes(self) -> bytes:
    """All that is needed to build it again; saved beside every checkpoint."""


class DataFacts(NamedTuple):
  """What members may know of the data when their parameters are made.

  Attributes:
    length: positions of a row; for a timing, of one unit.
    vocab_size: V.
    token_counts: () -> int64 [V], how often each token occurs in the training split; counted on the first call.
    document_counts: () -> int64 [V], in how many documents each token occurs.
    steps: optimizer steps of the run.
  """

  length: int
  vocab_size: int
  token_counts: Callable[[], Any] | None = None
  document_counts: Callable[[], Any] | None = None
  steps: int = 1


class Times(NamedTuple):
  """One draw of a timing; no gradient flows through it.

  Attributes:
    t: float32 [B, N], the time of each token.
    dt_dtau: float32 [B, N], the speed over the shared clock τ, so that E_τ[dt_dtau · rate] is the bound.
    tau: float32 [B, units], the shared clock of each unit.
    network_time: float32 [B, N], the time that the network is shown: t, unless t would tell the token.
  """

  t: Array
  dt_dtau: Array
  tau: Array
  network_time: Array


class TokenCosts(NamedTuple):
  """What each token cost in one draw; no gradient, before weights. Learned timings are fitted to it.

  Attributes:
    nats: float32 [B, N], dt_dtau · nelbo_rate; zeros for a process without a bound.
    loss: float32 [B, N], the objective's loss at that time.
    weight: float32 [B, N], 0 for padding and observed tokens.
    counted: bool [B, N], where a loss was computed at all.
  """

  nats: Array
  loss: Array
  weight: Array
  counted: Array


# The six choices, and the network.


class Network(Protocol):
  """A neural network as pure functions. Its options are its fields.

  Attributes:
    remembers: True if it reads `memory`, so that `remember` and `no_memory` may be called.
  """

  remembers: bool

  def check(self, model: Model, data: Any) -> None:
    """Raises ValueError, with the fix, for a context or data settings that it cannot serve."""

  def decays(self, path: tuple[str, ...]) -> bool:
    """True if weight decay should reach the parameter at `path` (names from the root)."""

  def init(self, key: Key) -> Params:
    """Parameters, a nested dict of float32 arrays."""

  def apply(
    self,
    params: Params,
    rows: Rows,
    *,
    memory: Float[Array, "B N D"] | None = None,
    key: Key | None = None,
    hidden_layers: tuple[int, ...] = (),
  ) -> Prediction:
    """The answers for `rows.answers`. memory: what self-conditioning remembers of each token; key turns dropout on."""

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
    """Writes the Q tokens of `rows` (L' = Q) into `slots`, then lets them attend to every slot that has been written.

    The prediction answers all Q tokens; where `rows.answers` is empty, nothing needs to be answered.
    """

  def remember(self, params: Params, estimate: Float[Array, "n E"]) -> Float[Array, "n D"]:
    """What the network keeps of an estimate of the clean token (`Process.estimate`), for its next call."""

  def no_memory(self, params: Params) -> Float[Array, " D"]:
    """The memory of a token of which there is no estimate; what `apply` uses where `memory` is None."""


class Process(Protocol):
  """A corruption of clean tokens and its reversal. Pure; `params` is {} when nothing is learned.

  Methods of the second to fifth group are elementwise over positions: they accept [B, N] or a flat list [n] (states [n, …],
  outputs [n, V]), with one key per position, so that callers pay for the logits of few positions only and no token's draw
  depends on its batch.

  Attributes:
    vocab_size: V.
    output_size: numbers per position that the network answers: V, or E for a process that reads a vector.
    input_sizes: sizes of the tables of `Inputs`.
    estimate_size: numbers per token of `estimate`.
    mask_id: the id of the mask, or None.
    reads_logits_as: what the network's output means.
    has_bound: True if `nelbo_rate` and `boundary_terms` bound -log p(x).
    rate_at_noise_is_nll: True if `nelbo_rate` at t = 1 is the cross-entropy of the clean token, so that times which are 0 or 1
      give a bound.
    noise_is_learned: True if `corrupt` depends on trained parameters of a discrete draw: then the bound's gradient needs
      `objective/score_function.py`.
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
    """Learned embeddings or schedules, and counted constants; {} if there are none."""

  def positions(self, length: int) -> int:
    """N, the positions of the state of a row of L tokens."""

  def in_positions(self, batch: Batch) -> Batch:
    """The batch with every field in the N positions of the state."""

  def clean(self, params: Params, ids: Int[Array, "*b L"]) -> State:
    """The state of clean tokens: what `corrupt` gives at t = 0."""

  def decode(self, params: Params, state: State) -> Int[Array, "*b L"]:
    """The ids, below V, that a state at t = 0 stands for."""

  # Noise.

  def prior(self, params: Params, keys: Keys) -> State:
    """The state at t = 1, one position per key."""

  def corrupt(self, params: Params, keys: Keys, clean_state: State, t: Float[Array, "*n"]) -> State:
    """A draw of q(z_t | clean state); where t == 0 it is the clean state exactly."""

  def round_time(self, t: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The time up to the grid of a process in discrete time; t itself for the others."""

  def time_of(self, log_snr: float) -> Float[Array, ""]:
    """The time at which the log signal-to-noise ratio is `log_snr`. Raises ValueError for a process that has none."""

  def inputs(self, params: Params, state: State, t: Float[Array, "*n"]) -> Inputs:
    """What the network reads of a state [B, N, …]."""

  # What the network's output says.

  def posterior(
    self, params: Params, state: State, t: Float[Array, "*n"], output: Float[Array, "*n V"]
  ) -> Float[Array, "*n V"]:
    """log p(x_i = v | z), normalised, own evidence included."""

  def leave_one_out(
    self, params: Params, state: State, t: Float[Array, "*n"], output: Float[Array, "*n V"]
  ) -> Float[Array, "*n V"]:
    """log p(x_i = v | z without z_i), normalised."""

  def estimate(
    self, params: Params, state: State, t: Float[Array, "*n"], output: Float[Array, "*n V"]
  ) -> Float[Array, "*n E"]:
    """The guess of the clean token, [..., estimate_size], that a self-conditioned network is shown at its next call."""

  # Likelihood.

  def has_loss(self, params: Params, state: State, t: Float[Array, "*n"]) -> Bool[Array, "*n"]:
    """True where `nelbo_rate` may be non-zero; the logits of other positions need not be computed."""

  def nelbo_rate(
    self,
    params: Params,
    clean_state: State,
    state: State,
    t: Float[Array, "*n"],
    output: Float[Array, "*n V"],
  ) -> Float[Array, "*n"]:
    """Nats per unit of time: the integrand of the bound."""

  def boundary_terms(
    self, params: Params, keys: Keys, ids: Int[Array, "B L"], start: float | Array = 0.0
  ) -> Float[Array, "B N"]:
    """Nats: prior and reconstruction terms, where rates are counted from time `start` on. No network is called."""

  # Reverse.

  def may_change(
    self, params: Params, keys: Keys, state: State, t: Float[Array, "*n"], s: Float[Array, "*n"]
  ) -> Bool[Array, "*n"]:
    """False only where `step` with the same keys leaves the state as it is, whatever the output."""

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
  """A probabilistic model of text: hashable, and static under jit.

  Attributes:
    network, process, timing, context: the members.
    chunk: positions whose logits exist at a time, per device; memory grows with chunk · V, never with B · L · V.
    shards: over how many devices the rows of a batch are split.
    self_conditioning: probability, per row, with which a loss reads the network twice, the second time with its own first
      answer as memory.
  """

  network: Network
  process: Process
  timing: Timing
  context: Context
  chunk: int = 256
  shards: int = 1
  self_conditioning: float = 0.0


class Timing(Protocol):
  """The time of each token, and nothing else: any timing goes with any process and any context.

  A timing draws for [rows, tokens] whatever the rows are: the engine cuts a batch into units (`Context.unit`) and joins the
  draws again.

  Attributes:
    path: "continuous": each token sweeps [0, 1] once while the clock does. "jumps": t is 0 or 1. "none": neither, a surrogate.
  """

  path: Literal["continuous", "jumps", "none"]

  def init(self, key: Key, facts: DataFacts) -> Params:
    """Parameters; {} if nothing is learned. `facts.length` is the number of tokens of one unit."""

  def draw(self, params: Params, key: Key, batch: Batch, progress: Progress) -> Times:
    """Times for a training or evaluation batch, as if no token were observed (the engine sets those to t = 0)."""

  def grid(
    self, params: Params, steps: int, lengths: Int[Array, " B"], length: int
  ) -> Float[Array, "B S1 {length}"]:
    """[B, steps + 1, length] from 1 to 0: the times that a sampler visits, by the length of each row."""

  def fit(self, params: Params, times: Times, costs: TokenCosts) -> Float[Array, ""] | float:
    """A scalar of value 0, summed over tokens, whose gradient trains the timing; in the same units as `draw`."""


class Context(Protocol):
  """Which rows the network reads, and who sees whom in them.

  Attributes:
    unit: positions that are finished together when sampling and that share a draw of the timing; None: the whole row.
    reads_noisy: False if the rows hold no noisy token, so that the network has no answer to be shown again.
  """

  unit: int | None
  reads_noisy: bool

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
    """The rows of a loss. noisy, clean, noise: inputs of z_t, of the clean state and of the prior, [B, N]."""

  def sampling_rows(
    self, noisy: Inputs, noise: Inputs, t: Float[Array, "B N"], batch: Batch
  ) -> Rows:
    """The rows that answer the same question while sampling; clean tokens of `noisy` are those with t = 0.

    L' = N, or N + 1 where a position before the row answers for its first token: readers that gather go by `tokens`, `answers`.
    """

  def positions_read(self, length: int) -> int:
    """How many positions the network reads for a training row of `length`; FLOP counts ask this."""


class Objective(Protocol):
  """What is minimised. Its fields are options only; the model is an argument.

  Attributes:
    passes: forward passes of the network per training step, self-conditioning apart.
    trains: groups of `params` that receive gradient.
    costs_nll: True if the loss of a token is -log p of the clean token, weighted by dt_dtau.
  """

  passes: float
  trains: frozenset[str]
  costs_nll: bool

  def check(self, model: Model) -> None:
    """Raises ValueError, with the fix, for a model that it cannot train."""

  def init(self, model: Model, key: Key, facts: DataFacts) -> Mapping[str, Params]:
    """Groups of parameters of its own; {} for most."""

  def __call__(
    self, model: Model, params: Params, key: Key, batch: Batch, times: Times, progress: Progress
  ) -> tuple[Loss, TokenCosts | None]:
    """The loss, and what each token cost; None instead of the costs if the objective brought times of its own."""


# Sampling.


class Query(NamedTuple):
  """One question to the network while sampling.

  Attributes:
    state: of the whole row, [B, N, …].
    t: float32 [B, N]: 0 for what is finished, 1 for what comes after the window.
    start: int32 scalar, the first position of the window.
    needs: bool [B, u], the predictions of the window that the sampler will use.
    batch: in positions (observed, weights, segment).
    noise: the row's own draw of the prior, [B, N, …].
    hidden: bool [B, N], observed positions that this reading must not see; None: none.
    memory: [B, u, D], what self-conditioning remembers of the window; None: nothing.
  """

  state: State
  t: Array
  start: Array
  needs: Array
  batch: Batch
  noise: State
  hidden: Array | None = None
  memory: Array | None = None


class Reader(Protocol):
  """How the network is asked while sampling. Options only, as optax's init and update; memory lives in the loop's carry.

  Attributes:
    calls: network calls per read.
    every: how often a read must be a refresh (1: always; nothing is cached inside a window).
  """

  calls: int
  every: int

  def check(self, model: Model) -> None:
    """Raises ValueError, with the fix, for a model that it cannot ask."""

  def init(self, model: Model, params: Params, query: Query) -> Memory:
    """The memory before the first read."""

  def read(
    self, model: Model, params: Params, memory: Memory, query: Query, *, refresh: bool
  ) -> tuple[Prediction, Memory]:
    """The prediction of the window, [B, u], and the next memory. `refresh` is static."""

  def finish(self, model: Model, params: Params, memory: Memory, query: Query) -> Memory:
    """The memory once the window is clean."""


class Canvas(NamedTuple):
  """What a sampler sees: the window only.

  Attributes:
    state: [B, u, …].
    active: bool [B, u], tokens that are to be generated.
    keys: one per token, [B, u].
    call: int32 [B], the row's own network calls in this window so far.
    lengths: int32 [B], how many positions of the window are text (neither padding nor beyond the row).
    segment: int32 [B, u], the document of each token; None: one.
  """

  state: State
  active: Array
  keys: Array
  call: Array
  lengths: Array
  segment: Array | None = None


class Sampler(Protocol):
  """Which tokens change when, and to what. Options only. No decision may depend on another row of the batch.

  Attributes:
    extra_calls: network calls that a step makes itself (a scorer), per step.
  """

  extra_calls: int

  def check(self, model: Model) -> None:
    """Raises ValueError, with the fix, for a model that it cannot sample from."""

  def init(self, model: Model, params: Params, canvas: Canvas) -> SamplerState:
    """What is drawn or computed once per window, before its first call."""

  def needs(
    self, model: Model, params: Params, canvas: Canvas, state: SamplerState
  ) -> Bool[Array, "B u"]:
    """The predictions that the next step will use. A row that needs none is done."""

  def times(
    self, model: Model, params: Params, canvas: Canvas, state: SamplerState
  ) -> Float[Array, "B u"]:
    """The time of each active token at this call (others are at 0 whatever it says)."""

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
    """The next state of the window and of the sampler. The loop freezes inactive tokens and finished rows."""
