"""What a finished run says of itself, read back from its folder."""

from pathlib import Path

from erq_export.contract.engine import ENGINE, EngineRecord
from erq_export.contract.manifest import MANIFEST, GraphManifest
from erq_export.contract.output.folder import OutputFolder
from erq_export.contract.records import read
from erq_export.contract.report import Report


def inspected(out: Path) -> Report:
    """The report of the run in a folder. DataError where it, a graph's manifest or an engine's record is damaged."""
    folder = OutputFolder(out)
    report = read(Report, folder.report)
    for name, target in report.targets.items():
        for part in target.parts or ("",):
            read(GraphManifest, folder.target(f"{name}/{part}") / MANIFEST)
        for part in target.engines:
            read(EngineRecord, folder.engine(f"{name}/{part}") / ENGINE)
    return report
