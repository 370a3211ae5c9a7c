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
    """Make ``import package.x.y`` find the module ``theirs.x.y``, unless the package has its own x.

    Args:
        theirs: the name of an imported package, one of Horovod's or one of ours.
        package: our package that replaces it.
    """
    # First in the list, because Python would otherwise make a second module from the same file.
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
        except ModuleNotFoundError:  # the package that would contain it does not exist
            return None
        return found and importlib.util.spec_from_loader(fullname, self)

    def exec_module(self, module: ModuleType) -> None:
        """Replace the new module by the one that exists, as a module can do with itself."""
        rest = module.__name__.removeprefix(f"{self._package}.")
        sys.modules[module.__name__] = importlib.import_module(f"{self._theirs}.{rest}")
