"""The demo's bundles and graphs are what they were when `tests/data/unchanged.json` was recorded, case by case."""

import warnings
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest
from unchanged import CASES, LIMITS, Facts, differences, facts, processor, read_figures, read_record, recorded, versions

RECORD = read_record()
CASE = "w4a4 erq"
KNOWN = next(iter(RECORD["processors"]))
UNKNOWN = "a processor that nobody has seen"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all cases, and with it one store: what a case takes over from another must not show in it."""
    return tmp_path_factory.mktemp("unchanged")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_run_leaves_what_it_left_when_it_was_recorded(case: str, folder: Path) -> None:
    """To the bit on a processor that the record names; in structure and figures on every other."""
    machine = processor()
    if machine not in RECORD["processors"]:
        message = f"{machine} has recorded no digests: {case} is compared in structure and figures, not to the bit"
        warnings.warn(message, stacklevel=1)
    found = differences(case, facts(case, folder), RECORD, machine)
    was = RECORD["processors"].get(machine, {}).get("versions", versions())
    assert not found, f"packages then: {was}, now: {versions()}"


def as_recorded(case: str = CASE) -> Facts:
    """What a run gives that nothing has changed."""
    row = RECORD["cases"][case]
    return Facts(
        structure=row["structure"],
        digests=RECORD["processors"][KNOWN]["digests"][case],
        figures={path: read_figures(text) for path, text in row["figures"].items()},
    )


def test_every_case_is_recorded() -> None:
    assert list(RECORD["cases"]) == list(CASES)
    for row in RECORD["processors"].values():
        assert list(row["digests"]) == list(CASES)


@pytest.mark.parametrize("machine", [KNOWN, UNKNOWN])
def test_what_is_as_recorded_has_no_differences(machine: str) -> None:
    for case in CASES:
        assert differences(case, as_recorded(case), RECORD, machine) == []


@pytest.mark.parametrize("name", as_recorded().digests)
def test_another_bit_is_seen_on_a_processor_that_is_named(name: str) -> None:
    found = as_recorded()
    found = replace(found, digests=found.digests | {name: "0" * 64})
    assert differences(CASE, found, RECORD, KNOWN) == [f"{CASE}: bytes of {name}"]
    assert differences(CASE, found, RECORD, UNKNOWN) == []


@pytest.mark.parametrize("name", as_recorded().structure)
@pytest.mark.parametrize("machine", [KNOWN, UNKNOWN])
def test_another_structure_is_seen_on_every_processor(name: str, machine: str) -> None:
    found = as_recorded()
    changed = replace(found, structure=found.structure | {name: "0" * 64})
    assert differences(CASE, changed, RECORD, machine) == [f"{CASE}: structure of {name}"]
    without = replace(found, structure={n: d for n, d in found.structure.items() if n != name})
    assert differences(CASE, without, RECORD, machine) == [f"{CASE}: structure of {name}"]


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize(("share", "seen"), [(0.99, False), (1.01, True), (float("nan"), True)])
def test_a_figure_is_seen_where_it_leaves_its_limit(name: str, share: float, seen: bool) -> None:
    found = as_recorded()
    path, row = next(iter(found.figures.items()))
    moved = row | {name: row[name] * (1 + share * LIMITS[name])}
    changed = differences(CASE, replace(found, figures=found.figures | {path: moved}), RECORD, UNKNOWN)
    assert [text.split(" was ")[0] for text in changed] == [f"{CASE}: {name} of {path}"] * seen


def test_a_lost_layer_is_seen() -> None:
    found = as_recorded()
    rest = dict(list(found.figures.items())[1:])
    assert differences(CASE, replace(found, figures=rest), RECORD, UNKNOWN) == [
        f"{CASE}: the list of layers and operands"
    ]


@pytest.mark.parametrize(("one", "other"), list(permutations(CASES, 2)))
def test_figures_tell_every_two_cases_apart(one: str, other: str) -> None:
    """Otherwise a run that mixed them up would pass on a processor without digests."""
    swapped = replace(as_recorded(one), figures=as_recorded(other).figures)
    assert differences(one, swapped, RECORD, UNKNOWN)


def test_another_processor_is_added_and_a_change_forgets_the_rest() -> None:
    found = {case: as_recorded(case) for case in CASES}
    both = recorded(found, RECORD, UNKNOWN)
    assert list(both["processors"]) == [*RECORD["processors"], UNKNOWN]
    assert both["cases"] == RECORD["cases"]
    assert recorded(found, None, KNOWN)["cases"] == RECORD["cases"]
    changed = found | {CASE: replace(found[CASE], structure={})}
    assert list(recorded(changed, RECORD, UNKNOWN)["processors"]) == [UNKNOWN]
