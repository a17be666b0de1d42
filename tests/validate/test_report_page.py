"""report.html says what report.json says, figure by figure, needs nothing else, and runs nothing."""

import json
import math
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import reports
from html_page import Page
from msgspec import structs

from erq_export.contract.bench import Bench
from erq_export.contract.histograms import Histogram
from erq_export.contract.parity import ParityReport
from erq_export.contract.records import Record, decode, encode
from erq_export.contract.report import Report
from erq_export.validate.report.html import html
from erq_export.validate.report.markdown import markdown
from erq_export.validate.report.verdict import verdict

EVIL = """<script>alert('x')</script> "quoted" & <img src=http://e.org/x onerror=alert(1)> $x_1^2$ |"""
COMMAND = ("demo", "--bits", "w4a4", "--out", "my run")
NUMBER = re.compile(r"(?<![\w.])[-−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[+-]?\d+)?(?![\w])")
# Numbers of sentences that are the same in every report.
FIXED = {"95", "8", "0", "1"}
# Leaves of the record that the page does not show: what a figure was made of, and what stands in another file.
LEFT_OUT = (
    *(r"\.all\[", r"\.min$", r"\.max$", r"draws\[", r"relative_max$", r"\.of_medians$", r"n_rows$", r"max_lsb$"),
    *(r"^price\[.*options", r"^model\.preprocess", r"^model\.model_args", r"^quantization\.(rules|options)"),
    *(r"\.engine\.(?!bytes)", r"parity\.ops", r"parity\.between\.relative_l2", r"operands\[.*max", r"perturbation$"),
    *(r"parity\.model\.factor$", r"histograms.*counts\[", r"histograms.*width$", r"^comparison.*std$", r"packed$"),
    *(r"\.claims\.", r"\.d_bits$", r"layers\[\d+\]\.statistics\.n_rows"),
)


def spread(value: Any, seed: int) -> Any:
    """Plain data with every float moved a little, each by another amount: a figure then tells which one it is."""
    if isinstance(value, dict):
        return {name: spread(inner, seed * 31 + i + 1) for i, (name, inner) in enumerate(value.items())}
    if isinstance(value, list):
        return [spread(inner, seed * 37 + i + 1) for i, inner in enumerate(value)]
    if isinstance(value, float) and value:
        return value * (1 - 0.2 * ((seed * 2654435761) % 9973) / 9973)
    return value


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, f"{path}.{name}".strip("."))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from leaves(inner, f"{path}[{i}]")
    else:
        yield path, value


@pytest.fixture(scope="module")
def record() -> Report:
    """The example with figures of which no two are alike."""
    plain = spread(json.loads(encode(reports.report())), 7)
    plain["latency"]["batch"] = 1
    return decode(Report, json.dumps(plain).encode(), source="report.json")


@pytest.fixture(scope="module")
def timed() -> Bench:
    return decode(Bench, json.dumps(spread(json.loads(encode(reports.bench())), 11)).encode(), source="bench.json")


@pytest.fixture(scope="module")
def page(record: Report, timed: Bench) -> Page:
    return Page(html(record, timed, command=COMMAND))


def forms(value: float) -> set[str]:
    """Every way in which a page may write a number: digits, per cent, MiB, dB, scientific."""
    scaled = [value, 100 * value, value / 2**20]
    if 0 < value < 1:
        scaled.append(-10 * math.log10(value))
    found = {f"{v:.{digits}f}" for v in scaled for digits in range(6)} | {f"{v:,}" for v in (value,)}
    found |= {f"{value:.{digits}e}" for digits in range(4)} | {f"{value:.3g}", f"{value:g}", f"{value:.4g}", f"{value}"}
    return found


def derived(report: dict[str, Any]) -> list[float]:
    """What the page makes of several figures: sums over layers, shares, ends of grids."""
    found: list[float] = [len(report["layers"]), len(report["problems"]), len(report["problems"]) - 1]
    for target in report["targets"].values():
        parity = target["parity"]
        codes = [p["codes"] for p in (*parity["layers"], *parity["operands"])]
        sums = [p["accumulators"] for p in parity["layers"]] + [p["sums"] for p in parity["products"]]
        different = sum(parity["weights"]["different"].values())
        wrong = [sum(c["mismatches"] for c in codes), sum(s["mismatches"] for s in sums)]
        found += [sum(c["n"] for c in codes), sum(s["n"] for s in sums), *wrong, different + sum(wrong), different]
        found += [len(parity["layers"]), len(parity["between"]["relative_l2"]), len(parity["model"]["floor"]["draws"])]
        found += [max(parity["between"]["relative_l2"].values())]
    story = report["story"]
    found += [(story["error"] - cost["raised"]) / story["error"] for cost in story["sensitivity"]]
    for layer in report["histograms"]["layers"].values():
        weights, inputs = layer["weights"], layer["inputs"]
        n = sum(inputs["codes"]["counts"])
        ends = [h["first"] + len(h["counts"]) * h["width"] - 1 for h in (weights, inputs["codes"])]
        found += [n, sum(weights["counts"]), inputs["beyond"] / n, *ends]
        found += [ends[1] * inputs["scale"], inputs["codes"]["first"] * inputs["scale"]]
    return found


def test_no_figure_on_the_page_is_another_than_those_of_the_records(record: Report, timed: Bench, page: Page) -> None:
    report, bench = json.loads(encode(record)), json.loads(encode(timed))
    every = [leaf for _, leaf in (*leaves(report), *leaves(bench))]
    words = " ".join([*(leaf for leaf in every if isinstance(leaf, str)), *(str(k) for k in keys(report)), *COMMAND])
    known = FIXED | set(NUMBER.findall(words))
    for number in (*every, *derived(report)):
        if isinstance(number, (int, float)):
            known |= forms(number)
    text = "\n".join(page.text)
    found = NUMBER.findall(text)
    assert len(found) > 150
    assert [number for number in found if number not in known] == []


def keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield name
            yield from keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from keys(inner)


def test_every_figure_of_the_record_is_on_the_page(record: Report, page: Page) -> None:
    shown = set(NUMBER.findall("\n".join(page.text)))
    for path, value in leaves(json.loads(encode(record))):
        if isinstance(value, float) and not any(re.search(pattern, path) for pattern in LEFT_OUT):
            assert forms(value) & shown, (path, value)


def test_the_figures_stand_where_they_belong(record: Report, page: Page) -> None:
    """Cells made here from the JSON alone."""
    report = json.loads(encode(record))

    def share(s: dict[str, float]) -> str:
        return f"{s['value']:.2f} ({s['low']:.1f} … {s['high']:.1f})"

    accuracy, table = report["accuracy"], page.tables["accuracy"][0]
    assert table.rows[1][:3] == ["float32", share(accuracy["float_top1"]), share(accuracy["float_top5"])]
    for name, judged, row in (
        ("reference", accuracy["reference"], table.rows[2]),
        ("onnx", accuracy["graphs"]["onnx"], table.rows[3]),
    ):
        assert row[0] == name
        assert row[1:4] == [share(judged[k]) for k in ("top1", "top5", "agreement")]
        assert row[5:] == [f"{judged['error']:.1e}", f"{judged['cosine']:.4f}"]
    rows = {row[0]: row for row in page.tables["parity"][0].rows}
    model = report["targets"]["onnx"]["parity"]["model"]
    assert rows["whole model"][2:4] == [f"{model['relative_l2']:.1e}", f"{model['limit']:.1e}"]
    assert rows["whole model, cosine"][2:4] == [f"{model['cosine']:.4f}", f"{model['least_cosine']:.4f} at least"]
    assert (rows["weights"][2], rows["weights"][-1], rows["activation codes, same input"][-1]) == (
        "3",
        "FAILED",
        "holds",
    )
    for name, row in zip(("float", "onnx"), page.tables["latency"][0].rows[1:], strict=True):
        times = report["latency"]["timings"][name]
        assert row[:6] == [name, *(f"{times[k]:.3f}" for k in ("p50_ms", "p90_ms", "p99_ms", "mean_ms", "min_ms"))]
    ratio = report["latency"]["ratios"]["onnx"]
    assert page.tables["latency"][0].rows[2][6] == f"{ratio['median']:.2f} × ({ratio['q25']:.2f} … {ratio['q75']:.2f})"
    for block, row in zip(report["story"]["depth"], page.tables["depth"][0].rows[1:], strict=True):
        errors = (block[k] for k in ("entering", "weights", "activations", "both"))
        assert row[:5] == [block["path"], *("exact" if not e else f"{-10 * math.log10(e):.1f}" for e in errors)]
    (cost,), error = report["story"]["sensitivity"], report["story"]["error"]
    back = f"{100 * (error - cost['raised']) / error:.1f} %"
    assert page.tables["sensitivity"][0].rows[1] == [
        cost["path"], "w4a4", "768", f"{cost['alone']:.2e}", f"{cost['raised']:.2e}", back
    ]  # fmt: skip
    statistics = report["layers"][0]["statistics"]
    errors = [f"{statistics[k]:.5f}" for k in ("error_inputs", "error_nearest", "error")]
    assert page.tables["layers"][0].rows[1] == [reports.LAYER, "w4a4", "uint8: MatMulIntegerToFloat", *errors, "", ""]
    sizes = report["targets"]["onnx"]["sizes"]
    mib = [
        f"{n / 2**20:.2f}"
        for n in (report["targets"]["onnx"]["bytes"], *(sizes[k] for k in ("float32", "int8", "int4", "written")))
    ]
    assert page.tables["sizes"][0].rows[1] == ["onnx", *mib, "1.00"]
    stage = report["stages"][0]
    assert page.tables["stages"][0].rows[1] == [stage["name"], f"{stage['wall_s']:.1f}", f"{stage['peak_mib']:.0f}"]
    assert ["onnx", "product", "w4a4", "uint8", "MatMulIntegerToFloat", "yes", "1"] in page.tables["precision"][0].rows
    made = dict(row for table in page.tables["environment"] for row in table.rows)
    assert made["torch"] == report["versions"]["torch"]
    assert made["bundle"] == f"sha256 {report['bundle_sha256']}"
    step = report["histograms"]["layers"][reports.LAYER]["inputs"]["scale"]
    assert page.tables["histograms"][0].rows[1][1:5] == ["8", "-8 … -5", "8", f"{step:.3g}"]


def test_the_benchmark_stands_where_it_belongs(timed: Bench, page: Page) -> None:
    twin, ours = json.loads(encode(timed))["lines"]
    for line, row in zip((twin, ours), page.tables["speed"][0].rows[1:], strict=True):
        assert row[4:8] == [f"{line[k]:.3f}" for k in ("p50_ms", "p90_ms", "p99_ms")] + [f"{line['images_per_s']:.1f}"]
    gained = ours["speedup"]
    assert row[8] == f"{gained['ratio']:.2f} × ({gained['low']:.2f} … {gained['high']:.2f})"


@pytest.mark.parametrize("bench", [None, reports.bench()], ids=["without", "with benchmark"])
def test_the_verdict_is_the_first_line_of_every_page(bench: Bench | None) -> None:
    report = reports.report()
    said = verdict(report, bench)
    assert said.startswith("FAILED (one")
    assert "top-1 90.00 % against 90.00 % in float32 on 10 images" in said
    assert Page(html(report, bench)).first_line == said
    assert markdown(report, bench).splitlines()[0].rstrip() == said


def test_nothing_is_loaded_and_nothing_runs(page: Page) -> None:
    names = {name for name, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "img", "image", "base", "form", "foreignobject"}
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "srcset", "xlink:href")]
        assert attributes.get("href", "#").startswith("#")
        assert all(place.startswith("#") for place in re.findall(r"url\(([^)]*)", attributes.get("style", "")))
    assert "url(" not in page.style
    assert "@import" not in page.style
    policy = [
        a["content"] for name, a in page.tags if name == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_links_and_references_lead_somewhere_and_no_name_is_used_twice(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    targets = {attributes["href"][1:] for _, attributes in page.tags if "href" in attributes}
    targets |= {m for _, a in page.tags for v in a.values() for m in re.findall(r"url\(#([^)]*)\)", v)}
    assert targets <= set(ids)


def test_text_from_elsewhere_is_text() -> None:
    """Names of layers, runners, classes, machines and versions, whatever they look like."""
    report = reports.report()
    layer, onnx = structs.replace(report.layers[0], path=EVIL), report.targets["onnx"]
    assert report.histograms is not None
    assert report.story is not None
    report = structs.replace(
        report,
        layers=(layer,),
        targets={"onnx": structs.replace(onnx, executed={EVIL: EVIL})},
        machine={EVIL: EVIL},
        headline=("", EVIL),
        problems=(EVIL,),
        histograms=structs.replace(report.histograms, layers={EVIL: report.histograms.layers[reports.LAYER]}),
        story=structs.replace(report.story, depth=(structs.replace(report.story.depth[0], path=EVIL),)),
    )
    bench = reports.bench(reports.line(subject=EVIL), notes=(EVIL,), processor=EVIL)
    text = html(report, bench, command=(EVIL,))
    page = Page(text)
    test_nothing_is_loaded_and_nothing_runs(page)
    assert page.tables["layers"][0].rows[1][0] == EVIL
    assert page.tables["speed"][0].rows[1][0].startswith(EVIL)
    assert "<script" not in text
    assert "<img" not in text
    cells = re.search(r"^\| <script.*$", markdown(report, bench), re.MULTILINE)
    assert cells is not None
    assert len(re.findall(r"(?<!\\)\|", cells[0])) == 12  # eleven columns


def test_equal_records_give_equal_bytes(record: Report, timed: Bench) -> None:
    assert html(record, timed, command=COMMAND) == html(record, timed, command=COMMAND)


def test_the_page_is_complete_without_matplotlib(
    record: Report, timed: Bench, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    drawn = {"accuracy", "speed", "latency", "depth", "sensitivity", "layers", "histograms"}
    assert set(page.pictures) == drawn
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    bare = Page(html(record, timed, command=COMMAND))
    assert set(bare.pictures) == {"histograms"}  # of our own few lines
    assert "".join(bare.text).split() == "".join(page.text).split()
    assert {name: [t.rows for t in tables] for name, tables in bare.tables.items()} == {
        name: [t.rows for t in tables] for name, tables in page.tables.items()
    }


def test_pictures_have_the_pages_colours_and_no_others(record: Report, timed: Bench) -> None:
    pytest.importorskip("matplotlib")
    text = html(record, timed)
    inside = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert "var(--first)" in inside
    assert re.findall(r"#[0-9a-fA-F]{6}\b", inside) == []
    assert "rgb" not in inside


class Bisected(Record, frozen=True, kw_only=True):
    path: str
    off: float


class LaterParity(ParityReport, frozen=True, kw_only=True):
    """Parity as a later version may have it."""

    bisected: tuple[Bisected, ...]


def test_what_parity_learns_later_is_shown_too() -> None:
    report, found = reports.report(), reports.parity()
    fields = {name: getattr(found, name) for name in found.__struct_fields__}
    later = LaterParity(**fields, bisected=(Bisected(path="blocks.7", off=0.125), Bisected(path="blocks.8", off=0.25)))
    target = structs.replace(report.targets["onnx"], parity=later)
    page = Page(html(structs.replace(report, targets={"onnx": target})))
    (table,) = [t for t in page.tables["parity"] if "bisected" in t.caption]
    assert table.rows == [["path", "off"], ["blocks.7", "0.125"], ["blocks.8", "0.25"]]


def test_a_report_of_the_simulated_scheme_alone_has_a_page() -> None:
    report = structs.replace(
        reports.report(), targets={}, latency=None, accuracy=None, story=None, histograms=None, problems=()
    )
    page = Page(html(report))
    assert page.first_line.startswith(
        "Simulated: demo in w4a4 by erq, 1 layer, in PyTorch alone; accuracy not measured"
    )
    assert "parity" not in page.tables


def test_the_page_of_a_large_model_can_be_sent_by_mail() -> None:
    """Fifty layers of 8 bits, as ViT-S has, and two targets: less than 1 MB."""
    report = reports.report()
    assert report.story is not None
    assert report.histograms is not None
    paths = [f"blocks.{i}.{name}" for i in range(12) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    paths += ["patch_embed.proj", "head"]
    counts = Histogram(first=-128, width=4, counts=tuple(10**6 + 7919 * i for i in range(64)))
    one = structs.replace(report.histograms.layers[reports.LAYER], weights=counts)
    assert one.inputs is not None
    one = structs.replace(one, inputs=structs.replace(one.inputs, codes=counts))
    onnx = report.targets["onnx"]
    assert onnx.parity is not None
    layers = tuple(structs.replace(onnx.parity.layers[0], path=path) for path in paths)
    onnx = structs.replace(onnx, parity=structs.replace(onnx.parity, layers=layers))
    report = structs.replace(
        report,
        layers=tuple(structs.replace(report.layers[0], path=path, w_bits=8, a_bits=8) for path in paths),
        targets={"onnx": onnx, "tensorrt-rtx": onnx},
        histograms=structs.replace(report.histograms, layers=dict.fromkeys(paths, one)),
        story=structs.replace(
            report.story,
            depth=report.story.depth * 6,
            sensitivity=tuple(structs.replace(report.story.sensitivity[0], path=path) for path in paths),
        ),
    )
    text = html(report, reports.bench())
    page = Page(text)
    assert len(text.encode()) < 1e6
    assert page.pictures["histograms"] == 2 * 50
    assert [row[0] for row in page.tables["layers"][0].rows[1:]] == paths
