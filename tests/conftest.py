"""What several files of tests start from."""

from collections.abc import Iterator

import pytest
import torch
from command_line import erq  # noqa: F401  the fixture of every folder
from hypothesis import settings
from lost_workers import pytest_handlecrashitem, pytest_xdist_make_scheduler  # noqa: F401  hooks
from tiny_vit import calibrated_bundle, random_images, tiny_spec, tiny_vit
from toy_bundle import toy_cascade  # noqa: F401  a fixture

from erq_export.contract.bundle import Bundle
from erq_export.data.calibration_set import CalibrationSet
from erq_export.models.loading import Loaded

pytest.register_assert_rewrite("full_size")

settings.register_profile("reproducible", derandomize=True, database=None, deadline=None, max_examples=50)
settings.load_profile("reproducible")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices: threads cost more than they bring, and one thread adds in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def own_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is taken from, or left in, the user's store; child processes see it, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ERQ_EXPORT_STORE", str(tmp_path_factory.mktemp("store")))
        yield


@pytest.fixture
def tiny() -> Loaded:
    """A fresh float model: calibration consumes it."""
    return tiny_vit()


@pytest.fixture(scope="session")
def images() -> CalibrationSet:
    return random_images()


@pytest.fixture(scope="session")
def calibrated(images: CalibrationSet) -> tuple[Loaded, Bundle]:
    """The tiny model at w4a4 for all targets, quantized by the loop, and its bundle. Not to be changed."""
    loaded = tiny_vit()
    return loaded, calibrated_bundle(loaded, images, tiny_spec(targets=("onnx", "tensorrt-rtx")))


@pytest.fixture(scope="session")
def bundle(calibrated: tuple[Loaded, Bundle]) -> Bundle:
    return calibrated[1]
