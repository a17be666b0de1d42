"""TensorRT 10/11 and TensorRT-RTX 1.x: the only folder that imports either package.

The packages differ in what they have, not in how it is called: features are detected, versions never compared. Building
needs no torch; `execute`, which does, is imported by itself.
"""

from .build import Engine, build_engine
from .package import Package, available, require
from .setting import check

__all__ = ["Engine", "Package", "available", "build_engine", "check", "require"]
