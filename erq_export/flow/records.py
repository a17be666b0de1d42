"""Every record that is a file of its own, by the name of its schema in docs/schemas."""

import json
from pathlib import Path

from erq_export.contract.bundle import BundleDescription
from erq_export.contract.engine import EngineRecord
from erq_export.contract.errors import OutputError
from erq_export.contract.manifest import GraphManifest
from erq_export.contract.parity import ParityReport
from erq_export.contract.records import FileRecord, schema
from erq_export.contract.report import Report
from erq_export.contract.run_manifest import RunManifest
from erq_export.flow.job import RunRecord
from erq_export.flow.stages import Figure

FILES: dict[str, type[FileRecord]] = {
    "bundle": BundleDescription,
    "engine": EngineRecord,
    "figures": Figure,
    "graph-manifest": GraphManifest,
    "parity": ParityReport,
    "report": Report,
    "run": RunRecord,
    "run-manifest": RunManifest,
}


def schemas() -> dict[str, str]:
    """The JSON schema of each, as text, by file name."""
    return {
        f"{name}.json": json.dumps(schema(kind), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        for name, kind in sorted(FILES.items())
    }


def write_schemas(folder: Path) -> list[Path]:
    """Write them all into a folder. OutputError where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in schemas().items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as e:
        raise OutputError(f"cannot write {folder}: {e.strerror}", fix="a folder that can be written") from e
    return [folder / name for name in schemas()]
