"""A benchmark in plain words: where integers lose and why, what to try, and what may have disturbed the figures."""

from collections.abc import Iterator, Sequence

from msgspec import structs

from erq_export.contract.bench import Bench, Line

LAUNCH_BOUND = 1.5  # a batch of several images in less than this many times the time of one: the GPU was waiting
BUSY = 1.0  # processes beside the measurement, on average


def notes(bench: Bench) -> Bench:
    """The benchmark with its notes, most important first."""
    return structs.replace(bench, notes=tuple(_notes(bench)))


def _notes(bench: Bench) -> Iterator[str]:
    if bench.parts:
        given = ", ".join(f"{part} {n}" for part, n in bench.parts.items())
        yield (
            f"Parts of the detector were timed by themselves, given what one picture gives them at most (the batch: {given}), "
            "and images/s counts that. Proposals, pooling and suppression lie between the parts and are not in these times."
        )
        if any(line.role == "ours" and line.runner == "engine" for line in bench.lines):
            yield "Engines of a detector have no float16 twin: their ratios are to float32."
    ours = [line for line in bench.lines if line.role == "ours" and line.inputs == "resident"]
    lost = [line for line in ours if line.speedup is not None and line.speedup.low <= 1]
    if lost:
        names = "; ".join(f"{_where(line)}: {line.speedup.told}" for line in lost if line.speedup is not None)
        reasons = list(_reasons(bench, lost))
        yield f"Not shown to be faster than the float twin: {names}." + " Why, and what to try:" * bool(reasons)
        yield from reasons
    yield from _same_speed(bench)
    yield from _disturbed(bench)


def _reasons(bench: Bench, lost: Sequence[Line]) -> Iterator[str]:
    on_cpu = [line for line in lost if line.device == "cpu"]
    if on_cpu and not bench.vnni:
        yield (
            "This CPU has no instruction for integer products (VNNI or AMX): they cost as much as float ones. Try a CPU "
            "that has them; here the smaller file is what is gained."
        )
    if bench.attention == "fp16" and any(not bench.parts or "/body" in line.subject for line in lost):
        yield (
            "Attention's two products and its softmax stay in float, and what is quantized around them has to be turned to "
            "float and back." + " Try --attention int8, and look at accuracy." * (not bench.parts)
        )
    batches = sorted({line.batch for line in lost})
    if batches[0] == 1 and not bench.parts:
        better = [line for line in _others(bench, lost) if line.batch > 1 and line.speedup and line.speedup.low > 1]
        yield (
            "A batch of one gives each product too few rows to pay for the quantizers around it. "
            + (
                f"Batch {better[0].batch} is faster here: {better[0].speedup.told}."
                if better and better[0].speedup
                else ""
            )
            + ("" if better else "Try --batch with larger batches, or fewer --threads.")
        )
    for line in lost:
        if _launch_bound(bench, line):
            yield (
                f"{_where(line)}: more images take hardly more time, so the GPU waits for its kernels to be launched. Try "
                "larger batches, or a CUDA graph of the engine."
            )


def _same_speed(bench: Bench) -> Iterator[str]:
    if bench.bits.a < 8:
        yield (
            f"Activations of {bench.bits.a} bits are carried in 8-bit integers and run at their speed, on every target here: "
            f"w{bench.bits.w}a8 is as fast as {bench.bits.brief} and more accurate."
        )
    integer = {"i8", "u8", "i4", "u4"}
    for line in bench.lines:
        if (
            line.role == "ours"
            and line.products
            and line.inputs == "resident"
            and line.batch == _least_batch(bench, line)
        ):
            whole = sum(line.products.values())
            n = sum(count for kind, count in line.products.items() if kind in integer)
            yield f"{_where(line)}: {n} of {whole} products in integers, as its runtime model says."


def _disturbed(bench: Bench) -> Iterator[str]:
    for when, state in (("before", bench.before), ("after", bench.after)):
        for gpu in state.gpus:
            if gpu.throttled:
                yield f"{gpu.name} held its clocks down {when} the measurement: {', '.join(gpu.throttled)}."
    restless = [line for line in bench.lines if not line.settled]
    if restless:
        yield (
            f"{len(restless)} of {len(bench.lines)} lines had not settled in the end; ratios are taken within "
            "rounds, times are to be read with care."
        )
    if (load := bench.before.load) is not None and load > BUSY:
        yield f"The machine was busy before the measurement began: {load:.1f} processes wanted to run."
    for reason in dict.fromkeys(bench.skipped.values()):
        yield f"Not run: {', '.join(name for name, why in bench.skipped.items() if why == reason)}: {reason}."


def _launch_bound(bench: Bench, line: Line) -> bool:
    """Does a larger batch take hardly longer, on a GPU?"""
    if line.device == "cpu":
        return False
    larger = [other for other in bench.lines if _same(other, line) and other.batch > line.batch]
    return any(other.p50_ms < LAUNCH_BOUND * line.p50_ms for other in larger)


def _least_batch(bench: Bench, line: Line) -> int:
    return min(other.batch for other in bench.lines if other.name == line.name)


def _others(bench: Bench, lost: Sequence[Line]) -> list[Line]:
    return [line for line in bench.lines if line.role == "ours" and line.inputs == "resident" and line not in lost]


def _same(a: Line, b: Line) -> bool:
    return (a.name, a.threads, a.inputs) == (b.name, b.threads, b.inputs)


def _where(line: Line) -> str:
    threads = f", {line.threads} threads" if line.device == "cpu" else ""
    return f"{line.name}, batch {line.batch}{threads}"
