# SPDX-License-Identifier: Apache-2.0
"""The models of a pool's replica: loaded when asked for, evicted when memory is short, lost never."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest

from modelyard.errors import ModelLoadError, ModelNotReady, Overloaded
from modelyard.model import Model
from modelyard.serve import residents as module
from modelyard.serve.residents import Resident, Residents
from modelyard.serve.revision import Batching, RevisionSpec
from modelyard.testing import FakeModel, FakeOptions

SIZE = 10
"""Bytes that each model takes here."""


def make_resident(name: str, **changes: object) -> Resident:
    spec = RevisionSpec(name, "fake", f"models/{name}", {}, "sha256:0")
    made = Resident(f"{name}@1:0", "pool@fake", f"{name}@1", spec, Batching(8, 0.0, 100), 5.0)
    return replace(made, **changes)


class Shelf:
    """Where the models come from, and what is known of them.

    Attributes:
        loads: Names in the order in which they were loaded.
        models: The newest model of each name.
        unknown: Names that the controller does not know.
        broken: Why a name cannot be loaded.
        sizes: What a model takes, where that is not ``SIZE``.
    """

    def __init__(self) -> None:
        self.loads: list[str] = []
        self.models: dict[str, FakeModel] = {}
        self.unknown: set[str] = set()
        self.broken: dict[str, Exception] = {}
        self.sizes: dict[str, int] = {}
        self.make: Callable[[], FakeModel] = lambda: FakeModel(0.0, FakeOptions())
        self.gate = threading.Event()
        self.gate.set()

    async def find(self, key: str) -> Resident | None:
        name = key.partition("@")[0]
        return None if name in self.unknown else make_resident(name)

    def load(self, spec: RevisionSpec) -> Model:
        assert self.gate.wait(10)
        if spec.model in self.broken:
            raise self.broken[spec.model]
        self.loads.append(spec.model)
        model = self.models[spec.model] = self.make()
        return model

    def memory(self) -> int:
        return sum(self.sizes.get(name, SIZE) for name, one in self.models.items() if not one.is_closed)


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
async def make_residents(shelf: Shelf) -> AsyncIterator[Callable[..., Residents]]:
    made: list[Residents] = []

    def make(budget: int = 1000) -> Residents:
        made.append(Residents(shelf.find, shelf.load, budget, shelf.memory))
        return made[-1]

    yield make
    for residents in made:
        shelf.gate.set()
        await asyncio.wait_for(residents.drain(), 10)


@pytest.fixture
def ask(make_call, outputs):
    async def ask(residents: Residents, name: str, value: float = 1.0) -> list[float]:
        return outputs(await residents.submit(replace(make_call(value), resident=f"{name}@1:0")))

    return ask


def names(residents: Residents) -> list[str]:
    return [key.partition("@")[0] for key in residents.loaded]


async def test_a_model_is_loaded_when_it_is_asked_for(make_residents, shelf, ask):
    residents = make_residents()
    assert [await ask(residents, "a", 2.0), await ask(residents, "a", 3.0)] == [[8.0], [12.0]]
    assert shelf.loads == ["a"]
    assert (residents.counts.hits, residents.counts.misses, residents.counts.loads) == (1, 1, 1)


async def test_whoever_asks_meanwhile_waits_for_the_same_load(make_residents, shelf, ask):
    residents = make_residents()
    answers = await asyncio.gather(*(ask(residents, name) for name in "aabbab"))
    assert answers == [[4.0]] * 6
    assert sorted(shelf.loads) == ["a", "b"]


async def test_one_that_is_loaded_answers_while_another_loads(make_residents, shelf, ask):
    residents = make_residents()
    await ask(residents, "a")
    shelf.gate.clear()
    loading = asyncio.create_task(ask(residents, "b"))
    assert await asyncio.wait_for(ask(residents, "a"), 5) == [4.0]
    assert not loading.done()
    shelf.gate.set()
    assert await loading == [4.0]


async def test_the_least_recently_used_makes_room(make_residents, shelf, ask):
    residents = make_residents(budget=3 * SIZE)
    for name in "abcad":
        await ask(residents, name)
    assert names(residents) == ["c", "a", "d"]
    assert shelf.models["b"].is_closed
    assert residents.counts.evictions == 1
    assert shelf.memory() <= residents.budget_bytes


async def test_one_that_comes_back_is_made_room_for_before_it_loads(make_residents, shelf, ask):
    residents = make_residents(budget=2 * SIZE)
    most = 0
    load = shelf.load

    def watch(spec: RevisionSpec) -> Model:
        nonlocal most
        model = load(spec)
        most = max(most, shelf.memory())
        return model

    for name in "abc":
        await ask(residents, name)
    residents._load_model = watch
    await ask(residents, "a")
    assert most == 2 * SIZE


async def test_a_busy_model_is_not_evicted(make_residents, shelf, ask, gated, until):
    residents = make_residents(budget=2 * SIZE)
    await ask(residents, "a")
    shelf.make = gated
    busy = asyncio.create_task(ask(residents, "b"))
    await until(lambda: "b" in shelf.models and shelf.models["b"].begun)
    shelf.make = lambda: FakeModel(0.0, FakeOptions())
    await ask(residents, "c")
    assert names(residents) == ["b", "c"]
    shelf.models["b"].let()
    assert await busy == [4.0]


async def test_a_load_waits_for_a_busy_model_to_make_room(make_residents, shelf, ask, gated, until):
    residents = make_residents(budget=SIZE)
    shelf.make = gated
    busy = asyncio.create_task(ask(residents, "a"))
    await until(lambda: "a" in shelf.models and shelf.models["a"].begun)
    shelf.make = lambda: FakeModel(0.0, FakeOptions())
    waiting = asyncio.create_task(ask(residents, "b"))
    await until(lambda: shelf.loads == ["a", "b"])
    assert not waiting.done()
    shelf.models["a"].let()
    assert await asyncio.gather(busy, waiting) == [[4.0], [4.0]]
    assert names(residents) == ["b"]


async def test_without_any_room_for_long_it_is_overloaded(make_residents, shelf, ask, gated, until, monkeypatch):
    monkeypatch.setattr(module, "_ROOM_TIMEOUT_S", 0.05)
    residents = make_residents(budget=SIZE)
    shelf.make = gated
    busy = asyncio.create_task(ask(residents, "a"))
    await until(lambda: "a" in shelf.models and shelf.models["a"].begun)
    with pytest.raises(Overloaded, match="busy"):
        await ask(residents, "b")
    shelf.models["a"].let()
    assert await busy == [4.0]
    shelf.make = lambda: FakeModel(0.0, FakeOptions())
    assert await ask(residents, "b") == [4.0]


async def test_one_that_is_larger_than_the_budget_is_refused_and_the_others_come_back(make_residents, shelf, ask):
    residents = make_residents(budget=2 * SIZE)
    await ask(residents, "a")
    shelf.sizes["giant"] = 3 * SIZE
    with pytest.raises(ModelLoadError, match=r"pools\.memory_mb"):
        await residents.describe(make_resident("giant"))
    assert shelf.models["giant"].is_closed
    assert await ask(residents, "a") == [4.0]


async def test_one_that_cannot_be_loaded_says_why_and_is_not_tried_all_the_time(make_residents, shelf, ask):
    residents = make_residents()
    shelf.broken["a"] = ValueError("its file is cut off")
    with pytest.raises(ModelLoadError, match="ValueError: its file is cut off"):
        await residents.describe(make_resident("a"))
    shelf.broken.clear()
    with pytest.raises(ModelNotReady, match="its file is cut off"):
        await ask(residents, "a")
    assert residents.failed == {make_resident("a").key: "ValueError: its file is cut off"}
    assert (await residents.describe(make_resident("a"))).signature.inputs  # whoever describes it, tries again
    assert residents.failed == {}


async def test_one_that_the_controller_does_not_know_is_not_ready(make_residents, shelf, ask):
    residents = make_residents()
    shelf.unknown.add("a")
    with pytest.raises(ModelNotReady, match='model "a" is not ready: its pool does not know it'):
        await ask(residents, "a")


async def test_one_that_streams_is_refused(make_residents, shelf):
    shelf.make = lambda: FakeModel(0.0, FakeOptions(answers=3))
    with pytest.raises(ModelLoadError, match="leave out `shared`"):
        await make_residents().describe(make_resident("a"))


async def test_one_that_loads_for_too_long_fails(make_residents, shelf):
    shelf.gate.clear()
    with pytest.raises(ModelLoadError, match=r"within 0\.05 s \(limits\.load_timeout_s\)"):
        await make_residents().describe(make_resident("a", load_timeout_s=0.05))


async def test_one_that_does_not_answer_its_warmup_fails(make_residents, shelf):
    shelf.make = lambda: FakeModel(0.0, FakeOptions(fail_on_value=7))
    one = make_resident("a")
    spec = replace(one.spec, warmup=({"instances": [[7, 7, 7, 7]]},))
    with pytest.raises(ModelLoadError, match="its warm-up request 0 was not answered"):
        await make_residents().describe(replace(one, spec=spec))
    assert shelf.models["a"].is_closed


async def test_counts_outlive_an_eviction(make_residents, shelf, ask):
    residents = make_residents(budget=SIZE)
    for name in "abab":
        await ask(residents, name)
    assert residents.statistics("a@1:0").success.count == 2
    assert residents.work.answered == 4
    assert {one: counts.success.count for one, counts in residents.all_statistics().items()} == {"a@1": 2, "b@1": 2}


async def test_one_that_is_no_more_is_closed_and_forgotten(make_residents, shelf, ask):
    residents = make_residents()
    await ask(residents, "a")
    await residents.forget("a@1:0")
    assert shelf.models["a"].is_closed
    assert (residents.loaded, dict(residents.known), residents.work.answered) == ((), {}, 0)


async def test_limits_change_while_it_is_loaded(make_residents, shelf, ask, make_call, gated, until):
    residents = make_residents()
    shelf.make = gated
    first = asyncio.create_task(ask(residents, "a"))
    await until(lambda: "a" in shelf.models and shelf.models["a"].begun)
    residents.replace(make_resident("a", batching=Batching(8, 0.0, 1)))
    waiting = residents.submit(replace(make_call(1), resident="a@1:0"))
    with pytest.raises(Overloaded):
        residents.submit(replace(make_call(1), resident="a@1:0"))
    shelf.models["a"].let(2)
    await asyncio.gather(first, waiting)


async def test_who_gives_up_does_not_stop_the_load_for_the_others(make_residents, shelf, ask, until):
    residents = make_residents()
    shelf.gate.clear()
    leaving, staying = asyncio.create_task(ask(residents, "a")), asyncio.create_task(ask(residents, "a"))
    await until(lambda: residents.ongoing == 2)
    leaving.cancel()
    shelf.gate.set()
    assert await staying == [4.0]
    assert residents.ongoing == 0


async def test_draining_answers_what_waits_for_a_load(make_residents, shelf, ask, until):
    residents = make_residents()
    shelf.gate.clear()
    waiting = asyncio.create_task(ask(residents, "a"))
    await until(lambda: residents.ongoing)
    draining = asyncio.create_task(residents.drain())
    shelf.gate.set()
    assert await waiting == [4.0]
    await draining
    assert shelf.models["a"].is_closed
    with pytest.raises(ModelNotReady, match="stopping"):
        await ask(residents, "b")


async def test_an_unhealthy_model_is_found(make_residents, shelf, ask, caplog):
    residents = make_residents()
    await ask(residents, "a")
    await ask(residents, "b")

    def complain() -> None:
        raise RuntimeError("it is stuck")

    shelf.models["a"].check_health = complain
    assert residents.find_unhealthy() == ("a@1:0",)
    assert 'model "' in caplog.text
    await residents.evict("a@1:0")
    assert await ask(residents, "a") == [4.0]
    assert shelf.loads == ["a", "b", "a"]


async def test_one_that_is_forgotten_while_it_loads_leaves_nothing(make_residents, shelf, ask, until):
    residents = make_residents()
    shelf.gate.clear()
    waiting = asyncio.create_task(ask(residents, "a"))
    await until(lambda: residents.known)
    shelf.unknown.add("a")
    await residents.forget("a@1:0")
    shelf.gate.set()
    with pytest.raises(ModelNotReady, match="its pool does not know it"):
        await waiting
    assert shelf.models["a"].is_closed
    assert (residents.loaded, dict(residents.all_statistics())) == ((), {})


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=repr)
async def test_what_a_library_raises_while_it_loads_ends_that_load_only(make_residents, shelf, ask, error):
    residents = make_residents()
    shelf.broken["a"] = error
    with pytest.raises(ModelLoadError, match=type(error).__name__):
        await residents.describe(make_resident("a"))
    assert await ask(residents, "b") == [4.0]


async def test_loads_that_hang_take_nobody_elses_place(make_residents, shelf, ask, until):
    residents = make_residents()
    shelf.gate.clear()
    for number in range(12):
        with pytest.raises(ModelLoadError, match="did not load within"):
            await residents.describe(make_resident(f"hung-{number}", load_timeout_s=0.01))
    with pytest.raises(ModelLoadError, match="it hangs where it was loaded before"):
        await residents.describe(make_resident("hung-0"))
    shelf.gate.set()
    assert await ask(residents, "good") == [4.0]
    await until(lambda: sum(model.is_closed for name, model in shelf.models.items() if name != "good") == 12)
    assert (await residents.describe(make_resident("hung-0"))).signature.inputs


async def test_a_giant_is_refused_while_another_is_busy_and_nobody_leaves_for_it(
    make_residents, shelf, ask, gated, until
):
    residents = make_residents(budget=4 * SIZE)
    await ask(residents, "a")  # with the library, as it were
    shelf.make = gated
    busy = asyncio.create_task(ask(residents, "b"))
    await until(lambda: "b" in shelf.models and shelf.models["b"].begun)
    shelf.make = lambda: FakeModel(0.0, FakeOptions())
    shelf.sizes["giant"] = 5 * SIZE
    with pytest.raises(ModelLoadError, match=r"pools\.memory_mb"):
        await residents.describe(make_resident("giant"))
    assert names(residents) == ["a", "b"]
    shelf.models["b"].let()
    await busy


async def test_a_size_is_what_the_model_takes_whoever_left_meanwhile(make_residents, shelf, ask):
    residents = make_residents(budget=3 * SIZE)
    for name in "abcdefg":
        await ask(residents, name)
    assert set(residents._sizes.values()) == {0, SIZE}
    assert list(residents._sizes.values()).count(0) == 1  # the first one, which brought the library
    assert names(residents) == ["e", "f", "g"]


async def test_a_controller_that_is_away_is_no_fault_of_the_platform(make_residents, ask, shelf):
    async def find(key: str) -> Resident | None:
        raise ConnectionError("no controller")

    residents = make_residents()
    residents._find = find
    with pytest.raises(ModelNotReady, match="controller does not say"):
        await ask(residents, "a")


async def test_limits_that_change_while_it_loads_are_taken(make_residents, shelf, ask, make_call, gated, until):
    residents = make_residents()
    shelf.gate.clear()
    shelf.make = gated
    first = asyncio.create_task(ask(residents, "a"))
    await until(lambda: residents.known)
    residents.replace(make_resident("a", batching=Batching(8, 0.0, 1)))
    shelf.gate.set()
    await until(lambda: "a" in shelf.models and shelf.models["a"].begun)
    waiting = residents.submit(replace(make_call(1), resident="a@1:0"))
    with pytest.raises(Overloaded):
        residents.submit(replace(make_call(1), resident="a@1:0"))
    shelf.models["a"].let(2)
    await asyncio.gather(first, waiting)


async def test_a_replica_that_stops_is_no_reason_to_fail_a_model(make_residents):
    residents = make_residents()
    await residents.drain()
    with pytest.raises(Overloaded, match="stopping"):
        await residents.describe(make_resident("a"))
