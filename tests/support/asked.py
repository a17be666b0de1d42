"""A calibration's slice, as a job would resolve it, from a few words."""

from typing import Any

from erq_export.calibrate.methods.method import options_of
from erq_export.calibrate.published.papers import all_of
from erq_export.contract.spec import Bits, DeploySpec, Quantization


def asked(
    bits: str = "w4a4",
    targets: tuple[str, ...] = ("onnx",),
    *,
    method: str = "erq",
    attention: str = "auto",
    pack: str = "int8",
    **options: Any,
) -> Quantization:
    """`options` are the method's own; everything else has the general defaults."""
    deploy = DeploySpec(targets=targets, attention=attention, pack=pack)  # type: ignore[arg-type]
    return Quantization(
        bits=Bits.parse(bits),
        method=method,
        options=all_of(options_of(method, options)),
        attention=deploy.precision,
        rules=deploy.rules,
    )
