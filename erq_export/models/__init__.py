"""Model families: a table of contents, resolved when a model is asked for."""

FAMILIES: dict[str, str] = {
    "vit": "erq_export.models.vit:FAMILY",
    "swin": "erq_export.models.swin:FAMILY",
    "detector": "erq_export.models.detectors.family:FAMILY",
}
