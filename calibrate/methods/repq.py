"""RepQ-ViT's share of ERQ: LayerNorm reparameterisation, then round to nearest. What ERQ must improve on."""

from .method import Method
from .options import FoldOptions

METHOD = Method(
    name="repq",
    meaning="LayerNorms folded to per-channel accuracy, weights rounded to nearest (RepQ-ViT)",
    options=FoldOptions,
    solver="erq_export.calibrate.solve.nearest:solve",
)
