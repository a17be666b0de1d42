"""Every file comes back as the record that it was, and a damaged one is refused by name, never with a traceback."""

import importlib
import json
import pkgutil
import re
from pathlib import Path

import pytest
import reports
from command_line import Erq
from damage import INFINITE, Damaged, every_damage

import erq_export
from erq_export.contract.damage import shown, written
from erq_export.contract.errors import DataError
from erq_export.contract.records import FileRecord, decode, encode, from_plain, plain_of, read
from erq_export.contract.report import Report
from erq_export.flow.job import RunRecord
from erq_export.flow.records import FILES, schemas

EXAMPLES = reports.every_file()
KINDS = list(EXAMPLES)
SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"
SOURCE = "OUT/some.json"


def test_every_kind_of_file_is_listed_and_has_an_example() -> None:
    for module in pkgutil.walk_packages(erq_export.__path__, "erq_export."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    kinds = {kind for kind in FileRecord.__subclasses__() if kind.__module__.startswith("erq_export.")}
    assert kinds == set(FILES.values()) == set(KINDS)


def test_the_schemas_in_docs_are_those_of_the_records() -> None:
    """`erq-export schemas docs/schemas` writes them anew."""
    assert {path.name: path.read_text(encoding="utf-8") for path in SCHEMAS.iterdir()} == schemas()


def test_the_command_writes_the_schemas(erq: Erq, tmp_path: Path) -> None:
    assert erq("schemas", tmp_path / "new")[0] == 0
    assert {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "new").iterdir()} == schemas()
    (tmp_path / "file").write_text("")
    code, said = erq("schemas", tmp_path / "file")
    assert (code, "cannot write" in said) == (2, True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_comes_back_to_the_byte(kind: type[FileRecord]) -> None:
    example = EXAMPLES[kind]
    again = decode(kind, encode(example), source=SOURCE)
    assert again == example
    assert encode(again) == encode(example)
    assert json.loads(encode(example))["format"] == kind.FORMAT


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_leaves_no_field_empty(kind: type[FileRecord]) -> None:
    """Otherwise there would be nothing to damage."""
    assert all(value not in (None, (), {}, "") for name, value in plain_of(EXAMPLES[kind]).items()), kind


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_a_record_or_an_error_that_names_the_place(kind: type[FileRecord]) -> None:
    n = exact = values = 0
    for damaged in every_damage(encode(EXAMPLES[kind]), seed=KINDS.index(kind)):
        n += 1
        if (error := refusal(kind, damaged)) is None:
            continue
        assert error.problem.startswith(SOURCE), (damaged.what, error.problem)
        assert error.fix, damaged.what
        assert len(error.problem) < 700, (damaged.what, len(error.problem))
        if damaged.path is not None and damaged.value is not INFINITE:
            values += 1
            exact += names_the_value(error.problem, damaged)
    assert n >= {Report: 3000, RunRecord: 1000}.get(kind, 150)
    assert exact >= 0.98 * values, (exact, values)


def refusal(kind: type[FileRecord], damaged: Damaged) -> DataError | None:
    """The error; None where what was done to the file leaves a record, which then comes back as it is."""
    try:
        taken = decode(kind, damaged.data, source=SOURCE)
    except DataError as e:
        return e
    assert decode(kind, encode(taken), source=SOURCE) == taken, damaged.what
    return None


def names_the_value(problem: str, damaged: Damaged) -> bool:
    """Does the error name the path and the value? Where it names another path, one of the two contains the other."""
    assert damaged.path is not None
    place = written(damaged.path)
    if problem.startswith(f"{SOURCE}, at {place} is {shown(damaged.value)}: "):
        return True
    said = re.match(rf"{re.escape(SOURCE)}, at (\S+?)(:| is | )", problem)
    assert said, (damaged.what, problem)
    assert place.startswith(said[1]) or said[1].startswith(place), (damaged.what, problem)
    # A rule that binds several fields is the whole slice's: then the field is named as it is typed.
    return said[1].startswith(place) or (f"{damaged.path[-1]}".replace("_", "-") in problem.replace("_", "-"))


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (
            ("targets", "onnx", "claims", "gemm", "int8"),
            "2",
            "at $.targets.onnx.claims.gemm.int8 is '2': expected an integer",
        ),
        (("layers", 0, "w_bits"), 9, "at $.layers[0].w_bits is 9: expected an integer <= 8"),
        (
            ("targets", "onnx", "executed", "blocks.0.attn.qkv"),
            7,
            "at $.targets.onnx.executed['blocks.0.attn.qkv'] is 7: expected text, got an integer",
        ),
        (("quantization", "bits"), "w4a99", "at $.quantization.bits is 'w4a99': --bits w4a99: 99 activation bits"),
        (("accuracy", "float_top1", "value"), 101, "at $.accuracy.float_top1.value is 101: expected a number <= 100"),
    ],
)
def test_an_error_names_file_path_value_and_rule(path: tuple[str | int, ...], value: object, says: str) -> None:
    raw = json.loads(encode(reports.report()))
    inner = raw
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    with pytest.raises(DataError) as caught:
        decode(Report, json.dumps(raw).encode(), source=SOURCE)
    assert f"{SOURCE}, {says}" in caught.value.problem


@pytest.mark.parametrize("where", [0, 1, 499, 998, 999])
def test_the_key_is_found_among_many(where: int) -> None:
    """Two bad ones: the first is named. Keys may hold dots and quotes."""
    raw = plain_of(reports.parity())
    del raw["format"]
    raw["ops"] = {f"op.{i}'": "bad" if i in (where, 999) else i for i in range(1000)}
    with pytest.raises(DataError) as caught:
        from_plain(FILES["parity"], raw, source=SOURCE)
    assert f"at $.ops[\"op.{where}'\"] is 'bad': " in caught.value.problem


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_no_record_with_infinity_is_written(value: float) -> None:
    record = FILES["figures"](name="logits_error", value=value)
    with pytest.raises(ValueError, match=r"Figure holds .* at \$\.value"):
        encode(record)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.json", tmp_path / "x" / "y.json", tmp_path / ("n" * 300)):
        with pytest.raises(DataError) as caught:
            read(Report, path)
        assert str(path) in caught.value.problem
