"""One command in the processes of one `torchrun`: the first runs it, the others help until it has ended."""

from collections.abc import Callable, Sequence

from erq_export.backends.device import device_named
from erq_export.backends.ranks import Ranks, together
from erq_export.contract.errors import ErqError, MachineError
from erq_export.contract.records import decode, encode
from erq_export.contract.report import Report
from erq_export.flow.begin import NOTHING_OWN, Own, begin
from erq_export.flow.job import Job
from erq_export.flow.shards import Task, alone, share_out
from erq_export.flow.store.store import Store
from erq_export.flow.ui import SILENT
from erq_export.flow.work import Work
from erq_export.validate.metrics.decisions import Decide, Decisions


def helped(job: Job, own: Own, first: Callable[[Ranks | None], Report]) -> Report:
    """The report of `first(ranks)`, which the first process runs; the others help it, and have the report from it.

    What `first` raises is raised there; MachineError then in the others.
    """
    with together(device_named(job.device)) as ranks:
        if ranks is None:
            return first(None)
        if ranks.rank:
            if (heard := _help(ranks, job, own)) is None:
                raise MachineError("the first process of this torchrun ended with an error", fix="see its message")
            return heard
        report = ""
        try:
            found = first(ranks)
            report = encode(found).decode()
            return found
        finally:
            ranks.tell(encode(Task(what="end", report=report)).decode())


def help_first(job: Job) -> None:
    """In another process than the first: nothing but help, until it has ended."""
    with together(device_named(job.device)) as ranks:
        if ranks is not None:
            _help(ranks, job, NOTHING_OWN)


def _help(ranks: Ranks, job: Job, own: Own) -> Report | None:
    """Do one's share of every task; model and images are read when the first one comes. What came of it all; None after an error.

    An error of this process is the first one's to say: whoever leaves before it takes it along. Only what is no ErqError is
    raised, at the end, for its traceback.
    """
    failed: Exception | None = None
    works: list[Work] = []
    known: dict[tuple[str, str], Decide] = {}
    while (task := decode(Task, ranks.hear().encode(), source="the first process")).what != "end":

        def do(batches: range, told: Callable[[int, int], None], task: Task = task) -> Sequence[Decisions]:
            if not works:
                works.append(begin(job, SILENT, Store.none(), own))
            (work,) = works
            if work.held_out is None:
                raise MachineError("this process has no images to measure on", fix="the same command in all processes")
            if (task.what, task.folder) not in known:
                known.clear()  # one model at a time
                known[task.what, task.folder] = alone(task, work.model, work.held_out, work.stages.device)
            return known[task.what, task.folder](batches, told)

        try:
            share_out(ranks, do, range(task.first, task.last))
        except Exception as e:  # noqa: BLE001 - raised when all is over
            failed = e
    if failed is not None and not isinstance(failed, ErqError):
        raise failed
    return None if not task.report else decode(Report, task.report.encode(), source="the first process's report")
