"""The sampler, the reader and the windows of a run after what a command line says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from diffusion_text.contrib.decoders import DECODERS, SCORER, Decoder
from diffusion_text.experiment import registry
from diffusion_text.experiment.build import Experiment
from diffusion_text.types import Reader, Sampler


class Decoding(NamedTuple):
  """How rows are drawn.

  Attributes:
    sampler, reader: in place of the config's.
    block: positions that are sampled together; None: the whole row, or the context's unit.
    end_id: the token that ends a row; None: rows end with their length.
  """

  sampler: Sampler
  reader: Reader
  block: int | None = None
  end_id: int | None = None


def decoding_of(
  experiment: Experiment,
  *,
  decoder: str | None = None,
  sampler: Sequence[str] = (),
  reader: Sequence[str] = (),
  block: int | None = None,
  scorer: Reader | None = None,
  stop_at_end: bool = False,
  **shortcuts: Any,
) -> Decoding:
  """The config's decoding, or that of a decoder of `contrib.decoders`, after changes.

  Args:
    experiment: whose decoding it is.
    decoder: a name of `DECODERS`; None: the config's sampler and reader.
    sampler, reader: texts such as "eta=0.02" or "scale=2.0", options of the sections.
    block: positions that are sampled together; 0: the whole row, where the decoder has blocks.
    scorer: the reader of a second model, for decoders that have one.
    stop_at_end: ends rows at the tokenizer's end of text.
    **shortcuts: of `sampler_of`.

  Raises:
    ValueError: for a decoder, an option or a value that is unknown, or does not fit the model.
  """
  known = decoder_named(decoder) if decoder else None
  if known is not None and known.has_scorer and scorer is None:
    raise ValueError(f"--decoder={decoder} needs a second model that scores: add --scorer=WORKDIR")
  if scorer is not None and (known is None or not known.has_scorer):
    scored = ", ".join(name for name, each in DECODERS.items() if each.has_scorer)
    raise ValueError(f"--scorer is read by --decoder={scored} only; leave it out")
  own = known.block if known is not None else None
  size = own if block is None else (block or None)
  if experiment.model.context.unit is not None and block is None:
    size = None  # a context of blocks has windows of its own
  return Decoding(
    sampler_of(experiment, sampler, decoder=known, scorer=scorer, **shortcuts),
    reader_of(experiment, reader, decoder=known),
    size,
    experiment.tokenizer.special["end"] if stop_at_end else None,
  )


def decoder_named(name: str) -> Decoder:
  """The decoder. Raises ValueError for an unknown name, with the nearest one."""
  if name not in DECODERS:
    known = ", ".join(DECODERS)
    near = registry.nearest(name, DECODERS)
    raise ValueError(f"--decoder={name} is unknown{near}; use one of {known}")
  return DECODERS[name]


def listed() -> str:
  """The decoders, one a line."""
  width = max(map(len, DECODERS))
  return "\n".join(f"{name:<{width}}  {decoder.line}" for name, decoder in DECODERS.items())


def sampler_of(
  experiment: Experiment,
  options: Sequence[str] = (),
  *,
  decoder: Decoder | None = None,
  scorer: Reader | None = None,
  steps: int | None = None,
  order: str | None = None,
  skip: bool = False,
  temperature: float | None = None,
  top_p: float | None = None,
) -> Sampler:
  """The config's sampler after changes.

  Args:
    experiment: whose sampler it is.
    options: texts such as "eta=0.02" or "budget.steps=16", of `config.sampler`; they come last.
    decoder: whose sampler takes the place of the config's.
    scorer: the reader of a second model, which the decoder's section asks for.
    steps: of the grid, or of the budget.
    order: reveals tokens by this score, an even share per call.
    skip: walks the grid without the calls at which a row would not change.
    temperature, top_p: of what tokens are drawn from.

  Raises:
    ValueError: for options that are unknown, out of range or do not fit the model.
  """
  if order is not None and skip:
    raise ValueError(f"--event_driven walks a grid, and --order={order} reveals; choose one")
  if decoder is not None and (order is not None or skip):
    raise ValueError("--decoder names a sampler, as --order and --event_driven do; choose one")
  section = experiment.config.sampler.to_dict() if decoder is None else _plain(decoder.sampler)
  if order is not None:
    share = {"name": "even_share", "steps": steps or section.get("steps") or 64}
    section = {"name": "reveal", "score": {"name": order}, "budget": share}
  if skip:
    section = registry.changed("sampler", section, [("name", "grid"), ("skip", True)])
  for key, value in (("temperature", temperature), ("top_p", top_p)):
    if value is not None:
      section[key] = value
  pairs = [registry.named_value(text, "sampler") for text in options]
  section = registry.changed("sampler", section, pairs)
  if steps is not None:
    section = registry.with_steps("sampler", section, steps)
  sampler = registry.construct("sampler", _with_scorer(section, scorer))
  sampler.check(experiment.model)
  return sampler


def reader_of(
  experiment: Experiment, options: Sequence[str] = (), *, decoder: Decoder | None = None
) -> Reader:
  """The config's reader after changes, texts such as "scale=2.0"; "name=classifier_free" wraps the
  config's own reader. `decoder`: whose reader takes its place, or is put around it.

  Raises:
    ValueError: for options that are unknown, out of range or do not fit the model.
  """
  section = experiment.config.reader.to_dict()
  if decoder is not None and decoder.reader is not None:
    section = _combined(section, _plain(decoder.reader))
  pairs = dict(registry.named_value(text, "reader") for text in options)
  name = pairs.pop("name", section["name"])
  if name != section["name"]:
    section = {"name": name, **({"reader": section} if _wraps(name) else {})}
  reader = registry.construct("reader", registry.changed("reader", section, pairs.items()))
  reader.check(experiment.model)
  return reader


def _combined(own: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
  """The new reader around the config's own, or in the place of its innermost."""
  if _wraps(new["name"]):
    return {**new, "reader": own}
  if _wraps(own["name"]) and isinstance(own.get("reader"), Mapping):
    return {**own, "reader": _combined(dict(own["reader"]), new)}
  return new


def _wraps(name: str) -> bool:
  """True for a reader that asks another one."""
  return "reader" in registry.find("reader", name).__pydantic_fields__


def _plain(section: Any) -> Any:
  """A copy in which every mapping is a dict."""
  if isinstance(section, Mapping):
    return {key: _plain(value) for key, value in section.items()}
  return section


def _with_scorer(section: Any, scorer: Reader | None) -> Any:
  """The section with the scorer in the place that is kept for it."""
  if isinstance(section, Mapping):
    return {key: _with_scorer(value, scorer) for key, value in section.items()}
  return scorer if isinstance(section, str) and section == SCORER else section
