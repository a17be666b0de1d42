"""Runs every rule that concerns a target over an ONNX file."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir
import onnx_ir.passes.common as passes

from erq_export.contract.errors import SpecError
from erq_export.contract.records import Record, encode
from erq_export.contract.targets import TARGETS, deployable, named

from . import attention, codes, model, products, scales
from .rule import Finding, Rule
from .view import View

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
    """The findings of every rule for the target. SpecError where the target is unknown or the file is not ONNX."""
    if named(target).simulated:
        raise SpecError(f"target {target!r} has no graph to check", fix=f"one of: {', '.join(deployable(TARGETS))}")
    view = View(model=load(path))
    findings = tuple(finding for rule in RULES for finding in rule.findings(view, target))
    errors = sum(finding.severity == "error" for finding in findings)
    return Checked(file=str(path), target=target, errors=errors, warnings=len(findings) - errors, findings=findings)


def load(path: Path) -> ir.Model:
    """The model with functions inlined, constants lifted and shapes inferred as far as they can be. Tensors stay on disk."""
    if not path.is_file():
        raise SpecError(f"there is no file {path}", fix="erq-export check FILE.onnx --target TARGET")
    try:
        read = ir.load(path)
    except Exception as e:
        raise SpecError(f"{path} is not an ONNX model: {e}", fix="give the .onnx file itself") from e
    if not len(read.graph):
        raise SpecError(f"{path} is not an ONNX model: its graph is empty", fix="give the .onnx file itself")
    if read.functions:
        passes.InlinePass()(read)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(read)
    with _quiet():  # a graph that inference rejects is judged without shapes: it may be what the rules are about
        passes.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(read)
    return read


@contextmanager
def _quiet() -> Iterator[None]:
    log = logging.getLogger("onnx_ir")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def table() -> str:
    """The rules as a Markdown table: what `check --rules` prints and docs/check.md holds."""
    rows = ["| rule | error on | warning on | what it finds |", "|---|---|---|---|"]
    for rule in RULES:
        errors, warnings = (_targets(names) for names in (rule.errors, rule.warnings))
        rows.append(f"| {rule.id} | {errors} | {warnings} | {rule.says} |")
    return "\n".join(rows)


def _targets(names: tuple[str, ...]) -> str:
    return "all" if set(names) == set(deployable(TARGETS)) else ", ".join(names)
