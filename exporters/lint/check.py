"""Runs every rule that concerns a target over an ONNX file."""

import json
from dataclasses import dataclass
from pathlib import Path

from erq_export.contract.errors import SpecError
from erq_export.contract.targets import TARGETS, deployable, named

from . import attention, codes, model, products, scales
from .load import load
from .rule import Finding, Rule
from .shown import escaped

RULES: tuple[Rule, ...] = (*codes.RULES, *scales.RULES, *products.RULES, *attention.RULES, *model.RULES)


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What was found in a file, in the order of the rules."""

    file: str
    target: str
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> int:
        return sum(finding.severity == "error" for finding in self.findings)

    @property
    def warnings(self) -> int:
        return len(self.findings) - self.errors

    def as_json(self) -> str:
        """One object: file, target, counts, findings."""
        counts = {"errors": self.errors, "warnings": self.warnings}
        findings = [finding.to_json() for finding in self.findings]
        whole = {"file": self.file, "target": self.target, **counts, "findings": findings}
        return json.dumps(whole, indent=1, ensure_ascii=False)

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
    return Checked(file=escaped(path), target=target, findings=findings)


def table() -> str:
    """The rules as a Markdown table: what `check --rules` prints and docs/check.md holds."""
    rows = ["| rule | error on | warning on | what it finds |", "|---|---|---|---|"]
    for rule in RULES:
        errors, warnings = (_targets(names) for names in (rule.errors, rule.warnings))
        rows.append(f"| {rule.id} | {errors} | {warnings} | {rule.says} |")
    return "\n".join(rows)


def _targets(names: tuple[str, ...]) -> str:
    return "all" if set(names) == set(deployable(TARGETS)) else ", ".join(names)
