"""The sampler and the reader of a run after what a command line says of them."""

from __future__ import annotations

from collections.abc import Sequence

from diffusion_text.experiment import registry
from diffusion_text.experiment.build import Experiment
from diffusion_text.types import Reader, Sampler


def sampler_of(
  experiment: Experiment,
  options: Sequence[str] = (),
  *,
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
    steps: of the grid, or of the budget.
    order: reveals tokens by this score, an even share per call.
    skip: walks the grid without the calls at which a row would not change.
    temperature, top_p: of what tokens are drawn from.

  Raises:
    ValueError: for options that are unknown, out of range or do not fit the model.
  """
  if order is not None and skip:
    raise ValueError(f"--event_driven walks a grid, and --order={order} reveals; choose one")
  section = experiment.config.sampler.to_dict()
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
  sampler = registry.construct("sampler", section)
  sampler.check(experiment.model)
  return sampler


def reader_of(experiment: Experiment, options: Sequence[str] = ()) -> Reader:
  """The config's reader after changes, texts such as "scale=2.0"; "name=classifier_free" wraps the
  config's own reader.

  Raises:
    ValueError: for options that are unknown, out of range or do not fit the model.
  """
  section = experiment.config.reader.to_dict()
  pairs = dict(registry.named_value(text, "reader") for text in options)
  name = pairs.pop("name", section["name"])
  if name != section["name"]:
    wraps = "reader" in registry.find("reader", name).__pydantic_fields__
    section = {"name": name, **({"reader": section} if wraps else {})}
  reader = registry.construct("reader", registry.changed("reader", section, pairs.items()))
  reader.check(experiment.model)
  return reader
