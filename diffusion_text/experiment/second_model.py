"""A second trained model beside the first: its parameters are a group of the first one's."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax

from diffusion_text.experiment import run
from diffusion_text.experiment.build import Experiment
from diffusion_text.reader.other import Other
from diffusion_text.reader.whole_row import WholeRow
from diffusion_text.types import Params, Reader

GROUP = "scorer"


class SecondModel(NamedTuple):
  """A model that is asked about another one's rows.

  Attributes:
    workdir: where it was trained.
    experiment: its own.
    reader: how it is asked, with its parameters in the group "scorer".
  """

  workdir: str
  experiment: Experiment
  reader: Reader


def second_model(workdir: str, first: Experiment) -> SecondModel:
  """The model of a workdir, to be asked about rows of the first.

  Raises:
    ValueError: for a workdir without a run, and for another tokenizer.
  """
  experiment = run.load_experiment(workdir, **_devices_of(first))
  mine, other = first.tokenizer, experiment.tokenizer
  if mine.fingerprint != other.fingerprint:
    raise ValueError(
      f"--scorer={workdir} reads tokens of {other.name} ({other.vocab_size} ids), and the sampled"
      f" model of another {mine.name} ({mine.vocab_size} ids); train the scorer with the same"
      " tokenizer, which python -m experiments.tokenize --workdir=… saves"
    )
  return SecondModel(workdir, experiment, Other(WholeRow(), experiment.model, GROUP))


def abstract_beside(second: SecondModel | None) -> dict[str, Params]:
  """The group of a second model as shapes; no group without one."""
  if second is None:
    return {}
  state = second.experiment.abstract_state().eval_params
  shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
  return {GROUP: shapes}


def beside(trained: run.Trained, second: SecondModel | None) -> run.Trained:
  """The trained model with the parameters of the second in their group."""
  if second is None:
    return trained
  own = run.load(second.workdir, **_devices_of(trained.experiment)).params
  return dataclasses.replace(trained, params={**trained.params, GROUP: own})


def _devices_of(first: Experiment) -> dict[str, Any]:
  """Arguments of `run.load` for a model on the devices of the first."""
  rows = [("evaluate.batch_size", first.evaluate.batch_size)]
  return {"overrides": rows, "all_devices": True} if first.mesh.devices.size > 1 else {}
