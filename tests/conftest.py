"""The device that operator tests run on, and fixtures of the NequIP tests; the others do not pay
for importing NequIP."""

import importlib.util
import os

import pytest
import torch


def pytest_addoption(parser):
    parser.addoption(
        "--device",
        default="cpu",
        help="cpu, or cuda (NVIDIA or ROCm), cuda:1, ..., where tests that ask for it run alone",
    )


def pytest_configure(config):
    name = config.getoption("--device")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise pytest.UsageError(f"--device {name}: {error}") from None
    if device.type not in ("cpu", "cuda"):
        raise pytest.UsageError(f"--device {name}: expected cpu or cuda (also for ROCm)")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            built = torch.version.cuda or torch.version.hip or "no GPU"
            raise pytest.UsageError(
                f"--device {name}: torch {torch.__version__} (built for {built}) sees no GPU"
            )
        if (device.index or 0) >= torch.cuda.device_count():
            raise pytest.UsageError(
                f"--device {name}: torch sees {torch.cuda.device_count()} GPU(s)"
            )
        # deterministic matrix products in the references, read when cuBLAS starts
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def pytest_collection_modifyitems(config, items):
    """On a GPU only what runs there: the tests that ask for the device."""
    if torch.device(config.getoption("--device")).type == "cpu":
        return
    asked, others = [], []
    for item in items:
        (asked if "device" in getattr(item, "fixturenames", ()) else others).append(item)
    config.hook.pytest_deselected(items=others)
    items[:] = asked


def pytest_sessionstart(session):
    """What is under test, also with -q, which leaves out pytest's own header."""
    config = session.config
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and not hasattr(config, "workerinput"):
        fastmlip = importlib.util.find_spec("fastmlip")
        reporter.write_line(f"torch {torch.__version__}, {fastmlip and fastmlip.origin}")


@pytest.fixture(scope="session")
def device(request):
    """The device of ``--device``."""
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(scope="module")
def nequip_state():
    """NequIP's global state while a module's tests run."""
    import nequip_cases

    with nequip_cases.nequip_state():
        yield
