"""English to German: 42,000 pairs of LibreOffice's help and its interface, MPL-2.0.

They are in Debian packages.
"""

import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from babel.messages.mofile import read_mo

from experiments.data import libreoffice_help
from experiments.data.fetching import debian_package

WORDS = range(3, 31)  # of the English side
RATIO = 2.0  # the largest of the two lengths in characters over the other
PARTS = 20  # of which one is for validation and one for the test
_SENTENCE_ENDS = re.compile(r"(?<=[.!?:])\s+(?=[\"„A-ZÄÖÜ])")


class Pair(NamedTuple):
    """The same in both languages.

    Attributes:
        english: a sentence or a phrase.
        german: its translation.
        origin: what is in one part of the data wholly: a page of the help, or the English itself.
    """

    english: str
    german: str
    origin: str


def load() -> dict[str, list[Pair]]:
    """The pairs to train on, those for validation, and those of the test.

    No English side is in two of the parts.

    Raises:
        DataError: a package cannot be had here.
    """
    parts: dict[str, list[Pair]] = {"train": [], "validation": [], "test": []}
    seen = set()
    for pair in (*_help(), *_interface()):
        if pair[:2] not in seen and _fits(pair):
            seen.add(pair[:2])
            number = zlib.crc32(pair.origin.encode()) % PARTS
            parts[{0: "validation", 1: "test"}.get(number, "train")].append(pair)
    test = {pair.english.lower() for pair in parts["test"]}
    validation = {pair.english.lower() for pair in parts["validation"]} - test
    parts["validation"] = [p for p in parts["validation"] if p.english.lower() not in test]
    parts["train"] = [p for p in parts["train"] if p.english.lower() not in test | validation]
    return parts


def _fits(pair: Pair) -> bool:
    lengths = sorted((len(pair.english), len(pair.german)))
    return (
        len(pair.english.split()) in WORDS
        and 0 < lengths[1] <= RATIO * lengths[0]
        and pair.english != pair.german
    )


def _help() -> Iterator[Pair]:
    english, german = (libreoffice_help.load(language) for language in ("en-US", "de"))
    for page, paragraphs in english.items():
        for mark, text in paragraphs.items():
            ours = _SENTENCE_ENDS.split(text)
            theirs = _SENTENCE_ENDS.split(german.get(page, {}).get(mark, ""))
            if len(ours) == len(theirs):
                yield from (Pair(a, b, page) for a, b in zip(ours, theirs, strict=True))


def _interface() -> Iterator[Pair]:
    folder = debian_package("libreoffice-l10n-de") / "usr/lib/libreoffice/program/resource/de"
    for file in sorted(folder.rglob("*.mo")):
        with file.open("rb") as opened:
            for message in read_mo(opened):
                if isinstance(message.id, str) and isinstance(message.string, str):
                    english, german = (
                        " ".join(re.sub("[_~]", "", text).split())
                        for text in (message.id, message.string)
                    )
                    yield Pair(english, german, english)
