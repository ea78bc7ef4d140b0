"""Contexts: which rows the network reads, and who sees whom in them.

`whole`: rows that are read once, as they are. `blocks`: left to right, in blocks or token by token.
`rows`: what these are made of.
"""

from diffusion_text.context.blocks import Blocks, NextToken
from diffusion_text.context.whole import Annealed, Causal, Full

CONTEXTS = {
  "full": Full,
  "causal": Causal,
  "blocks": Blocks,
  "next_token": NextToken,
  "annealed": Annealed,
}

__all__ = ["CONTEXTS", "Annealed", "Blocks", "Causal", "Full", "NextToken"]
