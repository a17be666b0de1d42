"""Listening to a TensorRT builder while it works: what it logs, how far it is, and when it must stop.

Nothing here imports a TensorRT package: the functions take the module that `tensorrt.require` returned.
"""

import functools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeAlias, TypeVar

BuildProgress: TypeAlias = Callable[[str, int, int], bool | None]  # (phase, steps done, steps in all) -> False cancels
LogLine: TypeAlias = tuple[str, str]  # (severity, message)
T = TypeVar("T")

_POLL_S = 0.2


@functools.cache
def logger(trt: ModuleType) -> Any:
    """The package's one logger: TensorRT ignores every logger of a process but the first."""

    class Logger(trt.ILogger):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.lock = threading.Lock()
            self.records: deque[LogLine] = deque(maxlen=0)

        def log(self, severity: Any, message: str) -> None:
            self.records.append((severity.name, message))

        @contextmanager
        def recording(self) -> Iterator[deque[LogLine]]:
            """Keep what is logged meanwhile; builds take turns, else their messages would mix."""
            with self.lock:
                self.records = deque()
                try:
                    yield self.records
                finally:
                    self.records = deque(maxlen=0)

    return Logger()


class Watch:
    """One build's progress and its end: `stopped` is set by Ctrl-C and by on_progress, returning False or failing."""

    def __init__(self, on_progress: BuildProgress | None) -> None:
        self.on_progress = on_progress
        self.stopped = threading.Event()
        self.failure: Exception | None = None

    def run(self, build: Callable[[], T]) -> T:
        """Run `build` in a thread of its own, so that Ctrl-C is seen while it runs.

        In the main thread KeyboardInterrupt would be raised inside whichever callback comes next, where the bindings
        print it, forget it and go on building (measured). Before it leaves here the executor waits for the builder to
        notice `stopped`, at its next step; a second Ctrl-C does not wait.
        """
        with ThreadPoolExecutor(max_workers=1) as executor:
            try:
                future = executor.submit(build)
                while not future.done():
                    wait([future], timeout=_POLL_S)  # without a timeout Ctrl-C goes unseen on Windows
            except BaseException:
                self.stopped.set()
                raise
            return future.result()

    def report(self, phase: str, done: int, total: int) -> bool:
        """Tell on_progress; whether to go on."""
        if self.on_progress is not None and not self.stopped.is_set():
            try:
                if self.on_progress(phase, done, total) is False:
                    self.stopped.set()
            except Exception as failure:  # noqa: BLE001  the bindings would swallow it: kept for the caller to raise
                self.failure = failure
                self.stopped.set()
        return not self.stopped.is_set()

    def monitor(self, trt: ModuleType) -> Any:
        """What the builder calls at every step; TensorRT asks for an object that outlives the build."""
        watch = self

        class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined,misc]
            def __init__(self) -> None:
                super().__init__()
                self.totals: dict[str, int] = {}

            def phase_start(self, phase: str, _parent: str | None, steps: int) -> None:
                self.totals[phase] = steps
                watch.report(phase, 0, steps)

            def step_complete(self, phase: str, step: int) -> bool:
                return watch.report(phase, step + 1, self.totals[phase])

            def phase_finish(self, _phase: str) -> None:
                """Nothing to say: the last step has been reported."""

        return Monitor()
