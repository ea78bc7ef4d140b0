"""What decoding costs, at the least size: what does not depend on the clock."""

import json

from diffusion_text.studies import decoding_speed as study

SIZES = study.Sizes(vocab_size=8, width=16, layers=1, heads=1, rows=2, block=8, calls=2)
NAMES = ("blocks, whole rows", "blocks, exact cache", "full, whole rows", "full, window cache")


def test_the_tables(tmp_path):
  text = study.run(SIZES, length=32, lengths=(16, 32), rounds=1, workdir=tmp_path, names=NAMES)
  assert (tmp_path / "table.md").read_text().strip() == text
  saved = json.loads((tmp_path / "lines.json").read_text())
  cached = {line["what"]: line for line in saved["Caches"]}
  assert tuple(cached) == NAMES
  assert all(line["calls"] == 8 for line in cached.values())
  for name, line in cached.items():
    assert ("whole" in name) == (line["token_layers"] == 1), name
    assert line["times_as_fast"] > 0
  assert cached["full, window cache"]["token_layers"] == (32 + 8) / 64
  assert cached["blocks, exact cache"]["token_layers"] == (2 + 1) * 8 / 64
  assert [line["context"] for line in saved["A token of the exact cache"]] == [16, 32]
  first, second = saved["A token of the exact cache"]
  assert first["growth"] == first["predicted"] == 1
  assert second["predicted"] == (24 * 16**2 + 4 * 16 * 32) / (24 * 16**2 + 4 * 16 * 16)
  assert "loop, random order / bare passes with logits" in text
