"""One record of every kind that is a file, filled in by hand: small, and no field left at its default."""

import json

from detections import of_detector
from msgspec import structs

from erq_export.contract.accuracy import Accuracy, ClassDrop, Judged, Paired, Share
from erq_export.contract.bench import Bench, BenchSpec, GpuState, Line, Speedup, State
from erq_export.contract.bisection import Bisection, Difference
from erq_export.contract.block_parity import BlockParity
from erq_export.contract.bundle import BundleDescription, DataFingerprint
from erq_export.contract.constant_parity import ConstantDifference, ConstantParity, OriginParity
from erq_export.contract.cost import StageCost
from erq_export.contract.decision_parity import DecisionParity
from erq_export.contract.engine import Batch, EngineRecord, Gpu, PlanSummary
from erq_export.contract.followed import CODES, Followed, Gap, Ties
from erq_export.contract.formats.affine import AffineRow, FreeRow
from erq_export.contract.formats.logarithmic import LogRow
from erq_export.contract.histograms import Histogram, Histograms, InputHistogram, LayerHistograms
from erq_export.contract.identity import Identity
from erq_export.contract.manifest import (
    AttentionOperator,
    Claims,
    GraphManifest,
    LoweredOperand,
    LoweredSite,
    Origin,
    Sizes,
)
from erq_export.contract.parity import (
    AccumulatorParity,
    CodeParity,
    FloatParity,
    LayerParity,
    ModelParity,
    NoiseFloor,
    OperandParity,
    OutputParity,
    ParityReport,
    ProductParity,
    WeightParity,
)
from erq_export.contract.preprocess import Preprocess
from erq_export.contract.records import FileRecord, encode
from erq_export.contract.report import (
    ComparisonRow,
    Figures,
    ImagesUsed,
    Latency,
    Layer,
    PriceRow,
    Ratio,
    Report,
    TargetReport,
    Timing,
)
from erq_export.contract.rows import LayerRow, LayerStatistics, OperandRow
from erq_export.contract.run_manifest import OwnedFile, Placement, RunManifest
from erq_export.contract.side_by_side import Apart, HeldOut, RunFigures, SideBySide
from erq_export.contract.simulated import SimulatedLayerRow, SimulatedOperandRow
from erq_export.contract.spec import Bits, Quantization
from erq_export.contract.story import BlockError, LayerCost, Story
from erq_export.contract.targets import GridRules
from erq_export.flow.job import RunRecord, resolve
from erq_export.flow.stages import Figure
from erq_export.flow.store.record import EntryRecord, KeptFile

SHA256 = "0123456789abcdef" * 4
LAYER, ATTENTION = "blocks.0.attn.qkv", "blocks.0.attn"
PREPROCESS = Preprocess(
    input_size=(3, 16, 16),
    mean=(0.5,) * 3,
    std=(0.25,) * 3,
    interpolation="bicubic",
    crop_pct=0.875,
    crop_mode="center",
)
IDENTITY = Identity(
    name="demo",
    timm_name="vit_tiny_patch16_224",
    model_args={"depth": 2, "global_pool": "token", "img_size": (16, 16)},
    weights="checkpoint",
    weights_sha256=SHA256,
    family="vit",
    preprocess=PREPROCESS,
)
RULES = GridRules(half_scales=True, offset_8bit=False, softmax_clip=False, holds_zero=True, int4_weights=True)
STATISTICS = LayerStatistics(n_rows=32, error_inputs=1e-4, error_nearest=1e-2, error=1e-3)
ERRORS = Figures(mean=0.25, std=0.125, min=0.125, max=0.375, all=(0.125, 0.375))

SHARE = Share(value=90.0, low=59.6, high=98.2)
JUDGED = Judged(
    top1=SHARE, top5=SHARE, agreement=SHARE, paired=Paired(lost=2, gained=1, p=1.0), error=0.25, cosine=0.97
)


def quantization() -> Quantization:
    job = resolve({"name": "demo", "bits": Bits(w=4, a=4), "attention": "int8"})
    return Quantization(
        bits=job.method.bits,
        method=job.method.method,
        options=job.quantization.options,
        attention=job.quantization.attention,
        rules=RULES,
    )


def description() -> BundleDescription:
    return BundleDescription(
        spec=quantization(),
        model=IDENTITY,
        data=DataFingerprint(n_images=2, names=("a.png", "b/ü.png"), pixels_sha256=SHA256),
        layers=(
            LayerRow(path=LAYER, w_bits=4, a_bits=4, act=AffineRow(qmin=-8, qmax=7), statistics=STATISTICS),
            SimulatedLayerRow(
                path="head", w_bits=4, a_bits=4, act=FreeRow(qmin=-7.5, qmax=7.5), outliers=True, statistics=STATISTICS
            ),
        ),
        operands=(
            OperandRow(path=f"{ATTENTION}.q", role="q", bits=8, grid=AffineRow(qmin=-128, qmax=127)),
            SimulatedOperandRow(path=f"{ATTENTION}.softmax", role="softmax", bits=4, grid=LogRow(bits=4)),
        ),
        versions={"torch": "2.11.0", "timm": "1.0.20"},
        tensors_sha256=SHA256,
    )


def run_record() -> RunRecord:
    typed = {
        "name": "demo",
        "checkpoint": "/weights.pth",
        "model_args": {"depth": 2, "img_size": (16, 16)},
        "data": "/images",
        "val": "/val",
        "class_map": "/classes.txt",
        "bits": "w4a4",
        "targets": ("onnx", "reference"),
        "compare": ("w3a4", "w8a8"),
        "published": "icml",
        "max_drop": "2.5",
    }
    return RunRecord(erq_export="0.1.0", job=resolve(typed, options={"ridge": "1e3"}, typed=True))


def manifest() -> GraphManifest:
    names = {"input": "x", "codes": "c", "output": "y"}
    return GraphManifest(
        target="tensorrt-rtx",
        opset=20,
        claims=Claims(gemm={"int8": 1}, attention={"int8": 1}),
        bytes=Sizes(float32=4000, int8=1000, int4=500, written=500),
        origin=Origin(
            bundle_sha256=SHA256,
            model=IDENTITY.timm_name,
            model_args=IDENTITY.model_args,
            weights="checkpoint",
            bits=Bits(w=4, a=4),
            attention="int8",
            method="erq",
            preprocess=PREPROCESS,
        ),
        sites=(
            LoweredSite(
                path=LAYER,
                container="int8",
                zero_point=0,
                qmin=-8,
                qmax=7,
                **names,
                w_bits=4,
                a_bits=4,
                weight="w",
                weight_container="int4",
                gemm=f"{LAYER}/MatMul",
            ),
        ),
        operands=(
            LoweredOperand(
                path=f"{ATTENTION}.q", container="int8", zero_point=0, qmin=-128, qmax=127, **names, role="q", bits=8
            ),
        ),
        attention_operators=(
            AttentionOperator(path=ATTENTION, precision="int8", scores="qk", softmax="softmax", context="pv"),
        ),
    )


def engine() -> EngineRecord:
    return EngineRecord(
        package="tensorrt_rtx",
        version="1.7.1",
        graph_sha256="a" * 64,
        bundle_sha256="b" * 64,
        engine_sha256="c" * 64,
        gpu=Gpu(name="RTX 4090", capability="8.9"),
        compute_capabilities=("8.9", "12.0"),
        batch=Batch(smallest=1, optimal=8, largest=32),
        workspace_mib=1024,
        flags=("timing_cache",),
        bytes=2**20,
        build_s=1.5,
        plan=PlanSummary(gemm={"int8": 1}, conv={}, attention={"int8": 1}, kernels=9, layers=11),
        precision={LAYER: "int8"},
        attention={ATTENTION: "int8"},
        unfused=("blocks.1.attn: not fused",),
        problems=("nothing else",),
    )


def parity() -> ParityReport:
    codes, sums = CodeParity(n=512, mismatches=0, max_lsb=0), AccumulatorParity(n=64, mismatches=1, beyond=2)
    output = OutputParity(relative_l2=1e-7, relative_max=1e-6, limit=1e-5, kernel="MatMulIntegerToFloat")
    floor = NoiseFloor(relative_l2=1e-3, cosine=1.0, draws=(1e-3, 2e-3), perturbation=1e-6)
    scale = ConstantDifference(path=LAYER, name="input scale", n=1, mismatches=1, found=0.5, expected=0.25)
    share = Share(value=50.0, low=18.8, high=81.2)
    return ParityReport(
        target="onnx",
        n_images=2,
        weights=WeightParity(
            n_layers=1, n_integers=64, different={LAYER: 3}, missing=("head",), float_copies={"w": LAYER}
        ),
        layers=(LayerParity(path=LAYER, codes=codes, accumulators=sums, output=output),),
        operands=(OperandParity(path=f"{ATTENTION}.q", codes=codes, relative_l2=1e-8, limit=1e-5),),
        products=(ProductParity(path="qk", sums=sums, kernel="QLinearMatMul", operands=(f"{ATTENTION}.q",)),),
        missing_operands=(f"{ATTENTION}.k",),
        between=FloatParity(relative_l2={LAYER: 1e-7, "logits": 2e-7}, limit=1e-5),
        model=ModelParity(
            runner="onnxruntime",
            n_images=2,
            relative_l2=1e-3,
            cosine=1.0,
            top1_agreement=1.0,
            floor=floor,
            factor=3.0,
            limit=3e-3,
            least_cosine=0.5,
        ),
        executed={LAYER: "MatMulIntegerToFloat"},
        attention={ATTENTION: "QLinearMatMul+QLinearMatMul"},
        ops={"MatMulIntegerToFloat": 1},
        origin=OriginParity(bundle=SHA256, manifest=SHA256, file=SHA256),
        constants=ConstantParity(n=9, different=(scale,)),
        blocks=(BlockParity(path="blocks.0", sites=(LAYER,), relative_l2=1e-4, floor=floor, factor=3.0, limit=6e-3),),
        decision=DecisionParity(
            n_images=6, graph=share, trembling=share, lost=1, gained=1, p=0.75, perturbation=1e-6, least_p=1e-2
        ),
        followed=Followed(
            n_images=2,
            n_found=7,
            ties={CODES: Ties(n=512, other=1, furthest=0.25)},
            values={"outputs": Gap(largest=1e-7, limit=1e-5)},
            astray=("other outputs",),
        ),
    )


def bisection() -> Bisection:
    first = Difference(
        block="blocks.0", site=LAYER, kind="codes", found=3.0, bound=0.0, says=f"{LAYER}: 3 of 512 input codes differ"
    )
    return Bisection(
        target="onnx",
        graph_sha256=SHA256,
        bundle_sha256=SHA256,
        n_images=4,
        foreign=("onnx/model.onnx is not the file that the run wrote",),
        first=first,
        n_differences=2,
        checked={"codes": 512},
        summary="against the reference on 4 images",
        reproduction=("piece.onnx", "tensors.npz"),
        not_executed=("the engine was not run",),
    )


def report() -> Report:
    timing = Timing(p50_ms=1.0, p90_ms=1.5, p99_ms=2.0, mean_ms=1.25, min_ms=0.5)
    return Report(
        story=story(),
        histograms=histograms(),
        headline=("Random weights mean nothing.", "A second sentence."),
        erq_export="0.1.0",
        bundle_sha256=SHA256,
        model=IDENTITY,
        quantization=quantization(),
        targets_asked=("onnx", "tensorrt-rtx", "reference"),
        data=ImagesUsed(n_images=2, pixels_sha256=SHA256),
        machine={"python": "3.12", "processor": "a CPU"},
        versions={"torch": "2.11.0"},
        stages=(StageCost(name="calibrate", wall_s=1.5, peak_mib=500.0),),
        accuracy=Accuracy(
            n_images=10,
            n_compared=10,
            outputs="logits",
            float_top1=SHARE,
            float_top5=SHARE,
            reference=JUDGED,
            graphs={"onnx": JUDGED},
            as_reference={"onnx": SHARE},
            worst=(ClassDrop(label=3, n_images=5, float_right=5, reference_right=4),),
        ),
        comparison=(
            ComparisonRow(
                bits=Bits(w=4, a=4),
                method="erq",
                layer_error=ERRORS,
                top1_reference=ERRORS,
                top1_onnx=ERRORS,
                agreement=ERRORS,
            ),
        ),
        price=(
            PriceRow(
                change="scales",
                options={"rules": RULES, "ridge": 1e3},
                layer_error=ERRORS,
                logits_error=ERRORS,
                top1=ERRORS,
            ),
        ),
        targets={
            "onnx": TargetReport(
                container="uint8",
                carrier="float32",
                bytes=1200,
                sizes=Sizes(float32=4000, int8=1000, int4=500, written=1000),
                packed=0,
                claims=Claims(gemm={"int8": 1}, attention={"int8": 1}),
                executed={LAYER: "MatMulIntegerToFloat"},
                attention={ATTENTION: "QLinearMatMul+QLinearMatMul"},
                parity=parity(),
                engine=engine(),
            )
        },
        latency=Latency(
            batch=1,
            rounds=10,
            warm_up=2,
            threads=2,
            processor="a CPU",
            timings={"float": timing, "onnx": timing},
            ratios={"onnx": Ratio(q25=1.5, median=2.0, q75=2.5, of_medians=2.0)},
        ),
        layers=(Layer(path=LAYER, w_bits=4, a_bits=4, statistics=STATISTICS),),
        not_verified=("the engine was compiled, not run",),
        problems=("one",),
    )


def line(**changes: object) -> Line:
    """One of ours on a CPU, a tenth faster than its twin."""
    given = {
        "subject": "onnx",
        "runner": "onnxruntime",
        "role": "ours",
        "device": "cpu",
        "batch": 1,
        "threads": 2,
        "inputs": "resident",
        "samples": 10,
        "warm_up": 5,
        "settled": True,
        **{"p50_ms": 1.0, "p90_ms": 1.5, "p99_ms": 2.0, "mean_ms": 1.25, "min_ms": 0.5, "images_per_s": 1000.0},
        "bytes": 1200,
        "device_mib": 3.5,
        "products": {"u8": 1, "f32": 2},
        "logits_error": 1e-6,
        "speedup": Speedup(than="float32 in onnxruntime", ratio=1.125, low=1.0625, high=1.25),
    }
    return Line(**given | changes)  # type: ignore[arg-type]


def story() -> Story:
    """Of two blocks and one layer."""
    first = BlockError(path="blocks.0", entering=0.0, weights=0.01, activations=0.02, both=0.03)
    second = BlockError(path="blocks.1", entering=0.03, weights=0.02, activations=0.03, both=0.05)
    cost = LayerCost(path="blocks.0.attn.qkv", w_bits=4, a_bits=4, n_weights=768, alone=0.02, raised=0.04)
    return Story(n_images=8, outputs="logits", error=0.05, depth=(first, second), sensitivity=(cost,))


def histograms() -> Histograms:
    """Of one layer."""
    codes = Histogram(first=-8, width=1, counts=(5, 0, 2, 1))
    inputs = InputHistogram(codes=codes, scale=0.5, low=-4.75, high=3.5, beyond=2)
    return Histograms(n_images=4, layers={LAYER: LayerHistograms(weights=codes, inputs=inputs)})


def bench(*lines: Line, **changes: object) -> Bench:
    gpu = GpuState(
        name="a GPU", sm_mhz=1500, memory_mhz=9000, power_w=300.5, temperature_c=80, throttled=("power cap",)
    )
    state = State(cpu_mhz=(2500.0, 2600.5), load=0.5, gpus=(gpu,))
    twin = line(subject="float32", role="twin", speedup=None, products={}, logits_error=None)
    given = {
        "erq_export": "0.1.0",
        "bundle_sha256": SHA256,
        "model": IDENTITY.timm_name,
        "bits": Bits(w=4, a=4),
        "attention": "fp16",
        "asked": BenchSpec(threads=(2,), also=("torch",), against="theirs.onnx", require_speedup=1.5),
        "processor": "a CPU",
        "cores": (0, 1),
        "vnni": True,
        "versions": {"torch": "2.11.0"},
        "before": state,
        "after": state,
        "lines": lines or (twin, line()),
        "skipped": {"onnx in torch-cuda": "no GPU"},
        "notes": ("A note.",),
        "problems": ("too slow",),
    }
    return Bench(**given | changes)  # type: ignore[arg-type]


def side_by_side() -> SideBySide:
    """Of two runs, the second of which has little."""
    held_out = HeldOut(
        n_images=10, images_sha256=SHA256, outputs="logits", float_top1=SHARE, reference=JUDGED, graphs={"onnx": JUDGED}
    )
    run = RunFigures(
        folder="out/a",
        erq_export="0.1.0",
        bundle_sha256=SHA256,
        verdict="Passed: a.",
        problems=(),
        model="vit_tiny_patch16_224",
        weights="checkpoint",
        weights_sha256=SHA256,
        bits="w4a4",
        mean_weight_bits=4.0,
        method="erq",
        attention="int8",
        targets=("onnx",),
        n_calibrated=2,
        pixels_sha256=SHA256,
        layer_error=1e-3,
        held_out=held_out,
        parity={"onnx": Apart(relative_l2=1e-3, floor=1e-3)},
        graph_bytes={"onnx": 1200},
        engine_bytes={"tensorrt-rtx": 2**20},
        calibration=StageCost(name="calibrate", wall_s=1.5, peak_mib=500.0),
        speed={"onnx in onnxruntime": Speedup(than="float32", ratio=1.125, low=1.0625, high=1.25)},
        processor="a CPU",
    )
    changes = {
        "folder": "out/b",
        "problems": ("one",),
        "held_out": None,
        "parity": {},
        "calibration": None,
        "speed": {},
    }
    return SideBySide(erq_export="0.1.0", runs=(run, structs.replace(run, **changes)), differences=("Another model.",))


def run_manifest() -> RunManifest:
    files = tuple(OwnedFile(path=path, bytes=5, sha256=SHA256) for path in ("run.json", "bundle/bundle.json"))
    placing = Placement(
        staging=".erq-export-partial-0123456789abcdef",
        arriving=(OwnedFile(path="onnx/model.onnx", bytes=7, sha256=SHA256),),
        leaving=(OwnedFile(path="report.json", bytes=9, sha256=SHA256),),
    )
    return RunManifest(
        erq_export="0.1.0",
        command=("erq-export", "demo"),
        job=json.loads(encode(run_record()))["job"],
        complete=True,
        weights={"vit_tiny_patch16_224": SHA256},
        images={"calibration": SHA256},
        artifacts={"bundle": SHA256},
        versions={"torch": "2.11.0"},
        machine={"processor": "a CPU"},
        timings=(StageCost(name="calibrate", wall_s=1.5, peak_mib=500.0),),
        files=files,
        placing=placing,
    )


def store_entry() -> EntryRecord:
    return EntryRecord(
        kind="bundle",
        key=SHA256,
        description="w4a4 erq of demo",
        made="2026-01-02T03:04:05+00:00",
        files={"bundle.json": KeptFile(size=5, sha256=SHA256)},
    )


def every_file() -> dict[type[FileRecord], FileRecord]:
    """An example of each."""
    examples = (
        bench(parts={"body": 1}),
        bisection(),
        description(),
        run_record(),
        manifest(),
        engine(),
        parity(),
        of_detector(report()),
        run_manifest(),
        side_by_side(),
        Figure(name="logits_error", value=0.125),
        store_entry(),
    )
    return {type(example): example for example in examples}
