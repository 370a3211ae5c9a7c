"""Private names of other libraries that an adapter uses: found in its source."""

import ast

from launch import ROOT


def _private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def used(folder: str) -> dict[str, list[str]]:
    """Attributes with a private name that our own package does not define, and where they are.

    Args:
        folder: of the package, such as "torch".
    """
    package = ROOT / "slowmo_hvd"
    ours: set[str] = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                ours.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                    ours.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                ours.add(node.id)
    found: dict[str, list[str]] = {}
    for path in sorted((package / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            name = _named(node)
            if name and _private(name) and name not in ours:
                found.setdefault(name, []).append(f"{path.relative_to(ROOT)}:{node.lineno}")
    return found


def _named(node: ast.AST) -> str:
    """The name after a dot, or the one that ``getattr`` is given."""
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
        given = node.args[1]
        if isinstance(given, ast.Constant) and isinstance(given.value, str):
            return given.value
    return ""
