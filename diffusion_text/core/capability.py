"""Optional methods: the only place that asks whether a member offers what another member needs."""

from __future__ import annotations

from typing import Any


def require(member: Any, protocol: type, who: str, fix: str) -> None:
  """Raises ValueError unless the member offers every method of the protocol.

  The message names the missing methods, `who` needs them, and the `fix`.
  """
  if not isinstance(member, protocol):
    # The same as `__protocol_attrs__`, which exists from Python 3.12 on.
    names = {*vars(protocol), *vars(protocol).get("__annotations__", {})}
    needed = ", ".join(sorted(name for name in names if not name.startswith("_")))
    raise ValueError(f"{who} needs {needed}, which {type(member).__name__} does not offer; {fix}")


def offers(member: Any, protocol: type) -> bool:
  """True if the member offers every method of the protocol."""
  return isinstance(member, protocol)
