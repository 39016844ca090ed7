# SPDX-License-Identifier: Apache-2.0
"""A Triton that somebody else runs: reached by its URL, with TLS, with a header; away and back again."""

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from triton_server import TritonServer, running

from modelyard.errors import InvalidConfig, ModelLoadError, ModelNotReady
from modelyard.model import Model, get_framework, load_model, runs_elsewhere
from modelyard.store import digest

ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)
SECRET = "triton-grpc-protocol-x-token"


@pytest.fixture(scope="module")
def theirs(repository: Path, server: str) -> Iterator[TritonServer]:
    with running(TritonServer(repository, ("sums", "stream", "chained", "echo"))) as one:
        yield one


def connect(theirs: TritonServer, scheme: str = "grpc", host: str = "127.0.0.1", **options: Any) -> Model:
    return load_model("triton", f"{scheme}://{host}:{theirs.grpc.partition(':')[2]}", options)


def sums(model: Model) -> Any:
    return model.members["sums"].predict({"INPUT": ROWS}, ("OUTPUT",), {})


def refusal(url: str, **options: Any) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load_model("triton", url, options)
    return str(caught.value)


def test_its_models_are_members(theirs: TritonServer, run: Any) -> None:
    model = connect(theirs)
    assert set(model.members) == {"sums", "stream", "chained", "echo"}
    assert np.array_equal(run(sums(model))["OUTPUT"], ROWS * 2)
    model.close()
    assert theirs.is_ready()


def test_only_some_of_them_may_be_published(theirs: TritonServer, run: Any) -> None:
    model = connect(theirs, models=["sums"])
    assert set(model.members) == {"sums"}
    assert np.array_equal(run(model.predict({"INPUT": ROWS}, ("OUTPUT",), {}))["OUTPUT"], ROWS * 2)


def test_a_url_names_no_artifact() -> None:
    triton = get_framework("triton")
    assert runs_elsewhere(triton, "grpc://triton:8001")
    assert runs_elsewhere(triton, "grpcs://triton:8001")
    assert not runs_elsewhere(triton, "models/repository")
    assert not runs_elsewhere(triton, "grpc")
    assert not runs_elsewhere(triton, "file:///models")


@pytest.mark.parametrize("url", ["grpc://triton", "grpc://triton:port", "grpc://:8001", "grpc://user:pw@triton:8001"])
def test_a_url_without_host_and_port_is_refused(url: str) -> None:
    assert "expected grpc://HOST:PORT" in refusal(url)


def test_nobody_there_is_a_load_error_with_the_reason() -> None:
    assert "Triton at 127.0.0.1:1 does not answer: UNAVAILABLE" in refusal("grpc://127.0.0.1:1")


def test_a_model_that_it_does_not_have_is_named(theirs: TritonServer) -> None:
    reason = refusal(f"grpc://{theirs.grpc}", models=["nosuch"])
    assert reason == 'Triton has no model that is ready: "nosuch": there is no such model'


def test_options_of_a_server_of_ones_own_are_refused(theirs: TritonServer, repository: Path, server: str) -> None:
    assert "option args: only for a Triton that the replica starts itself" in refusal("grpc://127.0.0.1:1", args=["-v"])
    with pytest.raises(ModelLoadError, match="option headers: only for a Triton elsewhere"):
        load_model("triton", repository, {"server": server, "headers": {"x": "y"}})
    assert "only with TLS" in refusal("grpc://127.0.0.1:1", root_certificates="ca.pem")


def test_it_may_go_away_and_come_back(repository: Path, server: str, run: Any) -> None:
    theirs = TritonServer(repository, ("sums",))
    with running(theirs):
        model = connect(theirs)
        run(sums(model))
    with pytest.raises(ModelNotReady, match="its Triton cannot be reached"):
        run(sums(model))
    with running(theirs):

        async def until_back() -> Any:
            while True:
                try:
                    return await sums(model)
                except ModelNotReady:
                    await asyncio.sleep(0.05)

        assert np.array_equal(run(asyncio.wait_for(until_back(), 10))["OUTPUT"], ROWS * 2)


# -- headers and TLS


def test_headers_are_sent_with_each_call(
    repository: Path, server: str, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    restricted = ["--grpc-restricted-protocol=inference,model-repository,metadata,model-config:x-token=secret"]
    with running(TritonServer(repository, ("sums",), restricted)) as theirs:
        assert "UNAVAILABLE: This protocol is restricted" in refusal(f"grpc://{theirs.grpc}")
        monkeypatch.setenv("TRITON_TOKEN", "secret")
        model = connect(theirs, headers={SECRET: "${TRITON_TOKEN}"})
        assert np.array_equal(run(sums(model))["OUTPUT"], ROWS * 2)


def test_a_variable_that_is_not_set_is_named() -> None:
    reason = refusal("grpc://127.0.0.1:1", headers={"x": "${TRITON_NOSUCH}"})
    assert "the environment variable TRITON_NOSUCH is not set" in reason


@pytest.mark.parametrize("headers", [{"x": "${HOME}"}, {"X-Token": "a"}, {"grpc-timeout": "1S"}])
def test_headers_that_cannot_be_are_refused_before_anything_is_deployed(headers: dict[str, str]) -> None:
    with pytest.raises(InvalidConfig, match=r"options\.headers"):
        load_model("triton", "grpc://127.0.0.1:1", {"headers": headers})


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``cert.pem`` and ``key.pem`` of localhost, signed by itself."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("certificates")
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run([*command, *names], cwd=folder, check=True, capture_output=True)
    return folder


def test_tls_with_a_certificate_on_both_sides(repository: Path, server: str, certificates: Path, run: Any) -> None:
    cert, key = certificates / "cert.pem", certificates / "key.pem"
    files = [f"--grpc-server-cert={cert}", f"--grpc-server-key={key}", f"--grpc-root-cert={cert}"]
    options = ["--grpc-use-ssl=true", "--grpc-use-ssl-mutual=true", *files]
    with running(TritonServer(repository, ("sums",), options)) as theirs:
        own = {"private_key": str(key), "certificate_chain": str(cert)}
        model = connect(theirs, "grpcs", "localhost", root_certificates=str(cert), **own)
        assert np.array_equal(run(sums(model))["OUTPUT"], ROWS * 2)
        with pytest.raises(ModelLoadError, match="does not answer"):
            connect(theirs, "grpcs", "localhost", root_certificates=str(cert))
        with pytest.raises(ModelLoadError, match="does not answer"):
            connect(theirs, "grpc", "localhost")


def test_a_certificate_that_is_not_there_is_named() -> None:
    reason = refusal("grpcs://127.0.0.1:1", root_certificates="/nosuch/ca.pem")
    assert reason == 'option root_certificates: "/nosuch/ca.pem" cannot be read: No such file or directory'


def test_a_repository_keeps_its_digest_while_a_triton_runs_on_it(repository: Path, host: Model) -> None:
    before = digest(repository)
    assert set(host.members)
    assert digest(repository) == before
