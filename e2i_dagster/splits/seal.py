"""Seals on test and holdout. Handing out sealed rows and recording it are one act.

Selection, search, calibration and thresholds see train and validation only. The test set is opened for
one chosen candidate, with a reason; the holdout only for a model that was deployed to production.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import pandas as pd
import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict

from e2i_dagster.errors import InputError, VerdictError
from e2i_dagster.policy_files.base import digest_of
from e2i_dagster.splits.assign import SPLITS, UNASSIGNED
from e2i_dagster.tables.description.splits import ml_seal_openings

Sealed = Literal["test", "holdout"]


class SealedError(VerdictError):
    """A sealed split was asked for without what opens it."""


class SealOpening(BaseModel):
    """One opening: for whom, why, and how many candidates these patients have judged by then."""

    model_config = ConfigDict(frozen=True)

    scope: str
    split: Sealed
    salt: str
    sealed_set: str
    patients: int
    candidate: str
    reason: str
    opened_by: str
    opened_at: datetime
    ordinal: int
    ordinal_under_salt: int
    deployment: str | None = None

    def words(self) -> str:
        """For the model card: which model these patients judge."""
        return (
            f"Model no. {self.ordinal} judged on these {self.split} patients "
            f"(no. {self.ordinal_under_salt} under salt {self.salt})."
        )

    def to_metadata(self) -> dict[str, Any]:
        return {
            "seal": self.words(),
            "sealed_set": self.sealed_set,
            "opened_for": self.candidate,
            "opened_because": self.reason,
        }

    def to_record(self) -> dict[str, Any]:
        return self.model_dump()


@dataclass(frozen=True)
class Seal:
    """Guards the splits of one scope.

    Attributes:
        assignments: patient_id, split.
    """

    scope: str
    salt: str
    assignments: pd.DataFrame

    def sealed_set(self, split: Sealed) -> str:
        """Digest of scope, salt and the patients of ``split``."""
        ids = self.assignments.loc[self.assignments["split"] == split, "patient_id"].astype(str)
        return digest_of([self.scope, self.salt, split, sorted(ids.tolist())])

    def visible(self, frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
        """The rows of ``frame`` (with patient_id) in train and validation; nothing else is given out.

        Raises:
            InputError: a patient of ``frame`` has no split.
        """
        return visible_frames(frame, self.assignments)

    def open_test(
        self, connection: sa.Connection, frame: pd.DataFrame, *, candidate: str, reason: str, opened_by: str
    ) -> tuple[pd.DataFrame, SealOpening]:
        """The test rows of ``frame``, for the one chosen ``candidate``; recorded and counted.

        The same candidate on the same patients again is the same opening.

        Raises:
            SealedError: candidate or reason is empty.
        """
        opening = self._record(connection, "test", candidate=candidate, reason=reason, opened_by=opened_by)
        return self._rows(frame, "test"), opening

    def open_holdout(
        self,
        connection: sa.Connection,
        frame: pd.DataFrame,
        *,
        model_name: str,
        model_version: str,
        reason: str,
        opened_by: str,
    ) -> tuple[pd.DataFrame, SealOpening]:
        """The holdout rows of ``frame``, for a model version that was deployed to the production slot.

        Raises:
            SealedError: no such deployment is recorded, or the reason is empty.
        """
        deployment = production_deployment(connection, model_name, model_version)
        if deployment is None:
            raise SealedError(
                f"The holdout of scope {self.scope} stays sealed: no deployment of {model_name} version "
                f"{model_version} to the production slot is recorded. Promote and approve the model first."
            )
        opening = self._record(
            connection,
            "holdout",
            candidate=f"{model_name}/{model_version}",
            reason=reason,
            opened_by=opened_by,
            deployment=deployment,
        )
        return self._rows(frame, "holdout"), opening

    def _rows(self, frame: pd.DataFrame, split: Sealed) -> pd.DataFrame:
        return frame[(_split_of(frame, self.assignments) == split).to_numpy()].reset_index(drop=True)

    def _record(
        self,
        connection: sa.Connection,
        split: Sealed,
        *,
        candidate: str,
        reason: str,
        opened_by: str,
        deployment: str | None = None,
    ) -> SealOpening:
        if not candidate.strip() or not reason.strip():
            raise SealedError(
                f"The {split} set of scope {self.scope} stays sealed: name the one candidate and the reason."
            )
        table = ml_seal_openings
        sealed_set = self.sealed_set(split)
        # One opening at a time, so that two candidates cannot get the same number.
        lock = f"{self.scope}\n{self.salt}\n{split}"
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(lock, 0))))
        names = list(SealOpening.model_fields)
        columns = [table.c[name] for name in names]
        before = connection.execute(
            sa.select(*columns).where(table.c.sealed_set == sealed_set, table.c.candidate == candidate)
        ).one_or_none()
        if before is not None:
            return SealOpening.model_validate(dict(before._mapping))
        same_salt = sa.and_(table.c.scope == self.scope, table.c.salt == self.salt, table.c.split == split)
        on_set = connection.execute(
            sa.select(sa.func.count()).select_from(table).where(table.c.sealed_set == sealed_set)
        ).scalar_one()
        under_salt = connection.execute(
            sa.select(sa.func.count()).select_from(table).where(same_salt)
        ).scalar_one()
        opening = SealOpening(
            scope=self.scope,
            split=split,
            salt=self.salt,
            sealed_set=sealed_set,
            patients=int((self.assignments["split"] == split).sum()),
            candidate=candidate,
            reason=reason,
            opened_by=opened_by,
            opened_at=datetime.now(UTC),
            ordinal=on_set + 1,
            ordinal_under_salt=under_salt + 1,
            deployment=deployment,
        )
        connection.execute(table.insert(), opening.to_record())
        return opening


def visible_frames(frame: pd.DataFrame, assignments: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of ``frame`` (with patient_id) whose ``assignments`` (patient_id, split) are train or validation.

    Raises:
        InputError: a patient of ``frame`` has no split.
    """
    split = _split_of(frame, assignments)
    return {name: frame[(split == name).to_numpy()].reset_index(drop=True) for name in SPLITS[:2]}


def _split_of(frame: pd.DataFrame, assignments: pd.DataFrame) -> pd.Series:
    registry = assignments.set_index(assignments["patient_id"].astype(str))["split"]
    split = registry.reindex(frame["patient_id"].astype(str))
    missing = int(split.isna().sum())
    if missing:
        raise InputError(
            f"{missing:,} row(s) belong to patients without a split.",
            remedy="Assign the splits of this cohort first.",
        )
    known = split.isin([*SPLITS, UNASSIGNED])
    if not known.all():
        raise InputError(
            f"{int((~known).sum()):,} row(s) have an unknown split.",
            field="split",
            remedy=f"Known: {', '.join(SPLITS)}.",
        )
    return split


def production_deployment(connection: sa.Connection, model_name: str, model_version: str) -> str | None:
    """Identifier of a deployment of this model version that took traffic in the production slot, or None."""
    from e2i_dagster.tables.description.serving import ml_deployments

    table = ml_deployments.c
    found = connection.execute(
        sa.select(table.id)
        .where(
            table.model_name == model_name,
            table.model_version == model_version,
            table.environment == "production",
            table.deployed_at.is_not(None),
        )
        .order_by(table.deployed_at)
        .limit(1)
    ).scalar()
    return None if found is None else str(found)


def seal_openings(connection: sa.Connection, scope: str) -> tuple[SealOpening, ...]:
    """All openings of a scope, oldest first."""
    table = ml_seal_openings
    rows = connection.execute(
        sa.select(*(table.c[name] for name in SealOpening.model_fields))
        .where(table.c.scope == scope)
        .order_by(table.c.opening_id)
    ).all()
    return tuple(SealOpening.model_validate(dict(row._mapping)) for row in rows)
