# SPDX-License-Identifier: Apache-2.0
"""What one round of the controller tells operators, compared with the last one: log, history, a metric."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ray.util.metrics import Gauge

from modelyard.admin import ModelState
from modelyard.catalog import Catalog
from modelyard.serve.plan import ModelPlan, RevisionState

logger = logging.getLogger(__name__)

_ACTOR: Final = "controller"
_TOLD: Final = (ModelState.READY, ModelState.FAILED)
METRIC: Final = "modelyard_model_failed"


class News:
    """Tells what is new since it last did.

    Args:
        catalog: Where the history is written.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._told: Mapping[str, ModelPlan] = {}
        self._failed: set[tuple[str, int]] = set()
        self._gauge = Gauge(METRIC, "1 for a revision that cannot be loaded.", ("model", "revision"))

    def tell(self, after: Mapping[str, ModelPlan]) -> None:
        """Tells what a round has found. Of a model that is new here there is none yet: nobody knows how it was.

        Args:
            after: Its plans, by model.
        """
        before = self._told
        failed = {
            (name, one.number) for name, plan in after.items() for one in _list(plan) if one.state is ModelState.FAILED
        }
        for name, number in self._failed | failed:
            self._gauge.set(float((name, number) in failed), tags={"model": name, "revision": str(number)})
        self._failed = failed
        for name, plan in after.items():
            known = before.get(name)
            if plan.newest.has_no_place and (known is None or not known.newest.has_no_place):
                logger.warning('model "%s" waits: %s', name, plan.newest.reason)
        events = [
            event for name, plan in after.items() if name in before for event in _compare(name, before[name], plan)
        ]
        if events:
            self._catalog.add_events(events)
        self._told = after


def _list(plan: ModelPlan) -> tuple[RevisionState, ...]:
    """The states of its revisions, each once."""
    states = (*plan.others, plan.newest, *((plan.serving,) if plan.serving is not None else ()))
    return tuple({one.number: one for one in states}.values())


def _compare(name: str, before: ModelPlan, after: ModelPlan) -> Iterator[dict[str, Any]]:
    for one in _list(after):
        known = before.find(one.number)
        if known is not None and known.state is not one.state and one.state in _TOLD:
            detail = {"revision": one.number, "reason": one.reason}
            yield {"model": name, "kind": one.state.value, "actor": _ACTOR, "message": "", "detail": detail}
