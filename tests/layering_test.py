"""The architecture, held by reading the source.

Who imports whom, how long files and functions may be, nothing private of jax.
"""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILES = sorted(
  p.relative_to(ROOT)
  for d in ("diffusion_text", "experiments", "configs", "launch")
  for p in (ROOT / d).rglob("*.py")
)

# What each room may import of ours, itself always included. The order is DESIGN's:
# types, core, schedules, then timing and process, then context, then objective and reader, then
# sampler.
BELOW = {"types", "core", "schedules"}
MEMBERS = BELOW | {"timing", "process", "context", "objective", "reader", "sampler"}
KNOWN = MEMBERS | {"kernels", "model", "data", "train", "evaluate"}
MAY_IMPORT = {
  "__init__": KNOWN | {"contrib", "experiment"},
  "types": set(),
  "core": {"types"},
  "schedules": {"types", "core"},
  "timing": BELOW,
  "process": BELOW,
  "kernels": {"types", "core"},
  "model": {"types", "core", "kernels"},
  "context": BELOW | {"timing", "process", "kernels.layout"},
  "objective": BELOW | {"timing", "process", "context"},
  "reader": BELOW | {"timing", "process", "context", "kernels.layout"},
  "sampler": BELOW | {"timing", "process", "context", "reader"},
  "data": {"types", "core"},
  "train": {"types", "core"},
  "evaluate": {"types", "core"},
  "contrib": KNOWN,
  "testing": KNOWN | {"contrib"},
  "experiment": KNOWN | {"contrib"},
  "compiler": KNOWN | {"contrib", "experiment"},
  "studies": KNOWN | {"contrib", "experiment"},
}
# Lines, beside the usual: the contracts are one file, and so is the loop one function.
FILE_LINES = {"types": 975}
FUNCTION_LINES = {"train": 110}
MAIN_LINES = {"evaluate": 95}


def room(path: pathlib.Path) -> str:
  return (
    path.parts[1].removesuffix(".py")
    if path.parts[0] == "diffusion_text" and len(path.parts) > 1
    else path.parts[0]
  )


def imports(path: pathlib.Path):
  for node in ast.walk(ast.parse((ROOT / path).read_text())):
    if isinstance(node, ast.ImportFrom) and node.module:
      folder = ROOT / node.module.replace(".", "/")
      for alias in node.names:
        is_module = (folder / f"{alias.name}.py").exists()
        yield f"{node.module}.{alias.name}" if is_module else node.module
    elif isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)


def violations(path: pathlib.Path, found) -> list[str]:
  """Imports of `path` that the table forbids."""
  here, bad = room(path), []
  for module in found:
    parts = module.split(".")
    if parts[0] in ("experiments", "configs", "tests") and path.parts[0] != parts[0]:
      bad.append(module)
    ours = parts[0] == path.parts[0] == "diffusion_text" and len(parts) > 1 and here in MAY_IMPORT
    if ours and not {parts[1], ".".join(parts[1:3])} & (MAY_IMPORT[here] | {here}):
      bad.append(module)
    if parts[0] == "diffusion_text" and path.parts[0] in ("configs", "launch"):
      bad.append(module)
  return bad


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_run_one_way(path):
  assert room(path) in MAY_IMPORT.keys() | {
    "experiments",
    "configs",
    "launch",
    "__init__",
  }, f"{path} is in no room of the table"
  assert not violations(path, imports(path))


def test_a_forbidden_import_would_be_noticed():
  assert violations(pathlib.Path("diffusion_text/model/x.py"), ["diffusion_text.process.masked"])
  assert violations(pathlib.Path("diffusion_text/train/x.py"), ["diffusion_text.sampler"])
  assert violations(pathlib.Path("configs/x.py"), ["diffusion_text.experiment.build"])
  assert violations(
    pathlib.Path("diffusion_text/process/x.py"), ["diffusion_text.experiment.build"]
  )
  assert not violations(
    pathlib.Path("diffusion_text/process/x.py"), ["diffusion_text.schedules", "jax.numpy"]
  )


@pytest.mark.parametrize("path", FILES, ids=str)
def test_budgets(path):
  """Files of at most 520 lines, mains of 80, functions of 60 without their docstring.

  No line is over 100 columns.
  """
  text = (ROOT / path).read_text()
  main = path.parts[0] == "experiments"
  limit = MAIN_LINES.get(path.stem, 80) if main else FILE_LINES.get(path.stem, 520)
  assert text.count("\n") <= limit, "the file is too long"
  assert max(map(len, text.splitlines()), default=0) <= 100, "a line is too long"
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
      lines = node.end_lineno - first.lineno + 1
      assert lines <= FUNCTION_LINES.get(node.name, 60), f"{node.name} has {lines} lines"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_nothing_private_or_leftover(path):
  text = (ROOT / path).read_text()
  assert "jax._src" not in text
  assert not re.search(r"(?i)\b(todo|fixme|xxx)\b", text)
  assert not re.search(r"(?<![\w.])/(work|root|home)/", text), "a path of one machine"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_public_things_have_docstrings(path):
  tree = ast.parse((ROOT / path).read_text())
  assert ast.get_docstring(tree) or not tree.body, "the file says nothing about itself"
  for node in tree.body:
    named = (
      isinstance(node, ast.ClassDef | ast.FunctionDef)
      and not node.name.startswith("_")
      and node.name != "main"
    )
    if named and path.parts[0] == "diffusion_text" and node.end_lineno - node.lineno > 4:
      assert ast.get_docstring(node), f"{node.name} has no docstring"


SHARED = ("types.py", "core", "experiment", "train", "objective/engine.py")
SYSTEMS = sorted(
  path.stem for path in (ROOT / "configs").glob("*.py") if path.stem not in ("__init__", "base")
)


def shared_files():
  """The files that every system shares."""
  for place in SHARED:
    path = ROOT / "diffusion_text" / place
    yield from [path] if path.is_file() else sorted(path.glob("*.py"))


def named_systems(text: str) -> list[str]:
  """Published systems that a text names: those of a list, and the name of every config."""
  known = re.compile(
    r"(?i)adlm|trec|neodiff|seqdiffuseq|duo|plaid|difformer|llada|mdlm|md4|sedd|udlm|gidd"
  )
  words = {
    "control",
    "add",
    "comparison",
    "quickstart",
    "mask_agnostic",
    "autoregressive",
  }  # words of English, too
  stems = set(re.findall(r"\w+", text.lower())) & (set(SYSTEMS) - words)
  return sorted({*known.findall(text), *stems})


def test_systems_are_not_named_in_shared_files():
  """A shared file that learns a system's name has a contract that is at fault."""
  for path in shared_files():
    assert not named_systems(path.read_text()), path
  assert named_systems("as in MDLM") and named_systems("bd3lm") and not named_systems("a model")


OURS = {
  node.name
  for path in FILES
  if path.parts[0] == "diffusion_text"
  for node in ast.walk(ast.parse((ROOT / path).read_text()))
  if isinstance(node, ast.ClassDef)
}


def kind_questions(tree: ast.AST) -> list[str]:
  """Places that ask an object of ours what it is.

  That is isinstance with a class of ours, an attribute asked for by its name,
  `type(x) is`, a match on a class, a name compared, an optional method asked for (`offers`)."""
  found = []
  for node in ast.walk(tree):
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
      asked = {
        each.id for arg in node.args[1:2] for each in ast.walk(arg) if isinstance(each, ast.Name)
      }
      constant = any(isinstance(arg, ast.Constant) for arg in node.args[1:2])
      foreign = (
        isinstance(node.args[0], ast.Name) and node.args[0].id in ("os", "jax")
        if node.args
        else False
      )
      by_name = node.func.id in ("getattr", "hasattr") and constant and not foreign
      if (node.func.id == "isinstance" and asked & OURS) or by_name or node.func.id == "offers":
        found.append(ast.unparse(node))
    if isinstance(node, ast.Compare):
      left = node.left
      of_type = (
        isinstance(left, ast.Call) and isinstance(left.func, ast.Name) and left.func.id == "type"
      )
      equal = any(isinstance(op, ast.Eq | ast.NotEq | ast.Is) for op in node.ops)
      of_name = isinstance(left, ast.Attribute) and left.attr == "name" and equal
      if of_type or of_name:
        found.append(ast.unparse(node))
    if isinstance(node, ast.MatchClass):
      found.append(ast.unparse(node))
  return found


def test_hardly_any_object_is_asked_what_it_is():
  """At most ten questions of kind in the package; a contract that needs more lacks a method."""
  found = [
    f"{path}: {question}"
    for path in FILES
    if path.parts[0] == "diffusion_text"
    for question in kind_questions(ast.parse((ROOT / path).read_text()))
  ]
  assert len(found) <= 10, found
  for mutant in (
    "isinstance(x, Masked)",
    "getattr(p, 'grid', None)",
    "type(x) is Shared",
    "x.name == 'a'",
  ):
    assert kind_questions(ast.parse(mutant)), mutant


def test_import_is_quick():
  """Heavy libraries are imported when needed: what the package pulls in, not how long it takes."""
  import subprocess
  import sys

  heavy = {
    "tensorflow",
    "tensorflow_datasets",
    "orbax",
    "grain",
    "sentencepiece",
    "matplotlib",
    "tensorboardX",
    "pyarrow",
  }
  code = (
    "import sys, diffusion_text.experiment.run, diffusion_text.studies.quickstart_report;"
    " print(*[m for m in sys.modules])"
  )
  loaded = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
  ).stdout.split()
  assert not heavy & {name.split(".")[0] for name in loaded}
