"""QQP, paraphrases of questions, rows of 128 tokens for source and target, 12 x 768, 50,000 steps
of 2048 rows at a rate of 1e-4 (DiffuSeq, arXiv 2210.08933).

Published on its test split: DiffuSeq BLEU 0.2413, ROUGE-L 0.5880, BERTScore 0.8365 by consensus of
10 samples; users report less without it. The BLEU is not sacrebleu's.
Ours: not yet run. The tokenizer of the paper is bert-base-uncased; ours has as many pieces and is
learned. The data are files of pairs with `src` and `trg` (data.path).
  python -m experiments.train --config=configs/published/qqp.py:diffuseq --workdir=runs/qqp
"""

from configs import published

SETTINGS = {
  "data": {
    "corpus": "pairs",
    "packing": "pairs",
    "path": "data/qqp",
    "source": "src",
    "target": "trg",
    "tokenizer": "sentencepiece",
    "vocab_size": 30_522,
    "length": 128,
  },
  "optimizer": {"learning_rate": 1e-4},
  "train": {"steps": 50_000, "batch_size": 2048},
}


def get_config(system: str = ""):
  return published.of(system or "diffuseq", SETTINGS)
