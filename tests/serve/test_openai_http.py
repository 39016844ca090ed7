# SPDX-License-Identifier: Apache-2.0
"""The OpenAI protocol at the ingress: whom a call is for, what passes as it is, and how errors look."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace

import httpx
import numpy as np
import pytest

from modelyard.dataplane import DataPlane
from modelyard.errors import ModelFailed, Overloaded, Unsupported
from modelyard.inference import InferenceRequest
from modelyard.model import describe
from modelyard.openai import EVENTS, OpenAIModel, OpenAIRequest, Part
from modelyard.protocol.openai import PATHS, is_openai_path, to_affinity
from modelyard.routing import ModelRoute, RevisionRoute, RouteTable
from modelyard.serve.http import make_app
from modelyard.serve.openai import OpenAIHandlers
from modelyard.serve.runners import Runners
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import Parameters, Tensors, to_bytes_array
from modelyard_deployments._openai_multipart import decode_form
from modelyard_deployments._vllm_errors import say_errors

CHAT = "/v1/chat/completions"
TEXT = Signature((TensorSpec("x", "BYTES", (1,)),), (TensorSpec("y", "BYTES", (1,)),), batch_axis=False)


class Parrot(OpenAIModel):
    """Says what its messages say, word by word where a stream is asked for; ``silent`` makes it wait for the test."""

    openai_routes = ("chat/completions", "embeddings", "audio/transcriptions", "rerank", "responses")
    adapters = ("pirate",)  # type: ignore[assignment]  # a property of the base class

    def __init__(self) -> None:
        self.requests: list[OpenAIRequest] = []
        self.closed = 0
        self.gate = asyncio.Event()

    @property
    def signature(self) -> Signature:
        return TEXT

    async def predict(self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters) -> Tensors:
        return {"y": inputs["x"]}

    async def answer(self, request: OpenAIRequest) -> AsyncGenerator[Part]:
        self.requests.append(request)
        if request.route.startswith("audio"):
            yield Part(b'{"text":"heard"}')
            return
        document = json.loads(request.body)
        words = document["messages"][0]["content"].split()
        if words[0] in ("refused", "refused-late"):
            if words[0] == "refused-late":
                await self.gate.wait()
            yield Part(b'{"error":{"message":"no"}}', 400)
        elif words[0] == "overloaded":
            raise Overloaded("enough")
        elif words[0] == "vllm":
            async for part in say_errors(request.route, _fail(int(words[1]), " ".join(words[2:]))):
                yield part
        elif not document.get("stream"):
            yield Part(json.dumps({"model": document["model"], "said": words}).encode())
        else:
            try:
                async for part in self._stream(words):
                    yield part
            finally:
                self.closed += 1

    async def _stream(self, words: list[str]) -> AsyncGenerator[Part]:
        for word in words:
            if word == "silent":
                await self.gate.wait()
            elif word == "dies":
                raise ModelFailed("parrot", "its replica died while answering")
            else:
                event = {"sequence_number": int(word)} if word.isdigit() else word
                yield Part(f"data: {json.dumps(event)}\n\n".encode(), content_type=EVENTS)


async def _fail(status: int, message: str) -> AsyncGenerator[Part]:
    """As vLLM's server does it."""
    yield Part(json.dumps({"error": {"message": message, "type": "x", "param": None, "code": status}}).encode(), status)


class RunnersTransport:
    """A data plane's transport that ends at the runners of one replica."""

    def __init__(self, runners: Runners) -> None:
        self._runners = runners

    def stream(self, revision: RevisionRoute, call, timeout_s: float) -> AsyncGenerator[Tensors]:
        return self._runners.stream(call)


@contextlib.asynccontextmanager
async def _lifespan(_app: object) -> AsyncIterator[None]:
    yield


class Edge:
    def __init__(self, parrot: Parrot, runners: Runners, keep_alive_s: float) -> None:
        self.parrot = parrot
        plane = self.plane = DataPlane(RunnersTransport(runners))  # type: ignore[arg-type]  # nothing else is asked here
        known = describe(parrot)
        first = RevisionRoute(
            "parrot", "1", "parrot@1", "fake", "ready", signature=TEXT, openai_routes=known.openai_routes
        )
        second = replace(first, version="2", application="parrot@2", adapters=known.adapters)
        model = ModelRoute("parrot", "2", {"1": first, "2": second}, {"stable": "1"}, created_s=17)
        late = replace(first, model="late", state="loading", reason="it starts")
        iris = replace(first, model="iris", framework="sklearn", openai_routes=())
        models = {one.name: one for one in (model, *model.published_adapters())}
        models |= {one.model: ModelRoute(one.model, "1", {"1": one}) for one in (late, iris)}
        plane.table = RouteTable("e", 1, models)
        app = make_app(OpenAIHandlers(plane, keep_alive_s).routes(), 4096, _lifespan)
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://edge")

    async def say(self, text: str, model: str = "parrot", path: str = CHAT, **more: object) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
        return await self.client.post(path, json=body, headers={"x-request-id": "seven"})


@pytest.fixture
async def make_edge() -> AsyncIterator[object]:
    made: list[Runners] = []

    def make(keep_alive_s: float = 5.0) -> Edge:
        parrot = Parrot()
        runners = Runners("parrot", parrot)
        runners.start()
        made.append(runners)
        return Edge(parrot, runners, keep_alive_s)

    yield make
    for runners in made:
        await asyncio.wait_for(runners.drain(), 10)


def _error(reply: httpx.Response) -> dict[str, object]:
    error = reply.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


async def test_a_body_and_its_answer_pass_as_they_are(make_edge):
    edge = make_edge()
    reply = await edge.say("one  two", spaces=" ü ")
    assert (reply.status_code, reply.json()) == (200, {"model": "parrot", "said": ["one", "two"]})
    (request,) = edge.parrot.requests
    assert (request.route, request.id) == ("chat/completions", "seven")
    assert json.loads(request.body)["spaces"] == " ü "


@pytest.mark.parametrize("path", [CHAT, "/openai/v1/chat/completions"])
async def test_both_prefixes_answer(make_edge, path):
    assert (await make_edge().say("yes", path=path)).json()["said"] == ["yes"]


def test_calls_whose_prompts_begin_alike_have_one_affinity():
    system, first = {"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}
    turn = {"messages": [system, first]}
    later = {
        "messages": [system, first, {"role": "assistant", "content": "hello"}, {"role": "user", "content": "why?"}]
    }
    other = {"messages": [system, {"role": "user", "content": "bye"}]}
    assert to_affinity(turn) == to_affinity(later) != to_affinity(other)
    assert to_affinity({"prompt": "a" * 3000}) == to_affinity({"prompt": "a" * 4000}) != to_affinity({"prompt": "b"})
    tokens = list(range(600))
    assert to_affinity({"prompt": tokens}) == to_affinity({"prompt": tokens[:550]}) == to_affinity({"prompt": [tokens]})
    assert to_affinity({"prompt": tokens}) != to_affinity({"prompt": [*tokens[:499], 7]})
    assert to_affinity({"input": "a", "instructions": "x"}) != to_affinity({"input": "a", "instructions": "y"})
    assert [to_affinity(one) for one in ({}, {"messages": []}, {"messages": 7}, {"prompt": ""})] == [0, 0, 0, 0]


async def test_events_pass_as_they_are(make_edge):
    reply = await make_edge().say("one two three", stream=True)
    assert reply.headers["content-type"] == EVENTS
    assert reply.text == 'data: "one"\n\ndata: "two"\n\ndata: "three"\n\n'


@pytest.mark.parametrize(
    ("name", "known_as"), [("parrot:1", "parrot"), ("parrot:stable", "parrot"), ("pirate", "pirate")]
)
async def test_revisions_labels_and_adapters_are_names(make_edge, name, known_as):
    assert (await make_edge().say("hi", model=name)).json()["model"] == known_as


async def test_an_adapter_answers_the_openai_protocol_alone(make_edge):
    plane = make_edge().plane
    route, signature = plane.get_ready("pirate")
    with pytest.raises(Unsupported, match='adapter "pirate" answers the OpenAI protocol alone'):
        await plane.infer(route, signature, InferenceRequest({"x": to_bytes_array(np.array(["a"]))}))


async def test_the_models_own_refusal_passes_as_it_is(make_edge):
    for stream in (False, True):
        reply = await make_edge().say("refused", stream=stream)
        assert (reply.status_code, reply.json()) == (400, {"error": {"message": "no"}})


@pytest.mark.parametrize("name", ["nobody", "parrot:9", "parrot:", ":1", "nobody:1"])
async def test_an_unknown_model_is_404_in_openais_shape(make_edge, name):
    reply = await make_edge().say("hi", model=name)
    error = _error(reply)
    assert (reply.status_code, error["type"], error["param"], error["code"]) == (
        404,
        "invalid_request_error",
        "model",
        "model_not_found",
    )


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not JSON"),
        (b"[]", "expected an object"),
        (b"{}", "model: it is missing"),
        (b'{"model": 7}', "expected the name of a model"),
        (b'{"model": "iris"}', "is no language model"),
        (b"{", "not JSON"),
    ],
)
async def test_a_damaged_body_is_400_in_openais_shape(make_edge, body, said):
    reply = await make_edge().client.post(CHAT, content=body)
    assert reply.status_code == 400
    assert said in _error(reply)["message"]


async def test_a_route_that_the_model_does_not_answer_names_those_it_does(make_edge):
    reply = await make_edge().say("hi", path="/v1/completions")
    assert reply.status_code == 400
    assert "does not answer /v1/completions: it answers /v1/chat/completions, " in _error(reply)["message"]


async def test_other_errors_have_openais_shape_too(make_edge):
    edge = make_edge()
    late, full = await edge.say("hi", model="late"), await edge.say("overloaded")
    assert (late.status_code, _error(late)["type"], late.headers["retry-after"]) == (503, "server_error", "5")
    assert (full.status_code, _error(full)["type"], full.headers["retry-after"]) == (429, "rate_limit_error", "1")
    busy = await edge.say("vllm 503 The engine is currently busy")
    assert (busy.status_code, _error(busy)["code"], busy.headers["retry-after"]) == (429, "overloaded", "1")
    away = await edge.say("vllm 503 sleeping", stream=True)
    assert (away.status_code, _error(away)["code"], away.headers["retry-after"]) == (503, "unavailable", "5")
    wrong = await edge.client.get(CHAT)
    assert (wrong.status_code, _error(wrong)["code"]) == (405, "method_not_allowed")
    kind = await edge.client.post(CHAT, content=b"{}", headers={"content-type": "text/plain"})
    assert (kind.status_code, _error(kind)["code"]) == (415, "unsupported_media_type")
    large = await edge.say("x" * 5000)
    assert (large.status_code, _error(large)["code"]) == (413, "too_large")


async def test_a_replica_that_dies_ends_the_stream_with_an_error(make_edge):
    first, last = (await make_edge().say("one dies", stream=True)).text.split("\n\n")[:2]
    assert first == 'data: "one"'
    error = json.loads(last.removeprefix("data: "))["error"]
    assert "died" in error["message"]
    assert error["type"] == "server_error"


@pytest.mark.parametrize(("text", "number"), [("6 7 dies", 8), ("silent dies", 0), ("refused-late", 0)])
async def test_a_response_ends_with_an_error_of_its_type(make_edge, text, number):
    edge = make_edge(keep_alive_s=0.02)
    asyncio.get_running_loop().call_later(0.2, edge.parrot.gate.set)
    name, data = (await edge.say(text, path="/v1/responses", stream=True)).text.strip().split("\n")[-2:]
    event = json.loads(data.removeprefix("data: "))
    assert (name, event["type"], event["sequence_number"]) == ("event: error", "error", number)


async def test_a_silent_stream_is_kept_open_by_comments(make_edge):
    edge = make_edge(keep_alive_s=0.02)
    asyncio.get_running_loop().call_later(0.2, edge.parrot.gate.set)
    text = (await edge.say("silent one", stream=True)).text
    assert text.startswith(": keep-alive\n\n")
    assert text.endswith('data: "one"\n\n')


async def test_a_refusal_after_a_comment_is_an_event(make_edge):
    edge = make_edge(keep_alive_s=0.02)
    asyncio.get_running_loop().call_later(0.2, edge.parrot.gate.set)
    text = (await edge.say("silent dies", stream=True)).text
    assert json.loads(text.split("\n\n")[-2].removeprefix("data: "))["error"]["type"] == "server_error"


@pytest.mark.parametrize("text", ["one silent", "silent"])
async def test_a_client_that_goes_away_ends_the_models_work(make_edge, until, text):
    edge = make_edge(keep_alive_s=0.02)
    call = asyncio.create_task(edge.say(text, stream=True))
    await until(lambda: edge.parrot.requests)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    await until(lambda: edge.parrot.closed == 1)


async def test_a_form_with_a_file_is_passed_on_whole(make_edge):
    edge = make_edge()
    reply = await edge.client.post(
        "/v1/audio/transcriptions", data={"model": "parrot"}, files={"file": ("a.wav", b"RIFF\x00\xff")}
    )
    assert reply.json() == {"text": "heard"}
    (request,) = edge.parrot.requests
    assert b"RIFF\x00\xff" in request.body
    assert request.content_type.startswith("multipart/form-data; boundary=")


@pytest.mark.parametrize("name", ["parrot:1", "parrot:stable"])
async def test_a_revision_is_named_in_a_form_too(make_edge, name):
    edge = make_edge()
    content = b'RIFF\r\nname="model"\r\n\r\n--parrot:1\r\n--'
    fields = {"language": "en", "model": name, "prompt": f"model {name}"}
    file = ("a; name=model; b.wav", content)
    reply = await edge.client.post("/v1/audio/transcriptions", data=fields, files={"file": file})
    assert reply.json() == {"text": "heard"}
    (request,) = edge.parrot.requests
    form = decode_form(request)
    assert form.fields == {"language": ["en"], "model": ["parrot"], "prompt": [f"model {name}"]}
    assert form.files == {"file": content}


async def test_a_body_that_is_no_form_is_415(make_edge):
    reply = await make_edge().client.post("/v1/audio/transcriptions", json={"model": "parrot"})
    assert (reply.status_code, _error(reply)["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "path", ["/v1/images/generations", "/v1/moderations", "/v1/audio/speech", "/v1/responses/resp_1", "/v1/files"]
)
async def test_what_there_is_not_is_told_in_openais_shape(make_edge, path):
    for method in ("GET", "POST"):
        reply = await make_edge().client.request(method, path)
        assert (reply.status_code, _error(reply)["code"]) == (404, "route_not_found")


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/parrot:nonsense", "/v1/", "/v2/files", "/files"])
def test_other_protocols_keep_their_shape(path):
    assert not is_openai_path(path)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=a", b"x"),
    ],
)
async def test_a_damaged_form_is_400(make_edge, kind, body):
    reply = await make_edge().client.post("/v1/audio/transcriptions", content=body, headers={"content-type": kind})
    assert reply.status_code == 400
    assert _error(reply)["type"] == "invalid_request_error"


async def test_the_list_has_the_models_that_speak_the_protocol(make_edge):
    client = make_edge().client
    listed = (await client.get("/openai/v1/models")).json()
    assert listed["object"] == "list"
    assert [one["id"] for one in listed["data"]] == ["parrot", "pirate", "late"]
    one = (await client.get("/openai/v1/models/parrot:1")).json()
    assert one == {"id": "parrot:1", "object": "model", "created": 17, "owned_by": "modelyard"}
    missing = await client.get("/openai/v1/models/nobody")
    assert (missing.status_code, _error(missing)["code"]) == (404, "model_not_found")


async def test_every_path_answers_in_openais_shape(make_edge):
    client = make_edge().client
    for path in sorted(PATHS):
        reply = await client.post(path, content=b"{}")
        assert (path, reply.status_code) == (path, 415 if "/audio/" in path else 400)
        _error(reply)
