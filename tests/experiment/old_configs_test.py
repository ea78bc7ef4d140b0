"""Runs of older versions: their configs lack keys that are new, and must still load and go on."""

import json

import pytest

from configs import adlm, base, md4
from diffusion_text.experiment.build import SECTIONS, build, config_from_json, config_json
from diffusion_text.experiment.run import MAY_DIFFER, override
from diffusion_text.train.workdir import check_workdir

# Keys whose default is a value. They were there from the start: a run of an older version lacks every key that came since.
WITH_VALUE = """
data: corpus length packing random_offset tokenizer
evaluate: batch_size max_rows num_draws split
mesh: expert fsdp replica sequence tensor
model: activation attention dropout dtype heads kv_heads layers mlp_width norm qk_norm remat rope_base tie_embeddings time_conditioning
  time_width width
objective: chunk name
optimizer: b1 b2 clip_norm eps final_fraction learning_rate schedule weight_decay
process: name
sampler: name steps temperature top_p
schedule: name
timing: name
train: accumulation batch_size ema_decay evaluate_every keep log_every profile_steps save_every steps
"""


class AnyTokenizer:
  """A vocabulary without a text."""

  name, vocab_size = "any", 64


def aged(config, **model):
  """The config as it was saved before any key existed that is None today; keywords are keys of the model as they were spelled."""
  sections = json.loads(config_json(config))
  older = {
    k: {n: v for n, v in s.items() if v is not None} if isinstance(s, dict) else s
    for k, s in sections.items()
  }
  older["model"] |= model
  return json.dumps(older)


@pytest.mark.parametrize(
  "config,model",
  [
    (base.config("micro"), {"time_conditioning": False}),
    (base.config("micro"), {"anchor_layers": 0}),
    (md4.get_config("micro"), {"time_conditioning": True}),
    (adlm.get_config("micro"), {}),
  ],
)
def test_an_old_run_goes_on_and_loads(tmp_path, config, model):
  old = aged(config, **model)
  assert old != config_json(config)
  check_workdir(tmp_path, old)
  check_workdir(tmp_path, config_json(config), MAY_DIFFER)
  loaded = config_from_json(old)
  override(
    loaded, [("sampler.name", "remasking"), ("sampler.eta", 0.5)]
  )  # a key that the old config did not have
  experiment = build(loaded, tokenizer=AnyTokenizer())
  assert experiment.network.config == build(config, tokenizer=AnyTokenizer()).network.config


def test_new_keys_default_to_none():
  """Else a run that lacks them would be of another configuration, and could not go on."""
  old = {
    (line.partition(":")[0].strip(), key)
    for line in WITH_VALUE.replace("\n  ", " ").split("\n")
    for key in line.split()[1:]
  }
  config = base.config("micro")
  new = {
    (section, key)
    for section in SECTIONS
    for key, value in config[section].items()
    if value is not None
  }
  assert new == old


def test_a_real_difference_of_an_old_run_is_refused(tmp_path):
  check_workdir(tmp_path, aged(base.config("micro"), time_conditioning=False))
  changed = base.config("micro")
  changed.process.grid = 10
  changed.model.time_conditioning = "adaln"
  with pytest.raises(
    ValueError,
    match=r"(?s)model.time_conditioning: false → \"adaln\".*process.grid: \(absent\) → 10",
  ):
    check_workdir(tmp_path, config_json(changed), MAY_DIFFER)
