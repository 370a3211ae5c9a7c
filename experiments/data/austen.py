"""Jane Austen's six novels, 4 MB, in the public domain: from the Debian package of an R package."""

import zlib

import rdata

from experiments.data.fetching import debian_package

PACKAGE = "r-cran-janeaustenr"


def load() -> dict[str, str]:
    """The text of each novel by its name, in the order of the names.

    Raises:
        DataError: the package cannot be had here.
    """
    folder = debian_package(PACKAGE) / "usr/lib/R/site-library/janeaustenr/data"
    index = rdata.read_rds(folder / "Rdata.rdx")["variables"]
    database = (folder / "Rdata.rdb").read_bytes()
    novels = {}
    for name, (at, length) in sorted((str(name), place) for name, place in index.items()):
        # R's lazy-load database: four bytes of length, then what zlib made of the object.
        lines = rdata.conversion.convert(
            rdata.parser.parse_data(
                zlib.decompress(database[at + 4 : at + length]), extension=".rds"
            )
        )
        novels[name] = "\n".join(map(str, lines))
    return novels
