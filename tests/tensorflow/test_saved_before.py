"""Files of earlier releases load, and training goes on as it would have then."""

import json
import sys
import zipfile
from pathlib import Path

import keras
import pytest

import slowmo_hvd.tensorflow  # which Keras loads the optimizer by

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "saved"))
import runs

pytestmark = pytest.mark.ranks(1)


def _minor(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))


def test_a_model_saved_before_the_engine_ends_as_it_would_have() -> None:
    assert slowmo_hvd.tensorflow.size() == 1
    path = runs.HERE / "model.keras"
    saved_by = json.loads(zipfile.ZipFile(path).read("metadata.json"))["keras_version"]
    if _minor(keras.__version__) < _minor(saved_by):
        pytest.skip(f"Keras {saved_by} saved the file, and writes what {keras.__version__} lacks")
    model = keras.saving.load_model(path)
    ours = runs.keras_steps(model, range(runs.SAVED_AFTER, runs.STEPS))
    assert ours == pytest.approx(json.loads(runs.ENDS.read_text())["tensorflow"], rel=1e-5)
