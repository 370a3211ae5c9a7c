"""Horovod's submodules under this package's name, such as ``slowmo_hvd.torch.elastic``."""

import pkgutil
import sys


def offer_submodules(horovod_module: str, package: str) -> None:
    """Let ``import package.x.y`` find ``horovod_module.x.y``, unless the package has its own x.

    Args:
        horovod_module: a Horovod module that is imported, with its submodules.
        package: our package that stands in its place.
    """
    own = {module.name for module in pkgutil.iter_modules(sys.modules[package].__path__)}
    prefix = horovod_module + "."
    for name, module in list(sys.modules.items()):
        rest = name.removeprefix(prefix)
        if name.startswith(prefix) and rest.split(".")[0] not in own:
            sys.modules[f"{package}.{rest}"] = module
