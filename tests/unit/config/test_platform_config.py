# SPDX-License-Identifier: Apache-2.0
"""What a configuration may say, and how a refusal reads."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import BaseModel

from modelyard.catalog.catalog import KEEP_EVENTS
from modelyard.config import ModelSpec, PlatformConfig, check_framework, load_platform_config, parse_model_spec
from modelyard.errors import InvalidConfig


def _model(**changes: Any) -> dict[str, Any]:
    return {"name": "iris", "framework": "fake", "uri": "models/iris", **changes}


def _problems(args: dict[str, Any]) -> tuple[str, ...]:
    with pytest.raises(InvalidConfig) as caught:
        load_platform_config(args)
    return caught.value.problems


def _models_of(model: type[BaseModel], seen: set[type[BaseModel]]) -> set[type[BaseModel]]:
    seen.add(model)
    for field in model.model_fields.values():
        for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(part, type) and issubclass(part, BaseModel) and part not in seen:
                _models_of(part, seen)
    return seen


SECTIONS = sorted(_models_of(PlatformConfig, set()), key=lambda model: model.__name__)


def test_nothing_given_is_a_platform_without_models() -> None:
    config = load_platform_config({})
    assert config.models == ()
    assert config.catalog.url == "sqlite:///state/modelyard.db"
    assert config.catalog.keep_events == KEEP_EVENTS


def test_the_sections_are_all_found() -> None:
    assert {"ModelSpec", "Autoscaling", "Resources", "SecurityConfig"} <= {model.__name__ for model in SECTIONS}


@pytest.mark.parametrize("model", SECTIONS, ids=lambda model: model.__name__)
def test_every_setting_is_described(model: type[BaseModel]) -> None:
    bare = [
        name for name, field in model.model_fields.items() if not re.fullmatch(r"[\s\S]+\.", field.description or "")
    ]
    assert bare == []


@pytest.mark.parametrize("model", SECTIONS, ids=lambda model: model.__name__)
def test_every_section_refuses_unknown_keys_and_is_frozen(model: type[BaseModel]) -> None:
    assert model.model_config["extra"] == "forbid"
    assert model.model_config["frozen"] is True


WRONG = [
    ({"autoscaling": {"min_replicas": -1}}, "autoscaling.min_replicas: expected an integer >= 0, got -1"),
    ({"autoscaling": {"min_replicas": "3"}}, 'autoscaling.min_replicas: expected an integer >= 0, got "3"'),
    ({"autoscaling": {"min_replicas": True}}, "autoscaling.min_replicas: expected an integer >= 0, got true"),
    (
        {"autoscaling": {"min_replicas": 3, "max_replicas": 2}},
        "autoscaling: expected max_replicas >= min_replicas, got max_replicas 2 and min_replicas 3",
    ),
    (
        {"autoscaling": {"max_replicas": 2, "initial_replicas": 3}},
        "autoscaling: expected initial_replicas between 1 and 2 (min_replicas and max_replicas), got 3",
    ),
    ({"autoscaling": {"max_replica": 2}}, 'autoscaling.max_replica: unknown key; did you mean "max_replicas"?'),
    ({"batching": {"max_batch_size": 1.5}}, "batching.max_batch_size: expected an integer >= 1, got 1.5"),
    (
        {"batching": {"batch_wait_timeout_s": 61}},
        "batching.batch_wait_timeout_s: expected a number >= 0 and <= 60, got 61",
    ),
    ({"batching": 3}, "batching: expected a mapping, got 3"),
    ({"resources": {"num_gpus": 1.5}}, "resources.num_gpus: expected a fraction up to 1 or a whole number, got 1.5"),
    ({"resources": {"num_cpus": None}}, "resources.num_cpus: expected a number >= 0, got nothing (null)"),
    (
        {"resources": {"custom": {"GPU": 1}}},
        'resources.custom: expected a resource of your own, got "GPU": use num_gpus',
    ),
    ({"limits": {"request_timeout_s": 0}}, "limits.request_timeout_s: expected a number > 0, got 0"),
    ({"name": "a/b"}, 'name: expected a text that matches ^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$, got "a/b"'),
    ({"name": "x" * 64}, None),
    ({"name": ".."}, None),
    ({"name": "iris@1"}, None),
    ({"options": []}, "options: expected a mapping, got a list"),
    (
        {"shared": True, "resources": {"num_cpus": 1}},
        "shared: expected false for a model with resources, got true: those are its pool's (pools.resources)",
    ),
    (
        {"shared": True, "autoscaling": {"max_replicas": 2}},
        "shared: expected false for a model with autoscaling, got true: those are its pool's (pools.autoscaling)",
    ),
    (
        {"autoscaling": {"standby": True, "min_replicas": 2}},
        "autoscaling: standby: expected false where a replica always runs, got min_replicas 2",
    ),
]


@pytest.mark.parametrize(("changes", "expected"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_value_names_its_path_what_was_expected_and_given(
    changes: dict[str, Any], expected: str | None
) -> None:
    (problem,) = _problems({"models": [_model(name="a"), _model(name="b"), _model(**changes)]})
    assert problem.startswith("models[2].")
    assert expected is None or problem == f"models[2].{expected}"


def test_an_artifact_is_asked_for_where_the_framework_needs_one() -> None:
    (problem,) = _problems({"models": [_model(framework="custom", uri="")]})
    assert problem == 'models[0].uri: framework "custom": expected a path or URL, got none'


def test_every_problem_is_reported_at_once() -> None:
    problems = _problems({"models": [{"name": "iris", "uri": 3}], "ingres": {}, "ingress": {"num_replicas": 0}})
    assert problems == (
        "models[0].framework: expected a text that is not empty, got nothing",
        "models[0].uri: expected a text, got 3",
        "ingress.num_replicas: expected an integer >= 1, got 0",
        'ingres: unknown key; did you mean "ingress"?',
    )


def test_a_key_that_resembles_nothing_gets_the_list() -> None:
    (problem,) = _problems({"controller": {"zzz": 1}})
    known = "num_cpus, reconcile_interval_s, place_timeout_s, version_poll_interval_s"
    assert problem == f"controller.zzz: unknown key; expected one of {known}"


def test_framework_options_are_checked_against_the_framework() -> None:
    (problem,) = _problems({"models": [_model(framework="sklearn", options={"modell_file": "x"})]})
    assert problem.startswith('models[0].options.modell_file: unknown key; did you mean "model_file"?')


def test_an_unknown_framework_is_refused_with_the_known_ones() -> None:
    (problem,) = _problems({"models": [_model(framework="sklaern")]})
    assert re.fullmatch(r'models\[0\]\.framework: expected one of .*sklearn.*, got "sklaern"', problem)


def test_the_catalog_may_be_in_postgresql_and_in_no_other_server() -> None:
    for url in ("postgresql://me:hunter2@db/modelyard", "postgresql+psycopg://me@db/modelyard"):
        assert load_platform_config({"catalog": {"url": url}}).catalog.url == url
    for password in ("hunter2", "hunter/2", "hunt@r2"):
        (problem,) = _problems({"catalog": {"url": f"mysql://me:{password}@db/modelyard"}})
        assert problem.endswith('or postgresql://user:password@host/db, got "mysql://me:***@db/modelyard"')


def test_two_models_of_one_name_are_refused_with_both_places() -> None:
    assert _problems({"models": [_model(), _model(name="b"), _model()]}) == (
        'models: expected different names, got "iris" in models[0] and models[2]',
    )


@pytest.mark.parametrize(
    "args",
    [
        {"catalog": {"url": "mysql://me:hunter2@db/modelyard"}},
        {"models": [_model(runtime={"env_vars": {"A": ["hunter2"]}})]},
        {"models": [_model(runtime={"env_vars": {"A": {"b": "hunter2"}}})]},
        {"models": [_model(runtime={"env_vars": "hunter2"})]},
        {"api_token": "hunter2"},
        {"security": {"auth_token": "hunter2"}},
    ],
)
def test_a_secret_is_never_repeated(args: dict[str, Any]) -> None:
    assert "hunter2" not in " ".join(_problems(args))


def test_min_replicas_alone_pins_their_number() -> None:
    spec = parse_model_spec(_model(autoscaling={"min_replicas": 3}))
    assert (spec.autoscaling.min_replicas, spec.autoscaling.max_replicas) == (3, 3)


def test_environment_variables_may_be_numbers_in_yaml() -> None:
    spec = parse_model_spec(_model(runtime={"env_vars": {"OMP_NUM_THREADS": 1}}))
    assert spec.runtime.env_vars == {"OMP_NUM_THREADS": "1"}


def test_what_a_replica_takes_at_once_follows_from_the_batch_size() -> None:
    assert parse_model_spec(_model()).max_ongoing_requests == 128
    assert parse_model_spec(_model(batching={"max_batch_size": 1})).max_ongoing_requests == 16
    set_by_hand = parse_model_spec(_model(limits={"max_ongoing_requests": 4}))
    assert (set_by_hand.max_ongoing_requests, set_by_hand.target_ongoing_requests) == (4, 2)


REVISION = [
    {"framework": "other"},
    {"uri": "elsewhere"},
    {"options": {"a": 1}},
    {"runtime": {"env_vars": {"A": "1"}}},
    {"warmup": [{"instances": [[1]]}]},
]
SETTINGS = [
    {"batching": {"max_batch_size": 8}},
    {"autoscaling": {"max_replicas": 4}},
    {"resources": {"num_cpus": 2}},
    {"limits": {"request_timeout_s": 5}},
    {"description": "flowers"},
    {"rollout": {"steps": [10, 100]}},
    {"sticky": "header:x-user"},
]


@pytest.mark.parametrize("changes", REVISION, ids=str)
def test_what_makes_a_revision_changes_its_digest(changes: dict[str, Any]) -> None:
    plain, changed = parse_model_spec(_model()), parse_model_spec(_model(**changes))
    assert plain.revision_digest("sha256:1") != changed.revision_digest("sha256:1")
    assert plain.settings() == changed.settings()


@pytest.mark.parametrize("changes", SETTINGS, ids=str)
def test_a_setting_leaves_the_digest_alone(changes: dict[str, Any]) -> None:
    plain, changed = parse_model_spec(_model()), parse_model_spec(_model(**changes))
    assert plain.revision_digest("sha256:1") == changed.revision_digest("sha256:1")
    assert plain.revision_digest("sha256:1") != plain.revision_digest("sha256:2")


def test_every_field_has_its_part() -> None:
    spec = parse_model_spec(_model())
    parts = (
        {"name", "description", "version_policy", "rollout", "sticky", "warmup", "shared"}
        | spec.revision_content().keys()
        | spec.settings().keys()
    )
    assert parts == ModelSpec.model_fields.keys()


def test_a_stored_spec_reads_back_equal() -> None:
    spec = parse_model_spec(_model(options={"a": [1]}, resources={"custom": {"tpu": 2.0}}))
    assert parse_model_spec(spec.to_json()) == spec


def test_a_client_need_not_know_the_framework() -> None:
    spec = parse_model_spec(_model(framework="third-party"))
    assert len(check_framework(spec)) == 1


def test_of_many_problems_the_first_are_told_and_the_rest_counted() -> None:
    with pytest.raises(InvalidConfig) as caught:
        parse_model_spec(_model(**{f"key{i}": 1 for i in range(5000)}))
    assert len(caught.value.problems) == 21
    assert caught.value.problems[-1] == "and 4980 more problems"


def test_a_key_is_repeated_as_far_as_a_reader_needs() -> None:
    with pytest.raises(InvalidConfig) as caught:
        parse_model_spec(_model(**{"k" * 100_000: 1}))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(("key", "limit"), [("uri", 4096), ("framework", 100)])
def test_a_text_that_is_too_long_is_refused_with_its_limit(key: str, limit: int) -> None:
    with pytest.raises(InvalidConfig, match=f"{key}: expected a text of at most {limit} characters, got {limit + 1}"):
        parse_model_spec(_model(**{key: "a" * (limit + 1)}))


def test_a_framework_whose_models_need_a_process_of_their_own_is_not_shared() -> None:
    problems = _problems({"models": [_model(framework="custom", shared=True)]})
    assert 'models[0].shared: framework "custom": its models need a process of their own' in problems
    problems = _problems({"models": [_model(framework="custom", autoscaling={"min_replicas": 0, "standby": True})]})
    assert 'models[0].autoscaling.standby: models of framework "custom" need a process of their own' in problems
    standby = {"autoscaling": {"min_replicas": 0, "standby": True}, "resources": {"num_gpus": 0.5}}
    problems = _problems({"models": [_model(framework="onnx", **standby)]})
    assert problems == ("models[0].autoscaling.standby: models with GPUs need a process of their own",)


def test_only_a_model_with_gpus_of_its_own_is_scaled_by_how_busy_they_are() -> None:
    busy = {"framework": "onnx", "autoscaling": {"target_gpu_percent": 70}}
    (problem,) = _problems({"models": [_model(**busy, resources={"num_gpus": 0.5})]})
    where = "models[0].autoscaling.target_gpu_percent"
    assert problem == f"{where}: expected none for a model without GPUs of its own, got resources.num_gpus 0.5"
    spec = ModelSpec.model_validate(_model(**busy, resources={"num_gpus": 1}))
    assert check_framework(spec) == ()
    assert spec.autoscaling.to_targets(8).gpu_percent == 70


@pytest.mark.parametrize(
    ("pools", "expected"),
    [
        ({"memory_mb": 0}, "pools.memory_mb: expected an integer >= 1, got 0"),
        ({"resources": {"num_gpus": 1}}, "pools: resources.num_gpus: expected 0, got 1"),
        ({"autoscaling": {"min_replicas": 0}}, "pools: autoscaling.min_replicas: expected at least 1, got 0"),
    ],
)
def test_pools_are_checked(pools: dict[str, Any], expected: str) -> None:
    assert _problems({"pools": pools}) == (expected,)


def test_to_share_or_not_makes_another_revision_and_older_digests_stay() -> None:
    plain, shared = parse_model_spec(_model()), parse_model_spec(_model(shared=True))
    assert plain.revision_digest("") != shared.revision_digest("")
    assert "shared" not in plain.revision_content()
