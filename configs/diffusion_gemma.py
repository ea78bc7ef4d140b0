"""DiffusionGemma: uniform noise in blocks after a clean causal text, self-conditioning, sliding
windows and experts (google-deepmind/gemma 4.1.0, June 2026; code read, no paper).

Published: 26B parameters of which 4B work on a token, canvases of 256 tokens, more than 1,000
tokens a second on one H100; no likelihood, which is here the bound of the noisy copy. Losses: the
cross-entropy of a canvas, and that of the next token in the clean copy at weight 1, with
self-conditioning in half of the rows. The decoder chooses anew at each call under an entropy bound
of 0.1 and makes noise of the rest, cooling from 0.8 to 0.4 over 48 calls.

Size 26b is the published shape for experiments.inspect, as far as one kind of layer has it: 30
layers of width 2816, 16 heads of 256 with 8 for keys, 128 experts of 704, 8 a token, beside one MLP
of 2112, a window of 1024 in five layers of six. Theirs has in the sixth 16 heads of 512 with 2 for
keys, which are the values too, and positions of their own; gelu where ours has silu, a cap on
logits, more norms, and an MLP for the last prediction, whose weighted embeddings are read as they
are here. Other sizes have canvases of 16 and windows of four canvases, as published; micro, of two
layers, has windows in both. The decoder of theirs is told no time, nor is this network. The weights
of the router's losses are LLaDA-MoE's.

Their logits are those of a token given all that is read, itself included. Ours leave it out, and
the cross-entropy is of both together: read as theirs (process.prediction="posterior") the bound is
looser, by how much no run that is kept says.
Ours: not yet in docs/results.md.
  python -m experiments.train --config=configs/diffusion_gemma.py:tiny --workdir=runs/gemma
"""

from configs import base


def get_config(size: str = "tiny"):
  published = size == "26b"
  c = base.config("8b" if published else size)
  c.model.update({"qk_norm": True, "tie_embeddings": True, "activation": "swiglu"})
  c.model.update({"balance_weight": 0.01, "router_z_weight": 0.001})
  if published:
    c.data.length = 4096
    c.model.update({"layers": 30, "width": 2816, "heads": 16, "kv_heads": 8, "head_width": 256})
    c.model.update({"mlp_width": 2112, "shared_width": 2112, "rope_base": 1e6})
    c.model.update({"experts": 128, "experts_per_token": 8, "expert_width": 704})
  else:
    c.model.update({"experts": 8, "experts_per_token": 2})
    c.model.shared_width = c.model.expert_width = max(c.model.mlp_width // 4, 8)
  canvas = 256 if published else 16
  c.model.window = 4 * canvas
  c.model.full_layers = tuple(range(5, c.model.layers, 6))
  c.process.name = "uniform"
  c.context = {"name": "blocks", "size": canvas, "clean": "causal"}
  c.objective = {"name": "with_next_token"}
  c.reader.name = "cached"
  base.self_conditioned(c, 0.5, "mean")
  c.sampler = {"name": "reveal", "score": "entropy", "temperature": 0.8, "cooling": (0.4, 48)}
  c.sampler.budget = {"name": "entropy_bound", "gamma": 0.1}
  c.sampler.revise = "reselect"
  # Which layers are full depends on their number, so in a comparison all have the base's windows.
  base.own(c, "model.window", "model.qk_norm", "model.tie_embeddings")
  base.own(c, "model.experts", "model.experts_per_token", "model.expert_width")
  base.own(c, "model.shared_width", "model.balance_weight", "model.router_z_weight")
  return c
