# SPDX-License-Identifier: Apache-2.0
"""A chain of models without code: ``framework: pipeline``.

It has no artifact: its options say which models of the platform answer a request together::

    - name: reviews
      framework: pipeline
      options:
        steps:
          - model: tokenizer
          - ensemble:
              - {model: sentiment}
              - {model: topics, timeout_s: 0.5, on_error: soft}

Its signature follows from those of its models, and follows them when they change. The calls do not go through HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, field_validator

from modelyard.errors import ModelLoadError, ModelNotReady
from modelyard.model import Framework, Model, Options
from modelyard.peers import get_origin, get_peers
from modelyard.signature import Signature
from modelyard.tensor import Array, Parameters, Tensors
from modelyard_deployments._pipeline_nodes import Run
from modelyard_deployments._pipeline_plan import make_plan
from modelyard_deployments._pipeline_steps import Step, check_steps

logger = logging.getLogger(__name__)


class PipelineOptions(Options):
    """Options of ``framework: pipeline``."""

    steps: tuple[Step, ...] = Field(description="What happens to a request, one step after the other.")
    concurrency: int = Field(default=16, ge=1, description="Calls that one replica works on at the same time.")
    wait_s: float = Field(default=600.0, ge=0, description="Seconds that loading waits for its models to be ready.")

    @field_validator("steps")
    @classmethod
    def _check(cls, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        check_steps(steps, "sequence")
        return steps


class PipelineModel(Model):
    """The steps, and what is known of their models.

    Args:
        options: The steps.
        signatures: Of the models in them, by name and version; those of soft steps may be missing.

    Raises:
        ModelLoadError: The steps do not fit each other.
    """

    signature_may_change = True

    def __init__(self, options: PipelineOptions, signatures: dict[tuple[str, str], Signature]) -> None:
        self.concurrency = options.concurrency
        self._steps = options.steps
        self._models = _find_models(options.steps)
        self._signatures = signatures
        self._plan = make_plan(options.steps, lambda name, version: signatures.get((name, version)))

    @property
    def signature(self) -> Signature:
        """From those of its models, as they are now."""
        self._follow()
        return self._plan.signature

    async def predict(self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters) -> Tensors:
        """Takes the steps.

        Raises:
            ModelyardError: What a hard step raised.
            ValueError: A model takes something else than the step before gives.
        """
        self._follow()
        origin = get_origin()
        owners = _find_owners(inputs, origin.rows) if self._plan.signature.batch_axis else np.empty(0, dtype=np.intp)
        run = Run(inputs, parameters, outputs, origin, owners)
        return await self._plan.node.run({}, run)

    def _follow(self) -> None:
        """Plans anew where a model has come to take or give something else; a plan that cannot be is not followed."""
        known, peers = self._signatures, get_peers()
        found = {key: peers.find_signature(*key) or known.get(key) for key in self._models}
        newest = {key: signature for key, signature in found.items() if signature is not None}
        if len(newest) == len(known) and all(newest[key] is one for key, one in known.items()):
            return
        if newest != known:
            try:
                plan = make_plan(self._steps, lambda name, version: newest.get((name, version)))
            except ModelLoadError as exc:
                logger.warning("the pipeline's models have changed and do not fit any more: %s", exc)
            else:
                if plan.signature.batch_axis == self._plan.signature.batch_axis:  # which the queues depend on
                    self._plan = plan
        self._signatures = newest


def _find_owners(inputs: Tensors, rows: tuple[int, ...]) -> Array:
    """To which of the requests each row belongs."""
    count = next(iter(inputs.values())).shape[0]
    if sum(rows) != count:
        return np.zeros(count, dtype=np.intp)
    return np.repeat(np.arange(len(rows)), rows)


class PipelineFramework(Framework):
    """Makes pipelines; they have no artifact."""

    options: ClassVar[type[Options]] = PipelineOptions
    has_artifact: ClassVar[bool] = False

    def load(self, path: Path, options: Any) -> Model:
        """Not used: there is nothing to load.

        Raises:
            ModelLoadError: Always.
        """
        raise ModelLoadError("a pipeline has no artifact: leave uri out")

    def connect(self, url: str, options: PipelineOptions) -> PipelineModel:
        """Waits for the models, then plans.

        Raises:
            ModelLoadError: They are not ready in time, or do not fit each other.
        """
        return PipelineModel(options, get_peers().run(_wait(options)))


async def _wait(options: PipelineOptions) -> dict[tuple[str, str], Signature]:
    """The signatures of the models as soon as all are ready, or are known to have failed.

    Raises:
        ModelLoadError: With all that are not in time and are needed.
    """
    models, wait_s = _find_models(options.steps), options.wait_s
    needed = set(Step(sequence=options.steps).needed())
    begun = time.monotonic()
    peers = get_peers()
    found = await asyncio.gather(
        *(peers.until_ready(name, version, wait_s) for name, version in models), return_exceptions=True
    )
    missing = [
        str(one) for key, one in zip(models, found, strict=True) if isinstance(one, ModelNotReady) and key in needed
    ]
    if missing:
        raise ModelLoadError(f"waited {time.monotonic() - begun:.0f} s for its models: {'; '.join(missing)}")
    signatures: dict[tuple[str, str], Signature] = {}
    for key, one in zip(models, found, strict=True):
        if isinstance(one, ModelNotReady):
            logger.warning("soft steps are left out until it is there: %s", one)
        elif isinstance(one, BaseException):
            raise one
        else:
            signatures[key] = one
    return signatures


def _find_models(steps: tuple[Step, ...]) -> tuple[tuple[str, str], ...]:
    """Names and versions of the models, each once."""
    return tuple(dict.fromkeys(one for step in steps for one in step.models()))
