"""The pipeline: as many wires as there may be, and everything in one order on every rank."""

import contextlib
from typing import Any

import pytest

from slowmo_hvd.core.pipeline import send


class Log(list[str]):
    """A transport that writes down what is asked of it; sums over one worker."""

    def __init__(self, wires: int = 2) -> None:
        self.wires = wires

    def memory(self, room: str, size: int, slot: int) -> str:
        self.append(f"memory {slot}")
        return f"{room}{slot}"

    def range(self, name: str) -> Any:
        return contextlib.nullcontext()

    def seal(self, wire: str, name: str, *, exact: bool) -> str:
        return f"{wire} {name}{'!' if exact else ''}"

    def start(self, sealed: str) -> None:
        self.append(f"start {sealed}")

    def finish(self, sealed: str) -> str:
        self.append(f"finish {sealed}")
        return sealed.split()[0]


class Load:
    """One that writes down what becomes of it."""

    room = "a"
    size = 3

    def __init__(self, number: int, log: Log, *, exact: bool = False) -> None:
        self.number, self.log, self.exact = number, log, exact
        self.name = str(number)

    def pack(self, wire: str) -> None:
        self.log.append(f"pack {self.number} into {wire}")

    def land(self, total: str) -> None:
        self.log.append(f"land {self.number} from {total}")


def sent(*exact: bool, wires: int = 2) -> list[str]:
    log = Log(wires)
    send((Load(n, log, exact=e) for n, e in enumerate(exact)), log, "x")  # type: ignore[arg-type]
    return log


def test_while_one_is_on_the_wire_its_neighbours_are_worked_on() -> None:
    assert sent(False, False, True) == [
        "memory 0",
        "pack 0 into a0",
        "start a0 x.0",
        "memory 1",
        "pack 1 into a1",
        "finish a0 x.0",
        "start a1 x.1",
        "land 0 from a0",
        "memory 0",
        "pack 2 into a0",
        "finish a1 x.1",
        "start a0 x.2!",
        "land 1 from a1",
        "finish a0 x.2!",
        "land 2 from a0",
    ]


def test_with_three_wires_the_next_waits_before_the_one_that_is_summed_is_over() -> None:
    assert sent(False, False, False, True, wires=3) == [
        "memory 0",
        "pack 0 into a0",
        "start a0 x.0",
        "memory 1",
        "pack 1 into a1",
        "start a1 x.1",
        "memory 2",
        "pack 2 into a2",
        "finish a0 x.0",
        "land 0 from a0",
        "start a2 x.2",
        "memory 0",
        "pack 3 into a0",
        "finish a1 x.1",
        "land 1 from a1",
        "start a0 x.3!",
        "finish a2 x.2",
        "land 2 from a2",
        "finish a0 x.3!",
        "land 3 from a0",
    ]


@pytest.mark.parametrize("wires", [2, 3])
@pytest.mark.parametrize("loads", [0, 1, 2, 7])
def test_each_load_is_packed_started_finished_and_landed_once_in_order(
    loads: int, wires: int
) -> None:
    log = sent(*[False] * loads, wires=wires)
    for event in ("pack", "start", "finish", "land"):
        assert len([line for line in log if line.startswith(event)]) == loads
    numbers = [line.split()[1] for line in log if line.startswith("land")]
    assert numbers == [str(number) for number in range(loads)]


@pytest.mark.parametrize("wires", [2, 3])
def test_a_wire_is_packed_anew_only_after_its_sum_has_landed(wires: int) -> None:
    busy: set[str] = set()
    for line in sent(*[False] * 7, wires=wires):
        word, *rest = line.split()
        if word == "pack":
            assert rest[2] not in busy
            busy.add(rest[2])
        if word == "land":
            busy.remove(rest[2])
        assert len(busy) <= wires


@pytest.mark.parametrize("wires", [2, 3])
def test_so_many_wait_for_their_sums_that_one_wire_is_free(wires: int) -> None:
    started = 0
    for line in sent(*[False] * 7, wires=wires):
        started += line.startswith("start") - line.startswith("finish")
        assert started < wires


def test_a_load_is_asked_for_once_the_one_before_is_packed_and_started() -> None:
    log = Log()

    def loads() -> object:
        yield Load(0, log)
        log.append("asked")
        yield Load(1, log)

    send(loads(), log, "x")  # type: ignore[arg-type]
    assert log.index("asked") > log.index("start a0 x.0")
