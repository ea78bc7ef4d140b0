r"""Makes a workdir of pretrained weights: GPT-2, LLaMA, Qwen, LLaDA, Dream, BERT, MDLM, SEDD, UDLM,
Duo, GIDD (docs/pretrained.md); safetensors with config.json and tokenizer.json, or GGUF.

  python -m experiments.convert --from=SmolLM2-135M --workdir=runs/smollm2
  python -m experiments.evaluate --workdir=runs/smollm2 --max_rows=64
  python -m experiments.sample --workdir=runs/smollm2 --prompt="The capital of France is"

Without --config the workdir reads and answers as the weights have learned to. With one, its
process, context, rates and so on are those of the config: an autoregressive model as the start of
masked diffusion is

  python -m experiments.convert --from=SmolLM2-135M --workdir=runs/adapted \
      --config=configs/mdlm.py:tiny --config.context.answer_shift=1

With --table only the embeddings of tokens are taken, as the table of a process of vectors; the
network is that of the config, from scratch:

  python -m experiments.convert --from=MiniLM-L6 --workdir=runs/sed --table=principal \
      --config=configs/sed.py:tiny

--frozen is for weights that are scored and sampled from, not trained.
--special names tokens by role, over what the files say: --special="begin=<|endoftext|>".
"""

import pathlib
import runpy

from absl import flags

from experiments.flags import config_flag, run, workdir_flag
from experiments.paths import path_flag

FROM = path_flag("from", "folder of weights, .safetensors or .gguf file", required=True)
WORKDIR = workdir_flag()
CONFIG = config_flag()
TOKENIZER = path_flag("tokenizer", "tokenizer.json, its folder, or a GGUF file; default --from")
FROZEN = flags.DEFINE_bool("frozen", False, "the network stays as it is: a third of the memory")
TABLE = flags.DEFINE_enum(
  "table",
  None,
  ["exact", "principal", "random"],
  "the table of config.process: the rows of the weights, these on their first principal components"
  " (fewer numbers), or random ones for the same tokens",
)
SPECIAL = flags.DEFINE_multi_string("special", [], "begin=, end=, mask= or pad=, and a token")
BASE = pathlib.Path(__file__).parents[1] / "configs" / "mdlm.py"


def main(_):
  from diffusion_text.experiment.registry import named_value
  from diffusion_text.studies.convert import convert

  given = CONFIG.value is not None
  if TABLE.value and not given:
    raise ValueError(
      f"--table={TABLE.value} is for the process of a config; add --config=configs/sed.py:tiny"
    )
  config = CONFIG.value if given else runpy.run_path(str(BASE))["get_config"]()
  roles = {role: str(token) for role, token in (named_value(s, "special") for s in SPECIAL.value)}
  report = convert(
    FROM.value,
    WORKDIR.value,
    config,
    keep_system=given,
    frozen=FROZEN.value,
    tokenizer=TOKENIZER.value,
    roles=roles,
    table=TABLE.value,
  )
  print(report)


if __name__ == "__main__":
  run(main)
