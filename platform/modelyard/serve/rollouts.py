# SPDX-License-Identifier: Apache-2.0
"""Where traffic goes: what operators want of it, and rollouts that are carried on by what becomes of their requests.

Holds only counts. A controller that starts anew goes on with the step that the catalog has, and counts its requests
from then on.
"""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from modelyard.admin import ModelState
from modelyard.catalog import Catalog, ModelRecord
from modelyard.config import RolloutPlan, TrafficPlan, merge_rollout, parse_section
from modelyard.errors import Conflict, InternalError, InvalidConfig, ModelNotFound, Unavailable
from modelyard.outcomes import Outcomes
from modelyard.rollout import Rollout, RolloutState, Shadow, decide, measure, measure_shadow
from modelyard.serve.applications import application_name
from modelyard.serve.plan import ModelPlan

logger = logging.getLogger(__name__)

_ACTOR: Final = "rollout"
_PAUSE_S: Final = 5.0
"""After the catalog has not taken a change, which may have taken it long to say."""
_ALL: Final = ""


_MAX_DIGITS: Final = 18
_LABEL: Final = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,62}")
_A_LABEL: Final = "1 to 63 letters, digits, `.`, `_` and `-`, beginning with a letter"


class Traffic:
    """The verbs of operators, checked and written down; see ``AdminTransport`` for what they do and raise.

    Args:
        catalog: Where they are written down.
        is_ready: Whether a revision of a model can answer now.
        try_again: Has a revision loaded once more that has failed.
    """

    def __init__(
        self, catalog: Catalog, is_ready: Callable[[str, int], bool], try_again: Callable[[str, int], None]
    ) -> None:
        self._catalog = catalog
        self._is_ready = is_ready
        self._try_again = try_again

    def set_traffic(
        self, name: str, change: Mapping[str, Any], actor: str, message: str, expected_generation: int | None = None
    ) -> ModelRecord:
        """Weights, shadow, or both."""
        plan = parse_section(TrafficPlan, change)
        record = self._catalog.get_model(name, expected_generation)
        weights = None
        if plan.weights is not None:
            weights = {_find_revision(record, text): weight for text, weight in plan.weights.items()}
            if len(weights) < len(plan.weights):
                raise InvalidConfig(("weights: expected each revision once, got one twice",))
            for number in weights:
                self._try_again(name, number)
        shadow = None
        if plan.shadow is not None:
            number = _find_revision(record, str(plan.shadow.revision))
            self._try_again(name, number)
            shadow = Shadow(number, plan.shadow.percent, plan.shadow.tolerance)
        stays = "shadow" not in plan.model_fields_set
        return self._catalog.set_traffic(
            name,
            weights,
            shadow=shadow,
            keep_shadow=stays,
            actor=actor,
            message=message,
            expected_generation=_find_expected(record, expected_generation, *_list_named(plan)),
        )

    def set_label(
        self,
        name: str,
        label: str,
        revision: str | None,
        actor: str,
        message: str,
        expected_generation: int | None = None,
    ) -> ModelRecord:
        """A label of the operator's own."""
        if not _LABEL.fullmatch(label):
            raise InvalidConfig((f"label: expected {_A_LABEL}, got {label[:80]!r}",))
        number, expected = None, expected_generation
        if revision is not None:
            record = self._catalog.get_model(name, expected_generation)
            number, expected = _find_revision(record, revision), _find_expected(record, expected_generation, revision)
            self._try_again(name, number)
        return self._catalog.set_label(name, label, number, actor=actor, message=message, expected_generation=expected)

    def roll_out(
        self, name: str, plan: Mapping[str, Any], actor: str, message: str, expected_generation: int | None = None
    ) -> ModelRecord:
        """A rollout, as the model's own but for what is given."""
        record = self._catalog.get_model(name, expected_generation)
        own = record.spec.get("rollout")
        given = parse_section(RolloutPlan, merge_rollout(own if isinstance(own, Mapping) else {}, plan))
        number = _find_revision(record, str(given.to))
        rollout = Rollout.from_dict({**given.model_dump(mode="json"), "to": number})
        self._try_again(name, number)
        expected = _find_expected(record, expected_generation, str(given.to))
        return self._catalog.begin_rollout(name, rollout, actor=actor, message=message, expected_generation=expected)

    def promote(
        self, name: str, revision: str | None, actor: str, message: str, expected_generation: int | None = None
    ) -> ModelRecord:
        """All traffic to a revision, at once where it is ready."""
        record = self._catalog.get_model(name, expected_generation)
        number = None if revision is None else _find_revision(record, revision)
        if number is None and record.rollout is not None and record.is_rolling_out:
            number = record.rollout.to  # this one, whatever takes its place meanwhile
        return self._catalog.promote(
            name,
            number,
            is_on_its_way=revision is None,
            is_ready=self._look(name, number),
            actor=actor,
            message=message,
            expected_generation=_find_expected(record, expected_generation, revision),
        )

    def roll_back(
        self, name: str, revision: str | None, actor: str, message: str, expected_generation: int | None = None
    ) -> ModelRecord:
        """Ends the rollout, or returns to an earlier revision."""
        record = self._catalog.get_model(name, expected_generation)
        number = None if revision is None else _find_revision(record, revision)
        if number is None and not record.is_rolling_out:
            number = self._catalog.find_rollback(name)
        if number is None:
            self._try_base_again(record)
        return self._catalog.roll_back(
            name,
            number,
            is_ready=self._look(name, number),
            actor=actor,
            message=message,
            expected_generation=_find_expected(record, expected_generation, revision),
        )

    def _try_base_again(self, record: ModelRecord) -> None:
        """What the rollout on its way is taken back to is to answer, also where it has failed meanwhile."""
        for number in record.rollout.base if record.rollout is not None and record.is_rolling_out else ():
            self._try_again(record.name, number)

    def _look(self, name: str, number: int | None) -> bool:
        """Whether the revision can answer now; one that has failed is tried again."""
        if number is None:
            return False
        self._try_again(name, number)
        return self._is_ready(name, number)

    def abort(self, name: str, actor: str, message: str, expected_generation: int | None = None) -> ModelRecord:
        """The rollout is taken back."""
        self._try_base_again(self._catalog.get_model(name, expected_generation))
        return self._catalog.abort(name, actor=actor, message=message, expected_generation=expected_generation)

    def pause(self, name: str, actor: str, message: str, expected_generation: int | None = None) -> ModelRecord:
        """The rollout stays where it is."""
        return self._catalog.pause(name, actor=actor, message=message, expected_generation=expected_generation)

    def resume(self, name: str, actor: str, message: str, expected_generation: int | None = None) -> ModelRecord:
        """The rollout goes on."""
        return self._catalog.resume(name, actor=actor, message=message, expected_generation=expected_generation)


def _list_named(plan: TrafficPlan) -> list[str]:
    return [*(plan.weights or ()), *([str(plan.shadow.revision)] if plan.shadow is not None else ())]


def _find_expected(model: ModelRecord, asked: int | None, *named: str | None) -> int | None:
    """The generation that the model still has to be at: the one that is asked for.

    Where labels name revisions, that at which they were read: they may point elsewhere by now.
    """
    return model.generation if any(text is not None and not text.isdecimal() for text in named) else asked


def _find_revision(model: ModelRecord, text: str) -> int:
    """The number of a revision that somebody names by number or label.

    Raises:
        ModelNotFound: It is neither.
    """
    number = model.labels.get(text)
    if number is None and text.isascii() and text.isdecimal():
        number = int(text[:_MAX_DIGITS])
    if number is None:
        raise ModelNotFound(model.name, text)
    return number


@dataclass(frozen=True, slots=True)
class _Step:
    """Where a step began: when, and what had been counted by then."""

    since: str
    counted: Outcomes


class Rollouts:
    """All rollouts of one controller.

    Args:
        catalog: Where they are written down.
        try_again: Has a revision loaded once more that has failed.
    """

    def __init__(self, catalog: Catalog, try_again: Callable[[str, int], None]) -> None:
        self._catalog = catalog
        self._try_again = try_again
        self._lock = threading.Lock()
        self._counted: dict[str, Outcomes] = {}
        self._steps: dict[str, _Step] = {}
        self._again_at: dict[str, float] = {}

    def report(self, counts: Mapping[str, Outcomes]) -> bool:
        """Adds what has been counted somewhere, by application; whether a rollout waits for such numbers."""
        with self._lock:
            for application, outcomes in counts.items():
                self._counted[application] = self._counted.get(application, Outcomes()) + outcomes
            return not self._steps.keys().isdisjoint(counts)

    def advance(self, model: ModelRecord, plan: ModelPlan) -> ModelRecord:
        """One look at the rollout of a model.

        Args:
            model: As the catalog has it, with a rollout on its way.
            plan: Of the same round.

        Returns:
            The model as it now is.
        """
        rollout = model.rollout
        state = plan.find(rollout.to) if rollout is not None else None
        paused_until = max(self._again_at.get(name, -math.inf) for name in (_ALL, model.name))
        if rollout is None or state is None or time.monotonic() < paused_until:
            return model
        now = datetime.now(UTC)
        decided = decide(
            rollout,
            is_ready=state.can_answer,
            failure=state.reason if state.state is ModelState.FAILED else "",
            seen=self._count(model.name, rollout, is_now=True),
            elapsed_s=(now - datetime.fromisoformat(rollout.since)).total_seconds() if rollout.since else 0.0,
            now=now.isoformat(timespec="microseconds"),
        )
        if decided is rollout:
            return model
        try:
            moved = self._catalog.advance_rollout(
                model.name, decided, expected_generation=model.generation, actor=_ACTOR
            )
        except (Conflict, ModelNotFound):  # somebody has changed it since this round began
            return model
        except (InternalError, Unavailable) as exc:  # a later round tries again; other models do not wait for it
            self._again_at[_ALL if isinstance(exc, Unavailable) else model.name] = time.monotonic() + _PAUSE_S
            logger.warning('model "%s": its rollout does not go on: %s', model.name, exc)
            return model
        if decided.state is RolloutState.ROLLED_BACK:
            for number in decided.base:
                self._try_again(model.name, number)
        what = f"at {decided.percent:g} %" if decided.is_active else decided.state.value
        logger.info('model "%s": revision %d %s %s', model.name, decided.to, what, decided.reason)
        return moved

    def show(self, model: ModelRecord, rollout: Rollout, plan: ModelPlan | None) -> Rollout:
        """The rollout with its numbers as they are now, and with why it cannot begin.

        Args:
            model: Whose.
            rollout: As the catalog has it.
            plan: Of the last round; None before the first.
        """
        is_current = plan is not None and plan.generation == model.generation  # else it may be tried again by now
        state = plan.find(rollout.to) if plan is not None and is_current else None
        has_begun = rollout.state is not RolloutState.WAITING and rollout.step >= 0
        if rollout.is_active and not has_begun and state is not None and state.state is ModelState.FAILED:
            return replace(rollout, reason=f"its revision has failed: {state.reason}")
        return replace(rollout, measured=measure(self._count(model.name, rollout))) if rollout.is_watched else rollout

    def show_shadow(self, model: str, shadow: Shadow) -> Shadow:
        """The shadow with what this controller has heard of its copies."""
        with self._lock:
            counted = self._counted.get(application_name(model, shadow.revision), Outcomes())
        return replace(shadow, measured=measure_shadow(counted))

    def _count(self, model: str, rollout: Rollout, *, is_now: bool = False) -> Outcomes:
        """What has been counted of its revision since its step began.

        Args:
            model: Whose.
            rollout: As somebody has read it, perhaps a while ago.
            is_now: It is as the catalog has it now, so a step that is new here begins now.
        """
        application = application_name(model, rollout.to)
        with self._lock:
            counted = self._counted.get(application, Outcomes())
            step = self._steps.get(application)
            if step is None or step.since != rollout.since:
                if not is_now:
                    return Outcomes()
                step = self._steps[application] = _Step(rollout.since, counted)
            return counted - step.counted

    def forget(self, applications: set[str]) -> None:
        """Forgets the counts of all but these applications."""
        with self._lock:
            for known in (self._counted, self._steps):
                for application in known.keys() - applications:
                    del known[application]
