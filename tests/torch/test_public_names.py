"""Each public name of ours is in the reference."""

from public_names import undocumented

import slowmo_hvd.torch as hvd
from slowmo_hvd.torch import hugging_face, lightning


def test_every_public_name_is_in_the_reference() -> None:
    assert undocumented(hvd, hvd.schedules, hvd.loggers, hugging_face, lightning) == []
