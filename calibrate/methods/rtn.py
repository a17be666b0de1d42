"""Round to nearest: percentile ranges, nothing else. The control that other methods are measured against."""

from .method import Method
from .options import Options

METHOD = Method(
    name="rtn",
    meaning="percentile ranges, weights rounded to nearest: the control",
    options=Options,
    solver="erq_export.calibrate.solve.nearest:solve",
)
