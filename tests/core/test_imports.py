"""What an import brings along, and what it says without Horovod: in interpreters of their own."""

import pkgutil
import sys
from pathlib import Path

import pytest
from framework import NAMES, installed
from launch import run

import slowmo_hvd.core

CORE = sorted(
    module.name for module in pkgutil.iter_modules(slowmo_hvd.core.__path__, "slowmo_hvd.core.")
)

WATCH = """
import importlib, importlib.abc, sys

tried = set()

class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        tried.add(name.partition(".")[0])

sys.meta_path.insert(0, Watch())
"""


EACH_FRAMEWORK = [
    pytest.param(name, marks=pytest.mark.skipif(not installed(name), reason="not there"))
    for name in NAMES
]


def python(code: str) -> str:
    done = run([sys.executable, "-c", code])
    assert done.returncode == 0, done.stdout
    return done.stdout.strip()


def test_the_core_imports_no_framework_and_no_horovod() -> None:
    imports = "".join(f"import {name}\n" for name in CORE)
    tried = "print(sorted(tried & {'torch', 'tensorflow', 'keras', 'jax', 'horovod'}))"
    assert "slowmo_hvd.core.reference" in CORE
    assert python(WATCH + imports + tried) == "[]"


def test_numpy_is_needed_for_the_reference_alone() -> None:
    imports = "".join(f"import {name}\n" for name in CORE if not name.endswith(".reference"))
    assert python(WATCH + imports + "print('numpy' in tried)") == "False"


@pytest.mark.parametrize("framework", EACH_FRAMEWORK)
def test_an_adapter_imports_its_own_framework_alone_and_starts_no_process(framework: str) -> None:
    """As it would by Horovod's own way to ask what it was built for, which imports all twice."""
    code = (
        "import sys\n"
        "sys.addaudithook(lambda event, _: event == 'os.fork' and print('a fork', flush=True))\n"
        f"import slowmo_hvd.{framework}\n"
        "print(sorted({'torch', 'tensorflow'} & set(sys.modules)))"
    )
    output = python(code)
    assert "a fork" not in output
    assert output.splitlines()[-1] == f"[{framework!r}]"


def test_importing_the_package_alone_imports_nothing_of_it() -> None:
    code = "import sys, slowmo_hvd\n"
    code += "print([name for name in sys.modules if name.startswith('slowmo_hvd.')])"
    assert python(code) == "[]"


@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
def test_without_horovod_one_sentence_says_how_to_build_it(framework: str) -> None:
    output = python(
        "import sys\n"
        "sys.modules['horovod'] = None\n"
        "from slowmo_hvd.core.requirements import require_horovod\n"
        "try:\n"
        f"    require_horovod({framework!r})\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    assert output.startswith(f"slowmo_hvd.{framework} needs Horovod, ")
    assert "run `python -m slowmo_hvd.build_horovod`" in output
    assert "\n" not in output


@pytest.mark.parametrize("framework", EACH_FRAMEWORK)
def test_importing_an_adapter_without_horovod_says_so(framework: str) -> None:
    code = f"import sys; sys.modules['horovod'] = None; import slowmo_hvd.{framework}"
    done = run([sys.executable, "-c", code])
    assert done.returncode == 1
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: slowmo_hvd.{framework} needs Horovod, ")


def test_a_horovod_that_was_built_for_another_framework_is_told_apart(tmp_path: Path) -> None:
    for name in ("torch", "tensorflow"):
        (tmp_path / "horovod" / name).mkdir(parents=True)
        (tmp_path / "horovod" / name / "__init__.py").write_text("print('Warning!')\n")
    (tmp_path / "horovod/__init__.py").touch()
    (tmp_path / "horovod/torch/mpi_ops.py").touch()
    output = python(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from slowmo_hvd.core.requirements import require_horovod\n"
        "require_horovod('torch')\n"
        "try:\n"
        "    require_horovod('tensorflow')\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    assert output.startswith("the installed Horovod was not built for tensorflow; ")
    assert "python -m slowmo_hvd.build_horovod" in output
    assert "\n" not in output
