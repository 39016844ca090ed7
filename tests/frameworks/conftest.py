# SPDX-License-Identifier: Apache-2.0
"""Models are trained here, once in a session, by the functions in ``cases/``."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from modelyard.model import Model, load_model, refresh_frameworks
from modelyard.testing import Case

CASES = Path(__file__).parent / "cases"


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


ALL = [(path.stem, name) for path in sorted(CASES.glob("*.py")) for name in _trainers(path.stem)]


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


@pytest.fixture(scope="session", params=ALL, ids=lambda case: "-".join(case))
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, fake_distribution: None
) -> Trained:
    framework, name = request.param
    if framework not in ("fake", "custom"):
        pytest.importorskip(framework)
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
