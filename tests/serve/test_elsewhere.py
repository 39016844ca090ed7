# SPDX-License-Identifier: Apache-2.0
"""Models that run elsewhere: there is no artifact to look at, to confine or to give versions."""

import pytest

from modelyard.config import PlatformConfig, load_model_spec
from modelyard.errors import InvalidConfig
from modelyard.launch import check_locations
from modelyard.serve.artifacts import Artifacts

SPEC = {"name": "remote", "framework": "triton", "uri": "grpc://triton:8001"}


def test_there_is_nothing_to_look_at() -> None:
    entry = Artifacts(roots=("/nosuch",)).make_entry(load_model_spec(SPEC))
    assert (entry.content["uri"], entry.content["artifact"]) == ("grpc://triton:8001", "")


def test_another_place_or_option_is_another_revision() -> None:
    specs = [SPEC, SPEC | {"uri": "grpc://triton:8002"}, SPEC | {"options": {"timeout_s": 1}}]
    digests = {Artifacts(roots=()).make_entry(load_model_spec(spec)).digest for spec in specs}
    assert len(digests) == 3


def test_folders_of_versions_are_refused() -> None:
    spec = load_model_spec(SPEC | {"version_policy": {"latest": 1}})
    with pytest.raises(InvalidConfig, match="version_policy: expected none for a model that runs elsewhere"):
        Artifacts(roots=()).make_entry(spec)


def test_a_file_with_one_is_accepted_before_the_start() -> None:
    assert check_locations(PlatformConfig.model_validate({"models": [SPEC]})) == ()


def test_a_scheme_that_the_framework_does_not_know_is_refused() -> None:
    spec = {"name": "remote", "framework": "sklearn", "uri": "grpc://triton:8001"}
    (problem,) = check_locations(PlatformConfig.model_validate({"models": [spec]}))
    assert 'got the scheme "grpc"' in problem
