# SPDX-License-Identifier: Apache-2.0
"""`python -m load_tests.binary`: binary tensors over HTTP on Modelyard, KServe's Python server and the real Triton.

All answer with the same two models (`binary_models`), asked by wrk in the binary tensor data extension.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import numpy as np

from load_tests import modelyard_server, peers, wrk
from load_tests.binary_models import INPUT, SHAPES, answer
from load_tests.measurement import Measurement, combine
from load_tests.processes import ServerProcess, free_ports, wait_until
from load_tests.workloads import NUMPY

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "differential"))

from triton_server import INSTALLED, TritonServer, running  # noqa: E402  # the one way to the real Triton

CONFIG = """
name: "{name}"
backend: "python"
max_batch_size: 1024
input [{{ name: "x" data_type: TYPE_{datatype} dims: {dims} }}]
output [{{ name: "y" data_type: TYPE_{datatype} dims: [{outputs}] }}]
dynamic_batching {{}}
instance_group [{{ kind: KIND_CPU count: 1 }}]
"""


def tensor(name: str) -> np.ndarray:
    """Return what a model is asked, the same every time."""
    shape, datatype = SHAPES[name]
    return np.random.default_rng(0).random(shape).astype(NUMPY[datatype])


def request(name: str) -> tuple[bytes, int]:
    """Return the body and the length of its JSON part."""
    data = tensor(name)
    size = {"binary_data_size": data.nbytes}
    entry = {"name": INPUT, "shape": list(data.shape), "datatype": SHAPES[name][1], "parameters": size}
    text = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}}).encode()
    return text + data.tobytes(), len(text)


def check(url: str, name: str) -> None:
    """Ask once.

    Raises:
        ValueError: when the answer is not the model's own, or an error.
    """
    body, length = request(name)
    asked = {"inference-header-content-length": str(length), "content-type": "application/octet-stream"}
    reply = httpx.post(f"{url}/v2/models/{name}/infer", content=body, headers=asked, timeout=30)
    if not reply.is_success:
        raise ValueError(f"{url} {name}: {reply.status_code} {reply.text[:300]}")
    at = int(reply.headers["inference-header-content-length"])
    found = np.frombuffer(reply.content[at:], NUMPY[json.loads(reply.content[:at])["outputs"][0]["datatype"]])
    if not np.allclose(found, answer(tensor(name)).ravel(), rtol=1e-4):
        raise ValueError(f"{url} {name}: {found[:4]} is not the model's answer")


@contextmanager
def modelyard(folder: Path, logs: Path) -> Iterator[str]:
    """Start the platform with the two models on free ports of its own."""
    http, grpc = free_ports(2)
    models = []
    for name, entry in (("table", "Table"), ("image", "Image")):
        path = folder / "modelyard" / name
        path.mkdir(parents=True)
        shutil.copy(HERE / "binary_models.py", path / "model.py")
        model = {"name": name, "framework": "custom", "uri": str(path), "options": {"entrypoint": f"model:{entry}"}}
        models.append({**model, "batching": {"max_batch_size": 1024}, "resources": {"num_cpus": 0.1}})
    arguments = {
        "catalog": {"url": f"sqlite:///{folder}/catalog.db"},
        "models": models,
        "security": {"model_roots": [str(folder)]},
    }
    application = {"name": "platform", "route_prefix": "/", "import_path": "modelyard.serve.app:build"}
    document = {
        "http_options": {"host": "127.0.0.1", "port": http},
        "grpc_options": {"port": grpc, "grpc_servicer_functions": ["modelyard.serve.services.add_inference_service"]},
        "applications": [{**application, "args": arguments}],
    }
    file = folder / "platform.yaml"
    file.write_text(json.dumps(document))  # JSON is YAML
    url = f"http://127.0.0.1:{http}"
    server = modelyard_server.start(modelyard_server.platform_command(file), url, f"127.0.0.1:{grpc}", logs)
    assert server.process is not None
    try:
        wait_for(url)
        yield url
    finally:
        server.process.stop()


@contextmanager
def kserve(bench: Path, logs: Path) -> Iterator[str]:
    """Start KServe's Python server with the two models."""
    environment = peers.environments(bench)["kserve"]
    peers.prepare(environment, logs)
    http, grpc = free_ports(2)
    quiet = ["--enable_latency_logging", "false", "--configure_logging", "false"]
    ports = ["--http_port", str(http), "--grpc_port", str(grpc)]
    command = [environment.python, "-P", str(HERE / "binary_kserve.py"), *ports, *quiet]
    process = ServerProcess(command, logs / "kserve-binary.log", peers.ONE_THREAD)
    try:
        wait_for(f"http://127.0.0.1:{http}")
        yield f"http://127.0.0.1:{http}"
    finally:
        process.stop()


@contextmanager
def triton(folder: Path) -> Iterator[str]:
    """Start the real Triton with the two models."""
    INSTALLED.install()
    for name, (shape, datatype) in SHAPES.items():
        version = folder / "triton" / name / "1"
        version.mkdir(parents=True)
        shutil.copy(HERE / "binary_models.py", version / "model.py")
        outputs = "1" if name == "table" else "3"
        reshape = CONFIG.replace("dims: [{outputs}]", "dims: [{outputs}] reshape {{ shape: [] }}")
        text = reshape if name == "table" else CONFIG
        config = text.format(name=name, datatype=datatype, dims=shape[1:], outputs=outputs)
        (version.parent / "config.pbtxt").write_text(config)
    with running(TritonServer(folder / "triton", tuple(SHAPES))) as server:
        yield server.url


def wait_for(url: str) -> None:
    """Wait until both models answer."""

    def is_ready() -> bool:
        try:
            return all(httpx.get(f"{url}/v2/models/{name}/ready", timeout=2).is_success for name in SHAPES)
        except httpx.HTTPError:
            return False

    if not wait_until(is_ready, 120):
        raise TimeoutError(f"{url} is not ready")


def main() -> None:
    """Measure in turn, round after round, and print one table."""
    parser = argparse.ArgumentParser(prog="python -m load_tests.binary", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 16])
    options = parser.parse_args()
    wrk.check_installed()
    bench = Path(".bench")
    logs = bench / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bin-") as name, ExitStack() as stack:
        folder = Path(name)
        urls = {
            "triton": stack.enter_context(triton(folder)),
            "kserve": stack.enter_context(kserve(bench, logs)),
            "modelyard": stack.enter_context(modelyard(folder, logs)),
        }
        print("| binary HTTP | at once | " + " | ".join(urls) + " | to KServe | to Triton |", flush=True)
        print("|---|---|" + "---|" * (len(urls) + 2))
        for model in SHAPES:
            body, length = request(model)
            for connections in options.at_once:
                rounds: dict[str, list[Measurement]] = {server: [] for server in urls}
                for _ in range(options.rounds):
                    for server, url in urls.items():
                        check(url, model)
                        target = f"{url}/v2/models/{model}/infer"
                        found = wrk.measure(target, body, connections, options.seconds, 1, json_length=length)
                        rounds[server].append(found)
                rates = {server: combine(found).rate for server, found in rounds.items()}
                errors = sum(one.errors for found in rounds.values() for one in found)
                cells = " | ".join(f"{rate:,.0f}" for rate in rates.values())
                ratios = [rates["modelyard"] / rates[peer] for peer in ("kserve", "triton")]
                shown = " | ".join(f"{ratio:.2f} x" for ratio in ratios)
                note = f" {errors} errors" if errors else ""
                print(f"| {model} | {connections} | {cells} | {shown} |{note}", flush=True)


if __name__ == "__main__":
    main()
