"""Each error and warning of the package is in docs/troubleshooting.md, by its words."""

import ast
import re
from collections.abc import Iterator

from launch import ROOT

PACKAGE = ROOT / "slowmo_hvd"
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
GAP = "\0"  # what differs from case to case
#: What is caught, and told in other words; and what Python says itself of a name.
SILENT = {f"it is {GAP}", "other tensors than the root's", f"{GAP} has no attribute {GAP}"}


def said(node: ast.expr) -> str:
    """The words of a message, with gaps."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(said(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return said(node.left) + said(node.right)
    if isinstance(node, ast.IfExp):
        return said(node.body) + GAP + said(node.orelse)
    return GAP


def messages() -> Iterator[tuple[str, str]]:
    """Where in the package, and what."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if "build_horovod" in path.parts:  # docs/installing.md has those
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            raises = re.search(r"(Error|Warning|warnings\.warn|refusal|_require)$", name)
            if raises and node.args and "horovod" not in name:
                words = said(node.args[-1 if name == "_require" else 0])
                if words.strip(GAP) and words not in SILENT:
                    prefix = (
                        "cannot load this SlowMo state: " if name in ("refusal", "_require") else ""
                    )
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", prefix + words


def phrases() -> list[re.Pattern[str]]:
    """What the tables have between backticks, as patterns."""
    rows = [line.split(" | ")[0] for line in PAGE.splitlines() if line.startswith("| `")]
    rows += re.findall(r"### In the planner\n\n(.*?)\n\n", PAGE, re.DOTALL)
    found = [phrase for row in rows for phrase in re.findall(r"`([^`]+)`", row)]
    return [re.compile(".*".join(map(re.escape, re.split("…", each))), re.DOTALL) for each in found]


def test_every_message_of_the_package_is_explained() -> None:
    known = phrases()
    unknown = [
        f"{where}: {words}"
        for where, words in messages()
        if not any(phrase.search(words) for phrase in known)
    ]
    assert not unknown, "\n".join(unknown).replace(GAP, "…")


def test_no_row_explains_what_the_package_does_not_say() -> None:
    everything = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    everything = re.sub(r'"\s*\n\s*f?"', "", everything)
    stale = [
        phrase.pattern
        for phrase in phrases()
        if not any(phrase.search(words) for _, words in messages())
        and not re.search(phrase.pattern, everything)
    ]
    assert not stale
