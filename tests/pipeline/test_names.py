"""A name in a policy file that matches nothing is refused when the file is read, by file, key and value.

Attributes of units (strata, subgroups, covariates of a design) are known when units are recorded, and refused then;
words of column headers and labels of decisions are free.
"""

import shutil

import pytest
import yaml

from e2i_dagster.config.algorithms import AlgorithmsPolicy
from e2i_dagster.config.names import TRAINED, _untraceable
from e2i_dagster.config.policy import load_policy
from e2i_dagster.config.quality import QualityPolicy
from e2i_dagster.config.serving import ServingPolicy
from e2i_dagster.config.validate import READERS, validate_folder
from e2i_dagster.errors import ConfigError
from e2i_dagster.modelling.estimators import parameters_of, trained_algorithms
from e2i_dagster.policy_files.environment import CHECKOUT
from e2i_dagster.registry import TRUSTED_TYPES
from e2i_dagster.tables.vocabulary import load_vocabulary

BOGUS = "bogus_name"
FOREST = yaml.safe_load((CHECKOUT / "config/algorithms.yaml").read_text(encoding="utf-8"))["algorithms"][
    "RandomForest"
]

#: For each file: place that is set (``+``: added to the list), value, and the name that the error says.
NAMES = {
    "algorithms.yaml": [
        ("algorithms.MyForest", FOREST, "MyForest"),
        ("algorithms.Ridge.problem_types", ["binary_classification"], "binary_classification"),
        ("algorithms.XGBoost.defaults.bogus_name", 1, BOGUS),
        ("algorithms.RandomForest.defaults.bogus_name", 1, BOGUS),
        ("algorithms.LightGBM.defaults.bogus_name", 1, BOGUS),
        ("algorithms.LogisticRegression.defaults.bogus_name", 1, BOGUS),
        ("algorithms.Ridge.search_space.bogus_name", {"kind": "int", "low": 1, "high": 2}, BOGUS),
        ("algorithms.CausalForest.defaults.bogus_name", 1, BOGUS),
        ("algorithms.DRLearner.defaults.bogus_name", 1, BOGUS),
        ("algorithms.XLearner.defaults.n_estimator", 1, "Did you mean 'n_estimators'?"),
        ("algorithms.LinearDML.defaults.bogus_name", 1, BOGUS),
        ("algorithms.LinearDML.defaults.model_y", BOGUS, BOGUS),
        ("algorithms.LinearDML.defaults.model_t", "linea", "Did you mean 'linear'?"),
        ("algorithms.LinearDML.search_space.model_y.choices.+", BOGUS, BOGUS),
    ],
    "alerts.yaml": [
        ("owners.bogus_name", "x", BOGUS),
        ("critical_from", BOGUS, BOGUS),
        ("routes.bogus_name", ["email"], BOGUS),
        ("routes.high.+", BOGUS, BOGUS),
        ("escalation.+", BOGUS, BOGUS),
    ],
    "drift_monitoring.yaml": [
        ("severity_psi.bogus_name", 0.9, BOGUS),
        ("minimum_sample.bogus_name", 9, BOGUS),
        ("alerts.from_severity", BOGUS, BOGUS),
        ("performance.bogus_name", 1, BOGUS),
        ("performance.loss.bogus_name", 0.1, BOGUS),
        ("multivariate.auc.bogus_name", 0.9, BOGUS),
        ("impact.bogus_name", 0.1, BOGUS),
    ],
    "experiment_lifecycle.yaml": [
        ("transitions.bogus_name", [], BOGUS),
        ("transitions.draft.+", BOGUS, BOGUS),
        ("monitor.stale_hours.bogus_name", 1, BOGUS),
        ("scorecard.grades.bogus_name", 0.1, BOGUS),
        ("scorecard.weights.bogus_name", 0.1, BOGUS),
    ],
    "feast_materialization.yaml": [
        ("snapshots.scoring_patients_at", BOGUS, BOGUS),
    ],
    "quality.yaml": [
        ("weights.bogus_name", 0.2, BOGUS),
        ("floors.bogus_name", 0.1, BOGUS),
        ("severities.bogus_name", "fatal", BOGUS),
        ("indications.bogus_name", {"codes": ["L50"]}, BOGUS),
        ("indications.fabhalta_pnh.codes", ["bogus"], "bogus"),
        ("tables.bogus_name", {"expected": ["a"]}, BOGUS),
        ("tables.triggers.expected.+", BOGUS, BOGUS),
        ("tables.triggers.ordered.+", [BOGUS, "view_timestamp"], BOGUS),
        ("plausibility.severities.bogus_name", "fatal", BOGUS),
        ("plausibility.may_be_future.bogus_name", ["x"], BOGUS),
        ("plausibility.may_be_future.triggers.+", BOGUS, BOGUS),
        ("plausibility.may_be_future.triggers.+", "trigger_id", "trigger_id"),
        ("plausibility.clinical_ranges.bogus_name", {"egfr": {"min": 0}}, BOGUS),
        ("plausibility.clinical_ranges.patient_clinical.bogus_name", {"min": 0}, BOGUS),
        ("plausibility.units.bogus_name", {"egfr": {"other": "x", "factor": 2, "typical": [0, 1]}}, BOGUS),
        (
            "plausibility.units.patient_clinical.bogus_name",
            {"other": "x", "factor": 2, "typical": [0, 1]},
            BOGUS,
        ),
    ],
    "registry.yaml": [
        ("stages.bogus_name", {}, BOGUS),
        ("stages.staging.split", BOGUS, BOGUS),
    ],
    "serving.yaml": [
        (
            "services.bogus_name",
            {"port_offset": 9, "problem_types": ["regression"], "cpu": 1, "memory": "1Gi"},
            BOGUS,
        ),
        ("services.regression.problem_types.+", BOGUS, BOGUS),
        ("trusted_types.+", "bogus_pkg.bogus.Name", "bogus_pkg"),
        ("trusted_types.+", "bogus_pkg.*", "bogus_pkg"),
        ("trusted_types.+", "collections.bogus_name", BOGUS),
        ("trusted_types.+", "collections.bogus_name.*", BOGUS),
        ("trusted_types.+", "collections.abc", "write 'collections.abc.*'"),
        ("trusted_types.+", "collections.OrderedDic", "Did you mean 'OrderedDict'?"),
        ("trusted_types.+", "sklearn.tre.DecisionTreeClassifier", "Did you mean 'tree'?"),
        ("trusted_types.+", "sklearn.tree.NoSuchClass", "NoSuchClass"),
    ],
    "sources.yaml": [
        ("source.dgp", BOGUS, BOGUS),
        ("expected", {BOGUS: {"pattern": "x_{month}.csv", "delivery_day": 5}}, BOGUS),
    ],
    "vocabulary.yaml": [
        ("vocabularies.brand.aliases.x", BOGUS, BOGUS),
        ("column_aliases.bogus_name", {"a": "b"}, BOGUS),
        ("column_aliases.patient_journeys.x", BOGUS, BOGUS),
        ("column_matching.words.x", BOGUS, BOGUS),
        ("column_matching.words.x", "insurence type", "Did you mean 'insurance'?"),
        ("column_matching.words.Pat_ID", "patient", "Pat_ID"),
        ("column_matching.generic_words.x", BOGUS, BOGUS),
        ("vocabularies.bogus_name", {"values": ["a"]}, BOGUS),
        ("vocabularies.regions", {"values": ["a"]}, "Did you mean 'region'?"),
    ],
    "causal.yaml": [
        ("question.confounders.+", BOGUS, BOGUS),
        ("question.negative_controls.+", BOGUS, BOGUS),
        ("effect_model.required_refuters.+", BOGUS, BOGUS),
    ],
    "optuna_config.yaml": [
        ("metric.regression", BOGUS, BOGUS),
        ("sampler.name", BOGUS, BOGUS),
        ("metric.bogus_name", "roc_auc", BOGUS),
    ],
    "expectations/treatment_events.yaml": [
        ("table", BOGUS, BOGUS),
        ("expectations.1.column", BOGUS, BOGUS),
        ("expectations.3.vocabulary", BOGUS, BOGUS),
        ("expectations.3.expect", BOGUS, BOGUS),
    ],
    "cohorts/fabhalta_pnh.yaml": [
        ("brand", BOGUS, BOGUS),
        ("indication", BOGUS, BOGUS),
        ("inclusion_criteria.2.field", BOGUS, BOGUS),
        ("inclusion_criteria.3.value.+", BOGUS, BOGUS),
        ("temporal_requirements.index_date_field", BOGUS, BOGUS),
        ("examples.0.patient.bogus_name", 1, BOGUS),
        ("examples.3.expect.out", BOGUS, BOGUS),
    ],
    "scopes/fabhalta_pnh_initiation.yaml": [
        ("cohort", BOGUS, BOGUS),
        ("brand", BOGUS, BOGUS),
        ("indication", BOGUS, BOGUS),
        ("features", [BOGUS], BOGUS),
        ("preferences.preferred_algorithms", [BOGUS], BOGUS),
        ("outcome.event.event_type", BOGUS, BOGUS),
        ("outcome.event.brand", BOGUS, BOGUS),
        ("outcome.event.table", BOGUS, BOGUS),
        ("success_criteria.min_bogus_name", {"value": 0.1, "split": "test"}, BOGUS),
        ("success_criteria.min_auc.split", BOGUS, BOGUS),
        ("evaluation", {"subgroups": ["gender", BOGUS]}, BOGUS),
    ],
    "experiments/remibrutinib_outreach.yaml": [
        ("brand", BOGUS, BOGUS),
        ("eligibility.cohort", BOGUS, BOGUS),
        ("eligibility.consent.methods.+", BOGUS, BOGUS),
        ("stopping.harm.0.metric", BOGUS, BOGUS),
        ("may_overlap_with", [BOGUS], BOGUS),
        ("twin.scope", BOGUS, BOGUS),
        ("twin.feature", BOGUS, BOGUS),
        ("twin.confounders.+", BOGUS, BOGUS),
        ("multiplicity", BOGUS, BOGUS),
    ],
}


#: Misspelt names: file, place, value, and the name that was meant.
MISSPELT = [
    ("quality.yaml", "indications.fabhalta_pn", {"codes": ["D59.5"]}, "fabhalta_pnh"),
    ("quality.yaml", "tables.trigger", {"expected": ["trigger_id"]}, "triggers"),
    ("quality.yaml", "plausibility.may_be_future.trigger", ["x"], "triggers"),
    ("expectations/treatment_events.yaml", "table", "treatment_event", "treatment_events"),
    ("expectations/treatment_events.yaml", "expectations.3.vocabulary", "event_typ", "event_type"),
    ("scopes/fabhalta_pnh_initiation.yaml", "cohort", "fabhalta_pn", "fabhalta_pnh"),
    ("scopes/fabhalta_pnh_initiation.yaml", "evaluation", {"subgroups": ["gendr"]}, "gender"),
    ("experiments/remibrutinib_outreach.yaml", "eligibility.cohort", "remibrutinib_cs", "remibrutinib_csu"),
    ("experiments/remibrutinib_outreach.yaml", "stopping.harm.0.metric", "opt_ou", "opt_out"),
    ("vocabulary.yaml", "vocabularies.brand.aliases.x", "Fabhalt", "Fabhalta"),
    ("algorithms.yaml", "algorithms.Ridge.search_space.alph", {"kind": "int", "low": 1, "high": 2}, "alpha"),
    ("experiment_lifecycle.yaml", "transitions.draf", [], "draft"),
    ("alerts.yaml", "owners.drif", "x", "drift"),
    ("causal.yaml", "effect_model.required_refuters.+", "subse", "subset"),
    ("drift_monitoring.yaml", "severity_weight.hig", 1.0, "high"),
]


def put(document, place, value):
    *way, last = place.split(".")
    for step in way:
        document = document[int(step) if step.isdigit() else step]
    if last == "+":
        document.append(value)
    else:
        document[last] = value


@pytest.fixture(scope="module")
def configuration(tmp_path_factory):
    return shutil.copytree(CHECKOUT / "config", tmp_path_factory.mktemp("names") / "config")


def errors_of(folder, file):
    """What reading the file says; the quick way, by the one reader that reads it."""
    if "/" in file or file == "sources.yaml":
        return list(validate_folder(folder).values())
    stem = file.removesuffix(".yaml")
    if stem == "vocabulary":
        return refusal_of(load_vocabulary, folder)
    wanted = {
        "alerts": "AlertsPolicy", "algorithms": "AlgorithmsPolicy", "causal": "CausalPolicy",
        "drift_monitoring": "DriftPolicy", "experiment_lifecycle": "LifecyclePolicy",
        "feast_materialization": "FeastMaterializationPolicy", "optuna_config": "OptunaPolicy",
        "quality": "QualityPolicy", "registry": "RegistryPolicy", "serving": "ServingPolicy",
    }[stem]  # fmt: skip
    (reader,) = (one for one in READERS if one.__qualname__.startswith(wanted))
    return refusal_of(reader, folder)


def refusal_of(reader, folder):
    try:
        reader(folder)
    except ConfigError as error:
        return [str(error)]
    return []


CASES = [
    pytest.param(file, *case, id=f"{file}: {case[0]}") for file, cases in NAMES.items() for case in cases
]


@pytest.mark.parametrize(("file", "place", "value", "word"), CASES)
def test_a_name_that_matches_nothing_is_refused(configuration, file, place, value, word):
    path = configuration / file
    before = path.read_text(encoding="utf-8")
    document = yaml.safe_load(before)
    put(document, place, value)
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    try:
        (said, *_) = errors_of(configuration, file)
    finally:
        path.write_text(before, encoding="utf-8")
    assert word in said
    assert path.name in said or f"Scope {path.stem}" in said
    if path.name == "vocabulary.yaml" and "aliases" not in place:
        assert f": {place}: " in said


def test_every_error_of_a_file_is_told_in_one_go(configuration):
    path = configuration / "vocabulary.yaml"
    before = path.read_text(encoding="utf-8")
    document = yaml.safe_load(before)
    put(document, "vocabularies.regions", {"values": ["a"]})
    put(document, "column_matching.words.x", BOGUS)
    put(document, "column_matching.minimum", 2)
    put(document, "vocabularies.brand.aliases.x", "Fabhalt")
    put(document, "bogus_key", 1)
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    try:
        (said,) = refusal_of(load_vocabulary, configuration)
    finally:
        path.write_text(before, encoding="utf-8")
    for one in ("uses the vocabulary 'regions'", BOGUS, "less than or equal to 1", "'Fabhalta'", "bogus_key"):
        assert one in said


def test_the_shipped_files_name_only_what_there_is():
    assert validate_folder(CHECKOUT / "config") == {}
    assert not load_policy(CHECKOUT / "config").errors()


def test_reading_knows_the_algorithms_that_are_built():
    assert {name: one.problem_types for name, one in TRAINED.items()} == trained_algorithms()
    for name, one in TRAINED.items():
        assert set(one.parameters) <= set(parameters_of(name)), name


def test_a_parameter_that_is_not_usual_but_the_estimators_own_is_taken(configuration):
    path = configuration / "algorithms.yaml"
    before = path.read_text(encoding="utf-8")
    path.write_text(
        before.replace("subsample: 0.8, min", "subsample: 0.8, gamma: 0.1, min"), encoding="utf-8"
    )
    try:
        found = AlgorithmsPolicy.load(configuration).algorithm("XGBoost")
        path.write_text(
            before.replace("subsample: 0.8, min", "subsample: 0.8, n_jobs: 4, min"), encoding="utf-8"
        )
        with pytest.raises(ConfigError, match=r"algorithms.XGBoost.defaults.n_jobs: there is no parameter"):
            AlgorithmsPolicy.load(configuration)
    finally:
        path.write_text(before, encoding="utf-8")
    assert found.defaults["gamma"] == 0.1


@pytest.fixture
def own(configuration):
    """Sets a place of a file of the configuration, which is as before afterwards."""
    before = {}

    def change(file, place, value):
        path = configuration / file
        before.setdefault(path, path.read_text(encoding="utf-8"))
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        put(document, place, value)
        path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
        return configuration

    yield change
    for path, text in before.items():
        path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    "name", ["sklearn.*", "sklearn.tree.*", "sklearn.tree._tree.Tree", "sklearn.tree.DecisionTreeClassifier",
             "datetime.datetime", "numpy.ndarray"],
)  # fmt: skip
def test_a_type_that_an_installed_package_has_is_taken(own, name):
    assert name in ServingPolicy.load(own("serving.yaml", "trusted_types.+", name)).trusted_types


def test_the_types_that_are_known_without_import_are_there():
    assert [name for name in TRUSTED_TYPES if _untraceable(name) is not None] == []


def test_a_vocabulary_that_only_a_suite_names_is_taken(own):
    own("vocabulary.yaml", "vocabularies.specialty", {"values": ["Hematology", "Oncology"]})
    folder = own(
        "expectations/hcp_profiles.yaml",
        "expectations.+",
        {"column": "specialty", "expect": "in_set", "vocabulary": "specialty", "because": "x"},
    )
    assert QualityPolicy.load(folder).vocabulary("specialty") == ("Hematology", "Oncology")


def test_a_model_of_econml_that_is_not_the_usual_one_is_taken(own):
    folder = own("algorithms.yaml", "algorithms.LinearDML.defaults.model_y", "automl")
    assert AlgorithmsPolicy.load(folder).algorithm("LinearDML").defaults["model_y"] == "automl"


@pytest.mark.parametrize(("file", "place", "value", "meant"), MISSPELT)
def test_the_name_that_was_meant_is_told(own, file, place, value, meant):
    said = " ".join(errors_of(own(file, place, value), file))
    assert f"Did you mean {meant!r}?" in said


def test_a_list_of_wrong_names_is_not_told_to_be_empty(configuration, tmp_path):
    folder = shutil.copytree(configuration, tmp_path / "config")
    policy = yaml.safe_load((folder / "causal.yaml").read_text(encoding="utf-8"))
    policy["effect_model"]["required_refuters"] = ["placebo"]
    (folder / "causal.yaml").write_text(yaml.safe_dump(policy), encoding="utf-8")
    (told,) = errors_of(folder, "causal.yaml")
    assert "placebo" in told and "at least 1 item" not in told


def test_a_suite_beside_the_mapping_uses_a_vocabulary_too(configuration, tmp_path):
    folder = shutil.copytree(configuration, tmp_path / "config")
    vocabulary = yaml.safe_load((folder / "vocabulary.yaml").read_text(encoding="utf-8"))
    vocabulary["vocabularies"]["ward"] = {"values": ["A", "B"]}
    (folder / "vocabulary.yaml").write_text(yaml.safe_dump(vocabulary), encoding="utf-8")
    assert "'ward'" in refusal_of(load_vocabulary, folder)[0]
    sources = folder / "sources.yaml"
    text = sources.read_text(encoding="utf-8").split("source:\n")[0]
    named = f"source: {{kind: files, folder: {tmp_path}, mapping: {tmp_path / 'mapping.yaml'}}}\n"
    sources.write_text(text + named, encoding="utf-8")
    (tmp_path / "expectations").mkdir()
    (tmp_path / "expectations" / "own.yaml").write_text(
        "expectations: [{vocabulary: ward}]\n", encoding="utf-8"
    )
    assert refusal_of(load_vocabulary, folder) == []
