"""A name in a policy file that matches nothing is refused when the file is read, at its place."""

import shutil

import pytest

from e2i_dagster.config.environment import CHECKOUT
from e2i_dagster.config.policy import load_policy
from e2i_dagster.config.validate import validate_folder

SCOPE = "scopes/fabhalta_pnh_initiation.yaml"
DESIGN = "experiments/remibrutinib_outreach.yaml"

#: File, what is written in it, what stands there instead, the key that is named, and what is said of it.
WRONG = [
    (SCOPE, "features: all", "features: [age_at_diagnosis, severty]", "features.1", "no feature 'severty'"),
    (SCOPE, "preferred_algorithms: []", "preferred_algorithms: [XGBost]", "preferred_algorithms.0", "'XGBoost'"),
    (SCOPE, "excluded_algorithms: []", "excluded_algorithms: [forest]", "excluded_algorithms.0", "no algorithm"),
    (SCOPE, "event_type: prescription", "event_type: [prescripton]", "event_type.0", "'prescription'"),
    (SCOPE, "event_type: prescription", "event_type: prescripton", "event_type", "'prescription'"),
    (SCOPE, "    brand: Fabhalta", "    brand: Fabhlta", "outcome.event.brand", "'Fabhalta'"),
    (DESIGN, "scope: remibrutinib_csu_initiation", "scope: csu", "twin.scope", "no scope 'csu'"),
    (DESIGN, "feature: best_contact_quality", "feature: contact", "twin.feature", "no feature 'contact'"),
    (DESIGN, "confounders: [disease_severity,", "confounders: [severity,", "twin.confounders.0", "no feature"),
    (DESIGN, "blinding: dmc", "may_overlap_with: [other]\nblinding: dmc", "may_overlap_with.0", "no experiment"),
    ("causal.yaml", "confounders: [", "confounders: [nobody, ", "question.confounders.0", "no feature 'nobody'"),
    ("alerts.yaml", "  drift: ml-ops", "  drfit: ml-ops", "owners.drfit", "'drift'"),
    ("quality.yaml", "indications:\n", "indications:\n  cancer: {codes: [C50]}\n", "indications.cancer", "no column"),
    ("sources.yaml", "first_month:", "expected: {treatment: {pattern: 't_{month}.csv', delivery_day: 3}}\nfirst_month:",
     "expected.treatment", "no raw table"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "old", "new", "key", "said"), WRONG, ids=[f"{w[0]} {w[3]}" for w in WRONG])
def test_a_name_that_matches_nothing_is_refused_at_its_place(tmp_path, file, old, new, key, said):
    config = shutil.copytree(CHECKOUT / "config", tmp_path / "config")
    assert validate_folder(config) == {}
    path = config / file
    text = path.read_text(encoding="utf-8")
    assert text.count(old) >= 1
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    (problem,) = set("\n".join(validate_folder(config).values()).splitlines())
    assert problem.startswith(f"{path}:") and key in problem and said in problem, problem
    line = path.read_text(encoding="utf-8").splitlines()[
        int(problem.removeprefix(f"{path}:").split(":")[0]) - 1
    ]
    assert line not in text.splitlines(), problem


def test_four_unknown_features_of_five_are_all_named(tmp_path):
    config = shutil.copytree(CHECKOUT / "config", tmp_path / "config")
    path = config / SCOPE
    five = "features: [age_at_diagnosis, a1, a2, a3, a4]"
    path.write_text(path.read_text(encoding="utf-8").replace("features: all", five), encoding="utf-8")
    policy = load_policy(config)
    assert "fabhalta_pnh_initiation" not in policy.scopes
    error = policy.broken("scopes")["fabhalta_pnh_initiation"]
    assert [one.field for one in error.parts] == [f"features.{number}" for number in range(1, 5)]
