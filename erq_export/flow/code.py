"""Which code decides what a stage makes: a change in it is another artifact."""

CODE: dict[str, tuple[str, ...]] = {
    "bundle": ("calibrate", "contract", "data", "models", "flow.stages"),
    "graph": ("contract", "exporters.onnx", "models", "flow.artifacts", "flow.stages"),
    "part-graph": ("contract", "exporters.onnx", "models", "flow.artifacts", "flow.detection", "flow.stages"),
    "trace": ("contract", "exporters.onnx", "models", "flow.stages"),
    "engine": ("backends", "contract", "exporters.tensorrt", "flow.engine_stage", "flow.stages"),
    "parity": ("backends", "contract", "models", "validate", "flow.stages"),
    "decisions": ("backends", "contract", "data", "models", "validate", "flow.shards", "flow.spans", "flow.stages"),
    "story": ("calibrate", "contract", "data", "models", "validate", "flow.scene", "flow.stages", "flow.story"),
    "detections": (
        *("backends", "contract", "data", "exporters.onnx.parts", "models", "validate"),
        *("flow.detection", "flow.engines", "flow.stages"),
    ),
    "followed": (
        *("backends", "contract", "data", "exporters.onnx.parts", "models", "validate"),
        *("flow.detection", "flow.stages"),
    ),
    "figures": ("backends", "contract", "data", "models", "validate", "flow.stages"),
}


def code_of(kind: str) -> list[str]:
    """The modules and packages behind a stage."""
    return [f"erq_export.{name}" for name in CODE[kind]]
