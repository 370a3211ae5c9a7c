"""A training that is broken off goes on where its last epoch ended, on all ranks."""

from pathlib import Path
from typing import Any

import keras
import pytest
from keras_models import equal_on_all_ranks
from one_weight import fit, model_of, saves, slowmo, weight
from ranks import by_rank, everyone, same_error_everywhere

import slowmo_hvd.tensorflow.keras as hvd

pytestmark = saves
GRADIENTS = [1.0, 2.0, 3.0]  # of an epoch, which ends inside a window of two steps


class KilledError(Exception):
    """As if the job was."""


class KillIn(keras.callbacks.Callback):  # type: ignore[misc]
    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == self.epoch:
            raise KilledError


def model() -> keras.Model:
    # With a reset all ranks' momentum is rank 0's where a window begins.
    inner = keras.optimizers.SGD(1.0, momentum=0.5)
    return model_of(0.0, slowmo(inner, sync_period=2, buffers="reset"))


def train(folder: Path, *others: Any, **options: Any) -> keras.Model:
    """Three epochs, or what is left of them; other gradients on each rank."""
    trained = model()
    own = [gradient + hvd.rank() for gradient in GRADIENTS]
    fit(trained, own, hvd.callbacks.BackupAndRestore(folder, **options), *others, epochs=3)
    return trained


def broken_off(folder: Path, kill: KillIn) -> None:
    with pytest.raises(KilledError):
        train(folder, kill)
    everyone("over")  # a job begins again when all of it has ended


@pytest.mark.ranks(1, 2)
@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_a_run_that_was_killed_ends_as_one_that_was_not(epoch: int, tmp_path: Path) -> None:
    whole, broken = everyone(tmp_path / "whole")[0], everyone(tmp_path / "broken")[0]
    expected = train(whole)
    broken_off(broken, KillIn(epoch))
    resumed = train(broken)
    assert weight(resumed) == weight(expected)
    assert resumed.optimizer.sync_stats.syncs == (3 - epoch) * 2  # no epoch was done twice
    assert equal_on_all_ranks(resumed)


@pytest.mark.ranks(2)
def test_nothing_is_left_of_a_run_that_is_over_unless_it_is_asked_for(tmp_path: Path) -> None:
    folder = everyone(tmp_path / "backup")[0]
    train(folder, delete_checkpoint=False)
    everyone("done")
    assert [path.name for path in folder.iterdir()] == ["epoch-3.weights.h5"]
    everyone("looked")
    train(folder)
    everyone("done again")
    assert not folder.exists()


@pytest.mark.ranks(2)
def test_what_was_killed_while_it_saved_leaves_the_epoch_before(tmp_path: Path) -> None:
    folder = everyone(tmp_path / "backup")[0]
    broken_off(folder, KillIn(2))
    if hvd.rank() == 0:
        (folder / "unfinished.weights.h5").write_bytes(b"half")
    everyone("written")
    assert train(folder).optimizer.sync_stats.syncs == 2


@pytest.mark.ranks(2)
def test_folders_of_their_own_are_one_error_everywhere(tmp_path: Path) -> None:
    broken_off(tmp_path / str(hvd.rank()), KillIn(1))  # rank 0 alone has saved
    same_error_everywhere(
        ValueError,
        "of epoch 1 on rank 0, of 0 on rank 1; backup_dir must be one folder that all",
        lambda: train(tmp_path / str(hvd.rank())),
    )


@pytest.mark.ranks(2)
def test_a_backup_under_other_settings_is_refused_everywhere(tmp_path: Path) -> None:
    folder = everyone(tmp_path / "backup")[0]
    broken_off(folder, KillIn(1))
    other = model_of(0.0, slowmo(keras.optimizers.SGD(1.0, momentum=0.5), sync_period=3))
    said = same_error_everywhere(
        ValueError,
        "cannot go on from epoch-1.weights.h5, by rank 0",
        lambda: fit(other, by_rank([1.0], [2.0]), hvd.callbacks.BackupAndRestore(folder)),
    )
    assert "it was saved with sync_period=2 and this optimizer has sync_period=3" in said
