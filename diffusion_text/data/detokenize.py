"""From text that was split into tokens for an older benchmark back to text as people write it.

The seven sets on which discrete diffusion models are scored without training on them were published
with spaces around their marks. A model of ordinary text is charged for these spaces, so scores
differ by how they are removed. The replacements here are those of the released code of the masked
and score-based systems, in their order, so that scores can be compared; perplexities, and bits per
character and per byte, are those of the text *after* them.

What differs: the released code begins each LAMBADA text with a newline, which a corpus here writes
between documents anyway; and it has one replacement (of "/' [0-9]/") that only changes text that
holds its own pattern, which is left out.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from diffusion_text.data.corpora import Corpus

_VERSION = 1  # part of the identity of a corpus; raise it when a replacement changes

# (regular expression, replacement), applied in order.
_Rules = Sequence[tuple[str, str]]


def _plain(*pairs: tuple[str, str]) -> _Rules:
  """Rules that replace one text by another."""
  return [(re.escape(old), new.replace("\\", "\\\\")) for old, new in pairs]


def _before(marks: str) -> _Rules:
  """Rules that remove the space before each of the marks, between spaces."""
  return _plain(*((f" {mark} ", f"{mark} ") for mark in marks))


def _inside(brackets: Sequence[str], inner: str) -> _Rules:
  """Rules that remove the space inside brackets. inner: the expression for what they hold."""
  rules = []
  for pair in brackets:
    first, last = re.escape(pair[0]), re.escape(pair[-1])
    content = inner.format(others=first if first == last else first + last, last=last)
    rules.append((first + content + last, rf"{pair[0]}\1{pair[-1]}"))
  return rules


_WIKITEXT: _Rules = [
  *_plain(("s '", "s'"), (" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", ".")),
  *_before(":;.!?,"),
  *_inside(["()", "[]", "{}", '"', "'"], r"\s*([^{last}]*?)\s*"),
  *_plain(("= = = =", "===="), ("= = =", "==="), ("= =", "==")),
  *_plain((" ° ", "°"), (" \n", "\n"), ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s")),
]
_PTB: _Rules = [
  *_plain((" 's", "'s"), ("s ' ", "s' "), (" n't", "n't"), (" \n ", "\n"), ("\\/", "/")),
  *_plain((" N ", " 1 ")) * 10,  # neighbours share a space, so that one pass finds every other
  *_plain(("$ 1", "$1"), ("# 1", "#1"), ("<unk>", "?")),
]
_LM1B: _Rules = [
  *_plain(("http : / / ", "http://"), ("https : / / ", "https://")),
  (r" '(\w+)", r"'\1"),
  (r" (\w+) \. ", r" \1. "),
  (r" (\w+) \.$", r" \1."),
  *_before("?"),
  (r" \?$", "?"),
  *_before("!"),
  (r" \!$", "!"),
  *_before(",:;"),
  *_plain((" / ", "/")),
  *_inside(['"', "'", "()", "[]"], " ([^{others}]+) "),
  *_plain(("$ ", "$"), ("£ ", "£")),
]


def _replaced(text: str, rules: _Rules) -> str:
  for pattern, replacement in rules:
    text = re.sub(pattern, replacement, text)
  return text


def _wikitext2(text: str) -> str:
  # A document is a line of the set, and the newline that ends it takes part.
  return _replaced(f"{text}\n", _WIKITEXT).removesuffix("\n")


def _lambada(text: str) -> str:
  return _replaced(text, _plain(("“", '"'), ("”", '"'))).strip()


def _papers(text: str) -> str:
  return _replaced(text, [*_WIKITEXT, *_LM1B])


def _unchanged(text: str) -> str:
  return text


# Set -> its replacements. Fields of the published sets: `sentence` of ptb, `article` of pubmed and
# arxiv (scientific_papers), `text` of the others.
DETOKENIZERS: dict[str, Callable[[str], str]] = {
  "lm1b": functools.partial(_replaced, rules=_LM1B),
  "ptb": functools.partial(_replaced, rules=_PTB),
  "wikitext2": _wikitext2,
  "lambada": _lambada,
  "ag_news": _unchanged,
  "pubmed": _papers,
  "arxiv": _papers,
}


@dataclasses.dataclass(frozen=True)
class Detokenized:
  """A corpus whose documents are detokenized.

  Attributes:
    corpus: The corpus.
    detokenizer: A key of DETOKENIZERS.
  """

  corpus: Corpus
  detokenizer: str

  def documents(self, split: str) -> Iterator[str]:
    """The documents of a split after the replacements. Raises what the corpus raises."""
    return map(DETOKENIZERS[self.detokenizer], self.corpus.documents(split))

  def identity(self, memo: Path | None = None) -> str:
    """The replacements, and the identity of the corpus."""
    return f"detokenized:{self.detokenizer}:{_VERSION}:{self.corpus.identity(memo)}"

  def origin(self, split: str) -> str:
    """The origin in the corpus, and the replacements."""
    return f"{self.corpus.origin(split)}; detokenized as {self.detokenizer}"
