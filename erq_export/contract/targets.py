"""What each target can run, as data: the quantizers are legal for it before the first image is read."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from erq_export.contract.errors import SpecError
from erq_export.contract.records import Record
from erq_export.contract.registry import unknown

Container = Literal["int8", "uint8"]
Carrier = Literal["float32", "float16"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """One row of abilities. `shared` scales, grids and sites must be legal on every target of a run at once."""

    name: str
    says: str  # one line for `erq-export models`
    container: (
        Container | Literal["none"]
    )  # of activations; weights are int8 with zero point 0; of convolutions in ONNX Runtime uint8 around 128
    carrier: Carrier  # of everything that is not quantized
    # per-channel DQ, or one power-of-two DQ and a ratio after the product
    weight_form: Literal["channel", "scalar", "none"]
    package: str | None  # Python package that builds an engine from the graph; None: the graph is the deliverable
    ahead_of_time: bool = False  # builds for named compute capabilities, without a GPU
    int8_head_dims: tuple[int, ...] | None = None  # that INT8 attention stays fused with; None: any
    int8_tokens: int | None = None  # the most tokens that it stays fused with; None: any
    softmax_clip: bool = True  # may a Clip stand behind the softmax? TensorRT's fused attention breaks apart on it
    int4_unpack: Literal["cast", "requantize"] = (
        "cast"  # how packed weights become int8 without losing the integer product
    )

    @property
    def simulated(self) -> bool:
        """Is this no target but PyTorch itself? Without a container there is no graph, no engine and no rule for grids."""
        return self.container == "none"

    @property
    def integers(self) -> Container:
        """The container of activations in a graph. ValueError where the target has no graph."""
        if self.container == "none":
            raise ValueError(f"target {self.name} has no graph")
        return self.container

    @property
    def offset_8bit(self) -> bool:
        """Can 8-bit activations have any zero point? int8 with zero point 0 holds [−128, 127] and no other 8-bit range."""
        return self.container != "int8"


TARGETS: dict[str, Target] = {
    t.name: t
    for t in (
        Target(
            name="onnx",
            says="Q/DQ ONNX for ONNX Runtime on CPU: uint8 activations, int8 weights per channel, float32 carrier",
            container="uint8",
            carrier="float32",
            weight_form="channel",
            package=None,
            int4_unpack="cast",
        ),
        Target(
            name="tensorrt",
            says="TensorRT 10/11 engine: int8 with zero point 0, float16 carrier (built on the GPU it runs on)",
            container="int8",
            carrier="float16",
            weight_form="scalar",
            package="tensorrt",
            int8_head_dims=(16, 32, 64),
            int8_tokens=512,
            softmax_clip=False,
            int4_unpack="requantize",
        ),
        Target(
            name="tensorrt-rtx",
            says="TensorRT-RTX engine, built ahead of time without a GPU; the graph is the one of tensorrt",
            container="int8",
            carrier="float16",
            weight_form="scalar",
            package="tensorrt_rtx",
            ahead_of_time=True,
            int8_head_dims=(16, 32, 64),
            int8_tokens=512,
            softmax_clip=False,
            int4_unpack="requantize",
        ),
        Target(
            name="reference",
            says="nothing to deploy: the published scheme (log-√2 softmax, free grids) simulated in PyTorch, to compare with",
            container="none",
            carrier="float32",
            weight_form="none",
            package=None,
        ),
    )
}


class GridRules(Record, frozen=True, kw_only=True):
    """What the quantizers must obey so that every target of the run can run them."""

    half_scales: bool  # scales exact in float16
    offset_8bit: bool  # 8-bit activations may have any zero point
    softmax_clip: bool = True  # softmax codes may end below the code of 1
    holds_zero: bool = True  # ranges hold 0, so that codes fit 8 bits around it; False: no container, any range
    int4_weights: bool = False  # weight codes of at most 4 bits within [−8, 7]


def named(name: str) -> Target:
    """The target of that name; SpecError with the nearest names otherwise."""
    if name not in TARGETS:
        raise unknown("target", name, TARGETS)
    return TARGETS[name]


def deployable(names: Iterable[str]) -> tuple[str, ...]:
    """Those of the named targets that a graph is written for: all but `reference`."""
    return tuple(n for n in names if not named(n).simulated)


def grid_rules(names: Iterable[str], *, int4_weights: bool = False) -> GridRules:
    """The rules of all named targets together: a bundle serves each of them with the same integers.

    A simulated target has none, so beside others it changes nothing.
    """
    given = tuple(names)
    rows = [named(n) for n in deployable(given)]
    if given and not rows:
        return GridRules(half_scales=False, offset_8bit=True, softmax_clip=True, holds_zero=False)
    if not rows:
        raise SpecError("no target was given", fix=f"--to {' or --to '.join(TARGETS)}")
    return GridRules(
        half_scales=any(t.carrier == "float16" for t in rows),
        offset_8bit=all(t.offset_8bit for t in rows),
        softmax_clip=all(t.softmax_clip for t in rows),
        int4_weights=int4_weights,
    )
