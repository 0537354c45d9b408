"""``config/vocabulary.yaml``: what it ships, what it refuses."""

import re
from itertools import chain

import pandas as pd
import pytest

from e2i_dagster.config.criteria import Criterion
from e2i_dagster.config.vocabulary import load_vocabulary
from e2i_dagster.errors import ConfigError

SHIPPED = load_vocabulary()


def test_what_is_shipped():
    assert SHIPPED.values("brand") == ("Remibrutinib", "Fabhalta", "Kisqali", "competitor", "other")
    assert SHIPPED.values("region") == ("northeast", "south", "midwest", "west")
    assert set(SHIPPED.values("state")) == set(chain(*SHIPPED.region_states.values()))
    assert SHIPPED.state_region["TX"] == "south"
    assert "0-17" in SHIPPED.values("age_group")


def test_aliases_become_values_and_the_unknown_stays():
    given = pd.Series(["LNP023", "Kisqali", "All_Brands", "mystery", None])
    assert SHIPPED.canonical("brand", given).tolist() == ["Fabhalta", "Kisqali", pd.NA, "mystery", pd.NA]
    assert SHIPPED.unknown("brand", given).tolist() == [True, False, True, True, False]
    assert SHIPPED.canonical("region", given).tolist()[:2] == ["LNP023", "Kisqali"]


@pytest.mark.parametrize(
    ("system", "right", "wrong"),
    [
        (
            "icd10cm",
            ["L50.1", "D59.5", "C50.911", "C50911", "Z79.4", "M1A.00X0", "QA0.0101"],
            ["50.1", "L5", "L50.", "L50.12345"],
        ),
        (
            "ndc",
            ["12345-6789-01", "12345-678-90", "1234-5678-90", "12345678901", "1234567890"],
            ["12345", "123-45-6"],
        ),
        ("cpt", ["99213", "J1234", "0001F", "0075T", "0001U", "0002M"], ["9921", "JJ123"]),
        ("loinc", ["2532-0", "14804-9", "718-7", "100746-7"], ["25320", "2532-"]),
    ],
)
def test_shapes_of_codes(system, right, wrong):
    pattern = re.compile(SHIPPED.code_systems[system].pattern)
    assert all(pattern.search(code) for code in right)
    assert not any(pattern.search(code) for code in wrong)


def test_both_forms_of_c3_glomerulopathy_are_in_its_code_set_and_cohort():
    from e2i_dagster.cohorts import read_cohort

    both = {f"N0{place}.{form}" for place in range(8) for form in "6A"}
    assert set(SHIPPED.code_sets["c3g"].codes) == both
    rules = {rule.name: rule for rule in read_cohort("fabhalta_c3g").rules}
    criterion = rules["diagnosis_code"].criterion
    assert isinstance(criterion, Criterion)
    assert set(criterion.values) == both


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("LNP023: Fabhalta", "LNP023: Nothing"), "not listed: Nothing"),
        (("LNP023: Fabhalta", "Kisqali: Fabhalta"), "both as value and as alias"),
        (("west: [AK", "west: [TX, AK"), "two regions"),
        (("midwest: [IA", "midwest: [XX, IA"), "state values that are not listed: XX"),
        (("default_code_system: icd10cm", "default_code_system: icd9"), "icd9"),
        (("brand: Kisqali, title", "brand: Nobody, title"), "unknown brand 'Nobody'"),
        (("[WS1, WS2, WS3]", "[WS1, WS1]"), "listed twice"),
        (("[WS1, WS2, WS3]", "[]"), "workstream"),
    ],
)
def test_a_wrong_file_is_refused_with_what_is_wrong(tmp_path, change, message):
    from e2i_dagster.config.environment import config_folder

    text = (config_folder() / "vocabulary.yaml").read_text()
    assert change[0] in text
    (tmp_path / "vocabulary.yaml").write_text(text.replace(*change))
    with pytest.raises(ConfigError, match=message):
        load_vocabulary(tmp_path)


def test_an_unknown_vocabulary_lists_the_known_ones():
    with pytest.raises(ConfigError, match="Known: acceptance_status"):
        SHIPPED.values("colours")
