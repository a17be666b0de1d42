"""What a user can act on: errors that name the problem, the fix and the exit code."""

from functools import partial

FOUND = 8  # exit code of `check` where it found something


class ErqError(Exception):
    """A problem the user can act on: what is wrong, and what to do instead.

    The command line prints both lines and exits with `exit_code` (design: 2 usage, 3 this machine lacks
    something, 4 accuracy gate, 5 parity gate, 6 engine build or precision gate, 7 speed gate,
    8 `check` found something: no exception, what it found is what was asked for).
    """

    exit_code = 2

    def __init__(self, problem: str, *, fix: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.problem}\n  fix: {self.fix}"

    def __reduce__(self) -> tuple[object, ...]:
        """Whole in another process: what an exception keeps of itself has no `fix`."""
        return partial(type(self), fix=self.fix), (self.problem,)


class SpecError(ErqError):
    """What was asked for is impossible or misspelt."""


class DataError(ErqError):
    """The images, labels, checkpoint or files of a run given cannot be used."""


class OutputError(ErqError):
    """The output folder cannot be written, or holds something that must not be lost."""


class MachineError(ErqError):
    """This machine lacks something: a package, a GPU, a network."""

    exit_code = 3


class AccuracyError(ErqError):
    """The accuracy gate failed."""

    exit_code = 4


class ParityError(ErqError):
    """What was deployed was measured, and does not compute what was calibrated."""

    exit_code = 5


class EngineError(ErqError):
    """The engine could not be built, or does not run in the precision claimed."""

    exit_code = 6


class SpeedError(ErqError):
    """The speed gate failed."""

    exit_code = 7


def no_coco_eval() -> MachineError:
    """The refusal where what counts average precision is missing."""
    return MachineError(
        "average precision is counted by faster-coco-eval, which is not installed",
        fix="pip install 'erq-export[detect]'",
    )
