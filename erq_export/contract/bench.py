"""bench.json: how fast what a run made is, line by line, beside its float twin; and on which machine, in which state."""

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from erq_export.contract.errors import SpecError
from erq_export.contract.records import FileRecord, Record, Sha256, Spec
from erq_export.contract.spec import Bits, PathName

BENCH = "bench.json"
Inputs = Literal["resident", "host"]
Role = Literal["twin", "ours", "foreign"]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Positive = Annotated[float, Meta(gt=0)]
BatchSize = Annotated[int, Meta(ge=1, le=4096)]
Threads = Annotated[int, Meta(ge=1, le=1024)]
RUNNERS = (  # by name, those of a GPU last
    *("onnxruntime", "openvino", "torch", "torch-compile"),
    *("torch-cuda", "torch-compile-cuda", "onnxruntime-cuda", "onnxruntime-tensorrt"),
)
RunnerName = Annotated[str, Meta(extra_json_schema={"enum": list(RUNNERS)})]


class BenchSpec(Spec, frozen=True, kw_only=True):
    """What is timed beside what, and for how long."""

    batch: Annotated[
        tuple[BatchSize, ...],
        Meta(min_length=1, description="batch sizes", extra={"fix": "batch sizes of 1 to 4096, such as --batch 1,8"}),
    ] = (1, 8)
    threads: Annotated[
        tuple[Threads, ...],
        Meta(
            description="threads of what runs on the CPU (default: all that this process may use)",
            extra={"fix": "numbers of threads from 1 to 1024, such as --threads 1,2"},
        ),
    ] = ()
    samples: Annotated[
        int, Meta(ge=10, le=10**6, description="samples of a line", extra={"fix": "10 to 1000000 samples"})
    ] = 500
    seconds: Annotated[
        float,
        Meta(
            gt=0, le=3600, description="a line ends here before it has all samples", extra={"fix": "0 to 3600 seconds"}
        ),
    ] = 10.0
    sittings: Annotated[
        int,
        Meta(
            ge=1,
            le=100,
            description="parts of a line, for each of which every runner is made anew",
            extra={"fix": "1 to 100 sittings; one says nothing of another process"},
        ),
    ] = 8
    also: Annotated[
        tuple[RunnerName, ...],
        Meta(description="runners beside ONNX Runtime and the engines; openvino is taken where it is installed"),
    ] = ()
    against: Annotated[
        PathName | None,
        Meta(description="a graph or engine from elsewhere, FILE.onnx or FILE.engine, beside ours"),
    ] = None
    trust_engine: Annotated[
        bool, Meta(description="load an engine of --against that has no record: loading an engine runs its code")
    ] = False
    require_speedup: Annotated[
        Annotated[float, Meta(gt=0, le=1000)] | None,
        Meta(
            description="fail (exit 7) where ours is not shown to be so many times as fast as its twin",
            extra={"fix": "a factor such as 1.2"},
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch", "threads"):
            if len(set(given := getattr(self, name))) < len(given):
                raise SpecError(f"{self.word(name)} names a number twice", fix="each number once")

    @classmethod
    def word(cls, name: str) -> str:
        return "--with" if name == "also" else super().word(name)


class Speedup(Record, frozen=True, kw_only=True):
    """Times as fast as `than`, and the 95 % bootstrap interval. Ratios are taken within a round, their median within a sitting;
    ratio is the geometric mean over the sittings."""

    than: str
    ratio: Positive
    low: Positive
    high: Positive

    @property
    def told(self) -> str:
        return f"{self.ratio:.2f} × ({self.low:.2f} … {self.high:.2f})"


class Line(Record, frozen=True, kw_only=True):
    """One runner on one batch.

    subject: what was run (float32, onnx, a file; onnx/body of a detector);  batch: images, or what a part is given, which
    images_per_s then counts;  inputs: already on the runner's device, or copied from and to the host;
    settled: its last times agree;  bytes: of graph or engine;
    products: number of products by format, where the runner says so;  logits_error: ‖y − y₀‖/‖y₀‖, y₀ the same subject's
    logits of the first runner that has them;  speedup: None for the twin itself.
    """

    subject: str
    runner: str
    role: Role
    device: str
    batch: Count
    threads: Annotated[int, Meta(ge=0)]  # 0: none of the CPU's, it runs on a GPU
    inputs: Inputs
    samples: Count
    warm_up: Annotated[int, Meta(ge=0)]
    settled: bool
    p50_ms: Positive
    p90_ms: Positive
    p99_ms: Positive
    mean_ms: Positive
    min_ms: Positive
    images_per_s: Positive
    bytes: Count | None = None
    device_mib: float | None = None
    products: dict[str, Count] = {}
    logits_error: float | None = None
    speedup: Speedup | None = None

    @property
    def name(self) -> str:
        return f"{self.subject} in {self.runner}"


class GpuState(Record, frozen=True, kw_only=True):
    """A GPU at one moment; throttled: why its clocks are held down, none where they are not. What a GPU does not tell is None."""

    name: str
    sm_mhz: int | None
    memory_mhz: int | None
    power_w: float | None
    temperature_c: int | None
    throttled: tuple[str, ...]


class State(Record, frozen=True, kw_only=True):
    """The machine at one moment. cpu_mhz: of every core, where the system tells;  load: processes that wanted to run,
    mean of the last minute, None where the system does not tell."""

    cpu_mhz: tuple[float, ...]
    load: float | None
    gpus: tuple[GpuState, ...]


class Bench(FileRecord, frozen=True, kw_only=True):
    """A measurement of a run. cores: those that the process may use;  vnni: int8 products have instructions of their own
    on this CPU;  attention: which precision it was designed in;  parts: of a detector, and what one picture gives each at most
    (pictures, proposals, detections), which takes the place of the batches that were asked for;  skipped: what was not run, and
    why;  notes: what the figures mean and what to try;  problems: of the speed gate."""

    FORMAT: ClassVar[int] = 2
    WHAT: ClassVar[str] = "benchmark of a run"
    REMEDY: ClassVar[str] = "erq-export bench OUT measures again"

    erq_export: str
    bundle_sha256: Sha256
    model: str
    bits: Bits
    attention: str
    asked: BenchSpec
    processor: str
    cores: tuple[int, ...]
    vnni: bool
    versions: dict[str, str]
    before: State
    after: State
    lines: Annotated[tuple[Line, ...], Meta(min_length=1)]
    parts: dict[str, Count] = {}
    skipped: dict[str, str]
    notes: tuple[str, ...]
    problems: tuple[str, ...]
