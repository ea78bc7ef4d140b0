"""text8, characters, rows of 256, 12 x 768, 1M steps of 512 rows, dropout 0.05 (MD4, arXiv
2406.04329).

Published bits per character of the test split, upper bounds but for the first two: autoregressive
1.23, discrete flow 1.23, RDLM 1.32, GenMD4 1.34, MD4 1.37, SEDD-absorb 1.39, MDLM 1.40, CaDDi with
64 steps 1.41, D3PM absorbing 1.45, SEDD-uniform 1.47, Plaid 1.48, D3PM uniform 1.61, multinomial
diffusion 1.72 (table 2 of MD4 and the table of RDLM, arXiv 2502.11564); UDLM 1.44, which is
recalled, is in neither table.
Ours: not yet run. The data are the file text8, 100,000,000 characters (data.path).
  python -m experiments.train --config=configs/published/text8.py:md4 --workdir=runs/text8
"""

from configs import published

SETTINGS = {
  "data": {"corpus": "text8", "path": "data/text8", "tokenizer": "characters", "length": 256},
  "model": {"dropout": 0.05},
  "train": {"steps": 1_000_000, "batch_size": 512},
}


def get_config(system: str = ""):
  return published.of(system or "mdlm", SETTINGS)
