"""Plants defects, one at a time, and shows whether the tests notice: ``make mutants``.

Each defect is a line of the list below: a text of one file, what it becomes, and the tests that must fail then.
It is planted in a temporary copy of the checkout, never in the checkout. A text that is not found exactly once is
an error: the code has moved on, and the defect has to be written again.

    python tests/mutants.py                 all of them
    python tests/mutants.py --only seals    those whose name holds this text, or of this sort
    python tests/mutants.py --list          names, sorts and tests
"""

from __future__ import annotations

import argparse
import io
import os
import queue
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

CHECKOUT = Path(__file__).resolve().parents[1]
#: What the tests need of the checkout.
COPIED = (
    "assets",
    "commands",
    "config",
    "e2i_dagster",
    "feature_repo",
    "jobs",
    "resources",
    "sensors",
    "tests",
    "pyproject.toml",
)
#: Libraries that most of the tests import.
PRELOADED = [
    "pytest",
    "pandas",
    "pyarrow",
    "sqlalchemy",
    "pydantic",
    "dagster",
    "sklearn.ensemble",
    "scipy.stats",
]

Outcome = Literal["noticed", "survived", "error"]


@dataclass(frozen=True)
class Mutant:
    """One defect.

    Attributes:
        name: short and telling; ``--only`` finds it. sort: what kind of defect it is.
        file: relative to the checkout. old: text that occurs once. new: what it becomes.
        tests: pytest arguments, separated by blanks, of which at least one test must fail.
    """

    sort: str
    name: str
    file: str
    old: str
    new: str
    tests: str


def mutants() -> Iterator[Mutant]:
    """All defects, by sort."""
    for sort, defects in DEFECTS.items():
        for name, file, old, new, tests in defects:
            yield Mutant(sort, name, file, old, new, tests)


CONTRACT = "tests/conventions/test_contracts.py::test_bodies_hand_over_what_the_table_says"
SEARCH = "tests/training/test_search.py"
FIT = "tests/training/test_fit.py"
EVALUATE = "tests/training/test_evaluate.py"
SUBGROUPS = "tests/training/test_subgroup_performance.py"
CHOOSE = "tests/selection/test_choose.py"
COMPARE = "tests/monitoring/test_compare.py"
DRIFT = "tests/monitoring/test_drift.py"
OUTCOME = "tests/cohorts/test_outcome.py"
COMPUTE = "tests/features/test_compute.py"
GATE = "tests/quality/test_gate.py"
SEAL = "tests/splits/test_seal.py"
STAGES = "tests/registry/test_stages.py"

#: sort -> (name, file, old text, new text, tests that must notice).
DEFECTS: dict[str, list[tuple[str, str, str, str, str]]] = {
    "rows": [
        (
            "search preprocessing fitted on validation rows",
            "e2i_dagster/training/search.py",
            ").fit(train.features)\n    return TrialRows(",
            ").fit(validation.features)\n    return TrialRows(",
            f"{SEARCH}::test_preprocessing_is_fitted_on_the_training_rows_alone",
        ),
        (
            "search estimator fitted on validation rows",
            "e2i_dagster/training/search.py",
            "preprocessor.transform(train.features),\n        train.target,",
            "preprocessor.transform(validation.features),\n        validation.target,",
            f"{SEARCH}::test_trials_are_scored_on_validation_rows",
        ),
        (
            "search scored on training rows",
            "e2i_dagster/training/search.py",
            "preprocessor.transform(validation.features),\n        validation.target,",
            "preprocessor.transform(train.features),\n        train.target,",
            f"{SEARCH}::test_trials_are_scored_on_validation_rows",
        ),
        (
            "model preprocessing fitted on validation rows",
            "e2i_dagster/training/fit.py",
            ".fit(train_rows.features)",
            ".fit(validation_rows.features)",
            f"{FIT}::test_scaling_is_that_of_the_training_rows",
        ),
        (
            "estimator and calibration change places",
            "e2i_dagster/training/fit.py",
            "unfitted, (learn, train_rows.target), (check, validation_rows.target), shifted",
            "unfitted, (check, validation_rows.target), (learn, train_rows.target), shifted",
            f"{FIT}::test_preprocessing_and_estimator_see_training_rows_only",
        ),
        (
            "threshold chosen on training rows",
            "e2i_dagster/training/fit.py",
            "cut(validation_rows.target, scores[1])",
            "cut(train_rows.target, scores[0])",
            f"{FIT}::test_the_threshold_is_that_of_the_validation_rows",
        ),
        (
            "calibration on training rows",
            "e2i_dagster/training/fit.py",
            "CalibratedClassifierCV(frozen, method=method).fit(*check)",
            "CalibratedClassifierCV(frozen, method=method).fit(*learn)",
            f"{FIT}::test_calibration_is_that_of_the_validation_rows",
        ),
        (
            "prevalence of the validation rows",
            "e2i_dagster/training/fit.py",
            "prevalence=float(train_rows.target.mean())",
            "prevalence=float(validation_rows.target.mean())",
            f"{FIT}::test_calibration_is_that_of_the_validation_rows",
        ),
        (
            "benchmark of algorithms on validation rows",
            "e2i_dagster/selection/choose.py",
            "_thin(visible.train,",
            "_thin(visible.validation,",
            f"{CHOOSE}::test_the_benchmark_sees_training_rows_only",
        ),
        (
            "a fold is preprocessed with the rows that judge it",
            "e2i_dagster/selection/choose.py",
            "max_levels).fit(sample.features.iloc[learn])",
            "max_levels).fit(sample.features)",
            f"{CHOOSE}::test_every_fold_is_preprocessed_by_its_learning_rows_alone",
        ),
        (
            "baselines preprocessed on validation rows",
            "e2i_dagster/training/evaluate.py",
            ".fit(train_rows.features)",
            ".fit(validation_rows.features)",
            f"{EVALUATE}::test_baselines_are_fitted_on_training_rows_and_chosen_on_validation_rows",
        ),
        (
            "baselines learn from the rows that judge",
            "e2i_dagster/training/evaluate.py",
            "            learn[:, columns], train_rows.target\n",
            "            test[:, columns], judged.target\n",
            f"{EVALUATE}::test_baselines_are_fitted_on_training_rows_and_chosen_on_validation_rows",
        ),
        (
            "best single feature chosen on the rows that judge",
            "e2i_dagster/training/evaluate.py",
            "            validation_rows.target, raw_scores(singles[name], choose[:, origins == name]",
            "            judged.target, raw_scores(singles[name], test[:, origins == name]",
            f"{EVALUATE}::test_baselines_are_fitted_on_training_rows_and_chosen_on_validation_rows",
        ),
        (
            "baseline average of the rows that judge",
            "e2i_dagster/training/evaluate.py",
            "else float(train_rows.target.mean())",
            "else float(judged.target.mean())",
            f"{EVALUATE}::test_the_average_of_a_baseline_is_that_of_the_training_rows",
        ),
        (
            "training figures shown as those of validation",
            "e2i_dagster/training/evaluate.py",
            '{"train": rows.train, "validation": rows.validation}',
            '{"train": rows.validation, "validation": rows.train}',
            f"{EVALUATE}::test_an_accepted_model",
        ),
        (
            "training rows explained",
            "e2i_dagster/explain/shapley.py",
            "explain(model, rows.validation, background=rows.train",
            "explain(model, rows.train, background=rows.train",
            "tests/explain/test_shapley.py::test_validation_rows_are_explained_against_the_training_rows",
        ),
        (
            "explained against validation rows",
            "e2i_dagster/explain/shapley.py",
            "explain(model, rows.validation, background=rows.train",
            "explain(model, rows.validation, background=rows.validation",
            "tests/explain/test_shapley.py::test_validation_rows_are_explained_against_the_training_rows",
        ),
        (
            "features selected on validation rows too",
            "e2i_dagster/features/scope_selection.py",
            '(split == "train").to_numpy()',
            '(split != "test").to_numpy()',
            "tests/features/test_statistics_and_selection.py::test_a_scope_selects_by_its_training_rows",
        ),
        (
            "statistics of all rows",
            "e2i_dagster/features/scope_selection.py",
            "feature_statistics(frame[train])",
            "feature_statistics(frame)",
            "tests/features/test_statistics_and_selection.py::test_a_scope_selects_by_its_training_rows",
        ),
        (
            "patients to be scored are learned from",
            "e2i_dagster/features/snapshots.py",
            '_of_set(labels, "labelled")',
            "labels",
            "tests/features/test_snapshots.py::test_labelled_patients_are_learned_from_and_the_others_scored",
        ),
        (
            "label carried into the scoring frame",
            "e2i_dagster/features/snapshots.py",
            'return rows.drop(columns="label")',
            "return rows",
            "tests/features/test_snapshots.py::test_labelled_patients_are_learned_from_and_the_others_scored",
        ),
        (
            "strata of the split forgotten",
            "e2i_dagster/splits/scope.py",
            "strata=strata,\n        index_dates",
            "strata=None,\n        index_dates",
            "tests/splits/test_split_registry.py::test_a_scope_is_split_by_its_label_and_reported",
        ),
        (
            "dates of the split forgotten",
            "e2i_dagster/splits/scope.py",
            'index_dates=patients["index_date"]',
            "index_dates=None",
            "tests/splits/test_split_registry.py::test_a_scope_split_in_time_follows_the_index_dates",
        ),
    ],
    "boundaries": [
        (
            "a month exactly at the threshold withheld",
            "e2i_dagster/loading/load.py",
            "np.flatnonzero((total - bad) / total < self.threshold)",
            "np.flatnonzero((total - bad) / total <= self.threshold)",
            "tests/loading/test_loading_bad_input.py::test_exactly_at_the_threshold_is_enough",
        ),
        (
            "a month at a threshold that floating point misses withheld",
            "e2i_dagster/loading/load.py",
            "np.flatnonzero((total - bad) / total < self.threshold)",
            "np.flatnonzero(1 - bad / total < self.threshold)",
            "tests/loading/test_loading_bad_input.py::test_exactly_at_the_threshold_is_enough",
        ),
        (
            "a table exactly at the threshold refused",
            "e2i_dagster/loading/load.py",
            "(source - bad) / source < self.threshold",
            "(source - bad) / source <= self.threshold",
            "tests/loading/test_loading_bad_input.py::test_exactly_at_the_threshold_is_enough",
        ),
        (
            "lost dates exactly at the threshold refused",
            "e2i_dagster/loading/load.py",
            "(source - lost) / source < self.threshold",
            "(source - lost) / source <= self.threshold",
            "tests/loading/test_loading_bad_input.py::test_exactly_at_the_threshold_is_enough",
        ),
        (
            "a criterion met exactly counts as missed",
            "e2i_dagster/training/evaluate.py",
            '        passed = distance >= 0\n        reason = (\n            f"{rule.words()}: {seen',
            '        passed = distance > 0\n        reason = (\n            f"{rule.words()}: {seen',
            f"{EVALUATE}::test_a_criterion_is_met_exactly_at_its_threshold",
        ),
        (
            "a score at the threshold is negative",
            "e2i_dagster/serving/models.py",
            ">= self._threshold)",
            "> self._threshold)",
            f"{FIT}::test_a_score_at_the_threshold_is_positive",
        ),
        (
            "a tie of cuts takes the smaller one",
            "e2i_dagster/training/fit.py",
            "ranked[int(np.argmax(gain))]",
            "ranked[len(gain) - 1 - int(np.argmax(gain[::-1]))]",
            f"{FIT}::test_youden_threshold_by_hand",
        ),
        (
            "promotion needs more than the limit",
            "e2i_dagster/registry/stages.py",
            "value >= rules.min_auc",
            "value > rules.min_auc",
            f"{STAGES}::test_limits_are_reached_at_the_limit",
        ),
        (
            "drift index at a bound counts as below",
            "e2i_dagster/config/drift_monitoring.py",
            "if value >= getattr(self, name)",
            "if value > getattr(self, name)",
            f"{DRIFT}::test_a_severity_begins_at_its_bound",
        ),
        (
            "as many values as needed are too few",
            "e2i_dagster/monitoring/drift.py",
            "if min(sizes) < needed",
            "if min(sizes) <= needed",
            f"{DRIFT}::test_as_many_values_as_needed_are_enough",
        ),
        (
            "as many labelled patients as needed are too few",
            "e2i_dagster/cohorts/outcome.py",
            "labelled < scope.minimum_labelled",
            "labelled <= scope.minimum_labelled",
            f"{OUTCOME}::test_a_sample_too_small_is_refused_with_every_reason",
        ),
        (
            "as many events per feature as needed are too few",
            "e2i_dagster/cohorts/outcome.py",
            "if rarer < needed else",
            "if rarer <= needed else",
            f"{OUTCOME}::test_a_sample_too_small_is_refused_with_every_reason",
        ),
        (
            "a contact at the threshold does not treat",
            "e2i_dagster/causal/question.py",
            ">= question.threshold",
            "> question.threshold",
            "tests/causal/test_question.py::test_only_contacts_of_quality_in_the_window_treat",
        ),
    ],
    "point in time": [
        (
            "first day of the outcome window left out",
            "e2i_dagster/cohorts/outcome.py",
            ".between(first_day, last_day)",
            ".between(first_day + 1, last_day)",
            f"{OUTCOME}::test_the_window_is_closed_at_both_ends",
        ),
        (
            "last day of the outcome window left out",
            "e2i_dagster/cohorts/outcome.py",
            ".between(first_day, last_day)",
            ".between(first_day, last_day - 1)",
            f"{OUTCOME}::test_the_window_is_closed_at_both_ends",
        ),
        (
            "an outcome on the index date is no earlier outcome",
            "e2i_dagster/cohorts/outcome.py",
            '[found["day"] < first_day]',
            '[found["day"] < first_day - 1]',
            f"{OUTCOME}::test_an_outcome_on_the_index_date_or_before_removes_the_patient",
        ),
        (
            "a window that ends with the data is not over",
            "e2i_dagster/cohorts/outcome.py",
            "window_end + scope.source_lag_days > end",
            "window_end + scope.source_lag_days >= end",
            f"{OUTCOME}::test_a_window_and_its_lag_must_be_closed",
        ),
        (
            "source lag forgotten",
            "e2i_dagster/cohorts/outcome.py",
            "window_end + scope.source_lag_days > end",
            "window_end > end",
            f"{OUTCOME}::test_a_window_and_its_lag_must_be_closed",
        ),
        (
            "follow-up until the last day of the window is incomplete",
            "e2i_dagster/cohorts/outcome.py",
            "observed.values >= window_end",
            "observed.values > window_end",
            f"{OUTCOME}::test_follow_up_until_the_last_day_of_the_window_is_complete",
        ),
        (
            "rows of the index day are features",
            "e2i_dagster/features/compute.py",
            'found["t.known_on <= e.as_of"] = LATER',
            'found["t.known_on <= e.as_of + 1"] = LATER',
            f"{COMPUTE}::test_rows_of_the_index_day_and_later_change_nothing",
        ),
        (
            "a window of rows one day too long",
            "e2i_dagster/features/compute.py",
            'found[f"t.day > e.as_of - {-first}"]',
            'found[f"t.day >= e.as_of - {-first}"]',
            f"{COMPUTE}::test_engagement_windows_are_closed_at_both_ends",
        ),
        (
            "what shifts with time is learned",
            "e2i_dagster/features/selection.py",
            "shift > policy.max_time_shift and",
            "shift > 100 and",
            "tests/features/test_statistics_and_selection.py::test_each_rule_drops_its_planted_feature_with_a_reason",
        ),
        (
            "a patient's row of the index day is not known",
            "e2i_dagster/features/snapshots.py",
            'late = arrived.dt.normalize() > pd.to_datetime(result["index_date"])',
            'late = arrived.dt.normalize() >= pd.to_datetime(result["index_date"])',
            "tests/features/test_snapshots.py::test_region_and_professional_are_known_from_arrival",
        ),
        (
            "snapshots of the index day itself",
            "e2i_dagster/features/snapshots.py",
            '.astype("datetime64[us]") - pd.Timedelta(days=1).as_unit("us")',
            '.astype("datetime64[us]") - pd.Timedelta(days=0).as_unit("us")',
            "tests/features/test_snapshots.py::test_snapshots_are_the_day_before_the_index_and_month_ends",
        ),
        (
            "contacts of the index day treat",
            "e2i_dagster/causal/question.py",
            "ahead.between(1, question.window_days)",
            "ahead.between(0, question.window_days)",
            "tests/causal/test_question.py::test_only_contacts_of_quality_in_the_window_treat",
        ),
        (
            "the prediction log holds midnight of the next day",
            "e2i_dagster/monitoring/prediction_log.py",
            "table.c.prediction_timestamp < start + dt.timedelta(days=1)",
            "table.c.prediction_timestamp <= start + dt.timedelta(days=1)",
            "tests/monitoring/test_read_log.py",
        ),
        (
            "the prediction log leaves midnight out",
            "e2i_dagster/monitoring/prediction_log.py",
            "table.c.prediction_timestamp >= start,",
            "table.c.prediction_timestamp > start,",
            "tests/monitoring/test_read_log.py",
        ),
        (
            "leakage audit allows dates of days after the index",
            "e2i_dagster/quality/leakage.py",
            "after = earlier(index, moment)",
            "after = earlier(index + pd.Timedelta(days=3), moment)",
            "tests/quality/test_leakage.py::test_dates_after_the_index_block",
        ),
        (
            "a patient at the edge of the gap is assigned",
            "e2i_dagster/splits/assign.py",
            '.astype("int64") <= gap_days',
            '.astype("int64") < gap_days',
            "tests/splits/test_assign.py::test_the_days_of_the_gap_belong_to_no_split",
        ),
    ],
    "gates": [
        (
            "a blocking verdict without a rule opens the gate",
            "e2i_dagster/quality/gate.py",
            "if left or (verdict.blocking and not verdict.rules):",
            "if left:",
            f"{GATE}::test_a_check_that_was_interrupted_blocks_without_naming_a_rule",
        ),
        (
            "an expired waiver opens the gate",
            "e2i_dagster/quality/gate.py",
            "elif use_waivers and waiver.holds(now):",
            "elif use_waivers:",
            "tests/pipeline/test_waivers.py::test_a_waiver_holds_across_runs_until_it_expires",
        ),
        (
            "verdicts under old rules count",
            "e2i_dagster/quality/gate.py",
            "            ml_gate_verdicts.c.ruleset_hash == current,\n",
            "",
            f"{GATE}::test_changed_rules_need_a_new_check",
        ),
        (
            "a version that was never checked passes",
            "e2i_dagster/quality/gate.py",
            '            blocked.append((ref, (BlockedRule("not_checked", None, None, detail),)))\n',
            "",
            f"{GATE}::test_what_was_never_checked_counts_as_blocked",
        ),
        (
            "an audit that did not run passes",
            "e2i_dagster/quality/gate.py",
            "if check.kind in needed and not check.ran and not failed",
            "if check.kind in needed and check.ran and not failed",
            "tests/pipeline/test_leakage_gate.py::test_frame_that_cannot_be_audited_blocks",
        ),
        (
            "a fault in a column that is read counts as elsewhere",
            "e2i_dagster/quality/gate.py",
            "and rule.column not in read",
            "and rule.column in read",
            f"{GATE}::test_a_fault_in_a_column_that_is_not_read_only_warns",
        ),
        (
            "outcomes of the holdout are looked at",
            "e2i_dagster/splits/leakage_check.py",
            '.assign(label=lambda rows: rows["label"].mask(sealed))',
            "",
            "tests/splits/test_judge.py",
        ),
        (
            "one criterion met is enough",
            "e2i_dagster/training/evaluate.py",
            "accepted=all(result.passed",
            "accepted=any(result.passed",
            f"{EVALUATE}::test_each_missed_criterion_has_value_interval_threshold_and_distance",
        ),
        (
            "subgroups that are not estimable meet a floor",
            "e2i_dagster/training/evaluate.py",
            'low=None, high=None, distance=None, passed=False,\n            reason=f"{rule}: not',
            'low=None, high=None, distance=None, passed=True,\n            reason=f"{rule}: not',
            f"{SUBGROUPS}::test_subgroups_that_are_not_estimable_meet_no_floor",
        ),
        (
            "the lower end of a subgroup's interval decides its floor",
            "e2i_dagster/training/evaluate.py",
            "(high := group.metrics[metric].high) is not None",
            "(high := group.metrics[metric].low) is not None",
            f"{SUBGROUPS}::test_a_floor_within_the_interval_is_met_and_names_what_was_not_estimable",
        ),
        (
            "the policy's floor goes before the scope's",
            "e2i_dagster/training/evaluate.py",
            "common_floor if criteria.subgroup_floor is None else criteria.subgroup_floor",
            "criteria.subgroup_floor if common_floor is None else common_floor",
            f"{SUBGROUPS}::test_there_is_no_floor_unless_scope_or_policy_states_it_and_the_scope_goes_first",
        ),
        (
            "a level's difference is not paired with all patients",
            "e2i_dagster/training/subgroups.py",
            "apart = whole[name][0], -whole[name][1]",
            "apart = whole[name][0], whole[name][1].copy()",
            f"{SUBGROUPS}::test_the_difference_is_paired_so_that_a_level_of_everybody_has_none",
        ),
        (
            "a small level of patients is counted",
            "e2i_dagster/training/subgroups.py",
            "None if written[level] == HIDDEN else count",
            "count",
            f"{SUBGROUPS}::test_too_few_patients_or_one_outcome_are_not_estimable_and_no_small_cell_is_shown",
        ),
        (
            "a false alarm costs as much as a hit at every threshold",
            "e2i_dagster/training/metrics.py",
            "-thresholds / (1 - thresholds))",
            "-thresholds / thresholds)",
            f"{SUBGROUPS}::test_net_benefit_is_that_of_vickers_and_elkin",
        ),
        (
            "the decision curve is compared with acting on nobody alone",
            "e2i_dagster/training/decision_curve.py",
            "model[place] - max(treat_all[place], 0)",
            "model[place]",
            f"{SUBGROUPS}::test_the_decision_curve_compares_with_the_better_of_all_and_none",
        ),
        (
            "every model is better than chance",
            "e2i_dagster/training/chance.py",
            "return self.p_value <= self.maximum_p_value",
            "return True",
            "tests/training/test_chance.py::test_a_model_of_noise_fails_the_gate_and_a_model_of_the_signal_passes",
        ),
        (
            "a criterion that was not measured is met",
            "e2i_dagster/training/evaluate.py",
            "        distance, passed = None, False\n",
            "        distance, passed = None, True\n",
            f"{EVALUATE}::test_a_sealed_test_set_stays_closed_and_counts_as_not_met",
        ),
        (
            "a model that misses a criterion only warns",
            "assets/models.py",
            "    asset=tracked_run,\n    blocking=True,",
            "    asset=tracked_run,\n    blocking=False,",
            CONTRACT,
        ),
        (
            "leaking splits only warn",
            "assets/gate_checks.py",
            '    asset=splits_asset,\n    name="leakage_gate",\n    blocking=True,',
            '    asset=splits_asset,\n    name="leakage_gate",\n    blocking=False,',
            CONTRACT,
        ),
        (
            "quality gate only warns",
            "assets/gate_checks.py",
            '        name="qc_gate",\n        blocking=True,',
            '        name="qc_gate",\n        blocking=False,',
            CONTRACT,
        ),
        (
            "wrong answers of an endpoint only warn",
            "assets/serving.py",
            '    asset=deployment,\n    blocking=True,\n    description="Training rows',
            '    asset=deployment,\n    blocking=False,\n    description="Training rows',
            CONTRACT,
        ),
        (
            "every partition is judged with its waivers",
            "assets/gate_checks.py",
            "table, None, waivers=False)",
            "table, None)",
            CONTRACT,
        ),
        (
            "a model on a draft cohort is promoted",
            "e2i_dagster/registry/stages.py",
            "                passed=evidence.cohort_approved,",
            "                passed=True,",
            f"{STAGES}::test_a_model_on_a_draft_cohort_stays_where_it_is",
        ),
    ],
    "handed over": [
        (
            "search of an alternative algorithm",
            "assets/models.py",
            "        algorithm.algorithm,\n        rows,",
            "        algorithm.alternatives[0],\n        rows,",
            CONTRACT,
        ),
        (
            "search without the study database",
            "assets/models.py",
            "        engine=warehouse.engine(),\n        memory",
            "        memory",
            CONTRACT,
        ),
        (
            "model trained without the parameters found",
            "assets/models.py",
            "parameters=hyperparameters.parameters",
            "parameters=hyperparameters.fixed_parameters",
            CONTRACT,
        ),
        (
            "model trained on features that were dropped",
            "assets/models.py",
            "        visible_rows(training_frame, splits, feature_selection.kept, problem_type=kind),\n",
            "        visible_rows(training_frame, splits, list(feature_selection.dropped), problem_type=kind),\n",
            CONTRACT,
        ),
        (
            "evaluation by other criteria",
            "assets/models.py",
            "criteria=scope_spec.success_criteria",
            "criteria=type(scope_spec.success_criteria)()",
            CONTRACT,
        ),
        (
            "every cohort counts as approved",
            "assets/models.py",
            "cohort_approved=cohort_approved(scope_spec.key)",
            "cohort_approved=True",
            CONTRACT,
        ),
        (
            "explanation recorded without its model",
            "assets/models.py",
            "explanations, model_registry_id=key)",
            "explanations)",
            CONTRACT,
        ),
        (
            "training frame of the patients to be scored",
            "assets/features.py",
            "import labelled_spine\n\n    rows = labelled_spine(",
            "import scoring_spine\n\n    rows = scoring_spine(",
            CONTRACT,
        ),
        (
            "features without the source lag",
            "assets/features.py",
            "source_lag_days=scope_spec.source_lag_days",
            "source_lag_days=0",
            CONTRACT,
        ),
        (
            "too small a sample is not refused",
            "assets/features.py",
            "    labels.check_sample(scope_spec)\n",
            "",
            CONTRACT,
        ),
        (
            "rows outside the kept months are loaded",
            "assets/raw.py",
            "            kept=sources.kept_months,\n        )\n        return Produced(delivered.frame",
            "        )\n        return Produced(delivered.frame",
            CONTRACT,
        ),
        (
            "withheld months are stored",
            "assets/raw.py",
            "delivered, withheld=delivered.withheld, partition",
            "delivered, partition",
            CONTRACT,
        ),
        (
            "drift report without the model version",
            "assets/monitoring.py",
            '        model_id=f"{registered_model.name}/{registered_model.version}",\n        run_id',
            "        model_id=registered_model.name,\n        run_id",
            CONTRACT,
        ),
        (
            "drift is not recorded",
            "e2i_dagster/monitoring/days.py",
            "            record_drift(connection, report, performance, run_id)\n",
            "",
            "tests/pipeline/test_monitored_days.py",
        ),
        (
            "an effect model is served without its criteria",
            "assets/causal.py",
            "    effect_model.require_promoted()\n",
            "",
            CONTRACT,
        ),
    ],
    "declared": [
        (
            "evaluation reused from any earlier version",
            "assets/models.py",
            '@scope_asset(\n    produces="e2i_dagster.training.evaluate:Evaluation"',
            '@scope_asset(\n    pure=True,\n    produces="e2i_dagster.training.evaluate:Evaluation"',
            CONTRACT,
        ),
        (
            "a changed comment logs a run again",
            "assets/models.py",
            '    outside=True,\n    produces="e2i_dagster.registry.training_runs:TrackedRun"',
            '    produces="e2i_dagster.registry.training_runs:TrackedRun"',
            CONTRACT,
        ),
        (
            "a changed comment replaces the live endpoint",
            "assets/serving.py",
            '    outside=True,\n    produces="e2i_dagster.serving.deployment:Deployment"',
            '    produces="e2i_dagster.serving.deployment:Deployment"',
            CONTRACT,
        ),
        (
            "an endpoint that is gone counts as deployed",
            "assets/serving.py",
            "    fault=not_live,\n",
            "",
            CONTRACT,
        ),
        (
            "deployment does not wait for online features",
            "assets/serving.py",
            '    deps=["online_features"],\n',
            "",
            CONTRACT,
        ),
        (
            "a release ignores the models of other scopes",
            "assets/serving.py",
            '    deps=[dg.AssetDep("registered_model", partition_mapping=dg.AllPartitionMapping())],\n',
            '    deps=["registered_model"],\n',
            CONTRACT,
        ),
        (
            "the prediction log does not wait for live scores",
            "assets/monitoring.py",
            '    deps=[dg.AssetDep("live_scores", partition_mapping=SCOPE_OF_DAY)],\n',
            "",
            CONTRACT,
        ),
        (
            "an earlier prediction log is reused",
            "assets/monitoring.py",
            '    always=True,\n    group_name=GROUP,\n    kinds={"postgres"},',
            '    group_name=GROUP,\n    kinds={"postgres"},',
            CONTRACT,
        ),
        (
            "drift of a model other than the registered one",
            "assets/monitoring.py",
            "        reference_profile.require_model(registered_model.model_digest, scope),\n        days,",
            "        reference_profile,\n        days,",
            CONTRACT,
        ),
        (
            "event tables of a cohort are no inputs",
            "assets/cohorts.py",
            "lambda key: current_policy().cohorts[str(key)].tables_read",
            "lambda key: ()",
            CONTRACT,
        ),
        (
            "features of raw tables pass no gate",
            "assets/features.py",
            "    reads=columns_read(current_policy().features.values()),\n",
            "    gated=False,\n",
            CONTRACT,
        ),
        (
            "events of one month only",
            "assets/features.py",
            '        "engagement_events": all_months("engagement_events"),\n        "outcome_events"',
            '        "engagement_events": dg.AssetIn("engagement_events"),\n        "outcome_events"',
            CONTRACT,
        ),
    ],
    "seals": [
        (
            "test rows are visible",
            "e2i_dagster/splits/seal.py",
            "for name in SPLITS[:2]}",
            "for name in SPLITS[:3]}",
            f"{SEAL}::test_only_train_and_validation_are_visible",
        ),
        (
            "the same candidate counts twice",
            "e2i_dagster/splits/seal.py",
            "if before is not None:",
            "if before is not None and before.candidate != candidate:",
            f"{SEAL}::test_the_test_set_is_opened_for_one_candidate_and_counted",
        ),
        (
            "the test set opens without a reason",
            "e2i_dagster/splits/seal.py",
            "if not candidate.strip() or not reason.strip():",
            "if not candidate.strip():",
            f"{SEAL}::test_without_candidate_or_reason_it_stays_sealed",
        ),
        (
            "the holdout opens for a model in staging",
            "e2i_dagster/splits/seal.py",
            'table.environment == "production",',
            'table.environment.in_(["staging", "production"]),',
            f"{SEAL}::test_the_holdout_opens_only_after_a_deployment_to_production",
        ),
        (
            "the holdout opens for a deployment that never took traffic",
            "e2i_dagster/splits/seal.py",
            "            table.deployed_at.is_not(None),\n",
            "",
            f"{SEAL}::test_a_deployment_that_took_no_traffic_opens_nothing",
        ),
        (
            "the holdout is handed out as the test set",
            "e2i_dagster/splits/seal.py",
            'return self._rows(frame, "test"), opening',
            'return self._rows(frame, "holdout"), opening',
            f"{SEAL}::test_the_test_set_is_opened_for_one_candidate_and_counted",
        ),
        (
            "a new salt is the same test set",
            "e2i_dagster/splits/seal.py",
            "digest_of([self.scope, self.salt, split,",
            "digest_of([self.scope, split,",
            f"{SEAL}::test_the_same_patients_under_another_salt_are_another_test_set",
        ),
        (
            "the seal is opened for another name than the model's",
            "e2i_dagster/training/evaluate.py",
            "sealed.open_for(model.digest)",
            "sealed.open_for(model.algorithm)",
            f"{EVALUATE}::test_an_accepted_model",
        ),
    ],
    "idempotence": [
        (
            "patients move when the cohort grows",
            "e2i_dagster/splits/registry.py",
            "existing=read_assignments(connection, identifier)",
            "existing=None",
            "tests/splits/test_split_registry.py::test_a_cohort_is_split_once_and_newcomers_are_added",
        ),
        (
            "a version of other inputs is reused",
            "e2i_dagster/pipeline/reuse.py",
            "if candidate.fingerprint == fingerprint\n            and changes",
            "if changes",
            "tests/pipeline/test_stored_versions.py",
        ),
        (
            "a version of another policy is reused",
            "e2i_dagster/pipeline/reuse.py",
            "and changes.changed(candidate.metadata.get(ledger.READ, {})) is None",
            "",
            "tests/pipeline/test_stored_versions.py",
        ),
        (
            "an old version of a stage with effects is reused",
            "e2i_dagster/pipeline/reuse.py",
            "    if any_version:\n",
            "    if True:\n",
            "tests/pipeline/test_stored_versions.py",
        ),
        (
            "a waiver does not change the fingerprint",
            "e2i_dagster/pipeline/reuse.py",
            "key=str), list(waivers), code])",
            "key=str), code])",
            "tests/pipeline/test_stored_versions.py",
        ),
        (
            "the order of inputs changes the fingerprint",
            "e2i_dagster/pipeline/reuse.py",
            "digest_of([sorted(map(list, inputs), key=str),",
            "digest_of([list(map(list, inputs)),",
            "tests/pipeline/test_stored_versions.py",
        ),
        (
            "an unfinished trial counts as done",
            "e2i_dagster/training/studies.py",
            'FINISHED = ("complete", "pruned")',
            'FINISHED = ("complete", "pruned", "running")',
            f"{SEARCH}::test_an_interrupted_study_ends_like_an_undisturbed_one",
        ),
    ],
    "drift": [
        (
            "reference of features swapped to validation rows",
            "e2i_dagster/monitoring/compare.py",
            "features = model_input(rows.train.features, model.kinds)",
            "features = model_input(rows.validation.features, model.kinds)",
            COMPARE,
        ),
        (
            "reference of predictions swapped to training rows",
            "e2i_dagster/monitoring/compare.py",
            "np.asarray(model.logged_values(rows.validation.features))",
            "np.asarray(model.logged_values(rows.train.features))",
            COMPARE,
        ),
        (
            "reference and live values change places",
            "e2i_dagster/monitoring/drift.py",
            "before, now, new, lost, counted = _binned(profile, values)",
            "now, before, new, lost, counted = _binned(profile, values)",
            f"{DRIFT}::test_a_distribution_says_what_was_and_what_is",
        ),
        (
            "severity without significance",
            "e2i_dagster/monitoring/drift.py",
            "significant = adjusted[feature.name] < policy.false_discovery_rate",
            "significant = True",
            f"{DRIFT}::test_false_alarms_without_drift_are_rare",
        ),
        (
            "features that were not tested weigh as no drift",
            "e2i_dagster/monitoring/drift.py",
            'tested = [feature for feature in features if feature.state == "executed"]',
            "tested = list(features)",
            f"{DRIFT}::test_features_that_were_not_tested_weigh_nothing",
        ),
        (
            "imported predictions count as live",
            "e2i_dagster/monitoring/prediction_log.py",
            '            table.c.origin == "live",\n',
            "",
            "tests/monitoring/test_read_log.py",
        ),
        (
            "predictions of a model whose name begins alike",
            "e2i_dagster/monitoring/prediction_log.py",
            'startswith(f"{model_name}/", autoescape=True)',
            "startswith(model_name, autoescape=True)",
            "tests/monitoring/test_read_log.py",
        ),
    ],
    "seeds": [
        (
            "model fitted without a seed",
            "e2i_dagster/training/fit.py",
            "parameters, seed=policy.sampler.seed)",
            "parameters, seed=None)",
            f"{FIT}::test_equal_inputs_give_the_same_model[RandomForest]",
        ),
        (
            "folds of the benchmark drawn without a seed",
            "e2i_dagster/selection/choose.py",
            "(rules.folds, shuffle=True, random_state=seed)",
            "(rules.folds, shuffle=True)",
            f"{CHOOSE}::test_equal_inputs_give_equal_records",
        ),
        (
            "bootstrap without a seed",
            "e2i_dagster/training/evaluate.py",
            "resamples(n, rules.bootstrap, rules.seed, rows.patients)",
            "resamples(n, rules.bootstrap, None, rows.patients)",
            f"{EVALUATE}::test_equal_inputs_give_equal_evaluations",
        ),
        (
            "rows to be explained drawn without a seed",
            "e2i_dagster/explain/shapley.py",
            "frame.sample(max_rows, random_state=seed)",
            "frame.sample(max_rows)",
            "tests/explain/test_shapley.py::test_more_rows_than_the_limit_are_thinned_the_same_way_each_time",
        ),
        (
            "the salt of a split does nothing",
            "e2i_dagster/splits/assign.py",
            "keyed_hash(keys, salt)",
            'keyed_hash(keys, "")',
            "tests/splits/test_assign.py::test_another_salt_is_another_split_and_the_hash_is_the_same_everywhere",
        ),
        (
            "every trial draws the same point",
            "e2i_dagster/training/search.py",
            "self.policy.sampler.seed + before + 7919 * attempt",
            "self.policy.sampler.seed",
            f"{SEARCH}::test_every_trial_draws_a_point_of_its_own",
        ),
    ],
}


class Copies:
    """Copies of the checkout, one for each defect that is tried at the same time."""

    def __init__(self, root: Path, number: int) -> None:
        self.root = root
        self.free: queue.SimpleQueue[Path] = queue.SimpleQueue()
        # Each run of the tests gets a process of its own, which begins with the libraries already imported.
        context = get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.processes = ProcessPoolExecutor(number, mp_context=context, max_tasks_per_child=1)
        for place in range(number):
            copy = root / f"copy{place}"
            copy.mkdir()
            for name in COPIED:
                source = CHECKOUT / name
                copied = shutil.copytree if source.is_dir() else shutil.copy2
                copied(source, copy / name)
            self.free.put(copy)

    def unchanged(self, tests: Sequence[str]) -> tuple[int, str]:
        """Exit code and last lines of ``tests`` without a defect: one that fails anyway notices nothing."""
        copy = self.free.get()
        try:
            return self.processes.submit(run_tests, copy, tests).result()
        finally:
            self.free.put(copy)

    def attempt(self, mutant: Mutant) -> tuple[Outcome, str]:
        """Plant ``mutant`` in a free copy, run its tests, take it back."""
        copy = self.free.get()
        file = copy / mutant.file
        before = file.read_text(encoding="utf-8")
        try:
            file.write_text(before.replace(mutant.old, mutant.new), encoding="utf-8")
            code, said = self.processes.submit(run_tests, copy, mutant.tests.split()).result()
        finally:
            file.write_text(before, encoding="utf-8")
            self.free.put(copy)
        # pytest: 0 all passed, 1 some failed; anything else is no answer (no such test, code that is not valid).
        outcome: Outcome = "survived" if code == 0 else "noticed" if code == 1 else "error"
        return outcome, said


def run_tests(copy: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Exit code of pytest in ``copy``, and its last lines. For a process of its own."""
    import pytest

    os.chdir(copy)
    sys.path[:] = [
        str(copy),
        *(entry for entry in sys.path if Path(entry) not in (CHECKOUT, CHECKOUT / "tests")),
    ]
    os.environ["PYTHONPATH"] = str(copy)
    for name in [one for one in os.environ if one.startswith("E2I_")]:
        del os.environ[name]
    told = io.StringIO()
    with redirect_stdout(told), redirect_stderr(told):
        code = pytest.main(["-p", "no:cacheprovider", "-x", "-q", "--no-header", *tests])
    return int(code), "\n".join(told.getvalue().splitlines()[-15:])


def misplaced(chosen: Sequence[Mutant]) -> list[str]:
    """What is wrong with the list: texts that are not found once, changes that change nothing, names that repeat."""
    wrong = []
    for mutant in chosen:
        path = CHECKOUT / mutant.file
        count = path.read_text(encoding="utf-8").count(mutant.old) if path.is_file() else 0
        if count != 1:
            wrong.append(f"{mutant.name}: its text occurs {count} times in {mutant.file}; expected once")
        if mutant.old == mutant.new:
            wrong.append(f"{mutant.name}: the new text is the old one")
    names = Counter(mutant.name for mutant in chosen)
    return wrong + [f"{name}: two defects have this name" for name, count in names.items() if count > 1]


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument(
        "--only", action="append", default=[], help="text of a name, or a sort; may be repeated"
    )
    parser.add_argument("--list", action="store_true", help="show the defects and end")
    parser.add_argument("--workers", type=int, default=2, help="defects tried at the same time")
    given = parser.parse_args()
    chosen = [
        one
        for one in mutants()
        if not given.only or any(text in one.name or text == one.sort for text in given.only)
    ]
    if given.list:
        for one in chosen:
            print(f"{one.sort}: {one.name}\n    {one.tests}")
        return 0
    wrong = misplaced(chosen) if chosen else ["no defect has such a name or sort; --list shows them"]
    if wrong:
        print("\n".join(wrong), file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="e2i-mutants-") as folder:
        return show(Copies(Path(folder), given.workers), chosen, given.workers)


def show(copies: Copies, chosen: Sequence[Mutant], workers: int) -> int:
    """Try the ``chosen`` defects with progress; 0 when all are noticed."""
    began, outcomes = time.monotonic(), Counter[Outcome]()
    print(f"{len(chosen)} defects; first their tests without any ...", flush=True)
    code, said = copies.unchanged(sorted({test for one in chosen for test in one.tests.split()}))
    if code != 0:
        print(f"The tests do not pass without a defect:\n{said}", file=sys.stderr)
        return 2
    with ThreadPoolExecutor(workers) as pool:
        running = {pool.submit(copies.attempt, one): one for one in chosen}
        for done in as_completed(running):
            mutant, (outcome, said) = running[done], done.result()
            outcomes[outcome] += 1
            print(
                f"{outcomes.total():3d}/{len(chosen)}  {outcome:8s}  {mutant.sort}: {mutant.name}", flush=True
            )
            if outcome != "noticed":
                print(f"            {mutant.file}; {mutant.tests}", flush=True)
            if outcome == "error":
                print(said, flush=True)
    noticed = outcomes["noticed"]
    print(
        f"noticed {noticed} of {len(chosen)} ({noticed / len(chosen):.0%}), survived {outcomes['survived']}, "
        f"errors {outcomes['error']}; {time.monotonic() - began:.0f} s"
    )
    return 0 if noticed == len(chosen) else 1


if __name__ == "__main__":
    raise SystemExit(main())
