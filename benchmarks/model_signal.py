"""How much of the Bayes AUC each shipped scope's model reaches on fresh patients of the same process.

The model is trained as the pipeline trains it, on the full synthetic set; the fresh patients are drawn by
another seed and pass through the same cohort definition, labels and features. Their true probabilities give
the best AUC that any model could have: the Bayes AUC. Usage: ``python benchmarks/model_signal.py [--scope NAME|all]
[--patients N]``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from dataclasses import dataclass

import numpy as np
import pandas as pd

from e2i_dagster.cohorts import build_cohort, cohort_frame, label_outcome, patient_frame
from e2i_dagster.config.current_features import feature_views
from e2i_dagster.config.feature_selection import FeatureSelectionPolicy
from e2i_dagster.config.policy import current_policy
from e2i_dagster.config.scope import ScopeSpec
from e2i_dagster.features.compute import compute_views
from e2i_dagster.features.scope_selection import select_for_scope
from e2i_dagster.features.snapshots import spine
from e2i_dagster.policy_files.environment import config_folder
from e2i_dagster.selection import select_algorithm
from e2i_dagster.splits import assign_splits
from e2i_dagster.splits.rows import visible_rows
from e2i_dagster.synthetic.generate import generate
from e2i_dagster.synthetic.truth import true_effects
from e2i_dagster.training import TrainedModel, search_hyperparameters, train

GOAL = 0.95
SEED = 42
#: Each scope's quarter gives about 37 % eligible patients, and some of those are not labelled yet.
ELIGIBLE_SHARE = 0.34


@dataclass(frozen=True)
class Signal:
    """AUC of the model and of the true probabilities on the same fresh patients."""

    scope: str
    algorithm: str
    patients: int
    auc: float
    bayes_auc: float
    calibration_slope: float

    @property
    def share(self) -> float:
        return self.auc / self.bayes_auc


def labelled_frame(scope: ScopeSpec, tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Labelled patients of ``scope`` in ``tables`` with their features on the day before the index date."""
    policy = current_policy()
    patients = patient_frame(tables["patient_journeys"], tables["patient_clinical"])
    cohort = build_cohort(policy.cohorts[scope.cohort], patients, data_end=policy.sources.data_end)
    labels = label_outcome(scope, cohort_frame(cohort), tables, data_end=policy.sources.data_end)
    rows = spine(labels.labelled, tables, brand=scope.brand).reset_index(drop=True)
    rows["as_of"] = pd.to_datetime(rows["index_date"]) - pd.Timedelta(days=1)
    entities = {view.name: rows[[*view.keys, "as_of"]].dropna().drop_duplicates() for view in feature_views()}
    entities = {
        name: rows[["patient_id", "patient_journey_id", "as_of"]] if "patient_id" in keys.columns else keys
        for name, keys in entities.items()
    }
    frame = rows[["patient_id", "patient_journey_id", "index_date", "label"]].copy()
    computed = compute_views(entities, tables)
    for view in feature_views():
        values = computed[view.name]
        values = values.assign(as_of=values["event_timestamp"].dt.tz_localize(None).dt.normalize())
        keys = [*view.keys, "as_of"]
        joined = rows[keys].merge(
            values[[*keys, *view.feature_names]].drop_duplicates(keys),
            on=keys,
            how="left",
            validate="many_to_one",
        )
        frame[list(view.feature_names)] = joined[list(view.feature_names)].to_numpy(dtype=object)
        for name in view.feature_names:
            frame[name] = frame[name].astype(values[name].dtype)
    return frame


def trained_on(scope: ScopeSpec, frame: pd.DataFrame) -> TrainedModel:
    """The model that the pipeline would train on ``frame``."""
    splits = assign_splits(frame["patient_id"], salt=scope.split.salt, strata=frame["label"])
    chosen = select_for_scope(scope, frame, splits, policy=FeatureSelectionPolicy.load(config_folder()))
    rows = visible_rows(frame, splits, chosen.selection.kept, problem_type=scope.problem_type)
    algorithm = select_algorithm(scope, visible=rows).algorithm
    search = search_hyperparameters(algorithm, rows, scope=scope.key)
    return train(rows, algorithm=algorithm, parameters=search.parameters)


def training_frame(scope: ScopeSpec) -> pd.DataFrame:
    """The labelled patients of the full synthetic set."""
    return labelled_frame(scope, dict(generate(n_patients=25_000, seed=SEED)))


def measure(scope_key: str, patients: int, training: pd.DataFrame | None = None) -> Signal:
    """Train on the full set, or on ``training`` that was made of it, and judge on at least ``patients`` fresh ones."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    scope = current_policy().scopes[scope_key]
    model = trained_on(scope, training_frame(scope) if training is None else training)
    drawn = round(patients / ELIGIBLE_SHARE)
    fresh_seed = SEED + 1_000
    tables = dict(generate(n_patients=drawn, n_hcps=5_000, seed=fresh_seed, cohorts=(scope.cohort,)))
    fresh = labelled_frame(scope, tables)
    truth = true_effects(n_patients=drawn, seed=fresh_seed, cohorts=(scope.cohort,)).patients
    known = fresh[["patient_id"]].merge(truth, on="patient_id", how="left", validate="one_to_one")
    probability = known["probability"]
    label = fresh["label"].astype(int).to_numpy()
    scores = model.scores(fresh)
    logit = np.log(scores / (1 - scores)).reshape(-1, 1)
    slope = LogisticRegression(C=np.inf).fit(logit, label).coef_[0, 0]
    return Signal(
        scope=scope_key,
        algorithm=model.algorithm,
        patients=len(fresh),
        auc=float(roc_auc_score(label, scores)),
        bayes_auc=float(roc_auc_score(label, probability)),
        calibration_slope=float(slope),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--scope", default="default")
    parser.add_argument("--patients", type=int, default=50_000)
    given = parser.parse_args()
    policy = current_policy()
    scopes = {"default": [policy.default_scope], "all": sorted(policy.scopes)}.get(given.scope, [given.scope])
    figures = {}
    for scope in scopes:
        found = measure(scope, given.patients)
        print(
            f"{scope}: {found.algorithm}, {found.patients:,} fresh patients, AUC {found.auc:.4f} of Bayes "
            f"{found.bayes_auc:.4f} = {found.share:.4f}, calibration slope {found.calibration_slope:.3f}",
            flush=True,
        )
        figures[f"share_of_bayes_auc_{scope}"] = {
            "value": round(found.share, 4),
            "unit": "ratio",
            "goal": GOAL,
            "peer": f"Bayes AUC {found.bayes_auc:.4f} on the same {found.patients} patients",
            "holds": found.share >= GOAL,
        }
    machine = {"cpus": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()}
    print(json.dumps({"benchmark": "model_signal", "figures": figures, "machine": machine}))


if __name__ == "__main__":
    main()
