"""Parts of speech and phrases of simple English by a list of words and a few rules: what a text's
pattern is held against without another model.

A word has one part of speech wherever it stands, so that this is no tagger of the language; it is
an attribute of text that is defined exactly. Phrases are runs of parts of speech: a noun phrase, a
prepositional phrase, which is a preposition with the noun phrase after it, and a verb phrase.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

TAGS = ("determiner", "preposition", "verb", "adjective", "adverb", "pronoun", "conjunction")
TAGS = (*TAGS, "number", "mark", "noun", "end")
PHRASES = ("noun", "in noun", "preposition", "in preposition", "verb", "other", "end")

_LISTS = {
  "determiner": "a an the this that these those all any some each every no its their our your his"
  " her my another both",
  "preposition": "in near of with by for at on from to out than along between over under within"
  " around beside per below about above across off outside inside through like as up down into",
  "verb": "is are has have was were be been being can will would could should may do does did"
  " serves serve offers offer provides provide sells sell costs cost called named known"
  " located priced rated situated found get gets got go try eat find take visit enjoy come"
  " bring check give gives receives received receive boasts caters features allows allow"
  " allowed welcomes want looking serving providing offering ranging costing served"
  " recommended considered based dine pay expect look said isn't don't doesn't it's there's"
  " you're that's make makes see earned",
  "adjective": "friendly high low average cheap moderate fast indian italian japanese french"
  " english chinese british american expensive good great excellent poor nice best delicious"
  " reasonable affordable inexpensive highest higher lower medium decent fine traditional"
  " new perfect pricey popular family adult vegetarian golden blue green old small little"
  " large mid fair available suitable whole full quick lovely amazing"
  " upscale public casual",
  "adverb": "there not very also only just well highly moderately however then reasonably away"
  " conveniently fairly quite poorly too so even far here averagely nearby",
  "pronoun": "it they you which who we i he she them where what",
  "conjunction": "and but or if although though while because yet",
  "number": "one two three four five six ten twenty thirty",
}
_OF_WORD = {word: tag for tag, words in _LISTS.items() for word in words.split()}
_IN_NOUN = ("adjective", "number", "noun", "pronoun")


def tag(word: str) -> str:
  """The part of speech of a word, one of TAGS."""
  if word in _OF_WORD:
    return _OF_WORD[word]
  if word.isdigit():
    return "number"
  if not word[0].isalpha():
    return "mark"
  if word.endswith("ly"):
    return "adverb"
  return "verb" if word.endswith("ed") else "noun"


def tags(words: Sequence[str]) -> list[str]:
  """The part of speech of each word."""
  return [tag(word) for word in words]


def phrases(words: Sequence[str]) -> list[str]:
  """The phrase that each word begins or is in, one of PHRASES but "end".

  A noun phrase begins at a determiner, or at a noun, an adjective, a number or a pronoun that
  follows none; after a preposition it is a part of the prepositional phrase. Verbs and adverbs are
  a verb phrase; everything else is "other".
  """
  found: list[str] = []
  for kind in tags(words):
    before = found[-1] if found else "other"
    open_noun = before in ("noun", "in noun")
    open_preposition = before in ("preposition", "in preposition")
    if kind == "preposition":
      found.append("preposition")
    elif kind == "determiner":
      found.append("in preposition" if before == "preposition" else "noun")
    elif kind in _IN_NOUN:
      inside = "in noun" if open_noun else "noun"
      found.append("in preposition" if open_preposition else inside)
    else:
      found.append("verb" if kind in ("verb", "adverb") else "other")
  return found


class Span(NamedTuple):
  """A phrase: its words are those from `first` up to but not including `last`."""

  first: int
  last: int
  kind: str


def spans(words: Sequence[str]) -> list[Span]:
  """The noun and prepositional phrases of a text, in their order."""
  found: list[Span] = []
  for place, label in enumerate(phrases(words)):
    if label in ("noun", "preposition"):
      found.append(Span(place, place + 1, label))
    elif label.startswith("in "):
      found[-1] = found[-1]._replace(last=place + 1)
  return found
