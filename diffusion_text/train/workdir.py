"""A working directory belongs to one configuration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import jax

from diffusion_text.train.storage import as_path

FILE = "config.json"
_ABSENT = "(absent)"


def check_workdir(
  workdir: str, config_json: str | bytes, allowed: Sequence[str] = (), *, write: bool = True
) -> None:
  """Writes the configuration to `workdir/config.json`, or compares it with the file that is there.

  An absent key counts as None, so that configurations saved before a key existed still compare.

  Args:
    workdir: A directory, local or gs://. It is made if absent.
    config_json: The configuration as a JSON object.
    allowed: Dotted keys that may differ, with all keys below them: "train.steps", "logging".
    write: False to compare only, as a dry run does.

  Raises:
    ValueError: If the directory holds another configuration; names every key that differs.
  """
  path = as_path(workdir) / FILE
  config = json.loads(config_json)
  if path.exists():
    old, new = flatten(json.loads(path.read_text())), flatten(config)
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    refused = [
      key
      for key in changed
      if not any(key == name or key.startswith(name + ".") for name in allowed)
    ]
    if refused:
      lines = "\n".join(f"  {key}: {_show(old, key)} → {_show(new, key)}" for key in refused)
      raise ValueError(
        f"{workdir} belongs to a run with another configuration:\n{lines}\n"
        "Use a new workdir for the new run, or the old values to continue the old one."
        + (f" (May differ: {', '.join(allowed)}.)" if allowed else "")
      )
    if not changed:
      return
  if write and jax.process_index() == 0:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / (FILE + ".tmp")
    temporary.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    temporary.replace(path)


def check_shared(workdir: str) -> None:
  """Raises ValueError if this process does not see the configuration that process 0 has written."""
  if not (as_path(workdir) / FILE).exists():
    raise ValueError(
      f"{workdir} is not the same directory on every host: process 0 wrote {FILE} there and this "
      "one does not see it; use a gs:// path or a file system that all hosts share"
    )


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
  """The tree with dotted keys: {"a": {"b": 1}, "c": [2]} -> {"a.b": 1, "c": [2]}.

  An empty mapping is a value.
  """
  if not isinstance(tree, dict) or not tree:
    return {prefix: tree}
  flat = {}
  for key, value in tree.items():
    flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
  return flat


def _show(flat: dict[str, Any], key: str) -> str:
  return json.dumps(flat[key]) if key in flat else _ABSENT
