"""Detokenizers: what the released code makes of sentences with every replacement."""

import os
from pathlib import Path

import pytest

from diffusion_text.data import corpora
from diffusion_text.data.detokenize import DETOKENIZERS, Detokenized
from diffusion_text.experiment.settings import DataSettings

DATA = Path(os.environ.get("DIFFUSION_TEXT_DATA", "/nowhere"))

# (set, text as it is published, what the released functions return for it)
OFFICIAL = [
  ("wikitext2", " = Robert <unk> = ", " = Robert <unk> ="),
  ("wikitext2", " = = = Reception = = = ", " === Reception ==="),
  (
    "wikitext2",
    " guest @-@ starring in 1 @,@ 000 or 2 @.@ 5 , ",
    " guest-starring in 1,000 or 2.5,",
  ),
  (
    "wikitext2",
    ' as " Craig " in ( " Teddy \'s Story " ) ; N N °',
    ' as "Craig" in ("Teddy\'s Story"); 1 N °',
  ),
  (
    "ptb",
    "the company 's N N shares do n't pay $ N \\/ # N <unk>",
    "the company's 1 1 shares don't pay $1 / #1 ?",
  ),
  ("lm1b", 'He said , " it \'s over . " ( twice ) .', 'He said, "it\'s over." (twice) .'),
  ("lm1b", "Is it $ 5 ? No : £ 6 ! ", "Is it $5? No: £6! "),
  ("lm1b", "See http : / / a / b .", "See http://a/b."),
  ("lambada", " “ No , ” she said .\n", '" No , " she said .'),
  ("ag_news", " as it is . ", " as it is . "),
  ("pubmed", " we saw ( n = 5 ) \n results . $ 5", " we saw (n = 5)\nresults. $5"),
]


@pytest.mark.parametrize("name, text, expected", OFFICIAL, ids=range(len(OFFICIAL)))
def test_what_the_released_functions_return(name, text, expected):
  assert DETOKENIZERS[name](text) == expected


def test_a_corpus_is_detokenized_and_has_another_identity(tmp_path):
  (tmp_path / "test.txt").write_text("a , b\n")
  plain = corpora.Folder(str(tmp_path))
  one, other = (Detokenized(plain, name) for name in ("lm1b", "ag_news"))
  assert list(one.documents("test")) == ["a, b"] and list(other.documents("test")) == ["a , b"]
  assert len({one.identity(), other.identity(), plain.identity()}) == 3
  assert one.origin("test").endswith("test.txt (its name says test); detokenized as lm1b")


def test_the_config_has_detokenizers():
  data = DataSettings(corpus="folder", path="x", detokenizer="ptb")
  assert data.make_corpus() == Detokenized(corpora.Folder("x"), "ptb")
  with pytest.raises(ValueError, match=r"data.detokenizer='ptb' is for text, not for pairs"):
    DataSettings(corpus="pairs", packing="pairs", path="x", detokenizer="ptb")
  with pytest.raises(ValueError, match="lambada"):
    DataSettings(detokenizer="other")


@pytest.mark.skipif(not DATA.is_dir(), reason="DIFFUSION_TEXT_DATA names no folder with data")
def test_real_sets():
  wiki = Detokenized(corpora.Folder(str(DATA / "wikitext-2")), "wikitext2")
  text = "\n".join(wiki.documents("test"))
  assert " @-@ " not in text and " , " not in text and text.startswith(" = Robert <unk> =\n")
  lambada = Detokenized(corpora.Folder(str(DATA / "lambada")), "lambada")
  first = next(lambada.documents("test"))
  assert first.startswith("In my palm is a clear stone") and "“" not in first
