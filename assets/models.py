"""Models: algorithm, search, fit, judgement, record, explanation, registration."""

from functools import partial

import dagster as dg

from assets.execution import Produced, input_versions
from assets.partitions import SCOPES
from assets.stage import stage_asset
from assets.values import (
    AlgorithmChoice,
    DataFrame,
    Evaluation,
    Explanation,
    FeatureSelection,
    SearchResult,
    StoredModel,
    TrackedRun,
)
from e2i_dagster.config.policy import current_policy
from e2i_dagster.config.scope import ScopeSpec
from e2i_dagster.policy_files.environment import actor
from resources.mlflow import MlflowResource
from resources.warehouse import Warehouse

scope_asset = partial(stage_asset, group_name="models", partitions_def=SCOPES)


def cohort_approved(scope: str) -> bool:
    """Whether the definition that ``scope`` is built on is approved, not a draft."""
    policy = current_policy()
    return policy.cohorts[policy.scopes[scope].cohort].approval is not None


@scope_asset(
    pure=True,
    produces="e2i_dagster.selection.choose:AlgorithmChoice",
    kinds={"scikitlearn"},
    description="The algorithm: filtered by the scope's constraints, ranked by a benchmark on training rows.",
)
def algorithm(
    scope_spec: ScopeSpec,
    training_frame: DataFrame,
    splits: DataFrame,
    feature_selection: FeatureSelection,
) -> Produced:
    from e2i_dagster.selection import select_algorithm
    from e2i_dagster.splits.rows import visible_rows

    kind = scope_spec.problem_type
    rows = visible_rows(training_frame, splits, feature_selection.kept, problem_type=kind)
    choice = select_algorithm(scope_spec, visible=rows)
    return Produced(choice, choice)


@scope_asset(
    pure=True,
    produces="e2i_dagster.training.search:SearchResult",
    kinds={"optuna"},
    description="Hyperparameters: fitted on training rows, scored on validation rows.",
)
def hyperparameters(
    scope_spec: ScopeSpec,
    training_frame: DataFrame,
    splits: DataFrame,
    feature_selection: FeatureSelection,
    algorithm: AlgorithmChoice,
    warehouse: Warehouse,
) -> Produced:
    from e2i_dagster.splits.rows import visible_rows
    from e2i_dagster.training import search_hyperparameters
    from e2i_dagster.training.pattern_memory import read_patterns

    kind = scope_spec.problem_type
    rows = visible_rows(training_frame, splits, feature_selection.kept, problem_type=kind)
    search = search_hyperparameters(
        algorithm.algorithm,
        rows,
        scope=scope_spec.key,
        problem_type=kind,
        engine=warehouse.engine(),
        memory=read_patterns(warehouse.engine(), algorithm.algorithm, kind),
    )
    return Produced(search, search)


@scope_asset(
    pure=True,
    produces="e2i_dagster.registry.storage:StoredModel",
    kinds={"scikitlearn"},
    description="Preprocessing and model as one pipeline, fitted on train, calibrated on validation.",
)
def trained_model(
    scope_spec: ScopeSpec,
    training_frame: DataFrame,
    splits: DataFrame,
    feature_selection: FeatureSelection,
    hyperparameters: SearchResult,
) -> Produced:
    from e2i_dagster.registry.storage import StoredModel
    from e2i_dagster.splits.rows import visible_rows
    from e2i_dagster.training import train

    kind = scope_spec.problem_type
    model = train(
        visible_rows(training_frame, splits, feature_selection.kept, problem_type=kind),
        algorithm=hyperparameters.algorithm,
        parameters=hyperparameters.parameters,
        problem_type=kind,
        horizon_days=scope_spec.horizon_days,
    )
    return Produced(StoredModel.of(model), model)


@scope_asset(
    produces="e2i_dagster.training.evaluate:Evaluation",
    kinds={"scikitlearn"},
    description="Metrics with intervals, baselines, success criteria; opens the test rows once, on record.",
)
def evaluation(
    scope_spec: ScopeSpec,
    training_frame: DataFrame,
    splits: DataFrame,
    trained_model: StoredModel,
    warehouse: Warehouse,
) -> Produced:
    from e2i_dagster.splits.rows import sealed_test_rows, visible_rows
    from e2i_dagster.training import evaluate

    model = trained_model.model()
    judged = evaluate(
        model,
        visible_rows(training_frame, splits, model.features, problem_type=model.problem_type),
        sealed_test_rows(
            scope_spec,
            training_frame,
            splits,
            model.features,
            engine=warehouse.engine(),
            opened_by=actor()[0],
        ),
        criteria=scope_spec.success_criteria,
        subgroups=scope_spec.evaluation.subgroups,
    )
    return Produced(judged, judged)


@dg.asset_check(
    asset=evaluation,
    description="The model knows more than chance: permutation test on test patients. As a criterion it decides in "
    "success_criteria.",
)
def better_than_chance(evaluation: Evaluation) -> dg.AssetCheckResult:
    found = evaluation.chance
    return dg.AssetCheckResult(
        passed=found is not None and found.passed,
        description=found.words if found else "not measured: too few patients of an outcome",
    )


@scope_asset(
    outside=True,
    produces="e2i_dagster.registry.training_runs:TrackedRun",
    fault=lambda tracked: tracked.damage(),
    kinds={"mlflow"},
    description="The attempt on record in MLflow and the warehouse, accepted or rejected.",
)
def tracked_run(
    context: dg.AssetExecutionContext,
    scope_spec: ScopeSpec,
    trained_model: StoredModel,
    evaluation: Evaluation,
    algorithm: AlgorithmChoice,
    hyperparameters: SearchResult,
    splits: DataFrame,
    training_frame: DataFrame,
    mlflow: MlflowResource,
    warehouse: Warehouse,
) -> Produced:
    from e2i_dagster.registry.training_runs import track_training

    with mlflow.run(context, scope_spec):
        tracked = track_training(
            warehouse.engine(),
            trained_model.model(),
            evaluation,
            scope=scope_spec,
            search=hyperparameters,
            choice=algorithm,
            digests={asset: digest for asset, _, digest in input_versions(context, warehouse)},
            created_by=actor()[0],
        )
    return Produced(tracked, tracked)


@dg.asset_check(
    asset=tracked_run,
    blocking=True,
    description="GATE: a model that misses a success criterion of its scope is not registered.",
)
def success_criteria(tracked_run: TrackedRun) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=tracked_run.accepted,
        description="; ".join(tracked_run.reasons) or "every success criterion is met",
    )


@scope_asset(
    produces="e2i_dagster.explain.shapley:Explanation",
    group_name="explain",
    kinds={"shap"},
    description="What drives the model: SHAP values summed to features, with a figure and in words.",
)
def explanations(
    context: dg.AssetExecutionContext,
    scope_spec: ScopeSpec,
    training_frame: DataFrame,
    splits: DataFrame,
    trained_model: StoredModel,
    tracked_run: TrackedRun,
    mlflow: MlflowResource,
    warehouse: Warehouse,
) -> Produced:
    from e2i_dagster.explain import explain_validation
    from e2i_dagster.registry import log_explanation, write_explanation
    from e2i_dagster.splits.rows import visible_rows

    model = trained_model.model()
    rows = visible_rows(training_frame, splits, model.features, problem_type=model.problem_type)
    explanation = explain_validation(model, rows)
    with mlflow.run(context, scope_spec):
        log_explanation(explanation)
    write_explanation(warehouse.engine(), explanation)
    return Produced(explanation, explanation)


@scope_asset(
    produces="e2i_dagster.registry.versions:RegisteredVersion",
    fault=lambda version: version.damage(),
    group_name="registry",
    kinds={"mlflow"},
    description="The model version: registered when every criterion is met, staged on its measured evidence, with its "
    "dossier.",
)
def registered_model(
    scope_spec: ScopeSpec,
    trained_model: StoredModel,
    evaluation: Evaluation,
    tracked_run: TrackedRun,
    explanations: Explanation,
    mlflow: MlflowResource,
    warehouse: Warehouse,
) -> Produced:
    from e2i_dagster.registry import model_key, write_explanation
    from e2i_dagster.registry.dossier import write_dossier
    from e2i_dagster.registry.training_runs import register_and_stage

    version = register_and_stage(
        warehouse.engine(),
        trained_model.model(),
        evaluation,
        scope=scope_spec,
        cohort_approved=cohort_approved(scope_spec.key),
        tracked=tracked_run,
        proposed_by=actor()[0],
        tracking_uri=mlflow.uri(),
    )
    key = model_key(version.name, version.version)
    write_explanation(warehouse.engine(), explanations, model_registry_id=key)
    written = write_dossier(warehouse.engine(), version, current_policy(), tracking_uri=mlflow.uri())
    return Produced(version, version, metadata={"dossier": str(written.html)})
