"""A workdir whose parameters were not trained in it: step 0 of a run, for every command that reads
a trained workdir."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

from diffusion_text import train
from diffusion_text.core.trees import split
from diffusion_text.experiment.build import Experiment, config_json
from diffusion_text.experiment.checks import checkpoints
from diffusion_text.experiment.run import check_workdir, training_data
from diffusion_text.types import Params


def check_new(workdir: str) -> pathlib.Path:
  """The path of a workdir that holds no run. Raises ValueError for one that does."""
  place = pathlib.Path(workdir).expanduser()
  if (place / "config.json").exists():
    raise ValueError(f"{place} holds a run already; write into a new workdir")
  return place


def save(
  experiment: Experiment, params: Params, place: pathlib.Path, files: Mapping[str, bytes]
) -> None:
  """Writes config, tokenizer, a checkpoint at step 0 and other files.

  Args:
    experiment: of the workdir.
    params: one tree of all parameters; it is split into what moves and what does not.
    place: the workdir.
    files: name -> content.
  """
  config = config_json(experiment.config)
  _, iterator = training_data(experiment)
  parts = split(params, experiment.trainable)
  state = train.create_state(
    lambda: parts, experiment.optimizer, ema=experiment.train.ema_decay > 0
  )
  place.mkdir(parents=True, exist_ok=True)
  with train.WorkdirLock(str(place)):
    for name, content in files.items():
      (place / name).write_bytes(content)
    assets = {"tokenizer": experiment.tokenizer.to_bytes(), "config": config.encode()}
    options = {"keep_best": "validation_bound", "assets": assets}
    with train.Checkpointer(checkpoints(str(place)), **options) as saver:
      saver.save(0, state, data=iterator.get_state(), clock=train.Clock(devices=1))
    check_workdir(str(place), config, ())
