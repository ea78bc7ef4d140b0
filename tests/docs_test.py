"""What the documents say is true: the example of the README runs, and every command and page is
what is there.
"""

import ast
import functools
import importlib
import inspect
import re
import shlex
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from configs import base
from diffusion_text import testing
from diffusion_text.contrib.decoders import DECODERS
from diffusion_text.data.tasks import TASKS
from diffusion_text.experiment import completion
from diffusion_text.experiment.build import build, init
from diffusion_text.experiment.registry import named_value
from diffusion_text.experiment.run import override
from diffusion_text.experiment.summary import AnyVocabulary
from diffusion_text.studies.adaptation import STARTS
from diffusion_text.studies.chains import CHAINS
from diffusion_text.studies.exams import EXAMS
from diffusion_text.studies.fault_injection import KINDS
from diffusion_text.studies.systems_page import page
from tests.conftest import ROOT
from tests.helps import answers

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
def test_the_worked_example_of_a_choice_is_the_file_that_is_tested(kind, monkeypatch):
  article = "an" if kind[0] in "aeiou" else "a"
  text = (ROOT / "docs" / f"adding_{article}_{kind}.md").read_text()
  example = (ROOT / "tests" / "testing" / "madeup" / f"{kind}.py").read_text()
  file, check, config = blocks(text, "python")
  assert example == file
  (name,) = re.findall(r"^from my_package\.(\w+) import", check, re.M)
  monkeypatch.setitem(sys.modules, "my_package", types.ModuleType("my_package"))
  member = importlib.import_module(f"tests.testing.madeup.{kind}")
  monkeypatch.setitem(sys.modules, f"my_package.{name}", member)
  # The check itself runs in madeup_test.py; here it is asked whether it takes what is shown.
  law, asked = getattr(testing, f"check_{kind}"), []
  takes = inspect.signature(law)
  monkeypatch.setattr(testing, law.__name__, lambda *a, **how: asked.append(takes.bind(*a, **how)))
  exec(compile(check, f"{kind}.md", "exec"), {})
  assert len(asked) == 1
  names = {}
  exec(compile(config, f"{kind}.md", "exec"), names)
  experiment = build(names["get_config"](), tokenizer=AnyVocabulary(64))
  members = {"sampler": experiment.sampler, "reader": experiment.reader}
  members |= {"objective": experiment.objective, **experiment.model._asdict()}
  assert type(members[kind]).__module__ == member.__name__


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


PAGES = (ROOT / "README.md", ROOT / "launch" / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def commands(beginning):
  """(page, words) of every line of a code block that begins so; what is optional is given too, and
  the word … stands for flags that a line before it has.
  """
  for path in PAGES:
    text = "\n".join(blocks(path.read_text(), "")).replace("\\\n", " ")
    for line in text.splitlines():
      if line.startswith(beginning):
        bare = line.split("  #")[0].replace("[-", "-").replace("]", " ")
        yield path.name, shlex.split(bare)


PARSED = [words[2:] for _, words in commands("python -m experiments.") if "…" not in words]
PARSED = [(words[0].removeprefix("experiments."), *words[1:]) for words in PARSED]
PARSED = [line for line in dict.fromkeys(PARSED) if line[0] != "lm_eval"]  # has its own parser


MISTYPED = [("train", "--wrkdir=x"), ("sample", "--num=0")]


@pytest.fixture(scope="module")
def parsed(tmp_path_factory):
  """(exit code, output, errors) of every command of a page, up to where it would compute."""
  lines = [*PARSED, *MISTYPED]
  home = tmp_path_factory.mktemp("home")
  return dict(zip(lines, answers([[*line, "--only_check_args"] for line in lines], home)))


@pytest.fixture(scope="module")
def config_keys():
  return {*completion.config_keys()}


def unknown_key(line, keys):
  """The first flag of a line, as in --config.train.steps=3, whose key no config has; else None."""
  for word in line[1:]:
    key = re.match(r"--(?:config|base)\.([\w.]+)", word)
    # The options of a task are not in the list: its section data.task is.
    if key and not {key[1], key[1].rpartition(".")[0]} & keys:
      return word
  return None


@pytest.mark.parametrize("line", PARSED, ids=" ".join)
def test_a_command_that_is_shown_takes_its_flags(parsed, config_keys, line):
  """It reads its flags and configs itself; names that it would look up later are looked up here."""
  code, _, errors = parsed[line]
  assert unknown_key(line, config_keys) is None
  assert code == 0, errors
  names = {
    "configs": {path.stem for path in (ROOT / "configs").glob("*.py")},
    "tasks": {*TASKS, *EXAMS, "?", "text", "iterates"},
    "task": TASKS,
    "decoder": {*DECODERS, "?"},
    "chain": CHAINS,
    "chains": CHAINS,
    "kinds": KINDS,
    "starts": STARTS,
  }
  for word in line[1:]:
    name, _, value = word.removeprefix("--").partition("=")
    assert word.startswith("--"), word
    said = [each.partition("@")[0] for each in value.split(",")]  # after @: values that differ
    assert all(each in names.get(name, said) for each in said), word
    if name == "options":
      assert value.partition(".")[0] in base.config(), word
    if name == "task_option":
      task, _, option = value.partition("=")[0].partition(".")
      assert option in {**TASKS, **EXAMS}[task].__pydantic_fields__, word


def test_what_is_mistyped_on_a_page_would_be_noticed(parsed, config_keys):
  """The mutants: a flag that is not there, a value that is refused, a key that no config has."""
  assert [parsed[line][0] for line in MISTYPED] == [2, 2]
  mistyped = "--config.model.scan_layer=True"
  assert unknown_key(("train", "--config=configs/mdlm.py", mistyped), config_keys) == mistyped


@pytest.mark.parametrize("page, words", list(commands("launch/")), ids=str)
def test_a_launcher_that_is_shown_takes_its_options(page, words, tmp_path):
  """Those that start several processes say what they would run; the others need no option."""
  script, *options = words
  assert (ROOT / script).exists()
  if "--" in options:
    first = [*options[: options.index("--")], "--dry_run", *options[options.index("--") :]]
    first = [each.replace("runs/", f"{tmp_path}/") for each in first]
    done = subprocess.run(
      [sys.executable, script, *first], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "experiments." in done.stdout, done.stderr


@pytest.mark.parametrize("line", re.findall(r"^--config\..*$", COMMANDS, re.M))
def test_the_flags_of_configs_that_are_shown_build(line):
  """Every option has the value that was typed, in the member that was named."""
  config = base.config("micro")
  typed = [word.removeprefix("--config.").partition("=")[::2] for word in shlex.split(line)]
  for name, value in typed:
    override(config, [named_value(f"{name}={value}", "config")])
  experiment = build(config, tokenizer=AnyVocabulary(64))
  made = {"sampler": experiment.sampler, "reader": experiment.reader}
  made["process"] = experiment.model.process
  for name, value in typed:
    kind, *parts, last = name.split(".")
    member = functools.reduce(getattr, parts, made[kind])
    if last == "name":
      assert type(member).__name__.lower() == value.replace("_", ""), name
    else:
      assert str(getattr(member, last)) in (value, f"{value}.0"), name


def test_every_decoder_has_its_paragraph():
  """And no other is described."""
  text = (ROOT / "docs" / "decoding.md").read_text()
  table = text.split("## Decoders by name")[1].split("## Caches")[0]
  rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
  assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(DECODERS)


# What a block of commands may need that a test has not: <!-- needs minutes, data --> above it.
NEEDS = {"minutes", "hours", "data", "weights", "libtpu", "network", "hardware"}
STUDIES = ("bound_variance", "compare", "convert")
STARTERS = {
  "python -m experiments.": ("end_to_end", *map("studies/{}".format, STUDIES)),
  "launch/": ("launch", "sweep"),
}  # the tests that start commands


def texts_of_tests(path):
  """(name of a test of a file, the texts in it and in whatever of the file it names)."""
  named = {}
  for node in ast.parse(path.read_text()).body:
    targets = node.targets if isinstance(node, ast.Assign) else [node]
    named |= {ast.unparse(each): node for each in targets if isinstance(each, ast.Name)}
    if isinstance(node, ast.FunctionDef):
      named[node.name] = node

  def texts(name, seen):
    node, found = named[name], set()
    function = isinstance(node, ast.FunctionDef)
    asked = [each.arg for each in node.args.args] if function else []
    for each in (each for part in (node.body if function else [node]) for each in ast.walk(part)):
      asked += [each.id] if isinstance(each, ast.Name) else []
      if isinstance(each, ast.Constant) and isinstance(each.value, str):
        found.add(each.value)
    for other in asked:
      if other in named and other not in seen:
        seen.add(other)
        found |= texts(other, seen)
    return found

  return [(name, texts(name, {name})) for name in named if name.startswith("test_")]


@pytest.fixture(scope="module")
def started():
  """Beginning of a command -> the texts of every test that starts such commands."""

  def texts_of(names):
    paths = [ROOT / "tests" / f"{name}_test.py" for name in names]
    return [texts for path in paths for _, texts in texts_of_tests(path)]

  return {beginning: texts_of(names) for beginning, names in STARTERS.items()}


def unrun(line, started):
  """What of a command line no test runs: flags, or the name of the command.

  All flags must be given in one test; those in brackets may be given in several.
  """
  beginning, name = re.match(r"(python -m experiments\.|launch/)(\w+)", line).groups()
  line = line.split("  #")[0].split(" -- ")[0]  # what is launched is a command of its own
  depth, needed, optional = 0, set(), set()
  for mark, flag in re.findall(r"(\[(?=--)|\[|\])|(?<=[\s\[])--([\w.]+)", line):
    depth += {"[": 1, "]": -1, "": 0}[mark]
    (optional if depth else needed).update({flag} - {""})
  own = [texts for texts in started[beginning] if texts & {name, f"experiments.{name}"}]

  def missing(texts, flags):
    given = {re.match(r"--[\w.]+", text)[0][2:] for text in texts if re.match(r"--\w", text)}
    return {flag for flag in flags if not {flag, f"{flag}.name"} & given}

  if not own:
    return {name}
  never = set.intersection(*(missing(texts, optional) for texts in own))
  return min((missing(texts, needed) for texts in own), key=len) | never


def shown_blocks():
  """(path of a page, what it needs, command lines) of every block that has some."""
  pattern = r"(?:^<!-- needs (.*) -->\n)?^```(.*)\n((?:(?!```).*\n)*)^```$"
  for path in PAGES:
    for needs, kind, text in re.findall(pattern, path.read_text(), re.M):
      lines = text.replace("\\\n", " ").splitlines()
      lines = [line for line in lines if line.startswith(tuple(STARTERS))]
      if lines and not kind:
        yield path, needs, lines


def test_blocks_of_commands_are_run_by_tests_or_say_what_they_need(started):
  """By the source of the tests that start commands, as they run at small sizes and in processes of
  their own. A test in which two commands are run may lend a flag of one to the other.
  """
  found = list(shown_blocks())
  for path, needs, lines in found:
    if needs:
      assert set(needs.split(", ")) <= NEEDS, (path, needs)
    else:
      assert {line: unrun(line, started) for line in lines if unrun(line, started)} == {}, path
  assert sum(not needs for _, needs, _ in found) > 10 and sum(bool(x[1]) for x in found) > 20


def test_a_block_that_no_test_runs_would_be_noticed(started):
  """The mutants: a command and flags that no test gives; what is optional counts, too."""
  assert unrun("python -m experiments.energy --workdir=x", started) == {"energy"}
  assert unrun("python -m experiments.sample --workdir=x --cache=3 [--num=2]", started) == {"cache"}
  assert unrun('python -m experiments.sample [--cache] [--infill="[3]!"]', started) == {"cache"}
  assert unrun("launch/quickstart", started) == {"quickstart"}
