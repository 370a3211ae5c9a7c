"""What is public, and what of it the reference has not."""

import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from launch import ROOT

_PAGES = "\n".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
_DOCUMENTED = set(re.findall(r"^::: (\S+)", _PAGES, re.MULTILINE))


def _ours(module: ModuleType) -> Iterator[str]:
    """Where what a module offers is defined, if that is in our package."""
    for name in getattr(module, "__all__", vars(module)):
        value: Any = getattr(module, name)
        if name.startswith("_") or isinstance(value, ModuleType):
            continue
        home = getattr(value, "__module__", "")
        if home.startswith("slowmo_hvd"):
            yield f"{home}.{value.__qualname__}"


def undocumented(*modules: ModuleType) -> list[str]:
    """Public names of ours in these modules that docs/reference has not.

    Raises:
        AssertionError: one of them has no name of ours, so that nothing was looked at.
    """
    found = {module.__name__: set(_ours(module)) for module in modules}
    assert all(found.values()), found
    return sorted(set().union(*found.values()) - _DOCUMENTED)
