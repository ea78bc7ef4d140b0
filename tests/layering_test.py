"""The architecture, held by reading the source: who imports whom, how long files and functions may be, nothing private of jax."""

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
# types, core, schedules, then timing and process, then context, then objective and reader, then sampler.
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
LONGER = {"train": 140, "config": 220}  # the loop, and the list of all config keys
MAINS = {"sample": 75, "flags": 75, "evaluate": 75}  # lines; other mains have 60


def room(path: pathlib.Path) -> str:
  return (
    path.parts[1].removesuffix(".py")
    if path.parts[0] == "diffusion_text" and len(path.parts) > 1
    else path.parts[0]
  )


def imports(path: pathlib.Path):
  for node in ast.walk(ast.parse((ROOT / path).read_text())):
    if isinstance(node, ast.ImportFrom) and node.module:
      yield node.module
      yield from (f"{node.module}.{alias.name}" for alias in node.names)
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
  text = (ROOT / path).read_text()
  limit = MAINS.get(path.stem, 60) if path.parts[0] == "experiments" else 400
  assert text.count("\n") <= limit, "the file is too long"
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      lines = node.end_lineno - node.lineno + 1
      assert lines <= (LONGER.get(node.name, 60)), f"{node.name} has {lines} lines"


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


def test_systems_are_not_named_in_shared_rooms():
  """Trainer, loop and builder know no published system by name."""
  names = re.compile(r"(?i)\b(mdlm|md4|llada|sedd|udlm|duo|gidd|bd3)\b")
  for path in (
    "diffusion_text/experiment/build.py",
    "diffusion_text/experiment/run.py",
    *map(str, (ROOT / "diffusion_text/train").glob("*.py")),
  ):
    assert not names.search((ROOT / path).read_text()), path


def test_import_is_quick():
  """Heavy libraries are imported when needed: what the whole package pulls in, not how long it takes (budget: 2 s on a laptop)."""
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
  code = "import sys, diffusion_text.experiment.run, diffusion_text.studies.quickstart_report; print(*[m for m in sys.modules])"
  loaded = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
  ).stdout.split()
  assert not heavy & {name.split(".")[0] for name in loaded}
