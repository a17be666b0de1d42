"""Take a timm vision transformer to a checked low-bit engine: `run`, or one stage at a time.

    import erq_export as erq
    report = erq.run("vit_s", bits="w4a4", to=["onnx", "tensorrt-rtx"], data="photos", out="out/vit_s")

    bundle = erq.calibrate(module, bits="w4a4", data=loader)
    graph = erq.export(bundle, to="onnx", out="out/mine")
    found = erq.validate(bundle, graph, data=labelled_loader)

Importing this loads nothing heavy; a function loads what it needs when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from erq_export.exporters.lint.check import check as check
    from erq_export.flow.api import bench as bench
    from erq_export.flow.api import bisect as bisect
    from erq_export.flow.api import build as build
    from erq_export.flow.api import calibrate as calibrate
    from erq_export.flow.api import export as export
    from erq_export.flow.api import run as run
    from erq_export.flow.api import validate as validate
    from erq_export.flow.side_by_side import compare as compare

__all__ = ["__version__", "bench", "bisect", "build", "calibrate", "check", "compare", "export", "run", "validate"]

_WHERE = {
    "bench": "erq_export.flow.api:bench",
    "bisect": "erq_export.flow.api:bisect",
    "build": "erq_export.flow.api:build",
    "check": "erq_export.exporters.lint.check:check",
    "compare": "erq_export.flow.side_by_side:compare",
    "export": "erq_export.flow.api:export",
    "run": "erq_export.flow.api:run",
}
_ROOMS = ("calibrate", "validate")  # packages that are called like the function of their name


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _WHERE:
        module, attribute = _WHERE[name].split(":")
        return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
