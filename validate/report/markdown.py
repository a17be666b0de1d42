"""The report: what was computed, in which precision, how exact, how fast, in plain words and in figures."""

from collections.abc import Sequence
from typing import Any

REPORT_FORMAT = 1


def headline(report: dict[str, Any]) -> list[str]:
    """The report's sentences, most important first. A warning about random weights is always the first."""
    said = []
    model, quant = report["model"], report["quant"]
    if model["weights"] == "random":
        said.append("Random weights (--no-pretrained): every accuracy figure in this report means nothing.")
    layers = report["layers"]
    said.append(
        f"{model['timm_name']} ({_weights(model)}), {len(layers)} layers quantized to {quant['bits']} with "
        f"{quant['method']} from {report['data']['n_images']} images."
    )
    said += _accuracy_words(report["accuracy"])
    for name, target in report["targets"].items():
        said += _target_words(name, target)
        said += _attention_words(name, target, quant["options"]["attention_bits"])
    if "reference" in quant["targets"]:
        said.append(_reference_words(report))
    said += _speed_words(report["latency"])
    said += [f"Not verified here: {text}" for text in report["not_verified"]]
    said += [f"PROBLEM: {text}" for text in report["problems"]]
    return said


def _weights(model: dict[str, Any]) -> str:
    return {
        "random": "random weights",
        "bundled": "trained on scikit-learn's digits",
        "checkpoint": f"checkpoint {str(model['weights_sha256'])[:12]}",
        "pretrained": "timm's pretrained weights",
        "module": "the caller's own module",
    }[model["weights"]]


def _accuracy_words(accuracy: dict[str, Any] | None) -> list[str]:
    if accuracy is None:
        return ["Accuracy was not measured: no labelled images (--val DIR)."]
    top1 = accuracy["top1"]
    words = [
        f"Top-1 on {accuracy['n_images']} held-out images: {top1['float']:.2f} % in float32, "
        f"{top1['reference']:.2f} % as the fake-quant reference."
    ]
    words += [
        f"The {name} graph in ONNX Runtime: {top1[name]:.2f} %, same class as the reference on "
        f"{accuracy['agreement'][name]:.2f} % of the images."
        for name in top1
        if name not in ("float", "reference")
    ]
    return words


def _target_words(name: str, target: dict[str, Any]) -> list[str]:
    claims, engine, parity = target["claims"], target.get("engine"), target.get("parity")
    words = [
        f"{name}: {claims['int8_gemm']} layers claimed as INT8 GEMM in {target['container']} containers; "
        f"{_size_words(target)}."
    ]
    if parity is not None:
        words.append(f"{name}: {parity['says']}")
    if engine is not None:
        plan = engine["plan"]
        words.append(
            f"{name}: {engine['package']} {engine['version']} compiled {plan['int8_gemm']} INT8 GEMMs, "
            f"{plan['fp_gemm']} floating-point GEMMs, {plan['int8_attention']} fused INT8 and {plan['fp_attention']} fused "
            f"floating-point attentions for compute capability {', '.join(engine['compute_capabilities']) or 'of this GPU'}; "
            f"engine {engine['bytes'] / 2**20:.1f} MiB."
        )
    return words


def _attention_words(name: str, target: dict[str, Any], bits: int) -> list[str]:
    """In which precision attention's products were designed, what carries them, and what was compiled or run."""
    claims, engine = target["claims"], target.get("engine")
    if not claims["int8_attention"]:
        words = [f"{name}: attention is not quantized: q, k, v and softmax stay {target['carrier']} in all blocks."]
    else:
        run = target["attention"]
        if engine is not None:
            n = sum(found == "int8" for found in run.values())
            done = f"compiled as fused INT8 attention in {n}, not executed"
        elif run:
            done = "ONNX Runtime ran the two products as " + ", ".join(sorted(set(run.values())))
        else:
            done = "not compiled here"
        words = [
            f"{name}: attention of {claims['int8_attention']} blocks in integers: q, k, v and softmax designed with {bits} "
            f"bits, carried in {target['container']}; {done}."
        ]
    unfused = [] if engine is None else engine["unfused"]
    return [*words, *(f"{name}: no fused attention in {text}." for text in unfused)]


def _reference_words(report: dict[str, Any]) -> str:
    rows = report["price"]
    if not rows:
        return "reference: the scheme above is simulated in PyTorch; no graph was written."
    key, unit = ("top1", " %") if "top1" in rows[0] else ("logits_error", "")
    what = "top-1" if key == "top1" else "the logits' error"
    first, last = (row[key]["mean"] for row in (rows[0], rows[-1]))
    return (
        f"reference: from {rows[0]['change']} to what is deployed, {what} goes from {first:.4g}{unit} to {last:.4g}{unit} "
        f"(mean of {len(rows[0][key]['all'])} seeds; the price of each choice is in the table)."
    )


def _size_words(target: dict[str, Any]) -> str:
    """The graph as written, and what its tensors take in each form."""
    sizes = {name: f"{n / 2**20:.2f}" for name, n in target["sizes"].items()}
    packed = (
        f", {sizes['int4']} with weights packed in INT4" if target["sizes"]["int4"] != target["sizes"]["int8"] else ""
    )
    written = f" with {target['packed']} weights in INT4" if target["packed"] else ""
    return (
        f"{target['bytes'] / 2**20:.1f} MiB graph{written}; its tensors take {sizes['float32']} MiB in float32, "
        f"{sizes['int8']} with int8 weights{packed}"
    )


def _speed_words(latency: dict[str, Any] | None) -> list[str]:
    if latency is None:
        return []
    ratio = latency["ratio"]
    return [
        f"ONNX Runtime on this CPU, batch {latency['batch']}, {latency['threads']} threads, interleaved: "
        f"{latency['p50_ms']['float']:.2f} ms in float32, {latency['p50_ms']['onnx']:.2f} ms quantized: "
        f"{ratio['median']:.2f} × as fast (quartiles {ratio['q25']:.2f} to {ratio['q75']:.2f})."
    ]


def markdown(report: dict[str, Any]) -> str:
    """The whole report as Markdown."""
    parts = ["\n".join(headline(report)).replace("\n", "  \n")]
    parts.insert(1, f"# {report['model']['name']} {report['quant']['bits']}")
    if report["comparison"]:
        parts.append("## Comparison\n\n" + comparison_table(report["comparison"]))
    if report["price"]:
        parts.append(
            "## From the published scheme to what is deployed\n\n" + table(PRICE_HEAD, price_rows(report["price"]))
        )
    parts.append("## Cost of each stage\n\n" + stage_table(report["stages"]))
    parts.append("## Layers\n\n" + layer_table(report))
    return "\n\n".join(parts) + "\n"


def comparison_table(rows: Sequence[dict[str, Any]]) -> str:
    """One line a setting: mean ± standard deviation and range over the seeds."""

    def cell(figure: dict[str, Any]) -> str:
        return f"{figure['mean']:.2f} ± {figure['std']:.2f} ({figure['min']:.2f} … {figure['max']:.2f})"

    body = [
        [
            row["bits"],
            row["method"],
            str(len(row["top1_reference"]["all"])),
            cell(row["top1_reference"]),
            cell(row["top1_onnx"]) if "top1_onnx" in row else "",
            f"{row['agreement']['mean']:.2f}" if "agreement" in row else "",
            f"{row['layer_error']['mean']:.4f}",
        ]
        for row in rows
    ]
    head = ["bits", "method", "seeds", "top-1 % fake-quant", "top-1 % ONNX Runtime", "agreement %", "layer error"]
    return table(head, body)


PRICE_HEAD = ("then", "seeds", "top-1 %", "logits error", "layer error")


def price_rows(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """One line a choice, mean ± standard deviation over the seeds. Every line keeps the choices of those above it."""

    def cell(figure: dict[str, Any] | None, digits: int) -> str:
        return "" if figure is None else f"{figure['mean']:.{digits}f} ± {figure['std']:.{digits}f}"

    return [
        [
            row["change"],
            str(len(row["layer_error"]["all"])),
            cell(row.get("top1"), 2),
            cell(row["logits_error"], 4),
            cell(row["layer_error"], 5),
        ]
        for row in rows
    ]


def stage_table(stages: Sequence[dict[str, Any]]) -> str:
    return table(
        ["stage", "wall s", "peak MiB"], [[s["name"], f"{s['wall_s']:.1f}", f"{s['peak_mib']:.0f}"] for s in stages]
    )


def layer_table(report: dict[str, Any]) -> str:
    """Per layer: bits designed, container, what each target runs, output error on the calibration rows."""
    targets = report["targets"]
    body = [
        [
            layer["path"],
            f"w{layer['w_bits']}a{layer['a_bits']}",
            *(f"{t['container']}: {t['executed'].get(layer['path'], 'not read')}" for t in targets.values()),
            f"{layer['error_inputs']:.5f}",
            f"{layer['error_nearest']:.5f}",
            f"{layer['error']:.5f}",
        ]
        for layer in report["layers"]
    ]
    head = ["layer", "designed", *targets, "error: inputs only", "error: then rounded", "error: as solved"]
    return table(head, body)


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
