"""Every record that is a file of its own, by the name of its schema in docs/schemas."""

import json
import os
from pathlib import Path

from erq_export.contract.bench import Bench
from erq_export.contract.bisection import Bisection
from erq_export.contract.bundle import BundleDescription
from erq_export.contract.engine import EngineRecord
from erq_export.contract.errors import OutputError
from erq_export.contract.files import write_text
from erq_export.contract.manifest import GraphManifest
from erq_export.contract.output.place import make_folders, remove_empty
from erq_export.contract.parity import ParityReport
from erq_export.contract.records import LARGEST_FILE, FileRecord, schema
from erq_export.contract.report import Report
from erq_export.contract.run_manifest import RunManifest
from erq_export.contract.side_by_side import SideBySide
from erq_export.flow.job import RunRecord
from erq_export.flow.stages import Figure
from erq_export.flow.store.record import EntryRecord

FILES: dict[str, type[FileRecord]] = {
    "bench": Bench,
    "bisect": Bisection,
    "bundle": BundleDescription,
    "engine": EngineRecord,
    "figures": Figure,
    "graph-manifest": GraphManifest,
    "parity": ParityReport,
    "report": Report,
    "run": RunRecord,
    "run-manifest": RunManifest,
    "side-by-side": SideBySide,
    "store-entry": EntryRecord,
}


def schemas() -> dict[str, str]:
    """The JSON schema of each, as text, by file name."""
    return {
        f"{name}.json": json.dumps(schema(kind), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        for name, kind in sorted(FILES.items())
    }


def write_schemas(folder: Path) -> list[Path]:
    """Write them all into a folder, each whole, in place of former schemas alone. OutputError where that cannot be done.

    A run's folder has files of the same names: whatever is no schema stays, and nothing is written then.
    """
    paths = [folder / name for name in schemas()]
    try:
        for path in paths:
            if os.path.lexists(path) and not _is_schema(path):
                raise OutputError(f"{path} is no schema, and would be lost", fix="another folder, for example schemas")
        made = make_folders(folder)
        try:
            for path, text in zip(paths, schemas().values(), strict=True):
                write_text(path, text)
        finally:
            remove_empty(made)
    except OSError as e:
        raise OutputError(f"cannot write {folder}: {e.strerror}", fix="a folder that can be written") from e
    return paths


def _is_schema(path: Path) -> bool:
    """A plain file with a JSON schema of ours, of whatever version."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size > LARGEST_FILE:
        return False
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.keys() == {"$ref", "$defs"}
