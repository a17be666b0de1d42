"""erq-export: a timm vision transformer, quantized with ERQ, carried to a checked low-bit engine."""

__version__ = "0.1.0"
