# SPDX-License-Identifier: Apache-2.0
"""Adapters come, change and go with their folders; what they are called in the engine and in answers."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vllm: python -m modelyard_deployments.vllm install"
)


class Engine:
    """Loads what has no file ``broken``."""

    def __init__(self) -> None:
        self.loaded: dict[int, str] = {}

    async def add_lora(self, request: Any) -> None:
        if request.lora_int_id in self.loaded:
            return
        if (Path(request.lora_path) / "broken").exists():
            raise ValueError("no adapter")
        self.loaded[request.lora_int_id] = request.lora_name


class Table:
    """As ``OpenAIServingModels`` has it."""

    def __init__(self, engine: Engine) -> None:
        self.engine_client = engine
        self.lora_requests: dict[str, Any] = {}
        numbers = count(1)
        self.lora_id_counter = SimpleNamespace(inc=lambda _: next(numbers))

    def is_base_model(self, name: str) -> bool:
        return name == "base"

    def model_name(self, lora_request: Any = None) -> str:
        return "base" if lora_request is None else str(lora_request.lora_name)


def put(folder: Path, name: str, weights: str, broken: bool = False) -> None:
    shutil.rmtree(folder / name, ignore_errors=True)
    (folder / name).mkdir()
    (folder / name / "adapter_config.json").write_text("{}")
    (folder / name / "adapter_model.safetensors").write_text(weights)
    if broken:
        (folder / name / "broken").touch()


def follow(folder: Path, *changes: Callable[[], Any], copies: bool = True) -> list[dict[str, Any]]:
    """The table after each change, and the weights that the engine would read now of each adapter that it ever had."""
    from modelyard_deployments._vllm_adapters import Adapters, Folder

    table = Table(Engine())
    adapters = Adapters(Folder(folder, copies=copies), table)
    seen, paths = [], {}
    for change in changes:
        change()
        for _ in range(2):  # looks: what the second one finds unchanged is whole
            asyncio.run(adapters._follow())
        assert adapters.names == tuple(sorted(table.lora_requests))
        assert all(table.model_name(request) == name for name, request in table.lora_requests.items())
        loaded = {name: (one.lora_name, one.lora_int_id) for name, one in table.lora_requests.items()}
        paths |= {one.lora_int_id: Path(one.lora_path) for one in table.lora_requests.values()}
        weights = {number: (path / "adapter_model.safetensors").read_text() for number, path in paths.items()}
        places = [str(path.relative_to(folder)) for path in paths.values() if path.is_relative_to(folder)]
        seen.append({"loaded": loaded, "base": table.model_name(), "weights": list(weights.values()), "places": places})
    return seen


def grow(folder: Path) -> list[list[str]]:
    """What is found at each look while an adapter is being written, and then at rest."""
    from modelyard_deployments._vllm_adapters import Folder

    put(folder, "old", "x")
    shelf, found = Folder(folder), []
    found.append(sorted(shelf.find()))
    put(folder, "new", "")
    for length in range(5):
        (folder / "new" / "adapter_model.safetensors").write_text("x" * min(length, 3))
        found.append(sorted(shelf.find()))
    return [*found, sorted(shelf.find())]


def table_name(known_as: str) -> str:
    """What answers have as their model where the engine has an adapter of another's making."""
    from modelyard_deployments._vllm_adapters import Adapters, Folder

    table = Table(Engine())
    Adapters(Folder(Path()), table)
    return table.model_name(SimpleNamespace(lora_name=known_as))


def scenarios(folder: Path) -> dict[str, Any]:
    """Everything at once, in the process that imports vLLM."""
    from vllm.v1.core.kv_cache_utils import _gen_lora_extra_hash_keys

    def keys(name: str) -> list[str]:
        return _gen_lora_extra_hash_keys(SimpleNamespace(lora_request=SimpleNamespace(lora_name=name)))  # type: ignore[arg-type]

    os.environ["MODELYARD_CACHE"] = str(folder / "cache")
    places = [folder / name for name in "abcdef"]
    for place in places:
        place.mkdir()
    first, second, third, fourth, fifth, sixth = places
    replaced = follow(
        first,
        lambda: put(first, "pirate", "old"),
        lambda: put(first, "pirate", "newer"),
        lambda: shutil.rmtree(first / "pirate"),
        lambda: put(first, "pirate", "third one"),
    )
    names = [one["loaded"]["pirate"][0] for one in replaced if one["loaded"]]
    return {
        "replaced": replaced,
        "keys": [keys(name) for name in names],
        "broken": follow(
            second,
            lambda: put(second, "a", "x"),
            lambda: put(second, "a", "y", broken=True),
            lambda: put(second, "a", "z", broken=True),
        ),
        "odd": follow(
            third,
            lambda: [put(third, name, name) for name in ("a", "base")],
            lambda: (third / "a" / "link").symlink_to("nothing"),
        ),
        "back": follow(
            fourth,
            lambda: put(fourth, "a", "x"),
            lambda: shutil.move(fourth / "a", folder / "aside"),
            lambda: shutil.move(folder / "aside", fourth / "a"),
        ),
        "over nodes": follow(
            fifth, lambda: put(fifth, "a", "x"), lambda: put(fifth, "a", "y", broken=True), copies=False
        ),
        "growing": grow(sixth),
        "own": table_name("adapter"),
    }


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What :func:`scenarios` gives, in a process of its own: vLLM is no guest in that of other tests."""
    environment = os.environ | {"VLLM_LOGGING_LEVEL": "ERROR"}
    command = [sys.executable, "-P", __file__, str(tmp_path_factory.mktemp("adapters"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def test_a_replaced_adapter_finds_nothing_of_the_one_before_it_in_the_cache(seen: dict[str, Any]) -> None:
    old, new, gone, again = (one["loaded"] for one in seen["replaced"])
    assert gone == {}
    assert len({one["pirate"][1] for one in (old, new, again)}) == 3
    assert len({tuple(key) for key in seen["keys"]}) == 3


def test_answers_have_the_adapters_own_name(seen: dict[str, Any]) -> None:
    assert all(one["base"] == "base" for one in seen["replaced"])


def test_one_that_cannot_be_loaded_leaves_the_one_before_it(seen: dict[str, Any]) -> None:
    before, after, again = seen["broken"]
    assert before["weights"] == ["x"]
    assert before == after == again


def test_the_engine_finds_the_files_of_all_that_it_was_given(seen: dict[str, Any]) -> None:
    assert [one["weights"] for one in seen["replaced"]] == [
        ["old"],
        ["old", "newer"],
        ["old", "newer"],
        ["old", "newer", "third one"],
    ]


def test_workers_on_other_nodes_are_given_the_folder_on_the_volume(seen: dict[str, Any]) -> None:
    before, after = seen["over nodes"]
    assert (before["places"], before["loaded"].keys()) == (["a"], {"a"})
    assert after["loaded"] == {}, "its files have been written over"


def test_an_adapter_that_is_being_written_is_waited_for(seen: dict[str, Any]) -> None:
    *growing, last = seen["growing"]
    assert last == ["new", "old"]
    assert growing == [["old"]] * len(growing)


def test_no_adapter_takes_the_models_name_and_a_link_to_nothing_is_no_trouble(seen: dict[str, Any]) -> None:
    first, second = (one["loaded"] for one in seen["odd"])
    assert first.keys() == second.keys() == {"a"}
    assert first["a"] != second["a"], "a file has come"


def test_files_that_come_back_are_loaded_anew(seen: dict[str, Any]) -> None:
    before, gone, again = (one["loaded"] for one in seen["back"])
    assert gone == {}
    assert before["a"] != again["a"]


def test_a_name_of_anothers_making_is_answered_as_it_is(seen: dict[str, Any]) -> None:
    assert seen["own"] == "adapter"


if __name__ == "__main__":
    print(json.dumps(scenarios(Path(sys.argv[1]))))  # noqa: T201  # to the test
