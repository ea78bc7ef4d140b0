"""LLaDA-MoE: LLaDA's objective and decoding with a mixture of experts for every MLP
(arXiv 2509.24389).

Published: 16 layers of width 2048, 64 experts of width 1024, 8 a token, 7B parameters of which 1.4B
work on a token, about 20T tokens; RMSNorm, SwiGLU, rotary base 50,000, norms on queries and keys;
losses of the router weighted 0.01 (balance) and 0.001 (z). Here: a token passes as many weights as
in configs/llada.py; 8 of 64 experts at the large sizes, 2 of 16 at the small ones; the norms and
the two weights are the published ones; the rotary base is 10,000.
Ours: 2.163 ± 0.007 bits/char after 200 updates of the table at equal tokens in
docs/results.md, where a character 5-gram has 1.822.
  python -m experiments.train --config=configs/llada_moe.py:tiny --workdir=runs/llada_moe
"""

from configs import base, llada


def get_config(size: str = "tiny"):
  c = llada.get_config(size)
  c.model.experts = 64 if size in ("1b", "8b") else 16
  c.model.experts_per_token = 8 if size in ("1b", "8b") else 2
  c.model.expert_width = c.model.mlp_width // c.model.experts_per_token
  c.model.balance_weight = 0.01
  c.model.router_z_weight = 0.001
  c.model.qk_norm = True
  base.own(c, "model.experts", "model.experts_per_token", "model.expert_width")
  base.own(c, "model.balance_weight", "model.router_z_weight", "model.qk_norm")
  return c
