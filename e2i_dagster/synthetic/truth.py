"""What is true of a synthetic set: effects, propensities, the best AUC that any model can reach.

The truth is computed from the process, not from the tables, and never enters the warehouse.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd

from e2i_dagster.errors import UnavailableError
from e2i_dagster.local_files import replacing, write_text
from e2i_dagster.synthetic.population import Population, bayes_auc, draw_population
from e2i_dagster.synthetic.processes import COURSES, SEVERITY_BANDS, course_probabilities
from e2i_dagster.synthetic.streams import keys, pick

#: Files that :func:`write_truth` makes.
TRUTH_FILE, TRUTH_PATIENTS_FILE = "truth.json", "truth_patients.parquet"


@dataclass(frozen=True)
class Truth:
    """The truth of one synthetic set.

    Attributes:
        dgp: the process. seed: of the draw. population_size: people over whom ``ate`` is the mean.
        ate: E[Y(1) - Y(0)], a difference of probabilities: the mean of the closed-form effects over the
            population drawn (of ``selection_bias``: observed or not).
        ate_by_band: mean effect of the observed patients by severity band (low, medium, high).
        ate_by_cohort: mean effect of the observed patients by cohort.
        bayes_auc: by cohort, the expected ROC-AUC of the true outcome probability over the patients
            who are eligible under the cohort's definition; None where nobody is. Its scope is named
            ``<cohort>_initiation``.
        prevalence: by cohort, mean outcome probability over the same patients; None where nobody is.
        adjustment_set: columns to adjust for.
        patients: one row per patient: patient_id, patient_journey_id, cohort, severity_band, propensity,
            p0, p1 (probabilities of the outcome without and with treatment), cate (p1 - p0), probability
            (of the outcome under the treatment received, given being observed), selection_probability
            (of being observed, given severity and outcome; 1 where everyone is), p_adherent, p_switch and
            p_discontinue (what becomes of the treatment once the drug is filled), eligible, pending (meets
            every rule but completed follow-up).
    """

    dgp: str
    seed: int
    population_size: int
    ate: float
    ate_by_band: Mapping[str, float]
    ate_by_cohort: Mapping[str, float]
    bayes_auc: Mapping[str, float | None]
    prevalence: Mapping[str, float | None]
    adjustment_set: tuple[str, ...]
    patients: pd.DataFrame

    @property
    def cate(self) -> pd.DataFrame:
        """Frame of patient_id and cate."""
        return self.patients[["patient_id", "cate"]]

    @property
    def propensity(self) -> pd.DataFrame:
        """Frame of patient_id and propensity."""
        return self.patients[["patient_id", "propensity"]]

    def to_record(self) -> dict[str, object]:
        """Everything but the patients, as plain values."""
        return {
            "dgp": self.dgp,
            "seed": self.seed,
            "patients": len(self.patients),
            "population_size": self.population_size,
            "ate": self.ate,
            "ate_by_band": dict(self.ate_by_band),
            "ate_by_cohort": dict(self.ate_by_cohort),
            "bayes_auc": dict(self.bayes_auc),
            "prevalence": dict(self.prevalence),
            "adjustment_set": list(self.adjustment_set),
        }


def true_effects(
    dgp: str = "confounded",
    n_patients: int = 25_000,
    seed: int = 42,
    *,
    cohorts: Sequence[str] | None = None,
) -> Truth:
    """The truth of ``generate(dgp, n_patients=..., seed=..., cohorts=...)``.

    The other volumes of ``generate`` change nothing of it.

    Raises:
        InputError: as ``generate``.
    """
    return truth_of(draw_population(dgp, n_patients, seed, cohorts), seed)


def truth_of(people: Population, seed: int) -> Truth:
    """The truth of a population."""
    cate = people.p1 - people.p0
    severity = people.covariates.severity
    band = np.searchsorted([upper for _, _, upper in SEVERITY_BANDS[:-1]], severity, side="left")
    names = [name for name, _, _ in SEVERITY_BANDS]
    number = np.arange(people.size) + 1
    courses = course_probabilities(people.covariates)
    patients = pd.DataFrame(
        {
            "patient_id": keys("PAT", number, 8),
            "patient_journey_id": keys("PJ", number, 16),
            "cohort": pick([item.key for item in people.cohorts], people.cohort),
            "severity_band": pick(names, band.astype(np.int64)),
            "propensity": people.propensity,
            "p0": people.p0,
            "p1": people.p1,
            "cate": cate,
            "probability": people.probability,
            "selection_probability": people.selection,
            **{f"p_{name}": share for name, share in zip(COURSES, courses.T, strict=True)},
            "eligible": people.eligible,
            "pending": people.full_rules & ~people.eligible & _still_observed(people),
        }
    )
    eligible = {item.key: people.eligible & (people.cohort == n) for n, item in enumerate(people.cohorts)}
    return Truth(
        dgp=people.process.name,
        seed=seed,
        population_size=people.population_size,
        ate=people.ate,
        ate_by_band=MappingProxyType(
            {name: float(cate[band == n].mean()) for n, name in enumerate(names) if (band == n).any()}
        ),
        ate_by_cohort=MappingProxyType(
            {item.key: float(cate[people.cohort == n].mean()) for n, item in enumerate(people.cohorts)}
        ),
        bayes_auc=MappingProxyType(
            {
                key: bayes_auc(people.probability[rows]) if rows.sum() > 1 else None
                for key, rows in eligible.items()
            }
        ),
        prevalence=MappingProxyType(
            {
                key: float(people.probability[rows].mean()) if rows.any() else None
                for key, rows in eligible.items()
            }
        ),
        adjustment_set=people.process.adjustment_set,
        patients=patients,
    )


def _still_observed(people: Population) -> np.ndarray:
    from e2i_dagster.synthetic.streams import DATA_END

    return people.index + people.of_cohort("followup") > DATA_END


def write_truth(folder: Path | str, truth: Truth) -> tuple[Path, Path]:
    """Write ``truth.json`` and ``truth_patients.parquet`` to ``folder``, apart from the tables.

    Raises:
        UnavailableError: the folder cannot be written to.
    """
    target = Path(folder)
    summary, patients = target / TRUTH_FILE, target / TRUTH_PATIENTS_FILE
    try:
        write_text(summary, json.dumps(truth.to_record(), indent=2) + "\n")
        with replacing(patients) as aside:
            truth.patients.to_parquet(aside, index=False)
    except OSError as error:
        raise UnavailableError(
            f"{target}: cannot be written to ({error.strerror or error}).",
            remedy="Give another folder, or free space and permissions.",
        ) from error
    return summary, patients


__all__ = ["TRUTH_FILE", "TRUTH_PATIENTS_FILE", "Truth", "true_effects", "truth_of", "write_truth"]
