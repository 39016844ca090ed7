# SPDX-License-Identifier: Apache-2.0
"""How a pipeline is written: steps in steps, as the options of ``framework: pipeline``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Final, Literal, TypeAlias, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr
from pydantic import model_validator as _model_validator

Value: TypeAlias = StrictBool | StrictInt | StrictFloat | StrictStr

_KINDS: Final = ("model", "sequence", "ensemble", "switch", "splitter")
_OF_MODELS: Final = ("version", "inputs", "outputs", "parameters")
_TESTS: Final = ("equals", "not_equals", "one_of", "less", "at_most", "greater", "at_least", "exists")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Condition(_Part):
    """What has to hold of one input or parameter; all that is said of it has to."""

    input: str | None = Field(
        default=None, description="A tensor with one value for each row: of the step before, or request.NAME."
    )
    parameter: str | None = Field(default=None, description="One of the request's parameters.")
    equals: Value | None = Field(default=None, description="It is this value.")
    not_equals: Value | None = Field(default=None, description="It is another value.")
    one_of: tuple[Value, ...] | None = Field(default=None, alias="in", description="It is one of these values.")
    less: StrictInt | StrictFloat | None = Field(default=None, description="It is less than this number.")
    at_most: StrictInt | StrictFloat | None = Field(default=None, description="It is this number or less.")
    greater: StrictInt | StrictFloat | None = Field(default=None, description="It is greater than this number.")
    at_least: StrictInt | StrictFloat | None = Field(default=None, description="It is this number or greater.")
    exists: StrictBool | None = Field(default=None, description="It was sent, or was not.")

    @_model_validator(mode="after")
    def _check(self) -> Condition:
        if (self.input is None) == (self.parameter is None):
            raise ValueError("expected one of input and parameter")
        if not self.tests:
            raise ValueError("expected equals, not_equals, in, less, at_most, greater, at_least or exists")
        return self

    @property
    def tests(self) -> dict[str, object]:
        """What is tested, and against which value."""
        return {name: getattr(self, name) for name in _TESTS if getattr(self, name) is not None}

    @property
    def values(self) -> tuple[Value, ...]:
        """What it is compared with."""
        found: list[Value] = []
        for name, value in self.tests.items():
            if name == "one_of":
                found += cast(tuple[Value, ...], value)
            elif name != "exists":
                found.append(cast(Value, value))
        return tuple(found)


def _to_many(value: object) -> object:
    return value if isinstance(value, list | tuple) else (value,)


class Step(_Part):
    """One step: a model, or several steps in a sequence, an ensemble, a switch or a splitter."""

    name: str = Field(
        default="",
        pattern=r"^[\w-]*$",
        description="Its name in messages and, in an ensemble, before those of its outputs; left out, the model's.",
    )
    model: str | None = Field(default=None, description="A model of the platform.")
    sequence: tuple[Step, ...] | None = Field(
        default=None, description="Steps one after the other: each takes what the one before gives."
    )
    ensemble: tuple[Step, ...] | None = Field(
        default=None, description="Steps at the same time, on the same inputs; their outputs together."
    )
    switch: tuple[Step, ...] | None = Field(
        default=None, description="Steps of which each row takes the first whose `when` holds."
    )
    splitter: tuple[Step, ...] | None = Field(
        default=None, description="Steps of which each request takes one by chance, by `weight`."
    )
    when: Annotated[tuple[Condition, ...], BeforeValidator(_to_many)] = Field(
        default=(),
        description="Conditions that all have to hold. In a switch, for a row to take the step; the last one may have "
        "none. In a sequence, for it to go on: what it has so far is its answer where they do not.",
    )
    weight: float | None = Field(
        default=None, gt=0, description="In a splitter: its share, beside the others' weights."
    )
    version: str = Field(default="", description="A version's number or a label; left out, the one that answers now.")
    inputs: dict[str, str] = Field(
        default_factory=dict,
        description="Where an input of the model comes from: a tensor of the step before, or request.NAME.",
    )
    outputs: dict[str, str] = Field(
        default_factory=dict,
        description="Outputs of the model by the name that they get; left out, its default outputs as they are called.",
    )
    parameters: dict[str, Value] = Field(
        default_factory=dict, description="Parameters that the model gets beside the request's."
    )
    timeout_s: float | None = Field(default=None, gt=0, description="Seconds it may take; left out, the request's.")
    on_error: Literal["hard", "soft"] = Field(
        default="hard",
        description="A step that fails ends the request (hard), or is left out: then its outputs are missing (soft).",
    )

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps in it."""
        return self.sequence or self.ensemble or self.switch or self.splitter or ()

    def to_label(self, place: int) -> str:
        """What it is called: by its name, its model's, or its place among its neighbours."""
        return self.name or self.model or f"step-{place}"

    def labels(self) -> tuple[str, ...]:
        """What the steps in it are called."""
        return tuple(step.to_label(place) for place, step in enumerate(self.steps, 1))

    def models(self) -> Iterator[tuple[str, str]]:
        """Names and versions of all models in it."""
        if self.model is not None:
            yield self.model, self.version
        for step in self.steps:
            yield from step.models()

    def needed(self) -> Iterator[tuple[str, str]]:
        """Those without which it fails: not the ones of soft steps in it."""
        if self.model is not None:
            yield self.model, self.version
        for step in self.steps:
            if step.on_error == "hard":
                yield from step.needed()

    @_model_validator(mode="after")
    def _check(self) -> Step:
        kinds = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise ValueError(f"expected one of {', '.join(_KINDS)}, got {' and '.join(kinds) or 'none'}")
        wrong = [key for key in _OF_MODELS if self.model is None and getattr(self, key)]
        if wrong:
            raise ValueError(f"{wrong[0]}: expected beside model only, got it beside {kinds[0]}")
        if self.model is None:
            check_steps(self.steps, kinds[0])
        if self.ensemble is not None and len(set(self.labels())) != len(self.labels()):
            raise ValueError(f"ensemble: expected a name of its own for each step, got {', '.join(self.labels())}")
        return self


def check_steps(steps: Sequence[Step], kind: str) -> None:
    """Refuses what has no meaning in steps of this kind.

    Raises:
        ValueError: With what is expected where.
    """
    if not steps:
        raise ValueError(f"{kind}: expected at least one step")
    for step in steps:
        if kind == "switch" and not step.when and step is not steps[-1]:
            raise ValueError("switch: expected when in every step but the last, which is for all the others")
        if kind == "splitter" and step.weight is None:
            raise ValueError("splitter: expected weight in every step")
        if kind not in ("switch", "sequence") and step.when:
            raise ValueError("when: expected in the steps of a switch or a sequence only")
        if kind != "splitter" and step.weight is not None:
            raise ValueError("weight: expected in the steps of a splitter only")
