"""Independent pieces of work side by side: worker processes fill the store, and whoever asks afterwards finds it there.

A small model uses one core of a machine and a bit, whatever torch and ONNX Runtime are told. Workers hand nothing over but
what the store keeps, so the result is that of one process to the last byte; a worker that fails costs time alone.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from erq_export.backends.machine import cores
from erq_export.calibrate.budget import MIB, budget
from erq_export.contract.memory import available_memory
from erq_export.contract.records import decode, encode
from erq_export.contract.registry import resolve_attribute
from erq_export.contract.spec import Pack, Quantization
from erq_export.flow.begin import begin
from erq_export.flow.job import Job
from erq_export.flow.store.store import Store
from erq_export.flow.ui import SILENT
from erq_export.flow.work import Work

LEAST = 4  # pieces of work that make it worth to start processes, which load torch first
MOST_WORKERS = 8
WORKER_BYTES = 1.5 * 2**30  # what a process with torch and ONNX Runtime holds besides its model


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One calibration and what is measured of it: `function`, "module:attribute", is called with the work and the piece.

    job: encoded, for it travels to another process;  root: the store that is filled.
    """

    function: str
    job: bytes
    root: Path
    asked: Quantization
    pack: Pack
    seed: int

    def __call__(self) -> None:
        """Done in a worker, which reads model and images once."""
        resolve_attribute(self.function)(_work(self.job, self.root), self)


def fill_store(work: Work, function: str, wanted: Sequence[tuple[Quantization, Pack, int]]) -> None:
    """Let workers calibrate and measure what is wanted, as (slice, pack, seed), where the machine has room for several.

    Not with a caller's own model or images, which other processes cannot read, nor on a GPU, nor without a store.
    """
    root = work.stages.store.root
    if not work.portable or root is None or work.stages.device.type != "cpu":
        return
    held = budget(work.model, work.job.data.calib, work.job.options)
    bytes_each = MIB * (2 * held.model_mib + held.hidden_mib + held.moments_mib + held.solver_mib)
    job = encode(work.job)
    pieces = [
        Piece(function=function, job=job, root=root, asked=asked, pack=pack, seed=seed)
        for asked, pack, seed in wanted
        if not work.stages.has_bundle(work.model, work.calibration_images(seed), asked)
    ]
    if (workers := n_workers(len(pieces), bytes_each)) > 1:
        fill(pieces, workers=workers, progress=lambda n: work.ui.progress("side by side", n, len(pieces)))


@lru_cache(maxsize=1)
def _work(job: bytes, root: Path) -> Work:
    """A worker's own, kept from piece to piece."""
    return begin(decode(Job, job, source="the job"), SILENT, Store.at(root))


def n_workers(n_pieces: int, bytes_each: float) -> int:
    """How many processes the machine has room for: a core each, and at most half of the free memory."""
    if n_pieces < LEAST:
        return 1
    room = int((available_memory() or 0) / 2 / (WORKER_BYTES + bytes_each))
    return max(1, min(n_pieces, len(cores()), room, MOST_WORKERS))


def fill(pieces: Sequence[Piece], *, workers: int, progress: Callable[[int], None]) -> None:
    """Run the pieces, each a picklable call, in `workers` processes of one thread; `progress(n)` after every one.

    Errors are left to whoever asks for the result: it meets them itself. Ctrl-C ends the workers, and so does the end of this
    process, however it comes: after a kill nothing would collect them.
    """
    context = get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)  # workers end when our end is closed, by us or by our death
    with (
        theirs,
        ours,
        ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker, initargs=(theirs,)) as pool,
    ):
        left: set[Future[None]] = {pool.submit(piece) for piece in pieces}
        try:
            while left:
                done, left = wait(left, return_when=FIRST_COMPLETED)
                if any(isinstance(future.exception(), BrokenProcessPool) for future in done):
                    break
                progress(len(pieces) - len(left))
        except BaseException:
            for future in left:
                future.cancel()
            ours.close()
            raise


def _begin_worker(end: Connection) -> None:
    threading.Thread(target=_end_with, args=(end,), name="end with parent", daemon=True).start()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    torch.set_num_threads(1)


def _end_with(end: Connection) -> None:
    """Wait until the process that started this one closes its end of the pipe, alive or dead; then end as a kill does,
    which the store is made for."""
    with suppress(EOFError, OSError):
        end.recv_bytes()
    os._exit(1)
