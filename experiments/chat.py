"""Talks with an instruction model: messages are typed, given by --message, or read from the
standard input, a line each.

  python -m experiments.convert --from=SmolLM2-135M-Instruct.gguf --workdir=runs/smollm --frozen
  python -m experiments.chat --workdir=runs/smollm [--system="You are brief."]
  printf 'What is the capital of France?\\nAnd of Italy?\\n' | \\
      python -m experiments.chat --workdir=runs/smollm --answer=40

The chat template is that of the weights; --template names another one: chatml, llama3, plain, or a
file of Jinja. Any decoder may write (--decoder=fast_dllm, --temperature=0, --block=32 …);
--show=canvas prints the answer after each call, with a dot for each token that is noise.
"""

import functools
import sys

from absl import flags

from experiments import decoding
from experiments.flags import run, workdir_flag

WORKDIR = workdir_flag()
TEMPLATE = flags.DEFINE_string("template", None, "chatml, llama3, plain or a file of Jinja")
SYSTEM = flags.DEFINE_string("system", None, "the system message; default the template's own")
MESSAGE = flags.DEFINE_multi_string("message", [], "what to say, one flag a turn")
ANSWER = flags.DEFINE_integer("answer", 128, "tokens of an answer, at most", lower_bound=1)
LENGTH = flags.DEFINE_integer(
  "length", None, "tokens of a conversation, at most; default that of training", lower_bound=2
)
SHOW = flags.DEFINE_enum("show", "text", ["text", "canvas", "none"], "what is shown meanwhile")
SEED = flags.DEFINE_integer("seed", 0, "of the answers", lower_bound=0)
PARAMETERS = flags.DEFINE_enum(
  "parameters", "float32", ["float32", "bfloat16"], "type of the network's parameters"
)


def main(_):
  from diffusion_text.data.chat_template import template_of
  from diffusion_text.experiment import run as runs
  from diffusion_text.experiment.second_model import beside, second_model
  from diffusion_text.studies.chat import Chat, talk, typed

  decoding.list_decoders_if_asked()
  experiment, scorer = runs.load_experiment(WORKDIR.value), decoding.SCORER.value
  second = second_model(scorer, experiment) if scorer else None
  chosen = decoding.decoding(experiment, second)
  template = template_of(WORKDIR.value, experiment.tokenizer, TEMPLATE.value)
  trained = beside(runs.load(WORKDIR.value, dtype=PARAMETERS.value), second)
  longest = LENGTH.value or experiment.data.length
  sizes = {"answer": ANSWER.value, "longest": longest, "seed": SEED.value}
  chat = Chat(trained, template, chosen, system=SYSTEM.value, **sizes)
  person = sys.stdin.isatty() and not MESSAGE.value
  lines = MESSAGE.value or (typed("you: ") if person else sys.stdin)
  show = functools.partial(print, end="", flush=True)
  talk(chat, lines, show, show=SHOW.value, echo=not person)


if __name__ == "__main__":
  run(main)
