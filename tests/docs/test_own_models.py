# SPDX-License-Identifier: Apache-2.0
"""What docs/frameworks/custom.md and pipeline.md show: their models answer, in this process, what is printed there."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import re
import shlex
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from modelyard.batching import Call
from modelyard.config import load_model_spec
from modelyard.dataplane import DataPlane
from modelyard.errors import ModelyardError
from modelyard.model import Model, get_framework, load_model
from modelyard.routing import ModelRoute, RevisionRoute, RouteTable
from modelyard.serve.extensions import ExtensionHandlers
from modelyard.serve.http import make_app
from modelyard.serve.runner import ModelRunner
from modelyard.serve.v1 import V1Handlers
from modelyard.serve.v2 import V2Handlers
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import DATATYPES, Tensors, datatype_of
from modelyard.testing import FakePeers
from modelyard_deployments._pipeline_steps import Condition, Step
from modelyard_deployments.examples import make_examples

ROOT = Path(__file__).parents[2]
DOCUMENTS = {name: (ROOT / "docs" / "frameworks" / f"{name}.md").read_text() for name in ("custom", "pipeline")}


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENTS[document], re.DOTALL)


def specs(document: str) -> dict[str, dict[str, Any]]:
    """The models in YAML, by name."""
    return {model["name"]: model for block in blocks(document, "yaml") for model in yaml.safe_load(block)}


def sources(document: str) -> dict[str, str]:
    """The Python files, by the path in their first line."""
    found = (re.match(r"# (models/\S+\.py)\n", block) for block in blocks(document, "python"))
    return {one[1]: one.string for one in found if one is not None}


def commands(document: str) -> list[tuple[str, str]]:
    """Each curl with the answer below it; empty where none is shown."""
    lines = "\n".join(blocks(document, "console"))
    return re.findall(r"^\$ (curl .*?)\n((?:(?!\$ ).*\n?)*)", lines, re.MULTILINE)


class Documented:
    """The models of one document, with the edge in front of them.

    Args:
        document: Its name.
        folder: Where the files go.
        peers: How they reach each other.
    """

    def __init__(self, document: str, folder: Path, peers: FakePeers) -> None:
        for path, source in sources(document).items():
            (folder / path).parent.mkdir(parents=True)
            (folder / path).write_text(source)
        named = [Path(path).parent.name for path in sources(document)]
        known = {name: {"name": name, "framework": "custom", "uri": f"models/{name}"} for name in named}
        self.models: dict[str, Model] = dict(STRANGERS)
        peers.models.update(STRANGERS)
        for name, written in (known | specs(document)).items():
            sys.modules.pop("model", None)
            self.models[name] = peers.models[name] = self._load(written, folder)
        self.runners: dict[str, ModelRunner] = {}
        self.plane = DataPlane(self)  # type: ignore[arg-type]
        handlers = (ExtensionHandlers(self.plane), V2Handlers(self.plane, lambda: True), V1Handlers(self.plane))
        app = make_app([route for one in handlers for route in one.routes()], 4096, _lifespan)
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8000")

    @staticmethod
    def _load(written: dict[str, Any], folder: Path) -> Model:
        spec = load_model_spec(written)
        elsewhere = not get_framework(spec.framework).has_artifact
        with contextlib.chdir(folder):
            return load_model(spec.framework, "" if elsewhere else Path(spec.uri).resolve(), spec.options)

    def start(self) -> None:
        routes = {}
        for name, model in self.models.items():
            runner = self.runners[name] = ModelRunner(name, model, 64, 0.0, 1000)
            runner.start()
            revision = RevisionRoute(name, "1", f"{name}@1", "custom", "ready", signature=model.signature)
            routes[name] = ModelRoute(name, "1", {"1": revision})
        self.plane.follow(RouteTable("e", 1, routes))

    async def call(self, revision: RevisionRoute, call: Call, timeout_s: float) -> Tensors:
        answer = await asyncio.wait_for(self.runners[revision.model].submit(call), timeout_s)
        part = answer.merged if answer.merged is not None else answer.parts[0]
        if isinstance(part, ModelyardError):
            raise part
        return part

    def stream(self, revision: RevisionRoute, call: Call, timeout_s: float) -> AsyncGenerator[Tensors]:
        return self.runners[revision.model].stream(call)

    async def run(self, command: str) -> httpx.Response:
        """What a curl would get."""
        url, *rest = shlex.split(command)[1:]
        assert rest[:1] in ([], ["-d"])
        return await (self.client.post(url, content=rest[1]) if rest else self.client.get(url))


@contextlib.asynccontextmanager
async def _lifespan(_app: object) -> AsyncIterator[None]:
    yield


class Stranger(Model):
    """In place of a model of another framework, with its signature.

    Args:
        inputs: Datatype and shape of each input.
        answer: From the inputs to the outputs.
    """

    def __init__(self, inputs: dict[str, tuple[str, tuple[int, ...]]], answer: Callable[..., dict[str, Any]]) -> None:
        specs = tuple(TensorSpec(name, datatype, shape) for name, (datatype, shape) in inputs.items())
        empty = {one.name: np.zeros([1, *one.shape[1:]], dtype=DATATYPES[one.datatype].dtype) for one in specs}
        self._answer = answer
        arrays = {name: np.asarray(value) for name, value in answer(**empty).items()}
        outputs = tuple(TensorSpec(name, datatype_of(one), (-1, *one.shape[1:])) for name, one in arrays.items())
        self._signature = Signature(specs, outputs)

    @property
    def signature(self) -> Signature:
        return self._signature

    def predict(self, inputs: Tensors, outputs: tuple[str, ...], parameters: Any) -> Tensors:
        return {name: np.asarray(value) for name, value in self._answer(**inputs).items()}


def _probabilities(rows: np.ndarray, *values: float) -> np.ndarray:
    return np.tile(np.array(values, dtype=np.float32), (len(rows), 1))


def _texts(rows: np.ndarray, value: str) -> np.ndarray:
    return np.array([value.encode()] * len(rows), dtype=object)


FLOWERS = {"measurements": ("FP32", (-1, 4))}
TEXT = {"text": ("BYTES", (-1,))}
STRANGERS: dict[str, Model] = {
    "iris-onnx": Stranger(
        FLOWERS,
        lambda measurements: {
            "label": _texts(measurements, "versicolor"),
            "probabilities": _probabilities(measurements, 0.001115618, 0.8012711, 0.19761328),
        },
    ),
    "iris-paddle": Stranger(
        FLOWERS,
        lambda measurements: {"fetch_name_0": _probabilities(measurements, 0.00026524148, 0.9906797, 0.009055104)},
    ),
    "iris-xgboost": Stranger(
        {"input-0": ("FP32", (-1, 4))},
        lambda **inputs: {"predict_proba": _probabilities(inputs["input-0"], 0.005580268, 0.97116977, 0.023249961)},
    ),
    "language": Stranger(TEXT, lambda text: {"label": _texts(text, "de")}),
    **{
        name: Stranger(TEXT, lambda text, name=name: {"answer": _texts(text, f"by {name}")})
        for name in ("answers", "answers-german", "answers-long")
    },
    **{
        name: Stranger(
            TEXT,
            lambda text, name=name: {
                "label": _texts(text, name),
                "score": np.array([0.9 if name == "thorough" or len(str(one)) > 5 else 0.5 for one in text]),
            },
        )
        for name in ("quick", "thorough")
    },
}
"""The models of other frameworks that the documents speak of."""


@pytest.fixture(params=DOCUMENTS)
def document(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakePeers]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    with FakePeers({}) as peers:
        yield peers
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("model", "models"):
            del sys.modules[name]


async def test_the_answers_are_those_of_the_models(document: str, tmp_path: Path, peers: FakePeers) -> None:
    documented = Documented(document, tmp_path, peers)
    documented.start()
    for command, answer in commands(document):
        reply = await documented.run(command)
        assert reply.status_code == 200, (command, reply.text)
        got = re.sub(r'"id":"[^"]*"', '"id":"…"', reply.text).strip()
        assert got == answer.strip(), command
    for runner in documented.runners.values():
        await runner.drain()


async def test_the_tests_of_the_document_pass(
    document: str, tmp_path: Path, peers: FakePeers, monkeypatch: pytest.MonkeyPatch
) -> None:
    Documented(document, tmp_path, peers)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "models", raising=False)
    for source in blocks(document, "python"):
        if source not in sources(document).values():
            names: dict[str, Any] = {}
            exec(source, names)
            for test in [one for name, one in names.items() if name.startswith("test_")]:
                await test() if inspect.iscoroutinefunction(test) else test()


def test_both_have_something_to_test() -> None:
    assert len(sources("custom")) >= 5
    assert {spec["framework"] for spec in specs("pipeline").values()} == {"pipeline"}
    for document in DOCUMENTS:
        assert len(commands(document)) >= 2
        assert all(answer for _, answer in commands(document))


@pytest.mark.parametrize("framework", DOCUMENTS)
def test_every_option_has_its_row(framework: str) -> None:
    rows = {name for line in _rows(framework) for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert set(get_framework(framework).options.model_fields) <= rows


def test_the_examples_are_those_that_the_configuration_serves(tmp_path: Path) -> None:
    (path,) = make_examples(tmp_path, ["flower-names"])
    assert sources("custom")["models/flower-names/model.py"].partition("\n")[2] == path.read_text()
    arguments = yaml.safe_load((ROOT / "configs" / "frameworks.yaml").read_text())["applications"][0]["args"]
    served = {model["name"]: model for model in arguments["models"]}
    assert served["flower-names"] == specs("custom")["flower-names"]
    assert served["flower-panel"] == specs("pipeline")["flower-panel"]


def test_every_key_of_a_step_and_a_condition_has_its_row() -> None:
    text = "\n".join(_rows("pipeline"))
    keys = [field.alias or name for part in (Step, Condition) for name, field in part.model_fields.items()]
    assert [key for key in keys if f"`{key}" not in text and f" `{key}" not in text] == []


def _rows(document: str) -> list[str]:
    return [line for line in DOCUMENTS[document].splitlines() if line.startswith("|")]
