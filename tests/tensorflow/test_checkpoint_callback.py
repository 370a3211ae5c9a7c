"""The best model is saved where ``filepath`` says."""

from pathlib import Path

import keras
import pytest
from one_weight import fit, model_of, saves, weight

import slowmo_hvd.tensorflow.keras as hvd

callbacks = hvd.callbacks


@pytest.mark.ranks(1)
@saves
@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_the_best_model_is_saved_where_filepath_says(suffix: str, tmp_path: Path) -> None:
    weights_only = suffix == ".weights.h5"
    save = callbacks.BestModelCheckpoint(monitor="loss", save_weights_only=weights_only)
    assert save.filepath is None
    save.filepath = tmp_path / f"best{suffix}"
    model = model_of(0.0)
    fit(model, [1.0], save)  # the loss was 0, and w is -1 now
    fit(model, [1.0], save)  # the loss was -1: better
    model.trainable_variables[0].assign([[50.0]])
    fit(model, [1.0], save)  # worse
    if weights_only:
        restored = model_of(0.0)
        restored.load_weights(save.filepath)
    else:
        restored = keras.models.load_model(save.filepath, compile=False)
    assert weight(restored) == -2


@pytest.mark.ranks(1)
def test_a_missing_or_wrong_filepath_is_told_before_training() -> None:
    save = callbacks.BestModelCheckpoint(monitor="loss")
    with pytest.raises(ValueError, match=r"no filepath: set callback.filepath before fit\(\)"):
        fit(model_of(0.0), [1.0], save)
    with pytest.raises(ValueError, match=r"must end in \.keras or \.h5, got 'best'"):
        save.filepath = "best"
    save = callbacks.BestModelCheckpoint(save_weights_only=True)
    with pytest.raises(ValueError, match=r"must end in \.weights\.h5, got 'best\.h5'"):
        save.filepath = "best.h5"
