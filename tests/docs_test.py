"""What the documents say is true: the example of the README runs, and every command and page is
what is there.
"""

import re
import shlex

import jax
import numpy as np
import pytest

from configs import base
from diffusion_text.contrib.decoders import DECODERS
from diffusion_text.experiment import catalogue
from diffusion_text.experiment.build import build, init
from diffusion_text.experiment.registry import named_value
from diffusion_text.experiment.run import override
from diffusion_text.experiment.summary import AnyVocabulary
from diffusion_text.studies.systems_page import page
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
COMMANDS = (ROOT / "docs" / "commands.md").read_text()
RULES = ("context", "objective", "process", "reader", "sampler", "timing")


def blocks(text, language):
  """The code blocks of a document that are in a language."""
  return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def in_order(ids):
  """The share of tokens that are the one before them plus 1, in a language of 4 tokens."""
  ids = np.asarray(ids)
  return np.mean(ids[:, 1:] == (ids[:, :-1] + 1) % 4)


def test_the_example_of_the_readme_learns_its_language(capsys):
  """More than half of the tokens follow the rule; a quarter does by chance, as without training."""
  (example,) = blocks(README, "python")
  names = {}
  exec(compile(example, "README.md", "exec"), names)
  text, dt = names["text"], names["dt"]
  assert text.ids.shape == (4, 8) and capsys.readouterr().out.count("[") >= 4
  drawn = [text.ids]
  untrained = init(names["model"], jax.random.key(0), names["facts"])
  for params in (names["params"], untrained):
    more = dt.sample(names["model"], params, dt.Grid(steps=8), jax.random.key(1), rows=32, length=8)
    drawn.append(more.ids)
  first, trained, without = map(in_order, drawn)
  assert first > 0.5 and trained > 0.5 > without, (first, trained, without)


def test_the_readme_fits_a_screen_or_two():
  assert README.count("\n") <= 90


@pytest.mark.parametrize("kind", RULES)
def test_the_worked_example_of_a_choice_is_the_file_that_is_tested(kind):
  article = "an" if kind[0] in "aeiou" else "a"
  text = (ROOT / "docs" / f"adding_{article}_{kind}.md").read_text()
  example = (ROOT / "tests" / "testing" / "madeup" / f"{kind}.py").read_text()
  assert example in blocks(text, "python")


def test_the_page_of_systems_is_up_to_date():
  """If this fails: python -m experiments.systems."""
  assert (ROOT / "docs" / "systems.md").read_text() == page(ROOT / "configs")


def test_every_test_that_a_page_names_exists():
  """`…::test_name` is of the file that was named before it."""
  count = 0
  for document in (ROOT / "docs").glob("*.md"):
    file = "…"
    for path, name in re.findall(r"`(tests/[\w/]+\.py|…)(?:::(\w+))?`", document.read_text()):
      file, count = (file if path == "…" else path), count + bool(name)
      assert not name or f"def {name}(" in (ROOT / file).read_text(), (document.name, file, name)
  assert count > 50


def test_links_lead_somewhere():
  for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
    for link in re.findall(r"\]\(([^)#\s]+)\)", path.read_text()):
      assert "://" in link or (path.parent / link).exists(), f"{path.name} links to {link}"


def commands():
  """(main, flags) of every command in the code blocks of README and of docs with commands."""
  others = [(ROOT / "docs" / f"{name}.md").read_text() for name in ("pretrained", "adaptation")]
  for text in (README, COMMANDS, *others):
    for line in "\n".join(blocks(text, "")).splitlines():
      words = shlex.split(line.split("#")[0].replace("[-", "-").replace("]", " "))
      if "-m" in words:
        start = words.index("-m") + 1
        yield words[start].removeprefix("experiments."), words[start + 1 :]


@pytest.mark.parametrize("main,words", list(commands()), ids=str)
def test_commands_have_the_flags_that_are_shown(main, words):
  known = {flag.strip("-=") for flag in catalogue.flags(ROOT / "experiments", main)}
  for word in words:
    name, _, value = word.removeprefix("--").partition("=")
    assert word.startswith("--") and name.split(".")[0] in known, (word, known)
    if name in ("config", "base"):
      path, _, size = value.partition(":")
      assert (ROOT / path).exists() and (size or "tiny") in base.SIZES, word
    if name == "configs":
      assert all((ROOT / "configs" / f"{each}.py").exists() for each in value.split(",")), word
    if name == "options":
      assert value.partition(".")[0] in base.config(), word


@pytest.mark.parametrize("line", re.findall(r"^--config\..*$", COMMANDS, re.M))
def test_the_flags_of_configs_that_are_shown_build(line):
  config = base.config("micro")
  for word in shlex.split(line):
    name, _, value = word.removeprefix("--config.").partition("=")
    override(config, [named_value(f"{name}={value}", "config")])
  build(config, tokenizer=AnyVocabulary(64))


def test_every_decoder_has_its_paragraph():
  """And no other is described."""
  text = (ROOT / "docs" / "decoding.md").read_text()
  table = text.split("## Decoders by name")[1].split("## Caches")[0]
  rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
  assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(DECODERS)
