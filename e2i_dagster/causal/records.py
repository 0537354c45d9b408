"""Writing effects and refutations to the warehouse."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from e2i_dagster.causal.study import CausalEstimates
from e2i_dagster.tables.description.causal import ml_causal_estimates, ml_causal_refutations


def record_effects(connection: sa.Connection, study: CausalEstimates, *, scope: str, run_id: str) -> None:
    """One row per library, one for the consensus, one per refuter; a step that is run again adds nothing."""
    rows = estimate_rows_of(study, scope=scope, run_id=run_id)
    connection.execute(insert(ml_causal_estimates).values(rows).on_conflict_do_nothing())
    refutations = [
        {
            "scope": scope,
            "treatment": study.found.effects.treatment,
            "refuter": one.name,
            "expected_effect": one.expected,
            "found_effect": one.found,
            "found_lower": one.lower,
            "found_upper": one.upper,
            "passed": one.passed,
            "run_id": run_id,
        }
        for one in study.refutations
    ]
    if refutations:
        connection.execute(insert(ml_causal_refutations).values(refutations).on_conflict_do_nothing())


def estimate_rows_of(study: CausalEstimates, *, scope: str, run_id: str) -> list[dict[str, Any]]:
    """Rows of ``ml_causal_estimates``."""
    found, effects = study.found, study.found.effects
    common = {
        "scope": scope,
        "treatment": effects.treatment,
        "outcome": effects.outcome,
        "confidence_level": effects.level,
        "sample_size": effects.rows,
        "confounders": list(effects.confounders),
        "run_id": run_id,
    }
    libraries = [
        {
            **common,
            "library": one.library,
            "estimator": one.name,
            "library_version": one.version,
            "estimand": one.estimand,
            "state": one.state,
            "reason": one.reason,
            "in_consensus": one.in_consensus,
            "effect": one.point,
            "ci_lower": one.lower,
            "ci_upper": one.upper,
            "agreement_score": None,
            "duration_seconds": one.seconds,
        }
        for one in effects.estimates
    ]
    lower, upper = found.consensus_interval or (None, None)
    consensus = {
        **common,
        "library": "consensus",
        "estimator": "median",
        "library_version": "",
        "estimand": effects.estimand,
        "state": found.state,
        "reason": found.reason,
        "in_consensus": False,
        "effect": found.consensus_effect,
        "ci_lower": lower,
        "ci_upper": upper,
        "agreement_score": found.agreement_score,
        "duration_seconds": None,
    }
    return [*libraries, consensus]
