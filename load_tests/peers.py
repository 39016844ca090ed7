# SPDX-License-Identifier: Apache-2.0
"""The servers we compare with: each in an environment of its own below `.bench/`, each on loopback and a free port.

Both run as fast as their options allow: one process, models in it, no log line per request, one thread per numeric
library call (as on our replicas).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from load_tests.artifacts import BenchModel, train_elsewhere
from load_tests.processes import ServerProcess, free_ports
from load_tests.servers import Server, output_of

HERE = Path(__file__).parent
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


@dataclass(frozen=True, slots=True)
class Environment:
    """A peer's virtual environment below `.bench/`."""

    name: str
    requirements: tuple[str, ...]
    directory: Path

    @property
    def python(self) -> str:
        return str(self.directory / "bin" / "python")

    def installed(self, package: str) -> str:
        code = f"from importlib.metadata import version; print(version({package!r}))"
        return output_of([self.python, "-c", code])


def environments(bench: Path) -> dict[str, Environment]:
    """Return the peers' environments, by the peer's name."""
    wanted = {"mlserver": ("mlserver==1.7.1", "mlserver-sklearn==1.7.1"), "kserve": ("kserve==0.21.0",)}
    return {name: Environment(name, packages, (bench / name).resolve()) for name, packages in wanted.items()}


def _install(environment: Environment, packages: list[str], log: Path) -> bool:
    with log.open("ab") as output:
        command = [environment.python, "-m", "pip", "install", "--disable-pip-version-check", *packages]
        return subprocess.run(command, stdout=output, stderr=output, check=False).returncode == 0


def prepare(environment: Environment, logs: Path) -> None:
    """Create the environment once; again only when the requirements change.

    Our scikit-learn version is asked for; a peer that refuses it gets the one it chooses.

    Raises:
        RuntimeError: when pip cannot install the peer; the log is named.
    """
    pinned = f"scikit-learn=={version('scikit-learn')}"
    marker, wanted = environment.directory / ".installed", "\n".join((*environment.requirements, pinned))
    if marker.is_file() and marker.read_text() == wanted:
        return
    print(f"installing {environment.name} into {environment.directory.name} (once)", flush=True)
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{environment.name}-install.log"
    subprocess.run([sys.executable, "-m", "venv", str(environment.directory)], check=True)
    packages = list(environment.requirements)
    if not _install(environment, [*packages, pinned], log):
        print(f"{environment.name} does not go with {pinned}; it gets its own choice and models trained with that")
        if not _install(environment, [*packages, "scikit-learn"], log):
            raise RuntimeError(f"cannot install {environment.name}: see {log}")
    marker.write_text(wanted)


def artifacts_for(environment: Environment, models: Mapping[str, BenchModel], bench: Path) -> dict[str, Path]:
    """Return the artifacts a peer loads: ours, or ones trained in its environment where the versions differ."""
    theirs = environment.installed("scikit-learn")
    if theirs == version("scikit-learn"):
        return {name: model.artifact for name, model in models.items()}
    directory = (bench / "models" / f"scikit-learn-{theirs}").resolve()
    return train_elsewhere(environment.python, directory)


def start_mlserver(environment: Environment, artifacts: Mapping[str, Path], bench: Path, logs: Path) -> Server:
    """Start MLServer with the models in the server's own process and without its metrics listener."""
    http, grpc = free_ports(2)
    folder = bench / "mlserver-models"
    settings = {
        "host": "127.0.0.1",
        "http_port": http,
        "grpc_port": grpc,
        "metrics_endpoint": None,
        "parallel_workers": 0,
        "debug": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(settings))
    for name, artifact in artifacts.items():
        (folder / name).mkdir(exist_ok=True)
        model = {"name": name, "implementation": "mlserver_sklearn.SKLearnModel", "parameters": {"uri": str(artifact)}}
        (folder / name / "model-settings.json").write_text(json.dumps(model))
    command = [str(environment.directory / "bin" / "mlserver"), "start", str(folder)]
    process = ServerProcess(command, logs / "mlserver.log", ONE_THREAD)
    found = environment.installed("mlserver")
    return Server("mlserver", f"http://127.0.0.1:{http}", f"127.0.0.1:{grpc}", ("v2", "grpc"), found, process)


def start_kserve(environment: Environment, artifacts: Mapping[str, Path], bench: Path, logs: Path) -> Server:
    """Start KServe's Python server with a scikit-learn model of ours, see `kserve_runner`."""
    del bench
    http, grpc = free_ports(2)
    options = ["--http_port", str(http), "--grpc_port", str(grpc)]
    quiet = ["--enable_latency_logging", "false", "--configure_logging", "false"]
    named = [f"{name}={artifact}" for name, artifact in artifacts.items()]
    command = [environment.python, "-P", str(HERE / "kserve_runner.py"), *options, *quiet, *named]
    process = ServerProcess(command, logs / "kserve.log", ONE_THREAD)
    found = environment.installed("kserve")
    return Server("kserve", f"http://127.0.0.1:{http}", f"127.0.0.1:{grpc}", ("v1", "v2", "grpc"), found, process)


STARTERS = {"mlserver": start_mlserver, "kserve": start_kserve}
