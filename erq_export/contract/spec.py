"""What is wanted, in slices: a stage of a run sees the slice that it depends on, and nothing else.

Frozen, keyword-only, checked at birth. Every default of the command line and of the Python API stands here or, for a
method's own knobs, in the method's options (`calibrate.methods`).
"""

from typing import Annotated, Literal

from msgspec import Meta

from erq_export.contract.bits import Bits
from erq_export.contract.records import Scalar, Spec
from erq_export.contract.registry import METHODS
from erq_export.contract.targets import TARGETS, GridRules, deployable, grid_rules

LARGEST_COUNT = 10**6  # of images, seeds, batches: more is a slip of the hand
LARGEST_SEED = 2**63 - 1  # what torch's generators take

MethodName = Annotated[str, Meta(extra_json_schema={"enum": list(METHODS)})]
TargetName = Annotated[str, Meta(extra_json_schema={"enum": list(TARGETS)})]
AttentionPrecision = Literal["fp16", "int8", "paper"]
Pack = Literal["int8", "int4"]
PaperName = Literal["icml", "tpami"]
Number = int | float
Argument = bool | int | float | str | tuple[Number, ...] | None
Part = float | int | str | tuple[Number, ...]
PathName = Annotated[str, Meta(min_length=1)]  # "" would be the current folder
Capability = Annotated[str, Meta(pattern=r"^[1-9][0-9]?\.[0-9]$(?!\n)")]


class ModelSpec(Spec, frozen=True, kw_only=True):
    """Which model, which weights, which preprocessing."""

    name: Annotated[
        str, Meta(min_length=1, max_length=200, extra={"fix": "an alias (erq-export models) or the name of a timm ViT"})
    ]
    checkpoint: Annotated[
        PathName | None,
        Meta(
            description="your own weights: .safetensors, or .pt with a state dict",
            extra={"fix": "the name of a file of weights"},
        ),
    ] = None
    pretrained: Annotated[
        bool, Meta(description="timm's weights; random ones try the chain, accuracy means nothing")
    ] = True
    model_args: Annotated[dict[str, Argument], Meta(description="NAME=VALUE for timm (repeatable)")] = {}
    preprocess: Annotated[
        dict[str, Part],
        Meta(description="NAME=VALUE: mean, std, interpolation, crop_pct, crop_mode instead of timm's (repeatable)"),
    ] = {}

    canvas: Annotated[
        Annotated[str, Meta(pattern=r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}(,[1-9][0-9]{0,4}x[1-9][0-9]{0,4}){0,7}$(?!\n)")]
        | None,
        Meta(
            description="detectors: height x width that pictures are laid on, one or several; calibration takes the first "
            "[default: 800x1344,1344x800; stand-ins 192x256]",
            extra={"fix": "height x width in pixels, such as 800x1344, or several: 800x1344,1344x800"},
        ),
    ] = None

    @property
    def canvases(self) -> tuple[tuple[int, int], ...]:
        """Height and width of each canvas that was asked for, each once."""
        named = [] if self.canvas is None else [sides.split("x") for sides in self.canvas.split(",")]
        return tuple(dict.fromkeys((int(height), int(width)) for height, width in named))

    @classmethod
    def word(cls, name: str) -> str:
        return {"name": "MODEL", "model_args": "--model-arg"}.get(name, super().word(name))


class DataSpec(Spec, frozen=True, kw_only=True):
    """Images: which to calibrate from, which to measure on."""

    data: Annotated[
        PathName | None,
        Meta(
            description="folder of images to calibrate from, searched recursively",
            extra={"fix": "the name of a folder; . is the current one"},
        ),
    ] = None
    calib: Annotated[
        int,
        Meta(
            ge=1,
            le=LARGEST_COUNT,
            description="number of calibration images",
            extra={"fix": "at least 1 image; the paper uses 32"},
        ),
    ] = 32
    seed: Annotated[
        int,
        Meta(
            ge=0,
            le=LARGEST_SEED,
            description="seed of the choice of calibration images (and of random weights)",
            extra={"fix": f"0 to {LARGEST_SEED}"},
        ),
    ] = 0
    val: Annotated[
        PathName | None,
        Meta(
            description="labelled folder (one folder per class) to measure accuracy on",
            extra={"fix": "the name of a folder; . is the current one"},
        ),
    ] = None
    coco: Annotated[
        PathName | None,
        Meta(
            description="detectors: folder in COCO's layout, val2017 to measure on, train2017 to calibrate from without --data",
            extra={"fix": "the folder that holds annotations/ and val2017/"},
        ),
    ] = None
    class_map: Annotated[
        PathName | None,
        Meta(
            description="file that gives each class folder its index: FOLDER [INDEX] a line; or ImageNet's unpacked devkit",
            extra={"fix": "the name of a text file, or of the folder ILSVRC2012_devkit_t12"},
        ),
    ] = None
    val_images: Annotated[
        int,
        Meta(
            ge=0,
            le=2**40,
            description="measure on this many images, evenly spread over --val or --coco (0: all)",
            extra={"fix": "at least 0"},
        ),
    ] = 0
    workers: Annotated[
        Annotated[int, Meta(ge=0, le=256)] | None,
        Meta(
            description="processes that decode images to measure on [default: beside a GPU up to 8, on a CPU none]",
            extra={"fix": "0 to 256"},
        ),
    ] = None


class MethodSpec(Spec, frozen=True, kw_only=True):
    """How the integers are found; `options` are the method's own, by name, and complete once a job is resolved."""

    bits: Annotated[
        Bits,
        Meta(
            description="weight and activation bits: w{2..8}a{3..8}; layers of their own by path: w4a4,head=w8a8,blocks.0.*=w8a8"
        ),
    ]
    budget: Annotated[
        Annotated[float, Meta(ge=2, le=8)] | None,
        Meta(
            description="choose each layer's weight bits: their mean over all weights is at most this; --bits gives the rest",
            extra={"fix": "2 to 8 bits, for example --bits auto --budget 4"},
        ),
    ] = None
    method: Annotated[
        str, Meta(description="how the integers are found", extra_json_schema={"enum": list(METHODS)})
    ] = "erq"
    options: Annotated[
        dict[str, Scalar],
        Meta(description="NAME=VALUE: one of the method's own options; erq-export methods lists them (repeatable)"),
    ] = {}

    @classmethod
    def word(cls, name: str) -> str:
        return "-O" if name == "options" else super().word(name)


class DeploySpec(Spec, frozen=True, kw_only=True):
    """Where the integers run, and in which form they get there."""

    targets: Annotated[tuple[TargetName, ...], Meta(description="target (repeatable)")] = ("onnx",)
    attention: Annotated[
        Literal["auto", "fp16", "int8", "paper"],
        Meta(
            description="q, k, v and softmax: fp16 (not quantized; float32 in ONNX Runtime), int8 (products in integers), "
            "paper (--bits, softmax on a log-√2 grid; --to reference alone), auto (paper for --to reference alone, else fp16)"
        ),
    ] = "auto"
    pack: Annotated[
        Pack, Meta(description="weights in the file: int8, never slower, or int4 (at most 4 bits), half the file")
    ] = "int8"
    capability: Annotated[
        tuple[Capability, ...],
        Meta(
            description="GPU compute capability to build for (repeatable)",
            extra={"fix": "for example 8.9; nvidia-smi --query-gpu=compute_cap --format=csv prints your GPU's"},
        ),
    ] = ("8.6", "8.9", "12.0")
    max_batch: Annotated[
        int,
        Meta(
            ge=1,
            le=LARGEST_COUNT,
            description="largest batch of the engine; it is tuned for batch 8 or this, if smaller",
            extra={"fix": "at least 1"},
        ),
    ] = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        grid_rules(self.targets)  # refuses none

    @classmethod
    def word(cls, name: str) -> str:
        return "--to" if name == "targets" else super().word(name)

    @property
    def precision(self) -> AttentionPrecision:
        """What `auto` stands for."""
        if self.attention == "auto":
            return "fp16" if deployable(self.targets) else "paper"
        return self.attention

    @property
    def batch(self) -> tuple[int, int, int]:
        """(smallest, optimal, largest) batch of an engine."""
        return 1, min(8, self.max_batch), self.max_batch

    @property
    def rules(self) -> GridRules:
        """What the quantizers must obey on all targets together."""
        return grid_rules(self.targets, int4_weights=self.pack == "int4")


PER_CENT = {"fix": "per cent of the images, 0 to 100"}


class EvaluateSpec(Spec, frozen=True, kw_only=True):
    """What is measured beside the run itself, and what must hold."""

    compare: Annotated[
        tuple[Bits, ...], Meta(description="measure these bits too, against rtn, over --seeds (repeatable)")
    ] = ()
    seeds: Annotated[
        int,
        Meta(ge=1, le=LARGEST_COUNT, description="calibration seeds of the comparison", extra={"fix": "at least 1"}),
    ] = 1
    max_drop: Annotated[
        Annotated[float, Meta(ge=-100, le=100)] | None,
        Meta(
            description="fail (exit 4) if top-1, or a detector's box or mask AP, drops more than this many points below float",
            extra={"fix": "points of top-1, -100 to 100; 1 is a usual bound"},
        ),
    ] = None
    min_agreement: Annotated[
        Annotated[float, Meta(ge=0, le=100)] | None,
        Meta(description="fail (exit 4) if fewer per cent of the images have the float model's class", extra=PER_CENT),
    ] = None
    max_logit_error: Annotated[
        Annotated[float, Meta(ge=0, le=1e6)] | None,
        Meta(
            description="fail (exit 4) if the logits, or features, are further from the float model's than this (relative L2)",
            extra={"fix": "a number from 0; 0.1 is a tenth of the logits' size"},
        ),
    ] = None
    sensitivity: Annotated[
        bool, Meta(description="say what each layer costs alone, and what raising it to 8 bits gives back")
    ] = False
    bench: Annotated[
        bool, Meta(description="time every graph and engine beside its float twin, as erq-export bench OUT does")
    ] = False

    @property
    def compares(self) -> bool:
        """Was a comparison with rtn asked for?"""
        return bool(self.compare) or self.seeds > 1


class Quantization(Spec, frozen=True, kw_only=True):
    """The slice that calibration depends on, besides model and images: equal slices give equal bundles.

    `rules` stand for the targets: whatever has the same rules can be exported from the same bundle. `options` are
    complete: every option of the method has its value.
    """

    bits: Bits
    method: MethodName
    options: dict[str, Scalar]
    attention: AttentionPrecision
    rules: GridRules
