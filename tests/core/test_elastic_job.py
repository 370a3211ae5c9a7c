"""Where an elastic job stands, by its launcher's environment and by what the script has called."""

import pytest
from horovod.common.elastic import notification_manager

from slowmo_hvd.core.elastic_job import before_run


@pytest.mark.parametrize(
    ("elastic", "service", "expected"),
    [("1", None, True), ("1", "run has begun", False), ("0", None, False), (None, None, False)],
)
def test_a_step_is_before_run_in_an_elastic_job_alone(
    elastic: str | None, service: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOROVOD_ELASTIC", raising=False)
    if elastic is not None:
        monkeypatch.setenv("HOROVOD_ELASTIC", elastic)
    monkeypatch.setattr(notification_manager, "_service", service)
    assert before_run() is expected
