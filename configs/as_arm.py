"""AS-ARM: an autoregressive model of the rest of a row, given any part of it, and speculative
sampling that keeps its law (Guo and Ermon 2025, arXiv 2504.20456).

In training the number of given tokens and the tokens themselves are drawn, and the remaining ones
are predicted from left to right, in two streams as in XLNet; the sum of what they cost is no bound.
Evaluation gives nothing, and so prices the row from left to right. The sampler drafts
sampler.drafts tokens in one call, checks them in a second one, and has the law of one token per
call. Published with XLNet of 110 M parameters, fine-tuned; the claim is about a tenth fewer calls
at 95 % masked (recalled). context.drafts=0.25 trains the drafts too, which is ours.
  python -m experiments.train --config=configs/as_arm.py:tiny --workdir=runs/as_arm
"""

from configs import base


def get_config(size: str = "tiny"):
  c = base.config(size)
  c.timing.name = "given"
  c.context.name = "any_order"
  c.sampler = {"name": "speculative", "drafts": 5}
  c.evaluate.timing = {"name": "at_noise"}
  base.own(c, "evaluate.timing")
  return c
