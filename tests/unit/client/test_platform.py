# SPDX-License-Identifier: Apache-2.0
"""Managing and asking models from Python, sync and async."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import httpx
import numpy as np
import pytest

from modelyard import AsyncPlatform, ModelSpec, Platform
from modelyard.admin import ModelState, ModelStatus
from modelyard.catalog import ModelEntry, Owner
from modelyard.client import ApiError, HttpTransport, PlatformUnreachable
from modelyard.client.aio import open_transport
from modelyard.errors import (
    Conflict,
    DeadlineExceeded,
    InvalidConfig,
    InvalidRequest,
    ModelNotFound,
    ModelNotReady,
    ModelyardError,
)
from modelyard.testing.platform import FakePlatform


@pytest.fixture
def platform(fake: FakePlatform) -> Iterator[Platform]:
    with fake.connect() as connected:
        yield connected


def _register(platform: Platform, name: str = "iris") -> ModelStatus:
    return platform.register(name, framework="sklearn", uri=f"models/{name}", message="first")


def test_a_registered_model_is_listed_and_answers(platform: Platform) -> None:
    status = _register(platform)
    assert (status.version, status.owner, status.message) == ("1", "registered", "first")
    assert platform.list() == (platform.status("iris"),)
    response = platform.predict("iris", [[1.0, 2.0, 3.0, 4.0]])
    assert (response.model_version, response.outputs["output-0"].tolist()) == ("1", [10.0])


def test_registering_again_changes_the_model(platform: Platform) -> None:
    _register(platform)
    spec = ModelSpec(name="iris", framework="sklearn", uri="models/iris2")
    assert platform.register_spec(spec).version == "2"


def test_what_is_wrong_is_refused_before_anything_is_sent(platform: Platform, fake: FakePlatform) -> None:
    with pytest.raises(InvalidConfig) as caught:
        platform.register("iris", framework="sklearn", uri="x", autoscaling={"min_replicas": -1}, limits={"x": 1})
    assert len(caught.value.problems) == 2
    assert fake.requests == []


def test_a_framework_this_side_lacks_is_left_to_the_platform(platform: Platform, fake: FakePlatform) -> None:
    with pytest.raises(InvalidConfig, match=r"^framework: expected one of"):
        platform.register("iris", framework="third-party", uri="x")
    assert len(fake.requests) == 1


def test_a_model_can_be_waited_for(platform: Platform, fake: FakePlatform) -> None:
    fake.coming["iris"] = [(ModelState.PENDING, ""), (ModelState.LOADING, "")]
    assert _register(platform).state is ModelState.PENDING
    assert platform.wait_ready("iris").state is ModelState.READY


def test_waiting_ends_with_the_reason_as_soon_as_it_failed(platform: Platform, fake: FakePlatform) -> None:
    fake.coming["iris"] = [(ModelState.LOADING, ""), (ModelState.FAILED, "no such file [x]")]
    with pytest.raises(ModelNotReady, match=r'model "iris" is not ready: failed: no such file \[x\]'):
        platform.register("iris", framework="sklearn", uri="x", wait=True)


def test_waiting_ends_when_the_time_is_over(platform: Platform, fake: FakePlatform) -> None:
    fake.coming["iris"] = [(ModelState.PENDING, "no CPU is free")] * 10
    _register(platform)
    with pytest.raises(ModelNotReady, match=r"pending: no CPU is free \(waited 0 s\)"):
        platform.wait_ready("iris", timeout_s=0)


def test_an_unloaded_model_answers_nothing_until_it_is_loaded(platform: Platform, fake: FakePlatform) -> None:
    _register(platform)
    assert platform.unload("iris", message="night").state is ModelState.UNLOADING
    status = platform.unload("iris", wait=True)
    assert (status.state, status.reason, status.version) == (ModelState.UNLOADED, "unloaded", "1")
    with pytest.raises(ModelNotReady, match="unloaded"):
        platform.predict("iris", [[1.0]])
    assert platform.load("iris", wait=True).state is ModelState.READY
    assert platform.predict("iris", [[1.0]]).model_version == "1"
    assert [event.message for event in fake.catalog.list_events("iris")] == ["", "night", "first"]


def test_waiting_for_an_unloaded_model_ends_at_once(platform: Platform) -> None:
    _register(platform)
    platform.unload("iris", wait=True)
    with pytest.raises(ModelNotReady, match="unloaded: unloaded"):
        platform.wait_ready("iris")


def test_loading_says_why_it_failed(platform: Platform, fake: FakePlatform) -> None:
    _register(platform)
    platform.unload("iris", wait=True)
    fake.coming["iris"] = [(ModelState.LOADING, ""), (ModelState.FAILED, "no such file")]
    with pytest.raises(ModelNotReady, match="failed: no such file"):
        platform.load("iris", wait=True)


def test_unloading_that_takes_too_long_is_told(platform: Platform, fake: FakePlatform) -> None:
    _register(platform)
    with pytest.raises(ModelNotReady, match="still being unloaded"):
        platform.unload("iris", wait=True, timeout_s=0)


def test_what_is_unknown_is_neither_loaded_nor_unloaded(platform: Platform) -> None:
    for verb in (platform.load, platform.unload):
        with pytest.raises(ModelNotFound):
            verb("iris")


def test_an_unregistered_model_is_gone_after_waiting(platform: Platform) -> None:
    _register(platform)
    assert platform.unregister("iris", message="old", wait=True).state is ModelState.REMOVING
    with pytest.raises(ModelNotFound):
        platform.status("iris")
    with pytest.raises(ModelNotFound):
        platform.unregister("iris")


def test_a_declared_model_is_not_changed(platform: Platform, fake: FakePlatform) -> None:
    spec = ModelSpec(name="iris", framework="sklearn", uri="models/iris").to_json()
    fake.catalog.put_model(ModelEntry("iris", spec, {}, "d"), owner=Owner.DECLARED)
    with pytest.raises(Conflict, match="is declared in the configuration file"):
        _register(platform)
    with pytest.raises(Conflict):
        platform.unregister("iris")


def test_outputs_and_version_are_asked_for(platform: Platform, fake: FakePlatform) -> None:
    _register(platform)
    response = platform.predict("iris", np.ones((2, 4)), outputs=["a", "b"], version="stable", timeout_s=2.5)
    assert [output.tolist() for output in response.outputs.values()] == [[4.0, 4.0], [4.0, 4.0]]
    assert fake.requests[-1].url.path == "/v2/models/iris/versions/stable/infer"
    assert fake.requests[-1].headers["x-request-timeout-ms"] == "2500"


def test_texts_come_back_as_they_were_sent(platform: Platform) -> None:
    _register(platform)
    assert platform.predict("iris", {"city": ["Köln", "Ulm"]}).outputs["output-0"].tolist() == ["Köln".encode(), b"Ulm"]


@pytest.mark.parametrize(
    ("name", "version", "error"), [("none", None, ModelNotFound), ("iris", 7, ModelNotFound)], ids=["model", "version"]
)
def test_asking_what_is_not_there_is_not_found(
    platform: Platform, name: str, version: int | None, error: type[ModelyardError]
) -> None:
    _register(platform)
    with pytest.raises(error):
        platform.predict(name, [[1.0]], version=version)


def test_asking_a_model_that_is_not_ready_says_why(platform: Platform, fake: FakePlatform) -> None:
    fake.coming["iris"] = [(ModelState.FAILED, "bad pickle")]
    _register(platform)
    with pytest.raises(ModelNotReady, match="failed: bad pickle"):
        platform.predict("iris", [[1.0]])


def test_a_name_cannot_leave_its_place_in_the_path(platform: Platform, fake: FakePlatform) -> None:
    with pytest.raises(ModelyardError):
        platform.status("a/../../v2")
    assert fake.requests[-1].url.raw_path == b"/platform/v1/models/a%2F..%2F..%2Fv2"


async def test_the_async_twin_has_the_same_verbs(fake: FakePlatform) -> None:
    async with AsyncPlatform(fake.open_transport()) as platform:
        await platform.register("iris", framework="sklearn", uri="x", wait=True)
        assert [model.name for model in await platform.list()] == ["iris"]
        assert (await platform.predict("iris", [[1.0, 2.0]])).outputs["output-0"].tolist() == [3.0]
        await platform.unregister("iris", wait=True)
        assert await platform.list() == ()


async def test_the_sync_api_works_where_a_loop_runs(fake: FakePlatform) -> None:
    assert asyncio.get_running_loop() is not None
    with fake.connect() as platform:
        _register(platform)
        assert (await platform.aio.status("iris")).name == "iris"
        await platform.aio.close()


def test_both_twins_have_the_same_signatures() -> None:
    verbs = [name for name in vars(AsyncPlatform) if not name.startswith("_")]
    for name in verbs:
        ours, theirs = getattr(Platform, name).__annotations__, getattr(AsyncPlatform, name).__annotations__
        assert {key: text.removeprefix("Async") for key, text in theirs.items()} == ours, name
    public = {name for name in vars(Platform) if not name.startswith("_") or name.endswith("__")}
    assert public - set(vars(AsyncPlatform)) == {"aio", "__enter__", "__exit__"}


def test_closing_ends_the_thread(fake: FakePlatform) -> None:
    before = threading.active_count()
    platform = fake.connect()
    assert threading.active_count() == before + 1
    platform.close()
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="closed"):
        platform.list()


def test_a_forgotten_platform_ends_its_thread(fake: FakePlatform) -> None:
    before = threading.active_count()
    platform = fake.connect()
    del platform
    assert threading.active_count() == before


def _failing(reply: httpx.Response | Exception) -> Platform:
    def answer(request: httpx.Request) -> httpx.Response:
        if isinstance(reply, Exception):
            raise reply
        return reply

    transport = httpx.MockTransport(answer)
    return Platform(lambda: HttpTransport("http://platform.test", transport=transport, pauses_s=()))


@pytest.mark.parametrize(
    ("reply", "error", "sentence"),
    [
        (httpx.ConnectError("refused"), PlatformUnreachable, "no platform answers at http://platform.test: refused"),
        (httpx.ConnectTimeout(""), PlatformUnreachable, "no connection within 30 s"),
        (httpx.ReadTimeout(""), DeadlineExceeded, "no answer within 30 s"),
        (httpx.Response(502, text="<html>bad gateway"), ApiError, "unexpected answer with status 502: <html>"),
        (httpx.Response(500, json={"detail": 1}), ApiError, "unexpected answer with status 500"),
        (httpx.Response(200, text="hello"), ApiError, "expected JSON"),
        (httpx.Response(200, json={"models": 3}), ApiError, "expected a list of models"),
        (httpx.Response(200, json={"models": [{"name": "iris"}]}), ApiError, "expected a model's status: KeyError"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_the_platform_is_told_apart(
    reply: httpx.Response | Exception, error: type[ModelyardError], sentence: str
) -> None:
    with _failing(reply) as platform, pytest.raises(error, match=sentence):
        platform.list()


@pytest.mark.parametrize(
    "reply", [{}, {"model_name": "a", "outputs": [{"name": "x", "datatype": "FP32"}]}, [1]], ids=str
)
def test_an_answer_that_is_no_inference_response_is_refused(reply: object) -> None:
    with _failing(httpx.Response(200, json=reply)) as platform, pytest.raises(ApiError, match="an inference response"):
        platform.predict("iris", [[1.0]])


@pytest.mark.parametrize("url", ["platform:8000", "ftp://platform", "http://", "http://[::1"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(InvalidConfig, match=r"^url: expected http:// or https://"):
        Platform.connect(url)


def _address(transport: object) -> str:
    assert isinstance(transport, HttpTransport)
    return transport.url


def test_the_address_is_given_or_in_the_environment_or_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODELYARD_URL", raising=False)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False))
    assert _address(open_transport()) == "http://127.0.0.1:8000"
    monkeypatch.setenv("MODELYARD_URL", "https://env.test/ml/")
    assert _address(open_transport()) == "https://env.test/ml"
    assert _address(open_transport("http://given.test")) == "http://given.test"


def test_inside_a_cluster_the_platform_is_reached_by_handle(monkeypatch: pytest.MonkeyPatch) -> None:
    class HandleTransport:
        pass

    monkeypatch.delenv("MODELYARD_URL", raising=False)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: True))
    monkeypatch.setitem(sys.modules, "modelyard.serve.admin", SimpleNamespace(HandleTransport=HandleTransport))
    assert isinstance(open_transport(), HandleTransport)
    assert isinstance(open_transport("http://given.test"), HttpTransport)


async def test_the_token_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("authorization", ""))
        return httpx.Response(200, json={"models": []})

    for token in ("abc", None):
        transport = HttpTransport("http://platform.test", token=token, transport=httpx.MockTransport(answer))
        await transport.list()
        await transport.close()
    assert seen == ["Bearer abc", ""]


def test_ragged_rows_are_refused_before_anything_is_sent(platform: Platform, fake: FakePlatform) -> None:
    with pytest.raises(InvalidRequest):
        platform.predict("iris", [[1.0, 2.0], [3.0]])
    assert fake.requests == []


LIGHT = """
import sys
import modelyard
heavy = {"httpx", "pydantic", "numpy", "sqlalchemy", "ray", "modelyard.client"} & sys.modules.keys()
assert not heavy, heavy
from modelyard import AsyncPlatform, ModelSpec, ModelStatus, Platform
import modelyard.cli
assert "ray" not in sys.modules
assert set(modelyard.__all__) <= set(dir(modelyard))
assert all(getattr(modelyard, name) for name in modelyard.__all__)
"""


def test_importing_modelyard_is_light_and_the_client_needs_no_ray() -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", LIGHT], check=True, timeout=60)


def test_an_unknown_name_is_an_attribute_error() -> None:
    import modelyard

    with pytest.raises(AttributeError, match="no attribute 'platfrom'"):
        _ = modelyard.platfrom
