# SPDX-License-Identifier: Apache-2.0
"""The real Triton, from its PyPI wheel, on a model repository: install it once, start, wait, stop, clean up.

``python tests/differential/triton_server.py`` makes its environment; it does nothing where that is already there.
The wheel has the python backend only, which is enough: each model of the repository is a ``model.py``.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

FOLDER = Path(__file__).parents[2] / ".clients" / "triton"
PYTHON = FOLDER / "bin" / "python"
REPOSITORY = Path(__file__).with_name("repository")
VERSION = "2.51.0"

_WHEEL = "nvidia-pytriton==0.7.0"
_BESIDE = ("numpy<2",)  # with numpy 2 the backend says READY and returns wrong data
_REQUIREMENTS = (_WHEEL, *_BESIDE)
_DONE = FOLDER / ".installed"
_BACKENDS = FOLDER / "backends"
_PYTHON_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
_SITE = FOLDER / "lib" / f"python{_PYTHON_VERSION}" / "site-packages"
_WHEEL_FOLDER = _SITE / "pytriton" / "tritonserver"


def is_installed() -> bool:
    """Whether the environment holds exactly these requirements."""
    return _DONE.is_file() and _DONE.read_text().splitlines() == list(_REQUIREMENTS)


def install() -> None:
    """Makes the environment where it is missing or older.

    The wheel comes without its dependencies, since nothing of its Python is used. Its python backend looks beside
    itself for the process that runs a model, and there must lie the one for this version of Python.

    Raises:
        CalledProcessError: pip could not install a requirement.
    """
    if is_installed():
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(FOLDER)], check=True)
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *_BESIDE], check=True)
    subprocess.run([*pip, "--no-deps", _WHEEL], check=True)
    shutil.copytree(_WHEEL_FOLDER / "backends", _BACKENDS)
    stub = _WHEEL_FOLDER / "python_backend_stubs" / _PYTHON_VERSION / "triton_python_backend_stub"
    shutil.copy(stub, _BACKENDS / "python")
    (_BACKENDS / "python" / stub.name).chmod(0o755)
    (_WHEEL_FOLDER / "bin" / "tritonserver").chmod(0o755)
    _DONE.write_text("\n".join(_REQUIREMENTS))


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


@dataclass
class TritonServer:
    """One Triton process on loopback, with explicit model control.

    Args:
        repository: The model repository; the server only reads it.
        models: What is loaded at the start.
        options: More of ``tritonserver``'s own options.
    """

    repository: Path
    models: Sequence[str] = ()
    options: Sequence[str] = ()
    _ports: list[int] = field(default_factory=lambda: _free_ports(3), init=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._shared_memory = f"modelyard_triton_{os.getpid()}_{self._ports[0]}_"
        descriptor, name = tempfile.mkstemp(prefix="triton-", suffix=".log")
        os.close(descriptor)
        self.log = Path(name)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._ports[0]}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self._ports[1]}"

    @property
    def metrics_url(self) -> str:
        return f"http://127.0.0.1:{self._ports[2]}/metrics"

    def command(self) -> list[str]:
        address = "127.0.0.1"
        http, grpc, metrics = map(str, self._ports)
        return [
            str(_WHEEL_FOLDER / "bin" / "tritonserver"),
            *("--model-repository", str(self.repository)),
            *("--backend-directory", str(_BACKENDS)),
            *("--http-address", address, "--http-port", http),
            *("--grpc-address", address, "--grpc-port", grpc),
            *("--metrics-address", address, "--metrics-port", metrics),
            *("--model-control-mode", "explicit"),
            *(f"--load-model={model}" for model in self.models),
            *("--exit-on-error", "false"),
            *("--exit-timeout-secs", "3"),  # else it waits 30 s for connections that are kept alive
            f"--backend-config=python,shm-region-prefix-name={self._shared_memory}",
            *self.options,
        ]

    def environment(self) -> dict[str, str]:
        """The model processes find their Python by ``PATH`` alone; they ignore ``PYTHONPATH``."""
        libraries = (_SITE / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR"))
        return os.environ | {
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
            "PATH": f"{PYTHON.parent}{os.pathsep}{os.environ['PATH']}",
        }

    def start(self, timeout_s: float = 60) -> None:
        """Returns when the server and the models that it loads at the start are ready.

        Raises:
            RuntimeError: It ended, or was not ready in time; with the end of its output.
        """
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                self.command(), env=self.environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        deadline = time.monotonic() + timeout_s
        while not self.is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"Triton did not get ready; its output ends with:\n{self.tail()}")
            time.sleep(0.05)

    def is_ready(self) -> bool:
        with suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/v2/health/ready", timeout=2).status_code == httpx.codes.OK
        return False

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self, timeout_s: float = 15) -> None:
        """Ends it, kills it where it does not end in time, and removes what it leaves when it dies of itself."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
        for pid in self._model_processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for region in Path("/dev/shm").glob(f"{self._shared_memory}*"):
            region.unlink(missing_ok=True)

    def _model_processes(self) -> Iterator[int]:
        """Process ids of this server's models: the shared memory's name is in their command line."""
        marker = self._shared_memory.encode()
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and marker in (entry / "cmdline").read_bytes():
                    yield int(entry.name)


@contextmanager
def running(server: TritonServer) -> Iterator[TritonServer]:
    """The server, started; whatever happens, nothing of it is left afterwards."""
    try:
        server.start()
        yield server
    finally:
        server.stop()
        server.log.unlink(missing_ok=True)


if __name__ == "__main__":
    install()
