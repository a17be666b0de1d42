"""Decisions are made a span at a time: whoever decides a batch, and whenever, the whole is the same."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Barrier, Thread
from typing import Any

import pytest
import torch
from torch import Tensor

from erq_export.contract.errors import DataError, MachineError
from erq_export.data.held_out import Prepared, n_batches
from erq_export.flow.shards import share_out
from erq_export.validate.metrics import decisions as subject
from erq_export.validate.metrics.decisions import Decisions, Progress, decide, decide_in_spans, decided

N = 75  # images: two batches of 32 and one of 11


@dataclass
class Counted:
    """A runner that gives every image its own outputs, and counts the batches it has seen."""

    seen: list[int] = field(default_factory=list)
    name: str = "counted"

    def logits(self, pixels: Tensor) -> Tensor:
        self.seen.append(len(pixels))
        return pixels.flatten(1)[:, :7].sin()


def images(n: int = N) -> Prepared:
    tensor = torch.arange(n * 3 * 4, dtype=torch.float32).reshape(n, 3, 2, 2)
    return Prepared(tensor=tensor, fingerprint="", labels=torch.arange(n) % 7)


@dataclass
class Kept:
    spans: dict[int, Decisions] = field(default_factory=dict)

    def read(self, first: int) -> Decisions | None:
        return self.spans.get(first)

    def keep(self, first: int, found: Decisions) -> None:
        self.spans[first] = found


def same(a: Decisions, b: Decisions) -> bool:
    return torch.equal(a.top, b.top) and torch.equal(a.outputs, b.outputs) and a.n_classes == b.n_classes


@pytest.mark.parametrize("span", [1, 2, 3, 8])
def test_spans_of_any_length_give_the_same(span: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = decide(Counted(), images())
    monkeypatch.setattr(subject, "SPAN", span)
    assert same(decide(Counted(), images()), whole)


def test_what_is_kept_is_not_decided_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "SPAN", 1)
    first, kept, told = Counted(), Kept(), []

    def stops(batches: range, progress: Progress) -> Sequence[Decisions]:
        if batches.start == 2:
            raise KeyboardInterrupt
        return list(decided(first, images(), batches, progress))

    with pytest.raises(KeyboardInterrupt):
        decide_in_spans(images(), stops, spans=kept)
    assert first.seen == [32, 32]
    again = Counted()
    found = decide_in_spans(
        images(),
        lambda batches, progress: list(decided(again, images(), batches, progress)),
        spans=kept,
        progress=lambda done, n: told.append((done, n)),
    )
    assert again.seen == [11]
    assert same(found, decide(Counted(), images()))
    assert told[-1] == (N, N)


class Talk:
    """Processes as threads: what every one says is heard by the first."""

    def __init__(self, size: int) -> None:
        self.said: list[Any] = [None] * size
        self.met = Barrier(size)


@dataclass
class Member:
    rank: int
    size: int
    talk: Talk

    def gather(self, own: Any) -> list[Any]:
        self.talk.said[self.rank] = own
        self.talk.met.wait(timeout=30)
        return list(self.talk.said) if self.rank == 0 else []


def all_of(size: int, do: Any, n: int) -> tuple[list[Any], list[Exception | None]]:
    """What `share_out` gives each of so many processes, and what it raises there."""
    talk, found, raised = Talk(size), [None] * size, [None] * size

    def run(rank: int) -> None:
        try:
            found[rank] = share_out(Member(rank, size, talk), do(rank), range(n))  # type: ignore[arg-type,call-overload]
        except Exception as e:  # noqa: BLE001
            raised[rank] = e  # type: ignore[call-overload]

    threads = [Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return found, raised


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_any_number_of_processes_gives_the_same(size: int) -> None:
    """5 processes share 3 batches: two have nothing to do."""

    def do(_rank: int) -> Any:
        return lambda batches, told: list(decided(Counted(), images(), batches, told)) if batches else []

    found, raised = all_of(size, do, n_batches(images()))
    assert raised == [None] * size
    assert same(subject.joined(found[0]), decide(Counted(), images()))
    assert found[1:] == [[]] * (size - 1)


@pytest.mark.parametrize("failing", [0, 1])
def test_one_that_fails_fails_the_first_and_blocks_nobody(failing: int) -> None:
    def do(rank: int) -> Any:
        def decide_own(_batches: range, _told: Any) -> list[Decisions]:
            if rank == failing:
                raise DataError("the image cat.png is damaged", fix="remove it")
            return []

        return decide_own

    _, raised = all_of(2, do, 2)
    assert isinstance(raised[failing], DataError)
    assert isinstance(raised[0], DataError if failing == 0 else MachineError)
    assert "cat.png is damaged" in str(raised[0])
