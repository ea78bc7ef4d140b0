"""The code computes what it computed before its seams were rebuilt: functions held to stored inputs
and outputs.

The files beside this one hold, for one config per process and objective, what the code of commit
3aad1fc made of a batch, states, times and parameters: rates, posteriors, steps, answers of the
network, and the loss with its gradient norms. Nothing random is drawn here but what `step` draws
with stored keys. Not frozen, and judged by the oracle instead: learned paths, the draws of times
and noise, the reconstruction and rounding draws of Gaussian processes (zeroed in both), soft tokens
of a curriculum, rewards. Parameters of the network are made from their names and shapes
(`inputs.leaf_value`), so that the files stay small.

Every config can be compared, by files that are made by one command (see freeze.py for the worktree
that it runs in) and read by another:

  PYTHONPATH=. JAX_PLATFORMS=cpu python ../main/tests/frozen/freeze.py --all --out=DIR
  DIFFUSION_TEXT_FROZEN=DIR python -m pytest tests/frozen
"""

import functools
import importlib
import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.experiment import registry
from diffusion_text.experiment.build import init
from diffusion_text.objective import engine
from diffusion_text.types import Batch, DataFacts, Model, Progress, Times
from tests.frozen.inputs import (
  APPENDED,
  BLOCK,
  CHUNK,
  EXPERTS,
  FIRST_STAGE_LAYERS,
  FIXED_PATH,
  LENGTH,
  NETWORK,
  REWARD_WEIGHT,
  VECTOR_WIDTH,
  VOCABULARY,
  corpus_counts,
  leaf_name,
  leaf_value,
)

FOLDER = pathlib.Path(os.environ.get("DIFFUSION_TEXT_FROZEN") or pathlib.Path(__file__).parent)
CASES = sorted(path.stem for path in FOLDER.glob("*.npz"))
assert CASES, f"{FOLDER} has no .npz file; make some with freeze.py, as its head says"
# Other compiler settings and other CPUs round exp and log otherwise; they differ by up to 2e-6.
TOLERANCE = 3e-6
# The cost of one of many steps is a small difference of large numbers.
PROCESS_TOLERANCE = {"d3pm_uniform": 1e-5}
# Sums of float32 over whole passes of the network, whose order the compiler chooses: tests compile
# with other settings than the files were made with.
NETWORK_TOLERANCE = 1e-4
SUM_TOLERANCE = 5e-6
# Files whose rates at t = 1 are 2 % off, as JAX 0.10 differentiates e^x - 1 as (e^x - 1) + 1.
WRONG_AT_NOISE = ("hdlm",)
# mask_agnostic: the total variation of two readings has a kink where they agree. trec: JAX 0.12
# rounds otherwise than 0.10, and its norm of the gradient differs by 1.2e-4.
GRADIENT_TOLERANCE = {"mask_agnostic": 1e-3, "trec": 3e-4}
# Groups of parameters that had another name.
RENAMED = {"time_predictor": "timing"}
# What configs chose when they were frozen, where they have changed their choice since.
COSINE = {"process": {"schedule": {"name": "cosine"}}}
TESS_PATH = {"process": {"schedule": {"name": "cosine", "offset": 1e-4}}}
READS_POSTERIOR = {"objective": {"readout": "posterior"}}
ANCHOR = {"objective": {"readout": "inner", "label_smoothing": 0.0}}
ATTACHED = {"objective": {"detach_self_conditioned": False}}
WEIGHTS = {"objective": {"linear_steps": None, "weigh_smoothing": True}}
THEN: dict[str, dict[str, dict[str, Any]]] = {
  **dict.fromkeys(("diffusion_lm", "diffuseq", "seqdiffuseq", "infodiffusion"), READS_POSTERIOR),
  "ar_diffusion": READS_POSTERIOR,
  "masked_diffuse_lm": {**READS_POSTERIOR, "timing": {"information": "rarity"}},
  **dict.fromkeys(("difformer", "trec"), ANCHOR),
  **dict.fromkeys(("rdm", "mdm"), WEIGHTS),
  **dict.fromkeys(("tess", "ssd_lm"), TESS_PATH),
  **dict.fromkeys(("add", "sed", "md4"), COSINE),
  **dict.fromkeys(("plaid", "plaid_fixed"), ATTACHED),
  "mask_agnostic": {"objective": {"form": "one_reading", "weighting": "uniform"}},
  "d3pm": {"objective": {"auxiliary_steps": None}},
  "d3pm_uniform": {"process": {"prediction": "posterior"}, "objective": {"auxiliary": 0.01}},
  "diffusionbert": {"objective": {"auxiliary": 0.0}},
}
# Dynamic weights count the mask as a token since then, for which there is no option.
CHANGED = {"gidd": {"total", "grad_norm/network"}}


def small_config(name: str) -> dict[str, Any]:
  """The sections of a config, as small as they were frozen."""
  config = importlib.import_module(f"configs.{FIXED_PATH.get(name, name)}").get_config("micro")
  kinds = ("process", "timing", "context", "objective", "model")
  sections = {kind: config[kind].to_dict() for kind in kinds}
  model = sections["model"]
  model.pop("chunk")
  model |= NETWORK
  if "first_stage_layers" in model:
    model["first_stage_layers"] = FIRST_STAGE_LAYERS
  if "experts" in model:
    model |= EXPERTS
  if "width" in sections["process"]:
    sections["process"]["width"] = VECTOR_WIDTH
  if "size" in sections["context"]:
    sections["context"]["size"] = BLOCK
  for kind, options in THEN.get(name, {}).items():
    sections[kind] |= options
  if sections["objective"]["name"] == "mask_agnostic":
    sections["objective"]["appended"] = APPENDED
  if sections["objective"]["name"] == "reinforced_conditioning":
    sections["objective"]["reward_weight"] = REWARD_WEIGHT
  return sections


class Case:
  """One file, and the members that its config chooses today."""

  def __init__(self, name: str):
    with np.load(FOLDER / f"{name}.npz") as file:
      fields = {key: file[key] for key in file.files}
    meta = json.loads(str(fields.pop("meta")))
    self.name, self.fields = name, fields
    self.inputs = {key: jnp.asarray(value) for key, value in self.part("in/").items()}
    self.want = self.part("process/")
    self.scalars = {}  # none where the path is learned
    if "objective/scalars" in fields:
      self.scalars = dict(zip(meta["scalar_names"], fields["objective/scalars"], strict=True))
    self.step = meta["progress_step"]
    sections = small_config(name)
    process = registry.construct("process", sections["process"], vocab_size=VOCABULARY)
    network = registry.construct(
      "model",
      sections["model"],
      input_sizes=process.input_sizes,
      output_size=process.output_size,
      estimate_size=process.estimate_size,
    )
    timing = registry.construct("timing", sections["timing"])
    context = registry.construct("context", sections["context"])
    told = 1.0 if network.remembers else 0.0
    self.model = Model(network, process, timing, context, chunk=CHUNK, self_conditioning=told)
    self.objective = registry.construct("objective", sections["objective"], train_steps=self.step)
    facts = DataFacts(LENGTH, VOCABULARY, corpus_counts, corpus_counts, steps=self.step)
    shapes = jax.eval_shape(
      lambda key: init(self.model, key, facts, self.objective), jax.random.key(0)
    )
    self.params = jax.tree_util.tree_map_with_path(self.leaf, shapes)

  def part(self, prefix):
    """The fields below a prefix."""
    return {k.removeprefix(prefix): v for k, v in self.fields.items() if k.startswith(prefix)}

  def leaf(self, path, shape):
    """A stored parameter, or one that is made from its name."""
    group, slash, rest = leaf_name(path).partition("/")
    name = RENAMED.get(group, group) + slash + rest
    stored = self.fields.get(f"params/{name}")
    value = leaf_value(name, shape.shape) if stored is None else stored
    assert value.shape == shape.shape, (name, value.shape, shape.shape)
    return jnp.asarray(value)

  @property
  def batch(self):
    """The batch, with prompts, two documents in a row, and padding."""
    x = self.inputs
    return Batch(x["ids"], x["given"], weights=x["weights"], segment=x["segment"])

  @property
  def times(self):
    """The times that were drawn then."""
    x = self.inputs
    tau = x.get("tau", jnp.zeros((len(x["t"]), 1)))
    return Times(x["t"], x["speed"], tau, x["network_time"])

  def process_functions(self, params, logits):
    """What the process makes of the stored inputs."""
    x, process, own = self.inputs, self.model.process, params["process"]
    keys, clean = jax.random.wrap_key_data(x["step_keys"]), process.clean(own, x["ids"])

    def rate(logits):
      return process.nelbo_rate(own, clean, x["state"], x["t"], logits)

    slope = jax.grad(lambda logits: jnp.sum(rate(logits)))(logits)
    token = own, x["state"], x["t"], logits
    return {
      "nelbo_rate": rate(logits),
      "nelbo_rate_slope": jnp.linalg.norm(slope, axis=-1),
      "has_loss": process.has_loss(own, x["state"], x["t"]),
      "may_change": process.may_change(own, keys, x["state"], x["t"], x["s"]),
      "step": process.step(own, keys, x["state"], logits, x["t"], x["s"]),
      "estimate": process.estimate(*token),
      "posterior": process.posterior(*token),
    }

  def loss(self, params):
    """(total, (loss, logits)) of the objective at the stored times and states."""
    progress = Progress(step=self.step)
    key = jax.random.key(0)
    answers = []
    real = type(self.model.network).apply

    def kept(network, *args, **options):
      answer = real(network, *args, **options)
      if network == self.model.network:  # and none that an objective has beside it
        answers.append(answer)
      return answer

    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(type(self.model.network), "apply", kept)
      loss, _ = self.objective(self.model, params, key, self.batch, self.times, progress)
    if len(answers) > 1 and "logits_first" not in self.part("network/"):
      answers = answers[:1]  # of two states or two rows the first is the stored one
    return loss.total, (loss, answers[-1].logits)


@pytest.fixture
def stored_draws(monkeypatch):
  """Returns a function that makes a case read its stored states, and no boundary term."""

  def use(case):
    states = [case.inputs["state"], case.inputs.get("state2", case.inputs["state"])]
    calls = []

    def corrupted(model, params, key, batch, times, progress):
      calls.append(None)
      state = states[(len(calls) - 1) % 2]
      return model.process.clean(params["process"], batch.ids), state

    def nothing(model, params, key, batch, progress, start=0.0):
      return jnp.zeros(batch.ids.shape)

    monkeypatch.setattr(engine, "corrupted", corrupted)
    monkeypatch.setattr(engine, "boundary_terms", nothing)
    for cls, name in (
      (type(case.model.process), "reconstruction"),
      (type(case.objective), "rounding"),
    ):
      if name in dir(cls):
        monkeypatch.setattr(cls, name, lambda *args, **options: jnp.float32(0))

  return use


@functools.lru_cache(maxsize=1)
def opened(name):
  """A case, built once for its tests."""
  return Case(name)


def apart(got, want, tolerance) -> str:
  """An empty string where two arrays agree, else how they differ.

  Integers and bools are equal. Floats agree to the tolerance of their own size or, where terms
  cancel in it, of the root mean square of the array.
  """
  got, want = np.asarray(got), np.asarray(want)
  if got.shape != want.shape:
    return f"shape {got.shape}, was {want.shape}"
  if want.dtype.kind != "f":
    return "" if np.array_equal(got, want) else f"{np.sum(got != want)} of {want.size} differ"
  fine = np.isfinite(want) & (np.abs(want) < 1e29)
  got, want = got[fine].astype(np.float64), want[fine].astype(np.float64)
  if not want.size:
    return ""
  size = np.maximum(np.abs(want), np.sqrt(np.mean(want**2)))
  worst = np.max(np.abs(got - want) / np.maximum(size, 1e-30))
  return "" if worst <= tolerance else f"relative difference {worst:.2e} above {tolerance}"


def compared(case, got):
  """name -> how it differs, of what both have; a visible token where there are masks is itself."""
  want = dict(case.want)
  tolerance = PROCESS_TOLERANCE.get(case.name, TOLERANCE)
  if case.model.process.mask_id is not None:
    masked = (case.inputs["state"] == case.model.process.mask_id)[..., None]
    for each in (want, got):
      each["posterior"] = np.where(masked, each["posterior"], 0.0)
  if case.name in WRONG_AT_NOISE:
    before = np.asarray(case.inputs["t"]) < 1
    for each in (want, got):
      each |= {
        name: np.where(before, each[name], 0.0) for name in ("nelbo_rate", "nelbo_rate_slope")
      }
  found = {name: apart(got[name], want[name], tolerance) for name in got.keys() & want.keys()}
  return {name: text for name, text in found.items() if text}


@pytest.mark.parametrize("name", CASES)
def test_functions_of_the_process(name):
  case = opened(name)
  run = jax.jit(case.process_functions)
  logits = jnp.asarray(case.fields["network/logits"])
  wrong = compared(case, dict(run(case.params, logits)))
  if jnp.issubdtype(case.inputs["state"].dtype, jnp.floating):
    wrong.pop("step", None)  # an option of samplers now, with streams of its own
  assert not wrong
  # The mutant: other logits. Whatever reads them must be seen to differ.
  moved = compared(case, dict(run(case.params, logits.at[..., 0].add(1e-3))))
  assert {"nelbo_rate", "nelbo_rate_slope", "estimate"} <= moved.keys()


@pytest.mark.parametrize("name", CASES)
def test_network_loss_and_gradient(name, stored_draws):
  case = opened(name)
  stored_draws(case)
  run = jax.jit(jax.value_and_grad(case.loss, has_aux=True))
  tolerance = GRADIENT_TOLERANCE.get(name, NETWORK_TOLERANCE)

  def differences(params):
    (_, (loss, logits)), slopes = run(params)
    sums = {name: value for name, value in loss.sums.items() if not name.startswith("reward")}
    got = {"total": loss.total, "count": loss.count}
    got |= {f"sums/{name}": value for name, value in sums.items()}
    if "sums/surrogate" in case.scalars and "sums/bound" in got:
      got["sums/surrogate"] = got.pop("sums/bound")
    if "sums/router_balance" in got:  # each is reported times its weight now
      got["sums/router_balance"] /= case.model.network.balance_weight
      got["sums/router_z"] /= case.model.network.router_z_weight
    found = {
      name: apart(got[name], case.scalars[name], SUM_TOLERANCE)
      for name in got
      if name in case.scalars
    }
    assert not case.scalars or {"total", "count"} <= found.keys()
    changed = CHANGED.get(name, set())
    found["logits"] = apart(logits, case.fields["network/logits"], NETWORK_TOLERANCE)
    for group in ("network", "process"):
      if f"grad_norm/{group}" in case.scalars:
        leaves = jax.tree.leaves(slopes[group])
        norm = jnp.sqrt(sum(jnp.sum(leaf.astype(jnp.float32) ** 2) for leaf in leaves))
        want = case.scalars[f"grad_norm/{group}"]
        found[f"grad_norm/{group}"] = apart(norm, want, tolerance)
    return {name: text for name, text in found.items() if text and name not in changed}

  assert not differences(case.params)
  # The mutant: one number of the head, which must reach the answer, the loss and the gradient.
  head = case.params["network"]["head"]
  head = head | {"bias": head["bias"].at[0].add(0.1)}
  mutant = case.params | {"network": case.params["network"] | {"head": head}}
  seen = {"logits", "total", "grad_norm/network"} if case.scalars else {"logits"}
  assert seen - CHANGED.get(name, set()) <= differences(mutant).keys()
