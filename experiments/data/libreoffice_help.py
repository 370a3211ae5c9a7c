"""The help of LibreOffice, 2,561 pages, in English and German: Debian packages, MPL-2.0."""

from pathlib import Path

from lxml import html

from experiments.data.fetching import debian_package

LANGUAGES = {"en-US": "libreoffice-help-en-us", "de": "libreoffice-help-de"}
_PARAGRAPHS = "//*[starts-with(@id, 'par_id') or starts-with(@id, 'hd_id')]"


def load(language: str) -> dict[str, dict[str, str]]:
    """The text of each paragraph by its mark, by the page's path: alike in all languages.

    Args:
        language: one of `LANGUAGES`.

    Raises:
        DataError: the package cannot be had here.
    """
    folder = debian_package(LANGUAGES[language]) / "usr/share/libreoffice/help" / language / "text"
    return {
        str(page.relative_to(folder)): _paragraphs(page) for page in sorted(folder.rglob("*.html"))
    }


def _paragraphs(page: Path) -> dict[str, str]:
    tree = html.fromstring(page.read_bytes(), parser=html.HTMLParser(encoding="utf-8"))
    nodes = tree.xpath(_PARAGRAPHS)
    texts = {node.get("id"): " ".join(node.text_content().split()) for node in nodes}
    return {mark: text for mark, text in texts.items() if text}
