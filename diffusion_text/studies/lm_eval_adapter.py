"""A workdir as a model of lm_eval (EleutherAI's lm-evaluation-harness): log-probabilities by the
bound, texts by any decoder.

`register` makes lm_eval know the name "diffusion_text". lm_eval finds models in its own table
alone, not by entry points of packages, so its command runs as `python -m experiments.lm_eval`.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from diffusion_text.core.options import member, option
from diffusion_text.data.chat_template import encode_marked, template_of
from diffusion_text.experiment import continuations, registry
from diffusion_text.experiment import run as runs
from diffusion_text.experiment.continuations import Request, Scored, Scorer
from diffusion_text.experiment.decoding import Decoding, decoding_of
from diffusion_text.experiment.second_model import beside, second_model
from diffusion_text.experiment.until import Writer, opened, up_to_stop

log = logging.getLogger(__name__)

NAME = "diffusion_text"
# Of the generation options of a task; others are not read, and are said.
READ = ("until", "max_gen_toks", "do_sample", "temperature", "top_p")


@member
class ModelArgs:
  """`--model_args`: what of a workdir is scored and generated, and how."""

  workdir: str = option(..., "of the run", min_length=1)
  num_draws: int | None = option(
    None,
    "draws of time and noise for each log-probability; unset: 1 for a model whose likelihood is"
    " exact, 32 for others",
    ge=1,
  )
  timing: str | None = option(
    None, "of the draws, in place of the config's; exact_count varies least for masks", min_length=1
  )
  batch_size: int = option(1, "rows in memory at a time (--batch_size)", ge=1)
  max_length: int | None = option(
    None, "tokens of a row, at most; unset: that of training", ge=2, le=2**24
  )
  longer: Literal["refuse", "cut"] = option(
    "refuse", "a context that does not fit is an error, or loses its begin"
  )
  last_window: Literal["context", "rows"] = option(
    "context",
    "the last row of a text that is scored as a whole: a whole row too, in which tokens that were"
    " scored before are the context; or without context, as experiments.evaluate has it",
  )
  greedy: bool = option(
    True,
    "find out whether continuations are what greedy decoding writes (the metric acc of some tasks);"
    " False says that they are not, and saves the calls",
  )
  decoder: str | None = option(None, "a published decoder; unset: the config's", min_length=1)
  sampler: str | None = option(
    None, "options of the sampler, as in budget.steps=16;top_p=0.9", min_length=1
  )
  block: int | None = option(None, "tokens that are sampled together; 0: the whole row", ge=0)
  steps: int | None = option(None, "of the grid or the budget", ge=1)
  temperature: float | None = option(
    None, "of all texts; unset: what a task asks for, 0 where it asks for no sampling", ge=0
  )
  max_gen_toks: int = option(64, "size of the canvas where a task says none", ge=1)
  scorer: str | None = option(None, "workdir of a second model, for decoders that have one")
  template: str | None = option(None, "a chat template in place of the workdir's", min_length=1)
  parameters: Literal["float32", "bfloat16"] = option("float32", "type of the network's parameters")
  seed: int = option(0, "of all draws", ge=0, le=2**32 - 1)


class Generation(NamedTuple):
  """What a task asks of a text: stop strings, size of the canvas, temperature and top_p."""

  until: tuple[str, ...]
  canvas: int
  temperature: float | None
  top_p: float | None


class Adapter:
  """What lm_eval asks of a model, without lm_eval: requests have `args`, a tuple.

  Attributes:
    args: of the command line.
    trained: the workdir.
    scores: of the last call of `loglikelihood` or `loglikelihood_rolling`, with standard errors.
  """

  def __init__(self, **options: Any):
    super().__init__()
    self.args = model_args(options)
    args = self.args
    overrides = [("evaluate.timing", {"name": args.timing})] if args.timing else []
    experiment = runs.load_experiment(args.workdir, overrides)
    second = second_model(args.scorer, experiment) if args.scorer else None
    self._second = None if second is None else second.reader
    # Decoders are refused before the parameters are read.
    self._decoding(experiment, None)
    exact = not experiment.scoring.context.reads_noisy
    if args.greedy and not exact:
      self._check_greedy(experiment)
    loaded = runs.load(args.workdir, overrides, dtype=args.parameters)
    self.trained, self.experiment = beside(loaded, second), loaded.experiment
    self.longest = args.max_length or experiment.data.length
    draws = args.num_draws or (1 if exact else 32)
    self._scorer = Scorer(loaded, draws, args.batch_size, self.longest, args.seed)
    self.scores: list[Scored] = []
    self._chats = False
    self._errors: list[float] = []

  # What lm_eval calls.

  def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Any]:
    """(log_prob, is_greedy) of each (context, continuation), in nats."""
    del disable_tqdm
    asked = [self._pair(*each.args) for each in requests]
    exact = self._scorer.exact
    self._take(self._scorer.score(asked, greedy=exact and self.args.greedy))
    greedy = [bool(each.greedy) for each in self.scores]
    if self.args.greedy and not exact:
      greedy = self._written(asked)
    return [(each.log_prob, hit) for each, hit in zip(self.scores, greedy)]

  def loglikelihood_rolling(
    self, requests: Sequence[Any], disable_tqdm: bool = False
  ) -> list[float]:
    """log_prob of each text, in nats, over rows of at most `max_length` tokens."""
    del disable_tqdm
    texts = [
      continuations.windows(self._ids(each.args[0]), self.longest, self.args.last_window)
      for each in requests
    ]
    rows = iter(self._scorer.score([row for text in texts for row in text]))
    self._take([_added(list(itertools.islice(rows, len(text)))) for text in texts])
    return [each.log_prob for each in self.scores]

  def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
    """The text after each context, up to the first of its stop strings."""
    del disable_tqdm
    asked = [self._generation(each.args[1]) for each in requests]
    texts = [""] * len(requests)
    for how in sorted({(each.temperature, each.top_p) for each in asked}, key=str):
      places = [n for n, each in enumerate(asked) if (each.temperature, each.top_p) == how]
      prompts = [self._prompt(requests[n].args[0], asked[n].canvas) for n in places]
      writer = self._writer(self._decoding(self.experiment, *how))
      written = writer.write(opened(prompts, [asked[n].canvas for n in places]))
      for place, ids in zip(places, written, strict=True):
        text = self.experiment.tokenizer.decode(ids)
        texts[place] = up_to_stop(text, asked[place].until)
    return texts

  def apply_chat_template(
    self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
  ) -> str:
    """The conversation as text. From now on the markers of the tokenizer are tokens in contexts."""
    self._chats = True
    return self._template().text(chat_history, answer=add_generation_prompt)

  def chat_template(self, chat_template: bool | str = False) -> str:
    """The template itself; "" if none is asked for."""
    return self._template().source if chat_template else ""

  @property
  def tokenizer_name(self) -> str:
    """The fingerprint of the tokenizer, by which lm_eval keeps requests."""
    return self.experiment.tokenizer.fingerprint

  def get_model_info(self) -> dict[str, Any]:
    """What the results of lm_eval say of the model: how log-probabilities were found."""
    errors = [error for error in self._errors if not math.isnan(error)]
    return {
      "log_probabilities": "exact" if self._scorer.exact else "lower bounds, by the ELBO",
      "num_draws": self._scorer.num_draws,
      "mean_standard_error_nats": float(np.mean(errors)) if errors else None,
      "max_length": self.longest,
      "decoding": repr(self._decoding(self.experiment, None)),
      "step": self.trained.step,
    }

  # Parts.

  def _take(self, scores: list[Scored]) -> None:
    self.scores = scores
    self._errors += [each.standard_error for each in scores]
    if scores:
      error = np.mean([each.standard_error for each in scores])
      line = "%d scored, draws each: %d, standard error on average: %.3g nats"
      log.info(line, len(scores), self._scorer.num_draws, error)

  def _ids(self, text: str) -> continuations.Ids:
    tokenizer = self.experiment.tokenizer
    return encode_marked(tokenizer, text) if self._chats else continuations.encoded(tokenizer, text)

  def _pair(self, context: str, continuation: str) -> Request:
    """The request of two texts, cut to a row if it may be."""
    tokenizer = self.experiment.tokenizer
    if self._chats:
      asked = continuations.without_begin(self.experiment, self._ids(context))
      made = continuations.request(asked, self._ids(continuation))
    else:
      made = continuations.request_of(tokenizer, context, continuation)
    kept = max(self.longest - len(made.continuation), 0)
    if self.args.longer == "cut" and len(made.context) > kept:
      made = made._replace(context=made.context[len(made.context) - kept :])
    return made

  def _prompt(self, context: str, canvas: int) -> continuations.Ids:
    ids = continuations.without_begin(self.experiment, self._ids(context))
    if self.args.longer == "cut":
      ids = ids[max(len(ids) - max(self.longest - canvas, 0), 0) :]
    return ids

  def _generation(self, options: Mapping[str, Any]) -> Generation:
    """What a task asks for. Raises ValueError for stop strings that are none."""
    unread = sorted(set(options) - set(READ))
    if unread:
      log.warning("generation options of the task are not read: %s", ", ".join(unread))
    until = options.get("until") or ()
    until = (until,) if isinstance(until, str) else tuple(until)
    if not all(isinstance(stop, str) for stop in until):
      raise ValueError(f"until={until!r} must be a list of texts")
    asked = options.get("temperature")
    if not options.get("do_sample", bool(asked)):
      asked = 0.0
    own = self.args.temperature
    canvas = options.get("max_gen_toks", self.args.max_gen_toks)
    top_p = options.get("top_p")
    return Generation(until, int(canvas), asked if own is None else own, top_p)

  def _decoding(self, experiment: Any, temperature: float | None, top_p: Any = None) -> Decoding:
    args = self.args
    return decoding_of(
      experiment,
      decoder=args.decoder,
      sampler=args.sampler.split(";") if args.sampler else (),
      block=args.block,
      scorer=self._second,
      stop_at_end=experiment.tokenizer.special["end"] is not None,
      steps=args.steps,
      temperature=temperature,
      top_p=top_p,
    )

  def _check_greedy(self, experiment: Any) -> None:
    try:
      self._decoding(experiment, 0.0)
    except ValueError as error:
      raise ValueError(f"{error}; greedy=False asks for no greedy decoding") from error

  def _writer(self, decoding: Decoding) -> Writer:
    return Writer(self.trained, decoding, self.args.batch_size, self.longest, self.args.seed)

  def _written(self, asked: Sequence[Request]) -> list[bool]:
    """Whether greedy decoding fills a hole of the size of each continuation with it."""
    decoding = self._decoding(self.experiment, 0.0)._replace(end_id=None)
    holes = opened([each.context for each in asked], [len(each.continuation) for each in asked])
    found = self._writer(decoding).write(holes)
    return [np.array_equal(ids, each.continuation) for ids, each in zip(found, asked, strict=True)]

  def _template(self) -> Any:
    return template_of(self.args.workdir, self.experiment.tokenizer, self.args.template)


def model_args(options: Mapping[str, Any]) -> ModelArgs:
  """The options of `--model_args` and `--batch_size`.

  Raises:
    ValueError: in one line, for an option that is unknown or out of range, and a batch size that is
      to be found by trying.
  """
  given = {name: value for name, value in options.items() if value is not None}
  for name in ("max_batch_size", "device"):  # lm_eval passes both; JAX_PLATFORMS chooses a device
    given.pop(name, None)
  size = given.get("batch_size", 1)
  if isinstance(size, str):
    if not size.isdecimal():
      raise ValueError(f"batch_size={size!r} must be a number of rows; 16 is a good start")
    given["batch_size"] = int(size)
  if "workdir" not in given:
    raise ValueError("model_args lack workdir=…; give the workdir of a run")
  given = {name: str(v) if name in ("workdir", "scorer") else v for name, v in given.items()}
  return registry.settings(ModelArgs, given, "model_args")


def _added(rows: Sequence[Scored]) -> Scored:
  """The score of a text from those of its rows."""
  error = math.sqrt(sum(row.standard_error**2 for row in rows))
  return Scored(sum(row.log_prob for row in rows), error)


def register() -> type:
  """The class of models that lm_eval knows as "diffusion_text".

  Raises:
    ValueError: where lm_eval is not installed.
  """
  try:
    from lm_eval.api.model import LM  # only this function needs it
    from lm_eval.api.registry import model_registry
  except ImportError as error:
    raise ValueError(
      "lm_eval is not installed; pip install -e '.[lm_eval]' in the repository"
    ) from error
  if NAME in model_registry:
    return model_registry.get(NAME)

  class DiffusionText(Adapter, LM):
    """A workdir as a model of lm_eval."""

  model_registry.register(NAME)(DiffusionText)
  return DiffusionText
