"""One run as asked for, and how what a user gave becomes it: alias, paper and task defaults, resolved in one place."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from msgspec import Meta, structs

from erq_export.calibrate.methods.method import options_of
from erq_export.calibrate.methods.options import Options
from erq_export.calibrate.published.papers import PAPERS, all_of, paper_named
from erq_export.contract.bits import PACKED_BITS
from erq_export.contract.device_name import check_device_name
from erq_export.contract.errors import SpecError
from erq_export.contract.records import FileRecord, Scalar, Spec, checked_value, hints, read
from erq_export.contract.registry import unknown
from erq_export.contract.spec import (
    Bits,
    DataSpec,
    DeploySpec,
    EvaluateSpec,
    MethodSpec,
    ModelSpec,
    Quantization,
)
from erq_export.contract.targets import deployable
from erq_export.flow.detection.asked import check_kind
from erq_export.models.aliases import known as known_alias
from erq_export.models.aliases import paper_ridge
from erq_export.models.arguments import checked

AUTO = "auto"  # --bits auto --budget B: w⌊B⌋a8, weights as chosen; fewer activation bits are no faster on any target
SLICES: dict[str, type[Spec]] = {
    "model": ModelSpec,
    "data": DataSpec,
    "method": MethodSpec,
    "deploy": DeploySpec,
    "evaluate": EvaluateSpec,
}


class Job(Spec, frozen=True, kw_only=True):
    """Everything a run was told, besides where it writes and how it speaks. `resolve` makes one; its options are complete."""

    model: ModelSpec
    data: DataSpec = DataSpec()
    method: MethodSpec
    deploy: DeploySpec = DeploySpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    published: Annotated[
        str | None,
        Meta(
            description="--to reference: start from the settings of a paper",
            extra_json_schema={"enum": list(PAPERS)},
        ),
    ] = None
    device: Annotated[
        str,
        Meta(
            description="where to calibrate: auto, cpu, cuda, cuda:1 …",
            max_length=20,
            extra={"fix": "auto, cpu, cuda or cuda:1"},
        ),
    ] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_device_name(self.device)
        if self.published is not None and "reference" not in self.deploy.targets:
            raise SpecError(
                f"--published {self.published} is a setting of the target reference: parts of it cannot be deployed",
                fix="--to reference; or, deployable: -O rounding=paper -O row_steps=0 -O head_ridge=1",
            )
        check_pack(self.deploy, self.method.bits)
        self._check_deployable()
        check_kind(self.model, self.data, self.method, self.deploy, self.evaluate)

    @property
    def options(self) -> Options:
        """The method's options in their own type."""
        return options_of(self.method.method, self.method.options)

    @property
    def quantization(self) -> Quantization:
        """The slice that calibration depends on. ValueError before bits are chosen (`flow.choose`)."""
        if self.method.budget is not None:
            raise ValueError("the bits are not chosen yet")
        return Quantization(
            bits=self.method.bits,
            method=self.method.method,
            options=all_of(self.options),
            attention=self.deploy.precision,
            rules=self.deploy.rules,
        )

    def _check_deployable(self) -> None:
        """SpecError for a choice that none but the target `reference` can run, beside another one."""
        if not (named := deployable(self.deploy.targets)):
            return
        options = self.options
        words = [
            options.word(k) + f"={str(v).lower()}" for k, v in options.SIMULATED.items() if getattr(options, k) == v
        ]
        words += ["--attention paper"] * (self.deploy.attention == "paper")
        if words:
            raise SpecError(
                f"{words[0]} cannot be deployed to {', '.join(named)}: PyTorch alone can simulate it",
                fix=f"leave {words[0]} out, or --to reference alone",
            )


class RunRecord(FileRecord, frozen=True, kw_only=True):
    """run.json: what was asked for, with absolute paths, so that a stage can run again from any folder."""

    FORMAT: ClassVar[int] = 2
    WHAT: ClassVar[str] = "run"

    erq_export: str
    job: Job


def resolve(given: Mapping[str, Any], *, options: Mapping[str, Scalar] | None = None, typed: bool = False) -> Job:
    """The job that a user means who gave these fields and no others.

    given: fields of the slices by name (`name` is the model's);  options: the method's own;  typed: values are words of a
    command line. What was not given comes from the paper's preset (where `reference` is all that is wanted: beside other
    targets it is only compared with them), else from the alias of the model, else from the general defaults.
    SpecError for an unknown name, a value out of its range, a combination that cannot be.
    """
    asked = {name: value for name, value in given.items() if value is not None}
    if "bits" not in asked:
        raise SpecError("--bits is missing", fix="weight and activation bits, for example --bits w4a4")
    if asked["bits"] == AUTO:
        asked["bits"] = _automatic(asked.get("budget"), typed)
    alias = known_alias(asked.get("name", ""))
    if alias is not None:
        asked = {**alias.defaults, **asked}
    deploy = _slice(DeploySpec, asked, typed)
    paper = None if asked.get("published") is None else paper_named(asked["published"])
    chosen: dict[str, Scalar] = dict(alias.options) if alias else {}
    if paper is not None and not deployable(deploy.targets):
        chosen |= {**paper.options, "ridge": paper_ridge(asked.get("name", ""))}
        if "attention" not in asked:
            deploy = structs.replace(deploy, attention=paper.attention)
    if "model_args" in asked:
        checked(asked["model_args"], source="--model-arg")
    method = _slice(MethodSpec, {k: v for k, v in asked.items() if k != "options"}, typed)
    known = set(options_of(method.method, {}).__struct_fields__)
    own = options_of(method.method, options or {}, typed=typed)
    explicit = {name: getattr(own, name) for name in options or {}}
    complete = options_of(method.method, {k: v for k, v in chosen.items() if k in known} | explicit)
    _check_asked(explicit, complete, deploy)
    return Job(
        model=_slice(ModelSpec, asked, typed),
        data=_slice(DataSpec, asked, typed),
        method=structs.replace(method, options=all_of(complete)),
        deploy=deploy,
        evaluate=_slice(EvaluateSpec, asked, typed),
        **{name: asked[name] for name in ("published", "device") if name in asked},
    )


def measured_otherwise(job: Job, words: Mapping[str, Any]) -> Job:
    """The job of a run with other held-out images and bounds, as they were typed; what was not typed stays as it was. Another
    --val, or --coco, leaves class map and number of images behind, which were those of the folder before."""
    given = {name: word for name, word in words.items() if word is not None}

    def other(part: Spec, before: Mapping[str, Any]) -> dict[str, Any]:
        rules = hints(type(part))
        own = {n: checked_value(w, rules[n], word=part.word(n), text=True) for n, w in given.items() if n in rules}
        return {**before, **own}

    left = {"class_map": None, "val_images": 0} if "val" in given else {"val_images": 0} if "coco" in given else {}
    return structs.replace(
        job,
        data=structs.replace(job.data, **other(job.data, left)),
        evaluate=structs.replace(job.evaluate, **other(job.evaluate, {})),
    )


def _automatic(budget: object, typed: bool) -> Bits:
    """What `--bits auto` stands for: the base of a choice within the budget, with 8-bit activations."""
    if budget is None:
        raise SpecError("--bits auto needs --budget", fix="mean weight bits, for example --bits auto --budget 4")
    rule = hints(MethodSpec)["budget"]
    return Bits(w=int(checked_value(budget, rule, word=MethodSpec.word("budget"), text=typed)), a=8)


def absolute(job: Job) -> Job:
    """The job with its paths made absolute: another folder may be the current one next time."""

    def whole(path: str | None) -> str | None:
        return None if path is None else str(Path(path).absolute())

    given = job.data
    paths = {"data": given.data, "val": given.val, "coco": given.coco, "class_map": given.class_map}
    data = structs.replace(given, **{name: whole(path) for name, path in paths.items()})
    return structs.replace(job, data=data, model=structs.replace(job.model, checkpoint=whole(job.model.checkpoint)))


def _slice(kind: type[Spec], asked: Mapping[str, Any], typed: bool) -> Any:
    """One slice from the fields that are its own; a field that no slice has is refused."""
    every = {name for part in (*SLICES.values(), Job) for name in hints(part)}
    if surplus := [name for name in asked if name not in every]:
        raise unknown("option", surplus[0], every)
    own = {name: rule for name, rule in hints(kind).items() if name in asked}
    return kind(**{n: checked_value(asked[n], rule, word=kind.word(n), text=typed) for n, rule in own.items()})


def _check_asked(explicit: Mapping[str, Scalar], options: Options, deploy: DeploySpec) -> None:
    """SpecError where an option asked for would change nothing with the rest as it is."""
    for name in explicit:
        if name.startswith("mipq_") and getattr(options, "rounding", None) != "mipq":
            raise SpecError(
                f"-O {name} changes nothing with rounding={getattr(options, 'rounding', None)}",
                fix="add -O rounding=mipq",
            )
        if name == "attention_bits" and deploy.precision != "int8":
            raise SpecError(
                f"-O {name} changes nothing with --attention {deploy.precision}", fix="add --attention int8"
            )


def read_run(out: Path) -> Job:
    """The job of the run that a folder holds. DataError where it holds none that this version reads."""
    return read(RunRecord, out / "run.json").job


def check_pack(deploy: DeploySpec, bits: Bits) -> None:
    """SpecError where the weights of every layer have more bits than the packed form holds; such layers stay int8."""
    if deploy.pack == "int4" and not bits.packable:
        raise SpecError(
            f"--pack int4 with --bits {bits}: {bits.w} bits do not fit 4",
            fix=f"--pack int8, or at most {PACKED_BITS} weight bits",
        )
