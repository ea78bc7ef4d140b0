"""Optional methods: the one place that asks whether a member offers what another member needs."""

from __future__ import annotations

from typing import Any


def require(member: Any, protocol: type, who: str, fix: str) -> None:
  """Raises ValueError, naming `who` needs what and the `fix`, unless the member offers every method of the protocol."""
  if not isinstance(member, protocol):
    # `__protocol_attrs__` says the same, from Python 3.12 on.
    names = {*vars(protocol), *vars(protocol).get("__annotations__", {})}
    needed = ", ".join(sorted(name for name in names if not name.startswith("_")))
    raise ValueError(f"{who} needs {needed}, which {type(member).__name__} does not offer; {fix}")


def offers(member: Any, protocol: type) -> bool:
  """True if the member offers every method of the protocol."""
  return isinstance(member, protocol)
