# SPDX-License-Identifier: Apache-2.0
"""From what a pipeline's options say and what its models take and give to what it does, and its own signature.

A pipeline that cannot work is refused here, when it is loaded: an input that nothing gives, branches of a switch with
different outputs, a step that may be left out and is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from modelyard.errors import ModelLoadError
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import DATATYPES, datatype_of
from modelyard_deployments._pipeline_conditions import Test, check_condition, datatype_of_value
from modelyard_deployments._pipeline_nodes import (
    REQUEST,
    AbsentNode,
    ChoiceNode,
    EnsembleNode,
    ModelNode,
    Node,
    PassNode,
    SequenceNode,
    Splitter,
    Switch,
)
from modelyard_deployments._pipeline_steps import Condition, Step

Find: TypeAlias = Callable[[str, str], Signature | None]
"""The signature of a model and version; None of one in a soft step that has not been there yet."""
Scope: TypeAlias = Mapping[str, TensorSpec] | None
"""What the step before gives; None where the request is before."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A pipeline that can run.

    Attributes:
        node: What it does.
        signature: What it takes and gives.
    """

    node: Node
    signature: Signature


def make_plan(steps: tuple[Step, ...], find: Find) -> Plan:
    """The plan of the steps, one after the other.

    Raises:
        ModelLoadError: They do not fit each other.
    """
    return _Planner(find).plan(steps)


class _Planner:
    """What is known so far of the request that a pipeline needs."""

    def __init__(self, find: Find) -> None:
        self._find = find
        self._needed: dict[str, TensorSpec] = {}
        self._from: dict[str, list[tuple[str, Signature]]] = {}
        self._tested: list[tuple[Condition, str]] = []
        self._has_rows = True
        self._is_partial = False

    def plan(self, steps: tuple[Step, ...]) -> Plan:
        root = Step(sequence=steps)
        for name, version in root.models():
            signature = self._find(name, version)
            if signature is None:
                self._is_partial = True
                continue
            self._has_rows &= signature.batch_axis
            if signature.decoupled:
                raise ModelLoadError(f'model "{name}" answers with a stream, which a pipeline cannot pass on')
        nodes, scope = self._sequence(steps, None, is_whole=True)
        self._check_tested()
        if all(spec.optional for spec in scope.values()):
            raise ModelLoadError("on_error: every output may be missing: a step has to be hard")
        return Plan(SequenceNode("pipeline", None, False, nodes), self._to_signature(steps, scope))

    def _to_signature(self, steps: tuple[Step, ...], scope: Mapping[str, TensorSpec]) -> Signature:
        outputs = tuple(scope.values())
        signature = Signature(tuple(self._needed.values()), outputs, batch_axis=self._has_rows)
        last = steps[-1]
        if _answers_client(last) and not any(step.when for step in steps):
            own = self._get(last)
            optional = tuple(replace(spec, optional=last.on_error == "soft") for spec in own.on_request)
            signature = replace(signature, on_request=optional, explanations=own.explanations, labels=own.labels)
        return self._with_columns(signature)

    def _with_columns(self, signature: Signature) -> Signature:
        """An only input that goes to models as it is may be sent as they take it: by columns, under any name."""
        if len(signature.inputs) != 1:
            return signature
        (name,) = self._needed
        users = [one for own_name, one in self._from.get(name, ()) if own_name == name and len(one.inputs) == 1]
        if not users or len(users) != len(self._from[name]):
            return signature
        columns = {one.columns for one in users}
        return replace(
            signature,
            columns=columns.pop() if len(columns) == 1 else (),
            any_input_name=all(one.any_input_name for one in users),
            example=users[0].example,
        )

    # -- steps

    def _get(self, step: Step) -> Signature:
        """The signature of a step's model.

        Raises:
            ModelLoadError: It is not known.
        """
        signature = self._find(step.model or "", step.version)
        if signature is None:
            raise ModelLoadError(f'model "{step.model}" is not ready')
        return signature

    def _step(self, step: Step, place: int, scope: Scope, *, is_last: bool) -> tuple[Node, dict[str, TensorSpec]]:
        label = step.to_label(place)
        soft = step.on_error == "soft"
        node: Node
        if soft and any(self._find(*key) is None for key in step.needed()):
            return AbsentNode(label, None, soft), {}
        if step.model is not None:
            node, given = self._model(step, label, scope, is_last=is_last)
        elif step.sequence is not None:
            nodes, found = self._sequence(step.sequence, scope)
            node, given = SequenceNode(label, step.timeout_s, soft, nodes), dict(found)
        elif step.ensemble is not None:
            node, given = self._ensemble(step, label, scope)
        else:
            node, given = self._choice(step, label, scope)
        if soft:
            given = {name: replace(spec, optional=True) for name, spec in given.items()}
        return node, given

    def _sequence(
        self, steps: tuple[Step, ...], scope: Scope, *, is_whole: bool = False
    ) -> tuple[list[Node], Mapping[str, TensorSpec]]:
        nodes: list[Node] = []
        before = ""
        for place, step in enumerate(steps, 1):
            if step.when:
                rest = (step.model_copy(update={"when": (), "name": step.to_label(place)}), *steps[place:])
                node, scope = self._continuation(step.when, rest, scope, before)
                return [*nodes, node], scope
            node, scope = self._step(step, place, scope, is_last=is_whole and place == len(steps))
            nodes.append(node)
            before = node.label
        return nodes, scope or {}

    def _continuation(
        self, when: Sequence[Condition], steps: tuple[Step, ...], scope: Scope, before: str
    ) -> tuple[Node, dict[str, TensorSpec]]:
        """The rest of a sequence, for the rows for which a condition holds; the others have their answer already."""
        label = steps[0].name
        where = f'step "{label}", when'
        if scope is None:
            raise ModelLoadError(f"{where}: no step before it gives anything to answer with")
        tests = [self._test(one, where, scope) for one in when]
        nodes, given = self._sequence(steps, scope)
        same = _same_outputs([given, scope], [nodes[-1].label, before], where)
        rest = SequenceNode(label, None, False, nodes)
        choose = Switch(label, [tests, []])
        return ChoiceNode(label, None, False, [rest, PassNode(before, None, False)], choose), same

    def _ensemble(self, step: Step, label: str, scope: Scope) -> tuple[Node, dict[str, TensorSpec]]:
        inner = [self._step(one, place, scope, is_last=False) for place, one in enumerate(step.steps, 1)]
        given = {
            f"{node.label}.{name}": replace(spec, name=f"{node.label}.{name}")
            for node, outputs in inner
            for name, spec in outputs.items()
        }
        nodes = [node for node, _ in inner]
        return EnsembleNode(label, step.timeout_s, step.on_error == "soft", nodes), given

    def _choice(self, step: Step, label: str, scope: Scope) -> tuple[Node, dict[str, TensorSpec]]:
        inner = [self._step(one, place, scope, is_last=False) for place, one in enumerate(step.steps, 1)]
        choose: Switch | Splitter
        if step.switch is not None:
            tests = [
                [self._test(one, f'switch "{label}", step "{node.label}", when', scope) for one in branch.when]
                for branch, (node, _) in zip(step.steps, inner, strict=True)
            ]
            choose = Switch(label, tests)
        else:
            choose = Splitter([one.weight or 0.0 for one in step.steps])
        known = [(node, outputs) for node, outputs in inner if not isinstance(node, AbsentNode)]
        labels = [node.label for node, _ in known]
        given = _same_outputs([outputs for _, outputs in known], labels, f'"{label}"')
        if len(known) < len(inner):
            given = {name: replace(spec, optional=True) for name, spec in given.items()}
        nodes = [node for node, _ in inner]
        return ChoiceNode(label, step.timeout_s, step.on_error == "soft", nodes, choose), given

    def _model(self, step: Step, label: str, scope: Scope, *, is_last: bool) -> tuple[Node, dict[str, TensorSpec]]:
        name, signature = step.model or "", self._get(step)
        unknown = step.inputs.keys() - {spec.name for spec in signature.inputs}
        if unknown:
            known = ", ".join(spec.name for spec in signature.inputs)
            raise ModelLoadError(
                f'step "{label}", inputs: model "{name}" has no input "{min(unknown)}", it has {known}'
            )
        where = f'step "{label}" (model "{name}")'
        sources = {spec.name: self._source(spec, signature, step, scope, where) for spec in signature.inputs}
        outputs, given = _outputs(step, signature, where)
        node = ModelNode(
            label,
            step.timeout_s,
            step.on_error == "soft",
            model=name,
            version=step.version,
            sources={one: source for one, source in sources.items() if source},
            takes=signature.inputs,
            outputs=outputs,
            parameters=step.parameters,
            answers_client=is_last and _answers_client(step),
        )
        return node, given

    def _source(self, spec: TensorSpec, signature: Signature, step: Step, scope: Scope, where: str) -> str:
        """Where an input comes from; empty where an optional one comes from nowhere."""
        source = step.inputs.get(spec.name)
        if source is None and scope is not None and spec.name not in scope:
            required = [one for one in signature.inputs if not one.optional]
            if [spec] == required and len(scope) == 1:
                source = next(iter(scope))
            elif spec.optional:
                return ""
        source = source or spec.name
        if scope is None or source.startswith(REQUEST):
            name = source.removeprefix(REQUEST)
            self._need(name, replace(spec, name=name), signature, spec.name)
            return REQUEST + name
        given = scope.get(source)
        if given is None and spec.optional and self._is_partial:
            return ""
        if given is None:
            known = ", ".join(scope)
            raise ModelLoadError(
                f'{where}, input "{spec.name}": the step before gives {known}, no "{source}"; say in inputs where it '
                f"comes from, {REQUEST}{spec.name} for an input of the request"
            )
        _check_fits(given, spec, f'{where}, input "{spec.name}"', exact=signature.exact_datatypes)
        return source

    # -- the request

    def _need(self, name: str, spec: TensorSpec, signature: Signature, own_name: str) -> None:
        self._from.setdefault(name, []).append((own_name, signature))
        known = self._needed.get(name)
        exact = any(one.exact_datatypes for _, one in self._from[name])
        self._needed[name] = spec if known is None else _merge(known, spec, exact=exact)

    def _test(self, condition: Condition, where: str, scope: Scope) -> Test:
        """A condition, with where its tensor comes from."""
        name = condition.input
        if name is None:
            return Test(condition.parameter or "", True, condition.tests)
        if scope is None or name.startswith(REQUEST):
            self._tested.append((condition, where))
            return Test(REQUEST + name.removeprefix(REQUEST), False, condition.tests)
        if name not in scope:
            raise ModelLoadError(f'{where}: the step before gives {", ".join(scope)}, no "{name}"')
        check_condition(condition, scope[name], where, has_rows=self._has_rows)
        return Test(name, False, condition.tests)

    def _check_tested(self) -> None:
        """Inputs of the request that conditions ask for; one that no model takes is what it is compared with."""
        for condition, where in self._tested:
            name = (condition.input or "").removeprefix(REQUEST)
            if name not in self._needed:
                datatype = datatype_of_value(condition.values[0]) if condition.values else "BYTES"
                optional = condition.exists is not None
                self._needed[name] = TensorSpec(name, datatype, (-1,) if self._has_rows else (1,), optional)
                self._from.setdefault(name, [])
            check_condition(condition, self._needed[name], where, has_rows=self._has_rows)


def _answers_client(step: Step) -> bool:
    """The client may ask for any output of its model."""
    return step.model is not None and not step.outputs


def _outputs(step: Step, signature: Signature, where: str) -> tuple[dict[str, str], dict[str, TensorSpec]]:
    """A model step's outputs, as it asks for them and as they are called then."""
    known = {spec.name: spec for spec in (*signature.outputs, *signature.on_request)}
    wanted = step.outputs or {spec.name: spec.name for spec in signature.outputs}
    for output in wanted.values():
        if output not in known:
            raise ModelLoadError(f'{where}, outputs: expected one of {", ".join(known)}, got "{output}"')
    return wanted, {name: replace(known[output], name=name) for name, output in wanted.items()}


def _same_outputs(
    branches: Sequence[Mapping[str, TensorSpec]], labels: Sequence[str], where: str
) -> dict[str, TensorSpec]:
    """What all branches give.

    Raises:
        ModelLoadError: They differ in more than the sizes of variable dimensions.
    """
    merged = dict(branches[0]) if branches else {}
    for label, branch in zip(labels[1:], branches[1:], strict=True):
        if branch.keys() != merged.keys():
            got = f'"{labels[0]}" gives {", ".join(merged)}, "{label}" gives {", ".join(branch)}'
            raise ModelLoadError(f"{where}: expected the same outputs of each step: {got}; outputs gives them names")
        for name, spec in branch.items():
            known = merged[name]
            if spec.datatype != known.datatype or len(spec.shape) != len(known.shape):
                got = f'"{labels[0]}" gives {known}, "{label}" gives {spec}'
                raise ModelLoadError(f'{where}, output "{name}": expected the same of each step: {got}')
            shape = tuple(one if one == other else -1 for one, other in zip(known.shape, spec.shape, strict=True))
            merged[name] = replace(known, shape=shape, optional=known.optional or spec.optional)
    return merged


def _check_fits(given: TensorSpec, wanted: TensorSpec, where: str, *, exact: bool) -> None:
    """Refuses what could never be taken; sizes that vary show when they come.

    Raises:
        ModelLoadError: With both.
    """
    if given.optional and not wanted.optional:
        raise ModelLoadError(f'{where}: "{given.name}" is missing where its step is left out (on_error: soft)')
    shape = given.shape
    if len(shape) == len(wanted.shape) + 1 and shape[-1] in (1, -1):
        shape = shape[:-1]
    fits = len(shape) == len(wanted.shape) and all(
        -1 in (one, other) or one == other for one, other in zip(shape, wanted.shape, strict=True)
    )
    if not fits or not _castable(given.datatype, wanted.datatype, exact=exact):
        raise ModelLoadError(f'{where}: expected {wanted}, and "{given.name}" is {given}')


def _castable(have: str, want: str, *, exact: bool = False) -> bool:
    if exact or "BYTES" in (have, want):
        return have == want
    return bool(np.can_cast(DATATYPES[have].dtype, DATATYPES[want].dtype, "same_kind"))


def _merge(known: TensorSpec, spec: TensorSpec, *, exact: bool) -> TensorSpec:
    """One input of the request for two models: the wider datatype, and the sizes that both take.

    Raises:
        ModelLoadError: No array fits both.
    """
    pairs = list(zip(known.shape, spec.shape, strict=False))
    datatype = _wider(known.datatype, spec.datatype, exact=exact)
    if (
        not datatype
        or len(known.shape) != len(spec.shape)
        or any(-1 not in pair and len(set(pair)) > 1 for pair in pairs)
    ):
        raise ModelLoadError(
            f'input "{known.name}": one model takes {known}, another {spec}: give them inputs of two names'
        )
    return TensorSpec(known.name, datatype, tuple(map(max, pairs)), known.optional and spec.optional)


def _wider(one: str, other: str, *, exact: bool) -> str:
    """A datatype whose numbers both take; empty where there is none."""
    if one == other or exact or "BYTES" in (one, other):
        return one if one == other else ""
    wider = datatype_of(np.empty(0, np.promote_types(DATATYPES[one].dtype, DATATYPES[other].dtype)))
    return wider if _castable(wider, one) and _castable(wider, other) else ""
