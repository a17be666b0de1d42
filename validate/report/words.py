"""A report in sentences: what was computed, in which precision, how exact, how fast."""

from collections.abc import Iterator, Sequence

from erq_export.contract.accuracy import Accuracy, Judged, Share
from erq_export.contract.identity import Identity
from erq_export.contract.manifest import told
from erq_export.contract.parity import in_words
from erq_export.contract.report import Latency, PriceRow, Report, TargetReport

from ..sanity import doubt
from . import detection
from .detection import is_detector
from .verdict import verdict

VALUES = ".attn.proj"  # a rotated attention is named by the Linear that reads its values


def headline(report: Report) -> tuple[str, ...]:
    """The report's sentences, most important first: the verdict, which begins with a warning where weights are random."""
    return tuple(_sentences(report))


def _sentences(report: Report) -> Iterator[str]:
    model, quantization = report.model, report.quantization
    yield verdict(report)
    if report.accuracy is not None and (text := doubt(report.accuracy)):
        yield f"WARNING: {text}"
    yield (
        f"{model.timm_name} ({_weights(model)}), {len(report.layers)} layers quantized to {quantization.bits.brief} with "
        f"{quantization.method} from {report.data.n_images} images."
    )
    if report.rotated:
        yield _basis(report.rotated)
    if is_detector(report):
        yield from detection.sentences(report)
        yield from (f"Not verified here: {text}" for text in report.not_verified)
        yield from (f"PROBLEM: {text}" for text in report.problems)
        return
    yield from _accuracy(report.accuracy)
    for name, target in report.targets.items():
        yield from _target(name, target)
        yield from _attention(name, target, quantization.options.get("attention_bits"))
    if "reference" in report.targets_asked:
        yield _price(report.price)
    if report.latency is not None:
        yield _speed(report.latency)
    yield from (f"Not verified here: {text}" for text in report.not_verified)
    yield from (f"PROBLEM: {text}" for text in report.problems)


def _basis(rotated: Sequence[str]) -> str:
    n_values = sum(name.endswith(VALUES) for name in rotated)
    counts = {"residual streams": len(rotated) - n_values, "attentions' values": n_values}
    what = " and ".join(f"{n} {noun}" for noun, n in counts.items() if n)
    return f"Rotated, by the weights around them, so that no channel stands out (-O rotate): {what}."


def _weights(model: Identity) -> str:
    return {
        "random": "random weights",
        "bundled": "trained on scikit-learn's digits"
        if model.family != detection.FAMILY
        else "trained on drawn scenes",
        "checkpoint": f"checkpoint {str(model.weights_sha256)[:12]}",
        "pretrained": "timm's pretrained weights",
        "module": "the caller's own module",
    }[model.weights]


def _accuracy(accuracy: Accuracy | None) -> Iterator[str]:
    if accuracy is None:
        yield "Accuracy was not measured: no held-out images (--val DIR)."
        return
    n, reference = accuracy.n_images, accuracy.reference
    if accuracy.float_top1 is not None and reference.top1 is not None:
        yield (
            f"Top-1 on {n} held-out images: {_share(accuracy.float_top1)} in float32, {_share(reference.top1)} as the "
            f"fake-quant reference ({_paired(reference)}; 95 % confidence in brackets)."
        )
    elif reference.agreement is not None:
        yield (
            f"On {n} held-out images without labels the fake-quant reference has the float model's class on "
            f"{_share(reference.agreement)} (95 % confidence in brackets)."
        )
    yield _outputs("The fake-quant reference", reference, accuracy)
    for name, graph in accuracy.graphs.items():
        what = _what(name)
        if graph.top1 is not None:
            yield (
                f"{what}: {graph.top1.value:.2f} %, same class as the reference on "
                f"{accuracy.as_reference[name].value:.2f} % of the images."
            )
        elif graph.agreement is not None:
            yield (
                f"{what}: the float model's class on {graph.agreement.value:.2f} %, the reference's on "
                f"{accuracy.as_reference[name].value:.2f} % of the images."
            )
        else:
            yield _outputs(what, graph, accuracy)


def _what(name: str) -> str:
    """ "onnx" is a target's graph in ONNX Runtime; "onnx in openvino" and "tensorrt engine" name what runs it."""
    if name.endswith(" engine"):
        return f"The {name}"
    target, _, runner = name.partition(" in ")
    return f"The {target} graph in {runner or 'ONNX Runtime'}"


def _outputs(what: str, judged: Judged, accuracy: Accuracy) -> str:
    n = "" if accuracy.n_compared == accuracy.n_images else f", on {accuracy.n_compared} of the images"
    here = f" of {accuracy.n_images} held-out images" if accuracy.outputs == "features" else ""
    return (
        f"{what}: {accuracy.outputs}{here} are {in_words(judged.error)} from the float model's (relative L2), cosine "
        f"{judged.cosine:.4f}{n}."
    )


def _share(share: Share) -> str:
    return f"{share.value:.2f} % ({share.low:.1f} to {share.high:.1f})"


def _paired(judged: Judged) -> str:
    """How many images changed sides, and whether that could be chance."""
    pair = judged.paired
    if pair is None or not pair.lost + pair.gained:
        return "no image lost or gained"
    sure = "more than chance" if pair.p < 0.05 else "no more than chance"
    return f"{pair.lost} images lost, {pair.gained} gained: {sure}, McNemar's p = {pair.p:.2g}"


def _target(name: str, target: TargetReport) -> Iterator[str]:
    yield (f"{name}: {told(target.claims.gemm, 'GEMMs')} claimed, in {target.container} containers; {_size(target)}.")
    if target.parity is not None:
        yield f"{name}: {target.parity.says()}"
    if (engine := target.engine) is not None:
        plan = engine.plan
        yield (
            f"{name}: {engine.package} {engine.version} compiled {told(plan.gemm, 'GEMMs')} "
            f"and {told(plan.attention, 'fused attentions')} for compute capability "
            f"{', '.join(engine.compute_capabilities) or 'of this GPU'}; "
            f"engine {engine.bytes / 2**20:.1f} MiB."
        )


def _size(target: TargetReport) -> str:
    """The graph as written, and what its tensors take in each form."""
    float32, int8, int4 = (f"{n / 2**20:.2f}" for n in (target.sizes.float32, target.sizes.int8, target.sizes.int4))
    packed = f", {int4} with weights packed in INT4" if target.sizes.int4 != target.sizes.int8 else ""
    written = f" with {target.packed} weights in INT4" if target.packed else ""
    return (
        f"{target.bytes / 2**20:.1f} MiB graph{written}; its tensors take {float32} MiB in float32, "
        f"{int8} with int8 weights{packed}"
    )


def _attention(name: str, target: TargetReport, bits: object) -> Iterator[str]:
    """In which precision attention's products were designed, what carries them, and what was compiled or run."""
    engine, run = target.engine, target.attention
    if not target.claims.attention.get("int8"):
        yield f"{name}: attention is not quantized: q, k, v and softmax stay {target.carrier} in all blocks."
    else:
        if engine is not None:
            n = sum(precision == "int8" for precision in run.values())
            done = f"compiled as fused INT8 attention in {n}, not executed"
        elif run:
            done = "ONNX Runtime ran the two products as " + ", ".join(sorted(set(run.values())))
        else:
            done = "not compiled here"
        yield (
            f"{name}: attention of {target.claims.attention['int8']} blocks in integers: q, k, v and softmax designed with "
            f"{bits} bits, carried in {target.container}; {done}."
        )
    yield from (f"{name}: no fused attention in {text}." for text in (() if engine is None else engine.unfused))


def _price(rows: tuple[PriceRow, ...]) -> str:
    if not rows:
        return "reference: the scheme above is simulated in PyTorch; no graph was written."
    first, last = rows[0], rows[-1]
    if first.top1 is not None and last.top1 is not None:
        what, unit, before, after = "top-1", " %", first.top1, last.top1
    else:
        what, unit, before, after = "the logits' error", "", first.logits_error, last.logits_error
    return (
        f"reference: from {first.change} to what is deployed, {what} goes from {before.mean:.4g}{unit} to "
        f"{after.mean:.4g}{unit} (mean of {len(before.all)} seeds; the price of each choice is in the table)."
    )


def _speed(latency: Latency) -> str:
    """The last runner beside the first, which is the baseline."""
    (first, *_, last), ratio = latency.timings.values(), list(latency.ratios.values())[-1]
    return (
        f"ONNX Runtime on this CPU, batch {latency.batch}, {latency.threads} threads, interleaved: "
        f"{first.p50_ms:.2f} ms in float32, {last.p50_ms:.2f} ms quantized: "
        f"{ratio.median:.2f} × as fast (quartiles {ratio.q25:.2f} to {ratio.q75:.2f})."
    )
