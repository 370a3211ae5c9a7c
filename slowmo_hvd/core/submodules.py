"""Horovod's submodules under this package's name, such as ``slowmo_hvd.torch.elastic``."""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import pkgutil
import sys
from types import ModuleType
from typing import Any


def offer_submodules(theirs: str, package: str) -> None:
    """Let ``import package.x.y`` find the module ``theirs.x.y``, unless the package has its own x.

    Args:
        theirs: the name of a package that is imported: one of Horovod's, or one of ours.
        package: our package that stands in its place.
    """
    # First, since Python would otherwise make a second module of the same file.
    sys.meta_path.insert(0, _Finder(theirs, package))


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, theirs: str, package: str) -> None:
        self._theirs, self._package = theirs, package
        self._own = {module.name for module in pkgutil.iter_modules(sys.modules[package].__path__)}

    def find_spec(
        self, fullname: str, path: Any, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        rest = fullname.removeprefix(f"{self._package}.")
        if rest == fullname or rest.split(".")[0] in self._own:
            return None
        try:
            found = importlib.util.find_spec(f"{self._theirs}.{rest}")
        except ModuleNotFoundError:  # not even what it would be in
            return None
        return found and importlib.util.spec_from_loader(fullname, self)

    def exec_module(self, module: ModuleType) -> None:
        """Put the module that there is in the place of the new one, as a module may itself."""
        rest = module.__name__.removeprefix(f"{self._package}.")
        sys.modules[module.__name__] = importlib.import_module(f"{self._theirs}.{rest}")
