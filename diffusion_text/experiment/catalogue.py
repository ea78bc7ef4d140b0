"""The commands of a folder and their flags, read from the text of the files: none is imported.

A command is a file that ends in `if __name__ == "__main__"`.
"""

import ast
import functools
import pathlib
from typing import Any, NamedTuple

# Functions that define a flag, beside absl's DEFINE_…: the flag that they define unless the first
# argument says so.
DEFINES = {"path_flag": None, "workdir_flag": "workdir", "config_flag": "config"}


STUDIES = pathlib.Path(__file__).parents[1] / "studies"


class Option(NamedTuple):
  """An option of the settings of a study, as its class writes it down.

  Attributes:
    name, kind: Its name and its type, "int" or "tuple[float, ...]".
    default, meaning: As in `core.options.option`.
    limits: ge, le and others -> number.
  """

  name: str
  kind: str
  default: Any
  meaning: str
  limits: dict[str, Any]


@functools.cache
def tree(file: pathlib.Path) -> ast.Module:
  """The syntax tree of a file."""
  return ast.parse(file.read_text(encoding="utf-8"))


def is_command(file: pathlib.Path) -> bool:
  """True for a file that runs something by itself."""
  last = tree(file).body[-1] if tree(file).body else None
  return isinstance(last, ast.If) and ast.unparse(last.test) == "__name__ == '__main__'"


def commands(folder: pathlib.Path) -> dict[str, str]:
  """What each command of a folder does: the first sentence of its docstring, by name."""
  files = [file for file in sorted(folder.glob("[!_]*.py")) if is_command(file)]
  texts = {file.stem: ast.get_docstring(tree(file)) or "" for file in files}
  return {name: " ".join(text.split()).partition(". ")[0] for name, text in texts.items()}


def flags(folder: pathlib.Path, name: str) -> list[str]:
  """The flags of a command as they are typed, as in --steps= and --dry_run, with those of the files
  of its folder that it imports.
  """
  found = set()
  for node in ast.walk(tree(folder / f"{name}.py")):
    if isinstance(node, ast.Call):
      found.update(defined(node))
    if isinstance(node, ast.ImportFrom):
      for module in imported(folder, node):
        found.update(flags(folder, module))
  return sorted(found)


def settings(study: str) -> list[Option]:
  """The options of the class `Settings` of a study, in their order."""
  body = tree(STUDIES / f"{study}.py").body
  made = next(n for n in body if isinstance(n, ast.ClassDef) and n.name == "Settings")
  found = []
  for node in made.body:
    if isinstance(node, ast.AnnAssign):
      default, meaning = map(ast.literal_eval, node.value.args)
      limits = {word.arg: ast.literal_eval(word.value) for word in node.value.keywords}
      found.append(Option(node.target.id, ast.unparse(node.annotation), default, meaning, limits))
  return found


def imported(folder: pathlib.Path, node: ast.ImportFrom) -> list[str]:
  """The files of a folder that an import names; flags.py defines no flag by itself."""
  package, _, module = (node.module or "").rpartition(".")
  if package == folder.name:
    names = [module]
  elif module == folder.name:
    names = [name.name for name in node.names]
  else:
    names = []
  return [name for name in names if name != "flags" and (folder / f"{name}.py").exists()]


def defined(call: ast.Call) -> list[str]:
  """The flags that a call defines, as they are typed; an empty list for another call."""
  called = ast.unparse(call.func).rpartition(".")[2]
  if called == "settings_flags":
    return [f"--{option.name}=" for option in settings(ast.literal_eval(call.args[0]))]
  if not called.startswith("DEFINE_") and called not in DEFINES:
    return []
  if called == "config_flag":  # the name is its second argument
    named = [word.value for word in call.keywords if word.arg == "name"]
  else:
    named = call.args[:1]
  texts = [node.value for node in named if isinstance(node, ast.Constant)]
  names = [text for text in texts if isinstance(text, str)] or [DEFINES.get(called)]
  return [f"--{name}{'' if called == 'DEFINE_bool' else '='}" for name in names if name]
