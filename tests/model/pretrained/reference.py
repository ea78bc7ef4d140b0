"""What each family computes, written out in numpy and float64 from the names of its tensors, and
random checkpoints of two layers. Nothing of ours is used.

Written from the formulas of the papers and the names of the published files, not from our code.
"""

import math

import numpy as np

V, D, F, HEADS, GROUPS, LAYERS, POSITIONS = 37, 32, 48, 4, 2, 2, 24


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def layer_norm(x, scale, bias, eps):
  centred = x - x.mean(-1, keepdims=True)
  return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * scale + bias


def rms_norm(x, scale, eps):
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale


def gelu(x):
  return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def gelu_tanh(x):
  return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x):
  return x / (1 + np.exp(-x))


def heads_of(x, count):
  """[B, L, heads · K] -> [B, heads, L, K]."""
  return x.reshape(*x.shape[:2], count, -1).transpose(0, 2, 1, 3)


def attend(q, k, v, causal, window=None):
  """[B, H, L, K] and [B, G, L, K] twice -> [B, L, H · K]; of keys nearer than the window."""
  repeat = q.shape[1] // k.shape[1]
  k, v = (np.repeat(x, repeat, axis=1) for x in (k, v))
  scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(q.shape[-1])
  place = np.arange(scores.shape[-1])
  back = place[:, None] - place[None, :]
  if causal:
    scores = np.where(back >= 0, scores, -np.inf)
  if window is not None:
    scores = np.where(np.abs(back) < window, scores, -np.inf)
  mixed = (softmax(scores) @ v).transpose(0, 2, 1, 3)
  return mixed.reshape(*mixed.shape[:2], -1)


def rope(x, base):
  """Pairs (k, k + K/2) turned by position · base^(-2k/K)."""
  half = x.shape[-1] // 2
  return turned(x, base ** (-2.0 * np.arange(half) / (2 * half)))


def turned(x, rates, gain=1.0):
  """Pairs (k, k + K/2) turned by position · rates[k], cosines and sines times `gain`."""
  half = x.shape[-1] // 2
  assert len(rates) == half, "one rate would be taken for all pairs"
  angles = np.arange(x.shape[2])[:, None] * np.asarray(rates)
  cos, sin = np.cos(angles), np.sin(angles)
  first, second = x[..., :half], x[..., half:]
  both = (first * cos - second * sin, second * cos + first * sin)
  return gain * np.concatenate(both, axis=-1)


def slowed_rates(config, width, length):
  """(rate of each pair, gain) by `rope_scaling` of a config, pair by pair: LLaMA 3 by wavelengths
  (arXiv 2407.21783 and the released code), YaRN by the two places (arXiv 2309.00071, section 3)."""
  base, scaling = config["rope_theta"], config.get("rope_scaling") or {}
  kind, factor = scaling.get("rope_type"), scaling.get("factor")
  old = scaling.get("original_max_position_embeddings")
  if kind == "dynamic" and length > config["max_position_embeddings"]:
    longer = length / config["max_position_embeddings"]
    base *= (factor * longer - (factor - 1)) ** (width / (width - 2))
  rates = [base ** (-2.0 * pair / width) for pair in range(width // 2)]
  if kind == "linear":
    return [rate / factor for rate in rates], 1.0
  if kind == "llama3":
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    slowed = []
    for rate in rates:
      wavelength = 2 * math.pi / rate
      if wavelength < old / high:
        slowed.append(rate)
      elif wavelength > old / low:
        slowed.append(rate / factor)
      else:
        smooth = (old / wavelength - low) / (high - low)
        slowed.append((1 - smooth) * rate / factor + smooth * rate)
    return slowed, 1.0
  if kind != "yarn":
    return rates, 1.0

  def place(turns):
    return width * math.log(old / (turns * 2 * math.pi)) / (2 * math.log(base))

  low, high = place(scaling.get("beta_fast", 32)), place(scaling.get("beta_slow", 1))
  if scaling.get("truncate", True):
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, width - 1)
  ramps = [min(max((pair - low) / (high - low), 0), 1) for pair in range(width // 2)]
  slowed = [rate / factor * ramp + rate * (1 - ramp) for rate, ramp in zip(rates, ramps)]
  if "mscale" in scaling:
    over, under = scaling["mscale"], scaling["mscale_all_dim"]
    return slowed, (0.1 * over * math.log(factor) + 1) / (0.1 * under * math.log(factor) + 1)
  return slowed, scaling.get("attention_factor", 0.1 * math.log(factor) + 1)


def window_of(config, layer):
  """The window of a layer, or None: of all in Mistral, of the last or chosen ones in Qwen."""
  if not config.get("use_sliding_window", True):
    return None
  kinds = config.get("layer_types")
  if kinds is not None:
    return config["sliding_window"] if kinds[layer] == "sliding_attention" else None
  return config.get("sliding_window") if layer >= config.get("max_window_layers", 0) else None


def gpt2(w, config, ids):
  w, eps = {name: value.astype(np.float64) for name, value in w.items()}, 1e-5
  x = w["wte.weight"][ids] + w["wpe.weight"][: ids.shape[1]]
  for i in range(LAYERS):
    p = f"h.{i}."
    h = layer_norm(x, w[p + "ln_1.weight"], w[p + "ln_1.bias"], eps)
    h = h @ w[p + "attn.c_attn.weight"] + w[p + "attn.c_attn.bias"]
    q, k, v = (heads_of(part, HEADS) for part in np.split(h, 3, axis=-1))
    x = x + attend(q, k, v, True) @ w[p + "attn.c_proj.weight"] + w[p + "attn.c_proj.bias"]
    h = layer_norm(x, w[p + "ln_2.weight"], w[p + "ln_2.bias"], eps)
    h = gelu_tanh(h @ w[p + "mlp.c_fc.weight"] + w[p + "mlp.c_fc.bias"])
    x = x + h @ w[p + "mlp.c_proj.weight"] + w[p + "mlp.c_proj.bias"]
  return layer_norm(x, w["ln_f.weight"], w["ln_f.bias"], eps) @ w["wte.weight"].T


def llama(w, config, ids):
  """LLaMA, Mistral, Qwen2, Qwen3; Dream, which sees the whole row."""
  w = {name: value.astype(np.float64) for name, value in w.items()}
  eps, causal = config["rms_norm_eps"], config["model_type"] != "Dream"
  width = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
  rope = slowed_rates(config, width, ids.shape[1])

  def linear(x, name):
    return x @ w[name + ".weight"].T + w.get(name + ".bias", 0.0)

  x = w["model.embed_tokens.weight"][ids]
  for i in range(LAYERS):
    p = f"model.layers.{i}."
    h = rms_norm(x, w[p + "input_layernorm.weight"], eps)
    q = heads_of(linear(h, p + "self_attn.q_proj"), HEADS)
    k = heads_of(linear(h, p + "self_attn.k_proj"), GROUPS)
    v = heads_of(linear(h, p + "self_attn.v_proj"), GROUPS)
    if config["model_type"] == "qwen3":
      q = rms_norm(q, w[p + "self_attn.q_norm.weight"], eps)
      k = rms_norm(k, w[p + "self_attn.k_norm.weight"], eps)
    mixed = attend(turned(q, *rope), turned(k, *rope), v, causal, window_of(config, i))
    x = x + linear(mixed, p + "self_attn.o_proj")
    h = rms_norm(x, w[p + "post_attention_layernorm.weight"], eps)
    gated = silu(linear(h, p + "mlp.gate_proj")) * linear(h, p + "mlp.up_proj")
    x = x + linear(gated, p + "mlp.down_proj")
  x = rms_norm(x, w["model.norm.weight"], eps)
  return x @ w.get("lm_head.weight", w["model.embed_tokens.weight"]).T


def llada(w, config, ids):
  w = {name: value.astype(np.float64) for name, value in w.items()}
  eps, base, root = config["rms_norm_eps"], config["rope_theta"], "model.transformer."
  x = w[root + "wte.weight"][ids]
  for i in range(LAYERS):
    b = {n.split(".", 4)[4]: v.T for n, v in w.items() if n.startswith(f"{root}blocks.{i}.")}
    h = rms_norm(x, b["attn_norm.weight"], eps)
    q, k = heads_of(h @ b["q_proj.weight"], HEADS), heads_of(h @ b["k_proj.weight"], GROUPS)
    v = heads_of(h @ b["v_proj.weight"], GROUPS)
    x = x + attend(rope(q, base), rope(k, base), v, False) @ b["attn_out.weight"]
    h = rms_norm(x, b["ff_norm.weight"], eps)
    x = x + (silu(h @ b["ff_proj.weight"]) * (h @ b["up_proj.weight"])) @ b["ff_out.weight"]
  return rms_norm(x, w[root + "ln_f.weight"], eps) @ w[root + "ff_out.weight"].T


def bert(w, config, ids):
  """BERT with the head of its masked model; RoBERTa without one, whose answer is the stream."""
  w, eps = {name: value.astype(np.float64) for name, value in w.items()}, config["layer_norm_eps"]
  root, first = ("bert.", 0) if config["model_type"] == "bert" else ("roberta.", 2)

  def linear(x, name):
    return x @ w[name + ".weight"].T + w[name + ".bias"]

  def norm(x, name):
    return layer_norm(x, w[name + ".weight"], w[name + ".bias"], eps)

  e = root + "embeddings."
  places = w[e + "position_embeddings.weight"][first : first + ids.shape[1]]
  x = w[e + "word_embeddings.weight"][ids] + places + w[e + "token_type_embeddings.weight"][0]
  x = norm(x, e + "LayerNorm")
  for i in range(LAYERS):
    p = f"{root}encoder.layer.{i}."
    q, k, v = (
      heads_of(linear(x, p + "attention.self." + part), HEADS) for part in ("query", "key", "value")
    )
    mixed = linear(attend(q, k, v, False), p + "attention.output.dense")
    x = norm(x + mixed, p + "attention.output.LayerNorm")
    h = linear(gelu(linear(x, p + "intermediate.dense")), p + "output.dense")
    x = norm(x + h, p + "output.LayerNorm")
  table = w[e + "word_embeddings.weight"]
  if "cls.predictions.bias" not in w:
    return x @ table.T
  head = "cls.predictions.transform."
  x = norm(gelu(linear(x, head + "dense")), head + "LayerNorm")
  return x @ table.T + w["cls.predictions.bias"]


def dit(w, ids, sigma):
  """The field's own network, whose norms and branches are shifted, scaled and gated by a number."""
  w = {name.removeprefix("backbone."): value.astype(np.float64) for name, value in w.items()}

  def linear(x, name):
    return x @ w[name + ".weight"].T + w.get(name + ".bias", 0.0)

  def normed(x, name, shift, scale):
    return layer_norm(x, w[name + ".weight"], 0.0, 1e-5) * (1 + scale) + shift

  angles = sigma * 10_000.0 ** (-np.arange(128) / 128)
  noise = silu(linear(np.concatenate([np.cos(angles), np.sin(angles)]), "sigma_map.mlp.0"))
  c = silu(linear(noise, "sigma_map.mlp.2"))
  x = w["vocab_embed.embedding"][ids]
  for i in range(LAYERS):
    p = f"blocks.{i}."
    told = np.split(linear(c, p + "adaLN_modulation"), 6)
    h = linear(normed(x, p + "norm1", *told[:2]), p + "attn_qkv")
    q, k, v = (heads_of(part, HEADS) for part in np.split(h, 3, axis=-1))
    mixed = attend(rope(q, 10_000.0), rope(k, 10_000.0), v, False)
    x = x + told[2] * linear(mixed, p + "attn_out")
    h = gelu_tanh(linear(normed(x, p + "norm2", *told[3:5]), p + "mlp.0"))
    x = x + told[5] * linear(h, p + "mlp.2")
  told = np.split(linear(c, "output_layer.adaLN_modulation"), 2)
  return linear(normed(x, "output_layer.norm_final", *told), "output_layer.linear")


def mdlm(w, config, ids):
  """The published network without time: what shifts, scales and gates is that of noise 0."""
  return dit(w, ids, 0.0)


def sedd_output(logits, ids, sigma, scale_by_sigma):
  """What SEDD's released network returns, log-scores: the logits of its last layer, with a mask
  less log(e^σ - 1) and log(rows - 1), and then 0 at the token that is read."""
  if scale_by_sigma:
    logits = logits - math.log(math.expm1(sigma)) - math.log(logits.shape[-1] - 1)
  output = logits.copy()
  np.put_along_axis(output, ids[..., None], 0.0, axis=-1)
  return output


def random_tensors(shapes, seed=0):
  """Scales about 1, biases and tables small, matrices of about the usual deviation."""
  random = np.random.default_rng(seed)
  tensors = {}
  for name, shape in shapes.items():
    noise = random.normal(size=shape)
    scale = name.endswith("weight") and len(shape) == 1
    deviation = 0.1 if len(shape) == 1 or shape[0] in (V, POSITIONS) else 0.25
    tensors[name] = np.float32(1 + 0.2 * noise if scale else deviation * noise)
  return tensors


def llama_shapes(kind):
  kind = "llama" if kind == "mistral" else kind
  k = 12 if kind == "qwen3" else D // HEADS
  inner, kv = HEADS * k, GROUPS * k
  shapes = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
  for i in range(LAYERS):
    p = f"model.layers.{i}."
    shapes |= {p + "input_layernorm.weight": (D,), p + "post_attention_layernorm.weight": (D,)}
    shapes |= {p + "self_attn.q_proj.weight": (inner, D), p + "self_attn.k_proj.weight": (kv, D)}
    shapes |= {p + "self_attn.v_proj.weight": (kv, D), p + "self_attn.o_proj.weight": (D, inner)}
    shapes |= {p + "mlp.gate_proj.weight": (F, D), p + "mlp.up_proj.weight": (F, D)}
    shapes |= {p + "mlp.down_proj.weight": (D, F)}
    if kind in ("qwen2", "Dream"):
      shapes |= {p + "self_attn.q_proj.bias": (inner,), p + "self_attn.k_proj.bias": (kv,)}
      shapes |= {p + "self_attn.v_proj.bias": (kv,)}
    if kind == "qwen3":
      shapes |= {p + "self_attn.q_norm.weight": (k,), p + "self_attn.k_norm.weight": (k,)}
  return shapes if kind == "llama" else shapes | {"lm_head.weight": (V, D)}


def llama_config(kind):
  config = {"model_type": kind, "hidden_size": D, "num_hidden_layers": LAYERS, "vocab_size": V}
  config |= {"num_attention_heads": HEADS, "num_key_value_heads": GROUPS, "hidden_act": "silu"}
  config |= {"intermediate_size": F, "rms_norm_eps": 1e-5, "rope_theta": 500.0}
  tied = kind in ("llama", "mistral")
  config |= {"tie_word_embeddings": tied, "bos_token_id": 1, "rope_scaling": None}
  config |= {"head_dim": 12} if kind == "qwen3" else {}
  return config | ({"mask_token_id": 5} if kind == "Dream" else {})


def llada_shapes():
  root, kv = "model.transformer.", GROUPS * D // HEADS
  shapes = {root + "wte.weight": (V, D), root + "ln_f.weight": (D,), root + "ff_out.weight": (V, D)}
  for i in range(LAYERS):
    p = f"{root}blocks.{i}."
    shapes |= {p + "attn_norm.weight": (D,), p + "ff_norm.weight": (D,)}
    shapes |= {p + "q_proj.weight": (D, D), p + "k_proj.weight": (kv, D)}
    shapes |= {p + "v_proj.weight": (kv, D), p + "attn_out.weight": (D, D)}
    shapes |= {p + "ff_proj.weight": (F, D), p + "up_proj.weight": (F, D)}
    shapes |= {p + "ff_out.weight": (D, F)}
  return shapes


def llada_config():
  config = {"model_type": "llada", "d_model": D, "n_layers": LAYERS, "n_heads": HEADS}
  config |= {"n_kv_heads": GROUPS, "mlp_hidden_size": F, "vocab_size": V - 3, "embedding_size": V}
  config |= {"rope_theta": 500.0, "rms_norm_eps": 1e-5, "mask_token_id": 30, "block_type": "llama"}
  return config | {"weight_tying": False, "include_bias": False, "activation_type": "silu"}


def gpt2_shapes():
  shapes = {"wte.weight": (V, D), "wpe.weight": (POSITIONS, D)}
  shapes |= {"ln_f.weight": (D,), "ln_f.bias": (D,)}
  for i in range(LAYERS):
    p = f"h.{i}."
    for norm in ("ln_1", "ln_2"):
      shapes |= {f"{p}{norm}.weight": (D,), f"{p}{norm}.bias": (D,)}
    maps = {"attn.c_attn": (D, 3 * D), "attn.c_proj": (D, D), "mlp.c_fc": (D, F)}
    for name, shape in (maps | {"mlp.c_proj": (F, D)}).items():
      shapes |= {f"{p}{name}.weight": shape, f"{p}{name}.bias": shape[1:]}
  return shapes


def gpt2_config():
  config = {"model_type": "gpt2", "n_embd": D, "n_layer": LAYERS, "n_head": HEADS, "n_inner": F}
  return config | {"n_positions": POSITIONS, "vocab_size": V, "eos_token_id": V - 1}


def bert_shapes(kind):
  e = f"{kind}.embeddings."
  shapes = {e + "word_embeddings.weight": (V, D), e + "position_embeddings.weight": (POSITIONS, D)}
  shapes |= {e + "token_type_embeddings.weight": (2, D)}
  norms, maps = [e + "LayerNorm"], {}
  for i in range(LAYERS):
    p = f"{kind}.encoder.layer.{i}."
    maps |= {f"{p}attention.self.{part}": (D, D) for part in ("query", "key", "value")}
    maps |= {p + "attention.output.dense": (D, D), p + "intermediate.dense": (F, D)}
    maps |= {p + "output.dense": (D, F)}
    norms += [p + "attention.output.LayerNorm", p + "output.LayerNorm"]
  if kind == "bert":
    maps |= {"cls.predictions.transform.dense": (D, D)}
    norms += ["cls.predictions.transform.LayerNorm"]
    shapes |= {"cls.predictions.bias": (V,)}
  for name, shape in maps.items():
    shapes |= {name + ".weight": shape, name + ".bias": shape[:1]}
  for name in norms:
    shapes |= {name + ".weight": (D,), name + ".bias": (D,)}
  return shapes


def bert_config(kind):
  config = {"model_type": kind, "hidden_size": D, "num_hidden_layers": LAYERS, "vocab_size": V}
  config |= {"num_attention_heads": HEADS, "intermediate_size": F, "hidden_act": "gelu"}
  config |= {"max_position_embeddings": POSITIONS, "type_vocab_size": 2, "layer_norm_eps": 1e-12}
  return config


def mdlm_shapes(cond=6):
  b = "backbone."
  shapes = {b + "vocab_embed.embedding": (V, D), b + "output_layer.norm_final.weight": (D,)}
  maps = {"sigma_map.mlp.0": (cond, 256), "sigma_map.mlp.2": (cond, cond)}
  maps |= {"output_layer.linear": (V, D), "output_layer.adaLN_modulation": (2 * D, cond)}
  for i in range(LAYERS):
    p = f"blocks.{i}."
    maps |= {p + "mlp.0": (4 * D, D), p + "mlp.2": (D, 4 * D)}
    maps |= {p + "adaLN_modulation": (6 * D, cond)}
    shapes |= {f"{b}{p}norm1.weight": (D,), f"{b}{p}norm2.weight": (D,)}
    shapes |= {f"{b}{p}attn_qkv.weight": (3 * D, D), f"{b}{p}attn_out.weight": (D, D)}
  shapes |= {f"{b}{name}.weight": shape for name, shape in maps.items()}
  return shapes | {f"{b}{name}.bias": shape[:1] for name, shape in maps.items()}


def mdlm_config():
  config = {"model_type": "mdlm", "hidden_dim": D, "n_blocks": LAYERS, "n_heads": HEADS}
  config |= {"cond_dim": 6, "vocab_size": V, "time_conditioning": False, "dropout": 0.1}
  return config | {"mask_token_id": V - 1}


# kind: what its config says of longer rows. With heads of 8 or 12 numbers and base 500 some pairs
# are slowed in full, some in part and some not at all.
LONGER = {
  "mistral": {
    "sliding_window": 4,
    "rope_scaling": {
      **{"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64},
      **{"beta_fast": 4.0, "beta_slow": 1.0},
    },
  },
  "llama": {
    "rope_scaling": {
      **{"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64},
      **{"low_freq_factor": 1.0, "high_freq_factor": 4.0},
    },
  },
  "qwen2": {
    **{"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    "rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 3.0},
  },
  "qwen3": {
    **{"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0},
    "layer_types": ["sliding_attention", "full_attention"],
    **{"max_position_embeddings": 8, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
  },
}

# name: (config, shapes, reference, whether a token sees its right).
CASES = {
  "gpt2": (gpt2_config(), gpt2_shapes(), gpt2, True),
  "mdlm": (mdlm_config(), mdlm_shapes(), mdlm, False),
  "llada": (llada_config(), llada_shapes(), llada, False),
  "bert": (bert_config("bert"), bert_shapes("bert"), bert, False),
  "roberta": (bert_config("roberta"), bert_shapes("roberta"), bert, False),
  **{
    kind: (llama_config(kind), llama_shapes(kind), llama, kind != "Dream")
    for kind in ("llama", "qwen2", "qwen3", "Dream")
  },
  **{
    f"{kind}, longer rows": (llama_config(kind) | more, llama_shapes(kind), llama, True)
    for kind, more in LONGER.items()
  },
}
