"""Every layer of a job's model as its weight step meets it: the loop's own steps up to the solver."""

from collections.abc import Iterator
from typing import cast

from torch import nn

from erq_export.calibrate.layer import layer_problem
from erq_export.calibrate.loop import CHUNK
from erq_export.calibrate.ranges import input_grids
from erq_export.calibrate.setting import Setting
from erq_export.calibrate.solve.problem import Problem
from erq_export.calibrate.states import stage_moments
from erq_export.contract.sites import Site, submodule
from erq_export.flow.job import Job
from erq_export.flow.run import begin
from erq_export.flow.store.store import Store
from erq_export.flow.ui import SILENT


def layer_moments(job: Job, seed: int) -> Iterator[tuple[Problem, Site]]:
    """In the order of the network, each with the moments of its inputs."""
    with Store.none() as store:
        work, setting = begin(job, SILENT, store), Setting.of(job.quantization)
        loaded, hidden = work.model, list(work.calibration_images(seed).pixels.split(CHUNK))
    for stage in loaded.stages:
        grids = input_grids(loaded.model, stage, hidden, setting)
        moments, hidden = stage_moments(loaded.model, stage, hidden, grids)
        for site in stage.sites:
            linear = cast(nn.Linear, submodule(loaded.model, site.path, nn.Linear))
            yield layer_problem(linear, moments[site.path], site, setting), site
