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
            "refuter": refutation.name,
            "expected_effect": refutation.expected,
            "found_effect": refutation.found,
            "found_lower": refutation.lower,
            "found_upper": refutation.upper,
            "passed": refutation.passed,
            "run_id": run_id,
        }
        for refutation in study.refutations
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
            "library": estimate.library,
            "estimator": estimate.name,
            "library_version": estimate.version,
            "estimand": estimate.estimand,
            "state": estimate.state,
            "reason": estimate.reason,
            "in_consensus": estimate.in_consensus,
            "effect": estimate.point,
            "ci_lower": estimate.lower,
            "ci_upper": estimate.upper,
            "agreement_score": None,
            "duration_seconds": estimate.seconds,
        }
        for estimate in effects.estimates
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
