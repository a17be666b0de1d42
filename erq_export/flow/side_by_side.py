"""`compare`: finished runs read from their folders and put side by side: no model is loaded, nothing is measured."""

import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from erq_export import __version__
from erq_export.contract.bench import BENCH, Bench, Speedup
from erq_export.contract.errors import DataError, OutputError, SpecError
from erq_export.contract.files import write_bytes
from erq_export.contract.output.folder import OutputFolder
from erq_export.contract.records import encode, read
from erq_export.contract.report import Report
from erq_export.contract.run_manifest import RunManifest
from erq_export.contract.side_by_side import Apart, HeldOut, RunFigures, SideBySide
from erq_export.flow.detection.asked import require_classifier
from erq_export.validate.report.coverage import mean_weight_bits
from erq_export.validate.report.side_by_side import html, markdown
from erq_export.validate.report.verdict import problems, verdict

WRITERS: dict[str, Callable[[SideBySide], bytes]] = {
    ".md": lambda found: markdown(found).encode(),
    ".html": lambda found: html(found).encode(),
    ".json": encode,
}
ANOTHER = "the folder of a finished run, such as erq-export MODEL --out DIR makes"


def compare(*outs: str | Path) -> SideBySide:
    """The runs in these folders, in this order.

    SpecError for fewer than two, or one that is named twice; DataError for a folder that holds no run, or one whose report,
    manifest or benchmark is damaged or of another version.
    """
    folders = [Path(out) for out in outs]
    if len(folders) < 2:
        raise SpecError("one run has nothing beside it", fix="erq-export compare OUT1 OUT2 …")
    if len({os.path.realpath(folder) for folder in folders}) < len(folders):
        raise SpecError("a run is named twice", fix="each folder once")
    runs = tuple(figures(folder) for folder in folders)
    return SideBySide(erq_export=__version__, runs=runs, differences=tuple(differences(runs)))


def write(found: SideBySide, path: Path, *, overwrite: bool = False) -> None:
    """FILE.md, FILE.html or FILE.json. OutputError where it is there already or cannot be written."""
    check_file(path, overwrite=overwrite)
    try:
        write_bytes(path, WRITERS[path.suffix](found))
    except OSError as e:
        raise OutputError(f"cannot write {path}: {e.strerror}", fix="--out with a file that can be written") from e


def check_file(path: Path, *, overwrite: bool) -> None:
    """SpecError for another ending than those that can be written, OutputError for a file that would be lost."""
    if path.suffix not in WRITERS:
        raise SpecError(
            f"--out {str(path)!r}: nothing is written with that ending", fix=f"FILE{', FILE'.join(WRITERS)}"
        )
    if os.path.lexists(path) and not (overwrite and path.is_file()):
        raise OutputError(f"{path} is there already", fix="--out with another name; --overwrite replaces a file")
    if not path.absolute().parent.is_dir():
        raise OutputError(
            f"cannot write {path}: its folder is not there", fix="--out with a file in a folder that is there"
        )


def figures(out: Path) -> RunFigures:
    """Of one run, from its records. DataError as `compare` has it."""
    if not out.is_dir():
        raise DataError(f"{out} is no folder", fix=ANOTHER)
    folder = OutputFolder(out)
    if not folder.manifest.exists():
        raise DataError(f"{out} holds no run: there is no {folder.manifest.name} in it", fix=ANOTHER)
    manifest = folder.read_run_manifest()
    report, bench = read(Report, folder.report), _bench(out)
    require_classifier(report.model.timm_name, "compare")
    timed = bench if bench is not None and bench.bundle_sha256 == report.bundle_sha256 else None
    targets = report.targets
    return RunFigures(
        folder=str(out),
        erq_export=report.erq_export,
        bundle_sha256=report.bundle_sha256,
        verdict=verdict(report, timed),
        problems=problems(report, timed),
        model=report.model.timm_name,
        weights=report.model.weights,
        weights_sha256=report.model.weights_sha256,
        bits=str(report.quantization.bits),
        mean_weight_bits=mean_weight_bits(report),
        method=report.quantization.method,
        attention=report.quantization.attention,
        targets=report.targets_asked,
        n_calibrated=report.data.n_images,
        pixels_sha256=report.data.pixels_sha256,
        layer_error=statistics.fmean(layer.statistics.error for layer in report.layers) if report.layers else None,
        held_out=_held_out(report, manifest),
        parity={
            name: Apart(relative_l2=t.parity.model.relative_l2, floor=t.parity.model.floor.relative_l2)
            for name, t in targets.items()
            if t.parity is not None
        },
        graph_bytes={name: target.bytes for name, target in targets.items()},
        engine_bytes={name: t.engine.bytes for name, t in targets.items() if t.engine is not None},
        calibration=next((cost for cost in manifest.timings if cost.name == "calibrate"), None)
        or next((cost for cost in report.stages if cost.name == "calibrate"), None),
        speed=_speed(report, timed),
        processor=report.machine.get("processor", "unknown"),
    )


def differences(runs: Sequence[RunFigures]) -> Iterator[str]:
    """What is not the same though figures stand side by side, and which figures that concerns."""
    told: tuple[tuple[str, Callable[[RunFigures], object], str], ...] = (
        ("model", lambda run: run.model, "no figure says anything of bits or methods alone"),
        ("weights", lambda run: (run.weights, run.weights_sha256), "accuracy and errors are those of other models"),
        ("held-out images", lambda run: run.held_out and run.held_out.images_sha256, "accuracy is not comparable"),
        ("calibration images", lambda run: run.pixels_sha256, "part of a difference is the images'"),
        ("processor", lambda run: run.processor, "costs and speed are those of other machines"),
        ("version of erq-export", lambda run: run.erq_export, "part of a difference may be the code's"),
    )
    for what, of, then in told:
        values = [of(run) for run in runs]
        others = [run.folder for run, value in zip(runs, values, strict=True) if value != values[0]]
        if others:
            yield f"Not the same {what} as in {runs[0].folder}: {', '.join(others)}; {then}."


def _bench(out: Path) -> Bench | None:
    path = out / BENCH
    return read(Bench, path) if path.exists() else None


def _held_out(report: Report, manifest: RunManifest) -> HeldOut | None:
    found = report.accuracy
    if found is None:
        return None
    return HeldOut(
        n_images=found.n_images,
        images_sha256=manifest.images.get("held out"),
        outputs=found.outputs,
        float_top1=found.float_top1,
        reference=found.reference,
        graphs=found.graphs,
    )


def _speed(report: Report, bench: Bench | None) -> dict[str, Speedup]:
    """By runner, batch and threads as the benchmark has it; else what the run itself measured, with its quartiles."""
    if bench is not None:
        return {
            f"{line.name}, batch {line.batch}" + f", {line.threads} threads" * (line.threads > 0): line.speedup
            for line in bench.lines
            if line.role == "ours" and line.inputs == "resident" and line.speedup is not None
        }
    if report.latency is None:
        return {}
    at = f"batch {report.latency.batch}, {report.latency.threads} threads (quartiles)"
    than = next(iter(report.latency.timings), "float")
    return {
        f"{name} in onnxruntime, {at}": Speedup(than=than, ratio=ratio.median, low=ratio.q25, high=ratio.q75)
        for name, ratio in report.latency.ratios.items()
    }
