# SPDX-License-Identifier: Apache-2.0
"""From what a SavedModel says of a signature to ours: unknown ranks, and whether requests may share a batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Final, TypeAlias

import numpy as np

from modelyard.errors import InvalidRequest
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import Tensors
from modelyard_deployments._tensorflow_graph import to_reason
from modelyard_deployments._tensorflow_nodes import make_example
from modelyard_deployments._tensorflow_signatures import Definition
from modelyard_deployments._tensorflow_start import import_tensorflow
from modelyard_deployments._trial import Trial, find_batch_axis, refine, show_example, try_out

_LOG: Final = logging.getLogger(__name__)

Run: TypeAlias = Callable[[Tensors, tuple[str, ...]], Tensors]
"""Answers some of the outputs."""

_RANKS: Final = (1, 2, 3, 4, 0)
"""Tried in this order for inputs whose rank is not known; the first stands for all where none is taken."""
_RANKS_OF_TEXTS: Final = (1, 2, 0)
_OF_EXAMPLES: Final = {"tensorflow/serving/classify": 2, "tensorflow/serving/regress": 1}
"""Methods that answer each example, and the rank of their outputs.

Source: tensorflow ``saved_model/signature_constants.py``, TensorFlow Serving ``servables/tensorflow/classifier.cc``.
"""


def to_signature(run: Run, definition: Definition, wanted: bool | None) -> Signature:
    """The declared one, with what made-up rows tell; a signature that changes the model is not tried.

    Args:
        run: What computes.
        definition: What the SavedModel says.
        wanted: The option ``batch_axis``.

    Raises:
        ModelLoadError: The option ``batch_axis`` does not fit.
        Exception: It cannot run at all; what TensorFlow raises.
    """
    saved = definition.saved
    inputs, trial = _try_out(_with_examples(run, definition), definition)
    outputs = tuple(refine(spec, trial) for spec in definition.outputs)
    if not trial.answers:
        outputs = _with_rank(outputs, saved.unknown_output_ranks, _OF_EXAMPLES.get(saved.method, _RANKS[0]))
    may_have_rows = not definition.defaults and not definition.changes_state
    if saved.unknown_output_ranks and not trial.answers:
        may_have_rows = may_have_rows and saved.method in _OF_EXAMPLES
    batch_axis = (may_have_rows or bool(wanted)) and find_batch_axis((*inputs, *outputs), trial, wanted)
    return Signature(
        inputs=inputs,
        outputs=outputs,
        batch_axis=batch_axis,
        example=show_example(inputs, _with_example(trial, definition), batch_axis),
        saved=saved,
    )


def _try_out(run: Run, definition: Definition) -> tuple[tuple[TensorSpec, ...], Trial]:
    """The inputs, and what their trial says."""
    open_inputs = definition.saved.unknown_ranks
    declared = _with_rank(definition.inputs, open_inputs, _RANKS[0])
    if definition.changes_state:
        return declared, Trial()
    reason = ""
    # Texts are often examples, images or names of files, which no made-up text is.
    has_texts = any(spec.datatype == "BYTES" for spec in declared)
    ranks = _RANKS_OF_TEXTS if has_texts else _RANKS
    for rank in ranks if open_inputs else _RANKS[:1]:
        inputs = _with_rank(definition.inputs, open_inputs, rank)
        trial = try_out(_answer_all(run, definition, has_texts), [spec for spec in inputs if not spec.optional])
        if trial.answers:
            return inputs, trial
        reason = reason or trial.reason
    level = logging.INFO if has_texts else logging.WARNING
    _LOG.log(level, 'signature "%s" refuses made-up rows, so it is as declared: %s', definition.saved.name, reason)
    return declared, Trial(reason=reason)


def _answer_all(run: Run, definition: Definition, has_texts: bool) -> Callable[[Tensors], Tensors]:
    names = tuple(spec.name for spec in definition.outputs)
    not_found = import_tensorflow().errors.NotFoundError

    def ask(rows: Tensors) -> Tensors:
        try:
            return run(rows, names)
        except not_found as exc:
            if not has_texts:
                raise
            raise InvalidRequest(to_reason(exc)) from exc

    return ask


def _with_examples(run: Run, definition: Definition) -> Run:
    """Answers made-up texts as examples, of zeros and of ones, for a signature that parses them."""
    if definition.features is None:
        return run
    zeros, ones = (make_example(definition.features, value) for value in (0, 1))

    def ask(rows: Tensors, outputs: tuple[str, ...]) -> Tensors:
        ((name, texts),) = rows.items()
        examples = np.empty(texts.shape, dtype=object)
        examples.fill(zeros)  # np.full would cut zeros off their end
        examples[texts == b"1"] = ones
        return run({name: examples}, outputs)

    return ask


def _with_example(trial: Trial, definition: Definition) -> Trial:
    """With an example as JSON's text, where it can be one: zeros, and lengths below 128, are."""
    if definition.features is None:
        return trial
    try:
        text = make_example(definition.features, 0).decode()
    except UnicodeDecodeError:
        return trial
    return replace(trial, example={definition.inputs[0].name: text})


def _with_rank(specs: Sequence[TensorSpec], names: Collection[str], rank: int) -> tuple[TensorSpec, ...]:
    return tuple(replace(spec, shape=(-1,) * rank) if spec.name in names else spec for spec in specs)
