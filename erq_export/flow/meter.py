"""Wall time and peak memory of each stage of a run."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from erq_export.contract.cost import StageCost

PERIOD_S = 0.05
PAGE_MIB = 4096 / 2**20


def resident_mib() -> float:
    """Resident memory of this process in MiB now (Linux); its peak so far where the system tells no more."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * PAGE_MIB
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


@dataclass
class Meter:
    """Collects what the stages of one run cost, in order."""

    stages: list[StageCost] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage and sample its memory from a thread."""
        peak, over = resident_mib(), threading.Event()

        def sample() -> None:
            nonlocal peak
            while not over.wait(PERIOD_S):
                peak = max(peak, resident_mib())

        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        start = time.perf_counter()
        try:
            yield
        finally:
            wall = time.perf_counter() - start
            over.set()
            thread.join()
            self.stages.append(StageCost(name=name, wall_s=wall, peak_mib=max(peak, resident_mib())))
