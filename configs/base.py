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
  "small": (
    12,
    768,
    12,
    12,
    3072,
    "gelu",
    3e-4,
  ),  #        85 M, the field's standard (MDLM, SEDD, MD4, Duo)
  "medium": (24, 1024, 16, 16, 4096, "gelu", 3e-4),  #     302 M
  "1b": (24, 2048, 16, 8, 7168, "swiglu", 2e-4),  #        1.4 B
  "8b": (32, 4096, 32, 8, 14336, "swiglu", 1e-4),  #       7.0 B
}


def config(size: str = "tiny") -> ConfigDict:
  """All defaults, for a network of this size. Raises ValueError for an unknown size."""
  size = size or "tiny"
  if size not in SIZES:
    raise ValueError(
      f"size {size!r} is unknown; use one of {', '.join(SIZES)}, as in --config=configs/mdlm.py:tiny"
    )
  layers, width, heads, kv_heads, mlp_width, activation, learning_rate = SIZES[size]
  large = size not in ("micro", "tiny")
  c = ConfigDict()
  c.seed = 0  # of parameters, data order, noise and dropout

  c.data = ConfigDict()
  c.data.corpus = "austen"  # "austen" (bundled), "text8", "folder", "tfds", "pairs"
  c.data.path = placeholder(
    str
  )  # text8: the file; folder: the directory; pairs: a file or a directory
  c.data.dataset = placeholder(str)  # tfds: the name, as in "lm1b"
  c.data.data_dir = placeholder(
    str
  )  # tfds: where prepared data sets are; None is TFDS's own default
  c.data.field = placeholder(str)  # folder, tfds: the field that holds the text; None is "text"
  c.data.source = placeholder(
    str
  )  # pairs: field or column number (from 0) of what is given; None is "source" or 0
  c.data.target = placeholder(
    str
  )  # pairs: the same of what is to be written; None is "target" or 1
  c.data.max_characters = placeholder(
    int
  )  # pairs: those with a longer source or target are left out
  c.data.tokenizer = (
    "characters"  # "characters", "bytes", "sentencepiece"; trained on the training split if need be
  )
  c.data.vocab_size = placeholder(int)  # sentencepiece: number of pieces
  c.data.tokenizer_path = placeholder(
    str
  )  # a tokenizer saved by experiments.tokenize, used instead of training one
  c.data.length = 256  # tokens per row
  # "stream": rows cut from one long text; "documents": whole documents, each its own segment; "pairs": one pair, the source given
  c.data.packing = "stream"
  c.data.random_offset = True  # stream: cut the rows at another place each epoch
  c.data.cache_dir = placeholder(str)  # token arrays; None is ~/.cache/diffusion_text

  c.process = ConfigDict()
  # "masked", "mixed" (masks and random tokens), "uniform", "token_masked"; Gaussian: "embedding", "simplex", "distance"
  c.process.name = "masked"
  # What logits mean. masked: "clean", "score"; mixed, uniform: "leave_one_out" (default), "posterior"; uniform also "score";
  # Gaussian: "posterior" (default), "leave_one_out" (with "bound", "mse_rounding", "cross_entropy").
  c.process.prediction = placeholder(str)
  c.process.grid = placeholder(
    int
  )  # masked, mixed, uniform: T of a discrete-time process; None is continuous time
  c.process.mixing = placeholder(str)  # mixed: "gidd", "gamma", "epsilon", "constant"
  c.process.share = placeholder(float)  # mixed: how much of the noise is random tokens, 0 to 1
  c.process.loss_order = placeholder(str)  # token_masked: "learned", "spindle", "frequency"
  c.process.strength = placeholder(
    float
  )  # token_masked: how far tokens differ; below 0.318 for the spindle; sign = who first
  c.process.width = placeholder(int)  # embedding, distance: numbers per token
  c.process.norm = placeholder(str)  # embedding, distance: "none", "unit", "sqrt_d", "layernorm"
  # embedding, distance: whether the loss moves the table of embeddings, or it stays random
  c.process.learned = placeholder(bool)
  # simplex: a token is k, all others -k or 0, in noise of scale k; distance: scale of the noise
  c.process.k = placeholder(float)
  c.process.encoding = placeholder(str)  # simplex: "signed", others are at -k; "one_hot", at 0
  c.process.reading = placeholder(
    str
  )  # simplex: the network reads "softmax" of the state, or the state "raw"
  c.process.kernel_width = placeholder(
    float
  )  # distance: of the Gaussian kernel, in units of the embeddings
  # Gaussian: what a step takes of the prediction: "expectation", "sample", "argmax", "nearest"; simplex: also "multi_hot" (with top_p).
  c.process.projection = placeholder(str)
  c.process.rho = placeholder(
    float
  )  # Gaussian: fresh noise in a step; 0 DDIM, 1 all anew, None the DDPM posterior
  c.process.eta = placeholder(
    float
  )  # Gaussian: share of the DDPM posterior's fresh noise, where rho is None
  c.process.score_temperature = placeholder(
    float
  )  # Gaussian: divides the predicted noise in a step; Plaid 0.9
  c.process.fixed_large = placeholder(
    bool
  )  # Gaussian: legacy step of too much noise (DiffuSeq, GENIE)
  c.process.noise_factor = placeholder(
    float
  )  # Gaussian: F, trained at SNR / F² and decoded at F = 1
  c.process.noise_growth = placeholder(float)  # Gaussian: what F grows by from t = 0 to t = 1; TREC

  c.schedule = ConfigDict()
  # "linear", "cosine", "polynomial", "geometric"; Gaussian processes, whose schedules are paths: "linear", "cosine", "sqrt", "log_snr",
  # "tangent", "arctangent", "exploding", "table", "learned"
  c.schedule.name = "linear"
  c.schedule.log_snr_max = placeholder(float)  # paths: log-SNR at t = 0+
  c.schedule.log_snr_min = placeholder(float)  # paths: log-SNR at t = 1
  c.schedule.offset = placeholder(float)  # paths "cosine", "sqrt": s of the published curve
  c.schedule.slope = placeholder(
    float
  )  # paths "linear", "tangent": what sigma / alpha is multiplied by; "arctangent": d
  c.schedule.ratio = placeholder(
    float
  )  # path "arctangent": largest over smallest width of the kernel
  c.schedule.levels = placeholder(tuple)  # path "table": log-SNRs at even times, falling
  c.schedule.bins = placeholder(
    int
  )  # path "learned": stretches of log-SNR whose share of the time is learned
  c.schedule.floor = placeholder(
    float
  )  # path "learned": share of the time that is spread evenly all the same
  c.schedule.power = placeholder(
    float
  )  # polynomial; path "learned": 2 is the least variance, 1 the same cost at all times
  c.schedule.sigma_min = placeholder(float)  # geometric
  c.schedule.sigma_max = placeholder(float)  # geometric

  c.timing = ConfigDict()
  # "shared", "independent", "counted", "slanted", "hyperschedule", "poisson", "predicted", "by_information", "by_position",
  # "per_block", "left_to_right"
  c.timing.name = "shared"
  c.timing.power = placeholder(
    float
  )  # shared: above 1 draws small times more often, for the same bound
  # slanted, per_block, by_information: 0 is one time for all; poisson, predicted: how far times differ
  c.timing.spread = placeholder(float)
  c.timing.levels = placeholder(int)  # poisson, predicted: how many intrinsic times there are
  c.timing.layers = placeholder(int)  # predicted: of the network that predicts them
  c.timing.informative_first = placeholder(
    bool
  )  # by_information: whether rare tokens are generated first, or last
  c.timing.bins = placeholder(
    int
  )  # by_position: stretches of time, each position's shares of the clock in which are learned
  c.timing.floor = placeholder(
    float
  )  # by_position: share of the clock that stays evenly spread over times
  c.timing.kind = placeholder(str)  # hyperschedule: "wave", "blocks"
  c.timing.width = placeholder(int)  # hyperschedule: tokens that the wave covers, or of a block
  c.timing.context = placeholder(str)  # hyperschedule: "full", "causal"
  c.timing.block_size = placeholder(int)  # per_block: tokens that share a time and see each other
  c.timing.low = placeholder(
    float
  )  # per_block: smallest time in training (scored on [0, 1] all the same)
  c.timing.high = placeholder(float)  # per_block: largest time in training

  c.objective = ConfigDict()
  # "bound", "cross_entropy", "anchored", "gaussian_curriculum", "mask_agnostic", "mse_rounding", "reinforce",
  # "reinforced_conditioning" (mse_rounding and a reward), "reweighted"
  c.objective.name = "bound"
  c.objective.auxiliary = placeholder(
    float
  )  # bound: weight of a cross-entropy beside it (D3PM's λ)
  # What is said of mse_rounding holds for reinforced_conditioning.
  # "uniform"; mse_rounding: also "snr", "v"; the others: also "inverse_time", "linear"
  c.objective.weighting = placeholder(str)
  c.objective.max_weight = placeholder(
    float
  )  # cross_entropy, mask_agnostic, mse_rounding, reweighted: clips the weight
  c.objective.min_weight = placeholder(float)  # reweighted: clips the weight from below
  # cross_entropy, mask_agnostic, mse_rounding: share of the target spread over all tokens
  c.objective.label_smoothing = placeholder(float)
  c.objective.focusing = placeholder(
    float
  )  # cross_entropy, mask_agnostic: γ, tokens weigh (1 - e^-CE)^γ
  c.objective.agreement = placeholder(
    float
  )  # mask_agnostic: weight of the total variation of the two readings
  c.objective.appended = placeholder(
    int
  )  # mask_agnostic: the most masks that follow a row in the second reading
  c.objective.curriculum = placeholder(
    float
  )  # gaussian_curriculum: share of the training steps that reads soft tokens
  c.objective.temperature = placeholder(
    float
  )  # gaussian_curriculum: of the soft tokens, at the start
  c.objective.final_temperature = placeholder(
    float
  )  # gaussian_curriculum: the same, at the end of the curriculum
  c.objective.low = placeholder(float)  # gaussian_curriculum: smallest time while tokens are soft
  c.objective.high = placeholder(float)  # gaussian_curriculum: largest time while tokens are soft
  c.objective.candidates = placeholder(int)  # gaussian_curriculum: tokens of a soft token
  c.objective.anchor_weight = placeholder(
    float
  )  # anchored: of the first stage's loss; mse_rounding: of the cross-entropy
  c.objective.rounding_weight = placeholder(
    float
  )  # mse_rounding: of rounding the noised vector, which keeps embeddings apart
  # mse_rounding: cross-entropies of the "posterior" (None), or of "inner" products of vectors
  c.objective.readout = placeholder(str)
  c.objective.reward = placeholder(
    str
  )  # reinforced_conditioning: "accuracy" or "bleu" of the tokens, row by row
  c.objective.reward_weight = placeholder(float)  # reinforced_conditioning
  c.objective.advantage_clip = placeholder(
    float
  )  # reinforced_conditioning: rewards that differ by more count as this much
  c.objective.threshold = placeholder(
    int
  )  # anchored: occurrences in a row of the tokens that the first stage is taught
  c.objective.self_conditioning = placeholder(
    float
  )  # probability, per row, that the network is told its own first answer
  c.objective.drop_given = placeholder(
    float
  )  # probability, per row, that given tokens are hidden: for sampler.guidance_scale
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
  c.model.time_conditioning = (
    "none"  # "none" (masked diffusion needs none), "adaln", "layerwise", "prefix"
  )
  c.model.time_width = 128
  c.model.dropout = 0.0
  c.model.dtype = (
    "bfloat16" if large else "float32"
  )  # of matmuls; parameters, logits and losses are float32
  c.model.scan_layers = placeholder(bool)  # None: scan, except on CPU
  c.model.remat = "full" if size in ("1b", "8b") else "none"  # "none", "full", "dots"
  c.model.attention = ("pallas_tpu", "pallas_gpu", "xla")  # implementations, tried in order
  c.model.experts = placeholder(
    int
  )  # MLPs that a router chooses from, in place of one of mlp_width; None: that one
  c.model.experts_per_token = placeholder(int)
  c.model.expert_width = placeholder(int)  # of each expert's hidden layer
  c.model.shared_width = placeholder(int)  # of an MLP that every token passes besides; None: none
  c.model.balance_weight = placeholder(float)  # of the router's load-balance loss; LLaDA-MoE 0.01
  c.model.router_z_weight = placeholder(float)  # of the router's z-loss; LLaDA-MoE 0.001
  c.model.anchor_layers = placeholder(
    int
  )  # of the layers, those of a first stage whose answer the others read; None: none
  # Its own last answer, read as "add" (by a zero-initialised map) or "mean" (of probabilities); None: not at all.
  c.model.self_conditioning = placeholder(str)
  c.model.absent = placeholder(
    str
  )  # what it reads where there is none: "zeros" (None), or "uniform", the mean embedding

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
  c.evaluate.batch_size = 512 if large else 32  # rows
  c.evaluate.timing = placeholder(
    str
  )  # "shared" or "counted" (same bound, lower variance) in place of each other
  c.evaluate.self_conditioning = placeholder(
    float
  )  # probability of being told: 1 (None) reads twice per draw, 0 is never told
  # Gaussian: log-SNR at which the bound decodes tokens, each out of its own vector; None is the path's end. experiments.evaluate --decoding
  c.evaluate.decode_at = placeholder(float)
  c.evaluate.num_draws = 1  # draws of time and noise per row
  c.evaluate.max_rows = 512  # rows scored while training; experiments.evaluate scores them all

  c.sampler = ConfigDict()
  # "ancestral", "event_driven", "multistep" (DPM-Solver++), "ordered", "predicted_times", "tau_leaping", "remasking",
  # "predictor_corrector", "routed", "self_correcting"
  c.sampler.name = "ancestral"
  c.sampler.steps = 64  # of a row; of each block for timings in blocks
  c.sampler.order = placeholder(str)  # ordered: "random", "entropy", "margin", "max_prob"
  c.sampler.greedy_tail = placeholder(
    bool
  )  # last step of a token takes the likeliest; not for event_driven, ordered
  c.sampler.strategy = placeholder(str)  # remasking: "cap", "rescale", "conf"
  c.sampler.eta = placeholder(float)  # remasking: strength; None is the published one
  c.sampler.loop = placeholder(
    tuple
  )  # remasking: (t_on, t_off, alpha_on), clock times spent at a constant noise level
  c.sampler.kappa = placeholder(
    float
  )  # predictor_corrector: probability of the posterior step; else guess and noise again
  c.sampler.rate = placeholder(
    str
  )  # routed: "linear", "cosine", how the share of kept tokens rises
  c.sampler.noise_scale = placeholder(float)  # routed: of the Gumbel noise on the scores
  c.sampler.corrections = placeholder(int)  # self_correcting: most calls after the last step
  c.sampler.correction_time = placeholder(
    float
  )  # self_correcting: the time that the network is told
  c.sampler.correction_temperature = placeholder(float)  # self_correcting
  c.sampler.temperature = 1.0
  c.sampler.top_p = 1.0
  # classifier-free: w of u + w (c - u); 1 (None) is the conditional answer, one call
  c.sampler.guidance_scale = placeholder(float)
  c.sampler.guidance_space = placeholder(str)  # of the w: "logits" (None), "probabilities"
  return c
