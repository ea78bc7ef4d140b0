"""Every key once: what it means, its unit, its default. A config file says only what differs from this.

`base.config(size)` gives the defaults; sizes set the network and its learning rate. Any key can be overridden on the command line:
  python -m experiments.train --config=configs/mdlm.py:tiny --config.train.steps=100 --workdir=runs/mdlm
A choice ("name") may have options of its own; an option that is None is not passed, one that the choice does not take is an error.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

# name: (layers, width, heads, kv_heads, mlp_width, activation, learning rate). Parameters without embeddings in the comment.
SIZES = {
  "micro": (2, 64, 2, 2, 256, "gelu", 3e-3),  #            0.1 M, for tests
  "tiny": (6, 256, 4, 4, 1024, "gelu", 2e-3),  #           4.7 M, a laptop CPU
  "small": (12, 768, 12, 12, 3072, "gelu", 3e-4),  #        85 M, the field's standard (MDLM, SEDD, MD4, Duo)
  "medium": (24, 1024, 16, 16, 4096, "gelu", 3e-4),  #     302 M
  "1b": (24, 2048, 16, 8, 7168, "swiglu", 2e-4),  #        1.4 B
  "8b": (32, 4096, 32, 8, 14336, "swiglu", 1e-4),  #       7.0 B
}


def config(size: str = "tiny") -> ConfigDict:
  """All defaults, for a network of this size. Raises ValueError for an unknown size."""
  size = size or "tiny"
  if size not in SIZES:
    raise ValueError(f"size {size!r} is unknown; use one of {', '.join(SIZES)}, as in --config=configs/mdlm.py:tiny")
  layers, width, heads, kv_heads, mlp_width, activation, learning_rate = SIZES[size]
  large = size not in ("micro", "tiny")
  c = ConfigDict()
  c.seed = 0  # of parameters, data order, noise and dropout

  c.data = ConfigDict()
  c.data.corpus = "austen"  # "austen" (bundled), "text8", "folder", "tfds"
  c.data.path = placeholder(str)  # text8: the file; folder: the directory
  c.data.dataset = placeholder(str)  # tfds: the name, as in "lm1b"
  c.data.data_dir = placeholder(str)  # tfds: where prepared data sets are; None is TFDS's own default
  c.data.field = placeholder(str)  # folder, tfds: the field that holds the text; None is "text"
  c.data.tokenizer = "characters"  # "characters", "bytes", "sentencepiece"; trained on the training split if need be
  c.data.vocab_size = placeholder(int)  # sentencepiece: number of pieces
  c.data.tokenizer_path = placeholder(str)  # a tokenizer saved by experiments.tokenize, used instead of training one
  c.data.length = 256  # tokens per row
  c.data.packing = "stream"  # "stream": rows cut from one long text; "documents": whole documents, each its own segment
  c.data.random_offset = True  # stream: cut the rows at another place each epoch
  c.data.cache_dir = placeholder(str)  # token arrays; None is ~/.cache/diffusion_text

  c.process = ConfigDict()
  c.process.name = "masked"

  c.schedule = ConfigDict()
  c.schedule.name = "linear"  # "linear", "cosine", "polynomial", "geometric"
  c.schedule.power = placeholder(float)  # polynomial
  c.schedule.sigma_min = placeholder(float)  # geometric
  c.schedule.sigma_max = placeholder(float)  # geometric

  c.timing = ConfigDict()
  c.timing.name = "shared"  # "shared", "slanted", "per_block", "left_to_right"
  c.timing.spread = placeholder(float)  # slanted
  c.timing.block_size = placeholder(int)  # per_block: tokens that share a time and see each other
  c.timing.low = placeholder(float)  # per_block: smallest time in training (scored on [0, 1] all the same)
  c.timing.high = placeholder(float)  # per_block: largest time in training

  c.objective = ConfigDict()
  c.objective.name = "bound"  # "bound", "cross_entropy"
  c.objective.weighting = placeholder(str)  # cross_entropy: "uniform", "inverse_time"
  c.objective.max_weight = placeholder(float)  # cross_entropy: clips the weight
  c.objective.chunk = 2048 if large else 256  # positions whose logits exist at a time, per device

  c.model = ConfigDict()
  c.model.layers = layers
  c.model.width = width
  c.model.heads = heads
  c.model.kv_heads = kv_heads  # fewer than heads: grouped-query attention
  c.model.mlp_width = mlp_width
  c.model.norm = "rmsnorm"  # "rmsnorm", "layernorm"
  c.model.activation = activation  # "gelu", "swiglu"
  c.model.rope_base = 10_000.0
  c.model.qk_norm = False
  c.model.tie_embeddings = False
  c.model.time_conditioning = False  # adaLN from each token's time; masked diffusion needs none
  c.model.time_width = 128
  c.model.dropout = 0.0
  c.model.dtype = "bfloat16" if large else "float32"  # of matmuls; parameters, logits and losses are float32
  c.model.scan_layers = placeholder(bool)  # None: scan, except on CPU
  c.model.remat = "full" if size in ("1b", "8b") else "none"  # "none", "full", "dots"
  c.model.attention = ("pallas_tpu", "pallas_gpu", "xla")  # implementations, tried in order

  c.optimizer = ConfigDict()
  c.optimizer.learning_rate = learning_rate  # peak
  c.optimizer.schedule = "cosine"  # "cosine", "constant", "wsd"
  c.optimizer.warmup_steps = placeholder(int)  # None: 5 % of the steps, at most 2500
  c.optimizer.decay_steps = placeholder(int)  # wsd: length of the final decay
  c.optimizer.final_fraction = 0.1  # learning rate at the end / peak
  c.optimizer.b1 = 0.9
  c.optimizer.b2 = 0.98
  c.optimizer.eps = 1e-8
  c.optimizer.weight_decay = 0.03
  c.optimizer.clip_norm = 1.0  # of the global gradient

  c.train = ConfigDict()
  c.train.steps = 1_000_000 if large else 10_000
  c.train.batch_size = 512 if large else 32  # rows per step, over all devices and microbatches
  c.train.accumulation = 1  # microbatches per step
  c.train.ema_decay = 0.9999 if large else 0.999
  c.train.log_every = 100 if large else 10  # steps
  c.train.evaluate_every = 5_000 if large else 1_000  # steps
  c.train.save_every = 5_000 if large else 500  # steps
  c.train.keep = 3  # newest checkpoints kept, and the best
  c.train.max_seconds = placeholder(float)  # of training time; stops there even if steps are left
  c.train.restore_from = placeholder(str)  # a workdir or checkpoint directory to start from
  c.train.profile_steps = (0, 0)  # [first, last) step to trace with jax.profiler

  c.mesh = ConfigDict()  # devices per axis; -1 takes what is left
  c.mesh.replica = 1
  c.mesh.fsdp = -1
  c.mesh.tensor = 1
  c.mesh.sequence = 1
  c.mesh.expert = 1

  c.evaluate = ConfigDict()
  c.evaluate.split = "validation"
  c.evaluate.batch_size = 32  # rows
  c.evaluate.num_draws = 1  # draws of time and noise per row
  c.evaluate.max_rows = 512  # rows scored while training; experiments.evaluate scores them all

  c.sampler = ConfigDict()
  c.sampler.name = "ancestral"  # "ancestral", "event_driven", "ordered"
  c.sampler.steps = 64  # of a row; of each block for timings in blocks
  c.sampler.order = placeholder(str)  # ordered: "random", "entropy", "margin", "max_prob"
  c.sampler.temperature = 1.0
  c.sampler.top_p = 1.0
  return c
