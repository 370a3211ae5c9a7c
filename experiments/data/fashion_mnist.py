"""Fashion-MNIST: 60,000 and 10,000 grey images of 28×28 in ten classes.

H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine
Learning Algorithms", arXiv 1708.07747; MIT licence, Zalando SE. It is fetched from where Keras
fetches it, or from the Debian package dataset-fashion-mnist.
"""

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from experiments.data.fetching import DataError, debian_package, download, kept

KERAS = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
PACKAGE = "dataset-fashion-mnist"
FILES = tuple(
    f"{part}-{kind}-ubyte.gz"
    for part in ("train", "t10k")
    for kind in ("images-idx3", "labels-idx1")
)
_HEADERS = {"images": 16, "labels": 8}  # bytes before the numbers in the IDX format


def load() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and labels to train on, then those of the test.

    Images are uint8 of (number, 1, 28, 28), labels int64.

    Raises:
        DataError: they cannot be had here, or are not the 70,000.
    """
    folder = _folder()
    train_images, train_labels, test_images, test_labels = (
        _numbers(folder / file) for file in FILES
    )
    if (len(train_labels), len(test_labels)) != (60_000, 10_000):
        raise DataError(f"{folder} has not the 60,000 and 10,000 images of Fashion-MNIST")
    shape = (-1, 1, 28, 28)
    return (
        train_images.reshape(shape),
        train_labels.long(),
        test_images.reshape(shape),
        test_labels.long(),
    )


def _folder() -> Path:
    def fetch(folder: Path) -> None:
        for file in FILES:
            download(KERAS + file, folder / file)

    try:
        return kept("fashion-mnist", fetch)
    except DataError as no_download:
        try:
            return debian_package(PACKAGE) / "usr/share/datasets/fashion-mnist"
        except DataError as no_package:
            raise DataError(f"{no_download}; and {no_package}") from None


def _numbers(file: Path) -> Tensor:
    skip = next(size for kind, size in _HEADERS.items() if kind in file.name)
    return torch.from_numpy(
        np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8, offset=skip).copy()
    )
