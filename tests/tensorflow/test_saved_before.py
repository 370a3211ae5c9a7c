"""Files of earlier releases load, and training goes on as it would have then."""

import json
import sys
from pathlib import Path

import keras
import pytest

import slowmo_hvd.tensorflow  # which Keras loads the optimizer by

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "saved"))
import runs

pytestmark = pytest.mark.ranks(1)


def test_a_model_saved_before_the_engine_ends_as_it_would_have() -> None:
    assert slowmo_hvd.tensorflow.size() == 1
    model = keras.saving.load_model(runs.HERE / "model.keras")
    ours = runs.keras_steps(model, range(runs.SAVED_AFTER, runs.STEPS))
    assert ours == pytest.approx(json.loads(runs.ENDS.read_text())["tensorflow"], rel=1e-5)
