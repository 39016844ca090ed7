# SPDX-License-Identifier: Apache-2.0
"""Models are trained here, once in a session, by the functions in ``cases/``."""

import faulthandler
import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from modelyard.model import Model, load_model, refresh_frameworks
from modelyard.testing import Case

HERE = Path(__file__).parent
CASES = HERE / "cases"
LIGHT = ("custom", "fake", "lightgbm", "sklearn", "xgboost")
"""Tested together, in the process of all other tests; each other framework only where ``--framework`` names it."""
MODULES = {
    "huggingface": "transformers",
    "onnx": "onnxruntime",
    "pytorch": "torch",
    "pmml": "pypmml",
    "triton": "tritonclient",
}
"""The library's module, where it is not called as the framework."""
OF_ALL = ("test_conformance.py",)
"""What a run with ``--framework`` collects beside that framework's own folder."""


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Java uses SIGSEGV for its own ends; pytest, at its end, would put back the handler from before Java started."""
    if config.getoption("--framework") == "pmml":
        faulthandler.disable()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves other frameworks' folders out, and with ``--framework`` what is not of that one."""
    chosen = config.getoption("--framework")
    top = collection_path.relative_to(HERE).parts[:1]
    if not top or top[0] in OF_ALL:
        return None
    is_folder = (HERE / top[0]).is_dir()
    return (top[0] != chosen if is_folder else chosen is not None) or None


@dataclass(frozen=True)
class Trained:
    framework: str
    folder: Path
    case: Case

    def load(self) -> Model:
        return load_model(self.framework, self.folder, self.case.options)


def _load_module(framework: str) -> ModuleType:
    name = f"modelyard_cases_{framework}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, CASES / f"{framework}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def _trainers(framework: str) -> dict[str, Callable[[Path], Case]]:
    module = _load_module(framework)
    return {
        name: item
        for name, item in vars(module).items()
        if callable(item) and not name.startswith("_") and getattr(item, "__module__", "") == module.__name__
    }


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every case of the chosen framework, or of all light ones."""
    if "trained" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--framework")
        cases = [(name, case) for name in ([chosen] if chosen else LIGHT) for case in _trainers(name)]
        metafunc.parametrize("trained", cases, ids="-".join, indirect=True, scope="session")


@pytest.fixture(scope="session")
def fake_distribution(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A package of a third party that brings a framework: an entry point on ``sys.path``, nothing more."""
    site = tmp_path_factory.mktemp("site")
    info = site / "thirdparty-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thirdparty\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[modelyard.frameworks]\nfake = modelyard.testing:FakeFramework\n")
    sys.path.append(str(site))
    refresh_frameworks()
    yield
    sys.path.remove(str(site))
    refresh_frameworks()


@pytest.fixture(scope="session")
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, fake_distribution: None
) -> Trained:
    framework, name = request.param
    if framework not in ("fake", "custom"):
        pytest.importorskip(MODULES.get(framework, framework))
    folder = tmp_path_factory.mktemp(name)
    return Trained(framework, folder, _trainers(framework)[name](folder))


@pytest.fixture(scope="session")
def model(trained: Trained) -> Iterator[Model]:
    loaded = trained.load()
    yield loaded
    loaded.close()


@pytest.fixture(scope="session")
def trainers() -> Callable[[str], dict[str, Callable[[Path], Case]]]:
    """The training functions of a framework, by name."""
    return _trainers


@pytest.fixture(scope="session")
def train_example(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Trains an example model by the command that users have, which prints one line and no more; gives its folder.

    ``train_example(name)`` is trained once, ``train_example(name, again=True)`` once more.
    """

    @cache
    def train(name: str, again: bool = False) -> Path:
        directory = tmp_path_factory.mktemp("examples")
        command = [sys.executable, "-m", "modelyard_deployments.examples", str(directory), "--only", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        (line,) = done.stdout.splitlines()
        assert line.startswith(f"trained {directory / name}")
        return directory / name

    return train
