"""Runs every rule that concerns a target over an ONNX file."""

from pathlib import Path

from erq_export.contract.errors import SpecError
from erq_export.contract.records import Record, encode
from erq_export.contract.targets import TARGETS, deployable, named

from . import attention, codes, model, products, scales
from .load import load
from .rule import Finding, Rule
from .shown import escaped

RULES: tuple[Rule, ...] = (*codes.RULES, *scales.RULES, *products.RULES, *attention.RULES, *model.RULES)


class Checked(Record, frozen=True, kw_only=True):
    """What was found in a file, in the order of the rules, and how many of it are errors and warnings."""

    file: str
    target: str
    errors: int
    warnings: int
    findings: tuple[Finding, ...]

    def as_json(self) -> str:
        """The record as one object."""
        return encode(self).decode().rstrip()

    def as_text(self) -> str:
        """Three lines a finding and one for the whole."""
        lines = [
            f"{f.severity}: {f.node} [{f.rule}]\n  {f.reason}\n  fix: {f.fix}"
            for severity in ("error", "warning")
            for f in self.findings
            if f.severity == severity
        ]
        counts = f"{_counted(self.errors, 'error')}, {_counted(self.warnings, 'warning')}"
        return "\n".join([*lines, f"{self.file} for {self.target}: {counts}"])


def _counted(n: int, what: str) -> str:
    return f"{n or 'no'} {what}{'' if n == 1 else 's'}"


def check(path: Path, target: str) -> Checked:
    """The findings of every rule for the target. SpecError where the target is unknown, DataError where the file is malformed."""
    if named(target).simulated:
        raise SpecError(f"target {target!r} has no graph to check", fix=f"one of: {', '.join(deployable(TARGETS))}")
    view = load(path)
    findings = tuple(finding for rule in RULES for finding in rule.findings(view, target))
    errors = sum(finding.severity == "error" for finding in findings)
    return Checked(file=escaped(path), target=target, errors=errors, warnings=len(findings) - errors, findings=findings)


def table() -> str:
    """The rules as a Markdown table: what `check --rules` prints and docs/check.md holds."""
    rows = ["| rule | error on | warning on | what it finds |", "|---|---|---|---|"]
    for rule in RULES:
        errors, warnings = (_targets(names) for names in (rule.errors, rule.warnings))
        rows.append(f"| {rule.id} | {errors} | {warnings} | {rule.says} |")
    return "\n".join(rows)


def _targets(names: tuple[str, ...]) -> str:
    return "all" if set(names) == set(deployable(TARGETS)) else ", ".join(names)
