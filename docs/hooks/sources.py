"""Pages for the tests, examples and other files of the repository that the site's pages link to.

A link such as ``../tests/torch/test_clip.py`` works where the Markdown is read in the repository.
On the site there are no such files: each that is linked to becomes a page of its own. A link to a
file that is not there stays as it is, and fails the strict build.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
_LINK = re.compile(r"(?<=\]\()(?P<path>(?:\.\./)+[^)#\s]+)(?P<anchor>#[^)\s]*)?(?=\))")
_LANGUAGES = {".py": "python", ".toml": "toml", ".cfg": "ini", ".sh": "bash"}


def on_files(files: Files, config: Any) -> Files:
    """Add a page for each file that some page links to."""
    for page in [file for file in files if file.is_documentation_page()]:
        for match in _LINK.finditer(page.content_string):
            path = _outside(page.src_uri, match["path"])
            if path and _page(path) not in files.src_uris:
                files.append(File.generated(config, _page(path), content=_content(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Lead links there."""

    def lead(match: re.Match[str]) -> str:
        path = _outside(page.file.src_uri, match["path"])
        if not path:
            return match[0]
        return posixpath.relpath(_page(path), posixpath.dirname(page.file.src_uri) or ".")

    return _LINK.sub(lead, markdown)


def _outside(page: str, link: str) -> str | None:
    """The path in the repository, where it is outside of docs/ and a file or a folder is there."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    inside = path.startswith(("docs/", ".."))
    return None if inside or not (ROOT / path).exists() else path


def _page(path: str) -> str:
    return f"sources/{path}.md"


def _content(path: str) -> str:
    found = ROOT / path
    if found.is_dir():
        names = sorted(file.name for file in found.iterdir() if file.suffix == ".py")
        listed = "\n".join(f"- `{name}`" for name in names)
        return f"{_SILENT}# {path}\n\n{listed}\n"
    language = _LANGUAGES.get(found.suffix, "text")
    return f"{_SILENT}# {path}\n\n````{language}\n{found.read_text()}\n````\n"


_SILENT = "---\nsearch:\n  exclude: true\n---\n\n"
