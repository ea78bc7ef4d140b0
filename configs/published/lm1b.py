"""LM1B, rows of 128 tokens, 12 x 768, batches of 512 rows, in three protocols whose perplexities
are never to be mixed. Published perplexities of the test split:

  padded    one sentence per row, 1M steps ("33 B tokens"; MDLM, arXiv 2406.07524, table 1, and Duo,
            arXiv 2506.10892): autoregressive 22.32, ADLM 26.40, MDLM 27.04, Duo 29.9, UDLM 31.3,
            SEDD-absorb 32.79, SEDD-uniform 40.3, D3PM-absorb 76.90
  long      the same, 10M steps ("327 B tokens"): autoregressive 20.86, MDLM 23.00
  wrapped   sentences cut into full rows, 1M steps (BD3-LM, arXiv 2503.09573): autoregressive 22.83,
            BD3-LM in blocks of 4 28.23, of 8 29.83, of 16 30.60, MDLM 31.78, SEDD-absorb 32.68, Duo
            33.7

Ours: not yet run. Different here: a row of `padded` and `long` holds as many whole sentences as
fit, each its own segment, in place of padding. The tokenizer of the papers is bert-base-uncased;
ours has as many pieces and is learned, so that only bits per byte may be compared, unless
data.tokenizer_path names theirs. The data are prepared by TFDS (data.data_dir).
  python -m experiments.train --config=configs/published/lm1b.py:mdlm/wrapped --workdir=runs/lm1b
"""

from configs import published

PROTOCOLS = {
  "padded": ("documents", 1_000_000),
  "long": ("documents", 10_000_000),
  "wrapped": ("stream", 1_000_000),
}


def get_config(choice: str = ""):
  system, (packing, steps) = published.protocol(choice or "mdlm", PROTOCOLS, "padded")
  settings = {
    "data": {
      "corpus": "tfds",
      "dataset": "lm1b",
      "detokenizer": "lm1b",
      "tokenizer": "sentencepiece",
      "vocab_size": 30_522,
      "length": 128,
      "packing": packing,
    },
    "train": {"steps": steps, "batch_size": 512},
  }
  return published.of(system, settings)
