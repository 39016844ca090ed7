# SPDX-License-Identifier: Apache-2.0
"""Where the traffic of a model goes, as rows of the catalog: weights, labels, the rollout on its way.

Functions on an open transaction; :class:`~modelyard.catalog.Catalog` has the operations.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Connection, and_, delete, insert, select, update

from modelyard.catalog import schema
from modelyard.catalog.records import ModelRecord
from modelyard.errors import InvalidConfig, ModelNotFound
from modelyard.rollout import ALL, Rollout, RolloutState

STABLE: Final = "stable"
CANARY: Final = "canary"
SHADOW: Final = "shadow"
FOLLOWING: Final = (STABLE, CANARY, SHADOW)
"""Labels that the platform sets itself, where the version policy has none of that name."""
_ROUNDING: Final = 0.01
"""By so much weights may miss 100 in sum: three thirds do."""
_PER_PERCENT: Final = 10
"""Weights are whole tenths of a percent."""


def now() -> str:
    """ISO 8601, UTC; texts that sort by time."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def write_weights(connection: Connection, model: str, weights: Mapping[int, float]) -> None:
    """Makes the model's weights these; a revision that is in none of them and has no label is not run."""
    table = schema.traffic
    connection.execute(delete(table).where(table.c.model == model))
    for number, weight in weights.items():
        connection.execute(insert(table).values(model=model, revision=number, weight=weight))


def write_label(connection: Connection, model: str, label: str, number: int | None) -> None:
    """Points a label at a revision; None takes it away."""
    table = schema.labels
    connection.execute(delete(table).where(table.c.model == model, table.c.label == label))
    if number is not None:
        connection.execute(insert(table).values(model=model, label=label, revision=number))


def mark_promoted(connection: Connection, model: str, number: int, at: str, own_labels: Collection[str] = ()) -> None:
    """The revision has all traffic from now on.

    Args:
        connection: The transaction.
        model: Its model.
        number: Its number.
        at: When, ISO 8601, UTC.
        own_labels: Labels that do not follow the traffic.
    """
    table = schema.revisions
    is_it = and_(table.c.model == model, table.c.number == number)
    connection.execute(update(table).where(is_it).values(promoted_at=at))
    if STABLE not in own_labels:
        write_label(connection, model, STABLE, number)


def write_rollout(connection: Connection, old: ModelRecord, rollout: Rollout) -> None:
    """What follows from a rollout for weights and labels; its own column is the caller's.

    A revision that was taken back or replaced runs on only for a label of its own. The versions of a folder run on,
    whichever gets the traffic.
    """
    served = dict.fromkeys(old.traffic, 0.0) if old.is_versioned else {}
    write_weights(connection, old.name, served | rollout.weights)
    if rollout.state is RolloutState.PROMOTED:
        mark_promoted(connection, old.name, rollout.to, now(), old.own_labels)
    if CANARY not in old.own_labels:
        stays = rollout.is_active and not rollout.is_plain
        write_label(connection, old.name, CANARY, rollout.to if stays else None)


def check_weights(connection: Connection, model: str, weights: Mapping[int, float]) -> None:
    """Refuses weights that are none.

    Raises:
        InvalidConfig: They are not tenths of a percent, or do not sum to 100.
        ModelNotFound: There is no such revision.
    """
    problems = [
        f"weights.{number}: expected 0 to 100 in steps of 0.1, got {weight:g}"
        for number, weight in weights.items()
        if not 0 <= weight <= ALL or abs(weight * _PER_PERCENT - round(weight * _PER_PERCENT)) > _ROUNDING
    ]
    total = sum(weights.values())
    if not problems and abs(total - ALL) > _ROUNDING:
        problems.append(f"weights: expected 100 in sum, got {total:g}")
    if problems:
        raise InvalidConfig(tuple(problems))
    for number in weights:
        check_revision(connection, model, number)


def check_revision(connection: Connection, model: str, number: int) -> None:
    """Refuses a revision that the model never had.

    Raises:
        ModelNotFound: There is none of that number.
    """
    table = schema.revisions
    is_it = and_(table.c.model == model, table.c.number == number)
    if connection.execute(select(table.c.number).where(is_it)).scalar() is None:
        raise ModelNotFound(model, str(number))


def find_previous(connection: Connection, model: ModelRecord) -> int | None:
    """The revision that had all traffic before the one that has it now; None where there is none.

    While no revision has all of it, that is the last one that had.
    """
    table = schema.revisions
    current = model.active
    query = select(table.c.number).where(table.c.model == model.name)
    if model.is_versioned:
        query = query.where(table.c.number.in_(list(model.traffic)))
    if model.traffic.get(current.number, 0) >= ALL:
        query = query.where(table.c.number != current.number)
        if current.promoted_at is not None:
            query = query.where(table.c.promoted_at < current.promoted_at)
    return connection.execute(
        query.where(table.c.promoted_at.is_not(None)).order_by(table.c.promoted_at.desc())
    ).scalar()


def revision_rollout(number: int, spec: Mapping[str, Any], base: Mapping[int, float]) -> Rollout:
    """How a new revision gets its traffic, as the model's spec wants it."""
    wanted = spec.get("rollout")
    return Rollout.from_dict({**(wanted if isinstance(wanted, Mapping) else {}), "to": number, "base": base})
