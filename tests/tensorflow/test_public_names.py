"""Each public name of ours is in the reference."""

from public_names import undocumented

import slowmo_hvd.tensorflow as hvd
import slowmo_hvd.tensorflow.keras as hvd_keras


def test_every_public_name_is_in_the_reference() -> None:
    modules = [hvd, hvd.schedules, hvd.loggers, hvd.elastic]
    modules += [hvd_keras, hvd_keras.callbacks, hvd_keras.elastic]
    assert undocumented(*modules) == []
