"""Held-out images shared out among the processes of one `torchrun`: whole batches, so that the result is that of one process.

The first process runs the command. Whenever it has something decide on images, it says what; every process decides the batches
of its number and the first puts them in order. What a process makes of a batch does not depend on the other batches, so neither
does the result on how many share them.
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
from msgspec import structs

from erq_export.backends.ranks import Ranks
from erq_export.contract.bundle import Bundle
from erq_export.contract.errors import MachineError
from erq_export.contract.records import Record, encode
from erq_export.data.held_out import BATCH, Images
from erq_export.flow.engines import MODEL_ENGINE, engine_runner
from erq_export.models.loading import Loaded
from erq_export.models.rebuild import reference_model
from erq_export.validate.contestants import KINDS, Subject
from erq_export.validate.metrics.decisions import Decide, Decisions, Progress, decided
from erq_export.validate.runners import Runner, TorchRunner

What = str  # "float", "reference", "engine", or a kind of runner that takes graphs


class Task(Record, frozen=True, kw_only=True):
    """What the first process asks of the others: their share of some batches, or, at the end, nothing more.

    folder: of the bundle or graph, where all processes find it;  report: what came of it all; empty after an error.
    """

    what: What  # or "end"
    folder: str = ""
    first: int = 0
    last: int = 0
    headless: bool = False
    report: str = ""


def runner_of(task: Task, model: Loaded, device: torch.device) -> Runner:
    """What decides: the float model, the reference of a bundle, a graph in one of its runners, or an engine."""
    folder = Path(task.folder)
    if task.what == "float":
        return TorchRunner(model.model, device, name="float")
    if task.what == "reference":
        return TorchRunner(reference_model(Bundle.load(folder)), device, name="reference")
    if task.what == "engine":
        return engine_runner(folder / MODEL_ENGINE)
    graph = Subject(name=task.what, takes="graph", role="ours", path=folder / "model.onnx")
    return KINDS[task.what].make(graph, torch.get_num_threads(), task.what)


def alone(task: Task, model: Loaded, images: Images, device: torch.device) -> Decide:
    """This process decides every batch that it is given; the runner is made when the first one comes."""
    made: Callable[[], Runner] = cache(lambda: runner_of(task, model, device))
    return lambda batches, told: list(decided(made(), images, batches, told, headless=task.headless)) if batches else []


def shared(ranks: Ranks, task: Task, do: Decide) -> Decide:
    """For the first process: all of them decide, each the batches of its number, the first by `do`."""

    def all_do(batches: range, told: Progress) -> Sequence[Decisions]:
        ranks.tell(encode(structs.replace(task, first=batches.start, last=batches.stop)).decode())
        most = len(batches) * BATCH
        return share_out(ranks, do, batches, lambda n, total: told(min(most, ranks.size * n), total))

    return all_do


def share_out(ranks: Ranks, do: Decide, batches: range, told: Progress = lambda *_: None) -> list[Decisions]:
    """What all processes make of these batches, in their order; an empty list in all but the first.

    Process r decides every `size`-th batch, from the r-th on. Every process calls this, and leaves it when all are done. An
    error of this process is raised here, one of another as MachineError in the first.
    """
    own: Sequence[Decisions] | str
    failed: Exception | None = None
    try:
        own = do(batches[ranks.rank :: ranks.size], told)
    except Exception as e:  # noqa: BLE001 - raised below, once the others know
        own, failed = f"{type(e).__name__}: {e}", e
    every = ranks.gather(own)
    if failed is not None:
        raise failed
    for rank, part in enumerate(every):
        if isinstance(part, str):
            raise MachineError(
                f"process {rank} of {ranks.size} failed: {part}",
                fix="all processes need the same files at the same places, and memory for a model each",
            )
    return [every[i % ranks.size][i // ranks.size] for i in range(len(batches))] if every else []
