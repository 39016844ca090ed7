# SPDX-License-Identifier: Apache-2.0
"""`python -m load_tests.frameworks`: what serving a model costs over calling its library, one row for each framework.

Three times for one row and for 256: the library called in a process of its own, our framework module called the same
way, and the platform asked over HTTP with binary tensors by one client, one request at a time. Then how long a replica
takes from `load` until the model is ready, and the memory of its process.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import yaml

from load_tests import modelyard_server, wrk
from load_tests.direct import LIBRARIES, ROWS
from load_tests.processes import ServerProcess, descendants, free_ports, rss_mb, title, wait_until
from modelyard.client import Platform
from modelyard.tensor import DATATYPES, datatype_of

ROOT = Path(__file__).parents[1]
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(frozen=True, slots=True)
class Found:
    """What was measured of one model; times in microseconds by number of rows, empty where there is no such way."""

    model: str
    framework: str
    library_us: Mapping[str, float]
    predict_us: Mapping[str, float]
    platform_us: Mapping[str, float]
    ready_s: float
    memory_mb: float

    def to_row(self) -> str:
        """A line of the table."""
        cells = [self.model, self.framework]
        for rows in map(str, ROWS):
            library, predict, whole = (
                times.get(rows) for times in (self.library_us, self.predict_us, self.platform_us)
            )
            added = whole - library if whole and library else None
            cells += [_show(library), _show(predict), _show(whole), _show(added)]
        return f"| {' | '.join(cells)} | {self.ready_s:.1f} | {self.memory_mb:.0f} |"


def _show(time_us: float | None) -> str:
    return f"{time_us:,.0f}" if time_us is not None else "-"


def table_head() -> str:
    """The first two lines of the table."""
    times = [
        f"{what}, {rows} row{'s' if rows > 1 else ''}" for rows in ROWS for what in ("library", "ours", "HTTP", "added")
    ]
    heads = ["model", "framework", *times, "ready s", "MB"]
    return f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}"


@contextmanager
def platform(config: Path, folder: Path, logs: Path) -> Iterator[tuple[str, int]]:
    """The platform of a configuration file on ports and with a catalog of its own: its address and process."""
    document = yaml.safe_load(config.read_text())
    http, grpc = free_ports(2)
    document["http_options"]["port"], document["grpc_options"]["port"] = http, grpc
    document["applications"][0]["args"]["catalog"] = {"url": f"sqlite:///{folder}/catalog.db"}
    file = folder / "platform.yaml"
    file.write_text(yaml.safe_dump(document))
    url = f"http://127.0.0.1:{http}"
    server = modelyard_server.start(modelyard_server.platform_command(file), url, f"127.0.0.1:{grpc}", logs)
    assert server.process is not None
    process = server.process
    try:
        if not wait_until(lambda: _is_up(url, process), 600):
            raise TimeoutError(f"the platform is not ready after 600 s; {process.log}")
        yield url, process.pid
    finally:
        process.stop()


def _is_up(url: str, process: ServerProcess) -> bool:
    process.check_running()
    try:
        return httpx.get(f"{url}/v2/health/ready", timeout=5).is_success
    except httpx.HTTPError:
        return False


def whom_to_ask(url: str, model: str) -> str:
    """The model, or the first model of the repository that it is."""
    if httpx.get(f"{url}/v2/models/{model}", timeout=30).raise_for_status().json()["inputs"]:
        return model
    with Platform.connect(url) as client:
        return client.status(model).members[0]


def one_row(url: str, model: str) -> dict[str, np.ndarray]:
    """The request that the model's documentation shows, one row."""
    document = httpx.get(f"{url}/v2/models/{model}/openapi.json", timeout=30).raise_for_status().json()
    (body,) = [
        operation["requestBody"]["content"]["application/json"]["example"]
        for path, operations in document["paths"].items()
        if path.endswith("/infer") and "versions" not in path
        for operation in operations.values()
    ]
    found = {}
    for tensor in body["inputs"]:
        datatype = tensor["datatype"]
        if datatype == "BYTES":
            data = np.array([one.encode() for one in tensor["data"]], dtype=object)
        else:
            data = np.array(tensor["data"], DATATYPES[datatype].dtype)
        found[tensor["name"]] = data.reshape(tensor["shape"])
    return found


def binary_request(inputs: Mapping[str, np.ndarray]) -> tuple[bytes, int]:
    """The body and the length of its JSON part."""
    entries, parts = [], []
    for name, array in inputs.items():
        if array.dtype == object:
            raw = b"".join(len(one).to_bytes(4, "little") + one for one in array.ravel())
        else:
            raw = array.tobytes()
        size = {"binary_data_size": len(raw)}
        described = {"name": name, "shape": list(array.shape), "datatype": datatype_of(array)}
        entries.append({**described, "parameters": size})
        parts.append(raw)
    text = json.dumps({"inputs": entries, "parameters": {"binary_data_output": True}}).encode()
    return text + b"".join(parts), len(text)


def ask_platform(url: str, model: str, inputs: Mapping[str, np.ndarray], seconds: float) -> dict[str, float]:
    """The median time of a request by number of rows.

    Raises:
        ValueError: when it is answered with an error.
    """
    times = {}
    for rows in ROWS:
        body, length = binary_request({name: np.repeat(array, rows, axis=0) for name, array in inputs.items()})
        target = f"{url}/v2/models/{model}/infer"
        asked = {"inference-header-content-length": str(length), "content-type": "application/octet-stream"}
        reply = httpx.post(target, content=body, headers=asked, timeout=60)
        if not reply.is_success:
            raise ValueError(f"{model}, {rows} rows: {reply.status_code} {reply.text[:300]}")
        found = wrk.measure(target, body, 1, seconds, 0.5, json_length=length)
        if found.errors:
            raise ValueError(f"{model}, {rows} rows: {found.errors} errors")
        times[str(rows)] = found.p50_ms * 1000
    return times


def ask_directly(
    framework: str, spec: Mapping[str, Any], inputs: Mapping[str, np.ndarray], file: Path
) -> dict[str, Any]:
    """What `load_tests.direct` prints, in a process of its own with one thread."""
    file.write_bytes(pickle.dumps(dict(inputs)))
    options = json.dumps(spec.get("options", {}))
    command = [sys.executable, "-m", "load_tests.direct", framework, spec["uri"], options, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **ONE_THREAD})
    if done.returncode:
        raise RuntimeError(f"{framework}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def reload(url: str, pid: int, model: str) -> tuple[float, float]:
    """Unload and load a model: seconds until it is ready, and the memory of its replica in MB."""
    import time

    with Platform.connect(url) as client:
        client.unload(model, wait=True)
        begun = time.monotonic()
        client.load(model, wait=True, timeout_s=300)
        ready_s = time.monotonic() - begun
    replicas = [one for one in descendants(pid) if f":{model}@" in title(one)]
    return ready_s, rss_mb({child for one in replicas for child in descendants(one)})


def measure(url: str, pid: int, spec: Mapping[str, Any], seconds: float, folder: Path) -> Found:
    """Everything about one model."""
    name, framework = spec["name"], spec["framework"]
    asked, file = whom_to_ask(url, name), folder / "inputs.pickle"
    inputs = one_row(url, asked)
    library = ask_directly(f"library:{framework}", spec, inputs, file) if framework in LIBRARIES else {}
    ours = ask_directly(framework, spec, inputs, file) if framework in LIBRARIES else {}
    ready_s, memory_mb = reload(url, pid, name)
    times = ask_platform(url, asked, inputs, seconds)
    return Found(name, framework, library.get("library_us", {}), ours.get("predict_us", {}), times, ready_s, memory_mb)


def main() -> None:
    """Measure model after model and print a line for each."""
    parser = argparse.ArgumentParser(prog="python -m load_tests.frameworks", description=__doc__)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "frameworks.yaml")
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--only", nargs="+", default=[], help="names of models")
    options = parser.parse_args()
    wrk.check_installed()
    specs = yaml.safe_load(options.config.read_text())["applications"][0]["args"]["models"]
    with tempfile.TemporaryDirectory(prefix="fw-") as name:
        folder = Path(name)
        with platform(options.config, folder, Path(".bench/logs")) as (url, pid):
            print(table_head(), flush=True)
            for spec in specs:
                if not options.only or spec["name"] in options.only:
                    print(measure(url, pid, spec, options.seconds, folder).to_row(), flush=True)


if __name__ == "__main__":
    main()
