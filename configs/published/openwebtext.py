"""OpenWebText, rows of 1024 tokens, 12 x 768, 1M steps of 512 rows (MDLM, arXiv 2406.07524).

Published perplexities of held-out text, in GPT-2's tokens, upper bounds but for the first:
autoregressive 17.54, ADLM 20.14 to 21.66, BD3-LM in blocks of 4, 8 and 16 20.73, 21.68 and 22.27,
MD4 22.13 (on a split of its own), MDLM 23.21, SEDD-absorb 24.10, Duo 25.2, UDLM 27.4, SEDD-uniform
29.7. GIDD+ has 22.29 with rows of 512. 1M steps are called "262 B" tokens in some tables and
"524 B" in others, so compare steps.
Ours: not yet run. The tokenizer of the papers is GPT-2's; ours has as many pieces and is learned,
so that only bits per byte may be compared, unless data.tokenizer_path names theirs. The data are a
folder of documents (data.path, data.field).
  python -m experiments.train --config=configs/published/openwebtext.py:mdlm --workdir=runs/owt
"""

from configs import published

SETTINGS = {
  "data": {
    "corpus": "folder",
    "path": "data/openwebtext",
    "tokenizer": "sentencepiece",
    "vocab_size": 50_257,
    "length": 1024,
  },
  "train": {"steps": 1_000_000, "batch_size": 512},
}


def get_config(system: str = ""):
  return published.of(system or "mdlm", SETTINGS)
