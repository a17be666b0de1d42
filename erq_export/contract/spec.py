"""What is wanted: frozen, keyword-only, validated at birth; the command line is generated from the defaults here."""

import math
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from erq_export.contract.errors import SpecError
from erq_export.contract.registry import METHODS, unknown
from erq_export.contract.targets import GridRules, deployable, grid_rules

REFINEMENTS = ("flip", "paper", "none", "mipq", "unit")
MIPQ_COLUMNS = range(1, 21)
GPTQ_ORDERS = ("natural", "activation")
INPUTS = ("float", "quantized")
WEIGHT_PERCENTILES = ("wide", "repq")
ATTENTION = ("fp16", "int8", "paper")
ZERO_POINTS = ("integer", "mean")
PATCH_INPUT = ("8", "float")
UNDEPLOYABLE = {"attention": "paper", "dual": True, "zero_points": "mean", "patch_input": "float"}
PACKS = ("int8", "int4")
PACKED_BITS = 4  # the most that an INT4 initializer holds
WEIGHT_BITS = range(2, 9)
ACTIVATION_BITS = range(3, 9)


@dataclass(frozen=True, kw_only=True)
class Bits:
    """Designed precision: w weight bits and a activation bits; the container that carries them is int8 or uint8."""

    w: int
    a: int

    def __post_init__(self) -> None:
        if self.w not in WEIGHT_BITS:
            raise SpecError(f"--bits {self}: {self.w} weight bits", fix="2 to 8 weight bits, for example --bits w4a4")
        if self.a not in ACTIVATION_BITS:
            raise SpecError(
                f"--bits {self}: {self.a} activation bits", fix="3 to 8 activation bits, for example --bits w4a8"
            )

    def __str__(self) -> str:
        return f"w{self.w}a{self.a}"

    @classmethod
    def parse(cls, text: str) -> "Bits":
        """Read "w4a4". SpecError for any other form."""
        match = re.fullmatch(r"w(\d+)a(\d+)", text.strip().lower())
        if not match:
            raise SpecError(
                f"--bits {text!r} is not of the form w<weight bits>a<activation bits>",
                fix="for example --bits w4a4 (weights 2 to 8, activations 3 to 8)",
            )
        return cls(w=int(match[1]), a=int(match[2]))


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Which model, which weights, which preprocessing."""

    name: str
    checkpoint: str | None = None
    pretrained: bool = True
    model_args: dict[str, Any] = field(default_factory=dict)
    preprocess: dict[str, Any] = field(default_factory=dict)


def option(default: Any, says: str, *, methods: tuple[str, ...] = tuple(METHODS)) -> Any:
    """A spec field that the command line offers with this help text; `methods` are those that it makes a difference to."""
    return field(default=default, metadata={"help": says, "methods": methods})


ERQ, GPTQ = ("erq",), ("gptq",)
FOLDING = ("erq", "gptq", "repq")  # methods that fold LayerNorms


@dataclass(frozen=True, kw_only=True)
class QuantSpec:
    """How the integers are found. Defaults are the paper's (erq: ICML 2024, section 5 set-up)."""

    bits: Bits
    targets: tuple[str, ...]
    method: str = option("erq", "how the integers are found: " + " or ".join(METHODS))
    calib: int = option(32, "number of calibration images")
    seed: int = option(0, "seed of the choice of calibration images (and of random weights)")
    ridge: float = option(1e4, "the paper's λ = λ₁ = λ₂; 0.1·λ is added to the summed Gram matrix", methods=ERQ)
    rounding: str = option("flip", "rounding refinement: " + ", ".join(REFINEMENTS), methods=ERQ)
    flips: int = option(100, "most flips per weight row and round (the paper's T)", methods=ERQ)
    mipq_columns: int = option(
        8, "--rounding mipq, for ablations on small models (hours): columns per program, up to 20", methods=ERQ
    )
    mipq_seconds: float = option(
        1.0, "--rounding mipq: time limit of each program, of which a layer has thousands", methods=ERQ
    )
    gptq_damping: float = option(
        0.01, "gptq: added to the Gram matrix's diagonal, as a share of its mean", methods=GPTQ
    )
    gptq_block: int = option(
        128, "gptq: columns whose errors are handed on together; changes time, not the result", methods=GPTQ
    )
    gptq_order: str = option(
        "natural", "gptq: columns as they are, or strongest inputs first: " + ", ".join(GPTQ_ORDERS), methods=GPTQ
    )
    attention: str = option(
        "auto",
        "q, k, v and softmax: fp16 (not quantized; float32 in ONNX Runtime), int8 (products in integers), paper (--bits, "
        "softmax on a log-√2 grid; --to reference alone), auto (paper for --to reference alone, else fp16)",
    )
    attention_bits: int = option(8, "--attention int8: designed bits of q, k, v and softmax, 3 to 8")
    head_ridge: float | None = option(
        None, "erq: λ of the head's activation step (default: --ridge; 1: as published)", methods=ERQ
    )
    row_steps: int = option(
        100, "erq: most steps per row after the last half, beyond the paper (0: off, as published)", methods=ERQ
    )
    pack: str = option(
        "int8",
        "weights in the file: int8, never slower, or int4 (at most 4 bits), half the file: docs/packing.md",
    )

    inputs: str = option(
        "float",
        "layers are fitted to the float model's inputs, or to those that the quantized layers before them produce: "
        + ", ".join(INPUTS),
        methods=ERQ + GPTQ,
    )
    input_ranges: str = option(
        "float", "input ranges from float activations, or behind quantized ones (as published): " + ", ".join(INPUTS)
    )
    weight_percentiles: str = option(
        "wide",
        "weight ranges searched: the extended paper's 10 percentiles or RepQ's 3: " + ", ".join(WEIGHT_PERCENTILES),
    )

    dual: bool = option(
        False,
        "erq, --to reference: outlier columns of qkv and fc1 on a second grid, and no row steps in these layers",
        methods=ERQ,
    )
    zero_points: str = option(
        "integer",
        "--to reference: after the LayerNorm fold rounded, or the mean as published: " + ", ".join(ZERO_POINTS),
        methods=FOLDING,
    )
    patch_input: str = option("8", "--to reference: bits of the image, or not quantized: " + ", ".join(PATCH_INPUT))
    fold_reduction: bool = option(
        True, "fold the LayerNorm before Swin's reduction too, as RepQ-ViT does", methods=FOLDING
    )

    def __post_init__(self) -> None:
        if self.attention == "auto":
            object.__setattr__(self, "attention", "fp16" if deployable(self.targets) else "paper")
        for name, known in (("inputs", INPUTS), ("input_ranges", INPUTS), ("weight_percentiles", WEIGHT_PERCENTILES)):
            if getattr(self, name) not in known:
                raise unknown(f"--{name.replace('_', '-')}", getattr(self, name), known)
        if self.head_ridge is not None and not self.head_ridge > 0:
            raise SpecError(f"--head-ridge {self.head_ridge}", fix="a positive number; 1 is the published method")
        if self.row_steps < 0:
            raise SpecError(f"--row-steps {self.row_steps}", fix="0 or more; 0 is the published method")
        if self.method not in METHODS:
            raise unknown("method", self.method, METHODS)
        if self.rounding not in REFINEMENTS:
            raise unknown("rounding refinement", self.rounding, REFINEMENTS)
        if self.calib < 1:
            raise SpecError(f"--calib {self.calib}", fix="at least 1 image; the paper uses 32")
        if not self.ridge > 0:
            raise SpecError(f"--ridge {self.ridge}", fix="a positive number; the paper uses 1e4 (DeiT-T 1e3)")
        if self.flips < 0:
            raise SpecError(f"--flips {self.flips}", fix="0 or more; the paper uses 100")
        if self.mipq_columns not in MIPQ_COLUMNS:
            raise SpecError(f"--mipq-columns {self.mipq_columns}", fix="1 to 20; 8 take 0.05 s a program, 16 seconds")
        if not 0 < self.mipq_seconds < math.inf:
            raise SpecError(f"--mipq-seconds {self.mipq_seconds}", fix="a positive number of seconds")
        if not self.gptq_damping > 0:
            raise SpecError(f"--gptq-damping {self.gptq_damping}", fix="a positive number; GPTQ uses 0.01")
        if self.gptq_block < 1:
            raise SpecError(f"--gptq-block {self.gptq_block}", fix="at least 1 column; GPTQ uses 128")
        if self.gptq_order not in GPTQ_ORDERS:
            raise unknown("GPTQ column order", self.gptq_order, GPTQ_ORDERS)
        if self.pack not in PACKS:
            raise unknown("weight packing", self.pack, PACKS)
        if self.pack == "int4" and self.bits.w > PACKED_BITS:
            raise SpecError(
                f"--pack int4 with --bits {self.bits}: {self.bits.w} bits do not fit 4",
                fix=f"--pack int8, or at most {PACKED_BITS} weight bits",
            )
        if self.attention not in ATTENTION:
            raise unknown("attention precision", self.attention, ATTENTION)
        if self.zero_points not in ZERO_POINTS:
            raise unknown("kind of zero points", self.zero_points, ZERO_POINTS)
        if self.patch_input not in PATCH_INPUT:
            raise unknown("patch input", self.patch_input, PATCH_INPUT)
        if self.attention_bits not in ACTIVATION_BITS:
            raise SpecError(f"--attention-bits {self.attention_bits}", fix="3 to 8")
        _ = self.rules  # refuses unknown targets
        self._check_deployable()

    def _check_deployable(self) -> None:
        """SpecError for a choice that none but the target `reference` can run, beside another one."""
        if not (named := deployable(self.targets)):
            return
        for name, value in UNDEPLOYABLE.items():
            if getattr(self, name) == value:
                words = f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
                raise SpecError(
                    f"{words} cannot be deployed to {', '.join(named)}: PyTorch alone can simulate it",
                    fix=f"leave {words} out, or --to reference alone",
                )

    def check_asked(self, names: Collection[str]) -> None:
        """SpecError where one of these fields, asked for by the user, would change nothing with the rest as it is.

        Not checked at birth: a comparison gives the same options to methods that do not know them.
        """
        for f in (f for f in fields(self) if f.name in names):
            word, methods = f"--{f.name.replace('_', '-')}", f.metadata.get("methods", METHODS)
            if self.method not in methods:
                raise SpecError(
                    f"{word} changes nothing with --method {self.method}",
                    fix=f"leave it out, or --method {' or '.join(methods)}",
                )
            if f.name.startswith("mipq_") and self.rounding != "mipq":
                raise SpecError(f"{word} changes nothing with --rounding {self.rounding}", fix="add --rounding mipq")
            if f.name == "attention_bits" and self.attention != "int8":
                raise SpecError(f"{word} changes nothing with --attention {self.attention}", fix="add --attention int8")

    @property
    def rules(self) -> GridRules:
        """What the quantizers must obey on all targets together."""
        return grid_rules(self.targets, int4_weights=self.pack == "int4")

    def to_json(self) -> dict[str, Any]:
        """Plain data, keys sorted by field order; bits as text."""
        return asdict(self) | {"bits": str(self.bits), "targets": list(self.targets)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "QuantSpec":
        """Inverse of `to_json`."""
        known = {f.name for f in fields(cls)}
        if surplus := set(data) - known:
            raise SpecError(
                f"the bundle's spec has fields this version does not know: {', '.join(sorted(surplus))}",
                fix="use the erq-export version named in bundle.json",
            )
        return cls(**data | {"bits": Bits.parse(data["bits"]), "targets": tuple(data["targets"])})
