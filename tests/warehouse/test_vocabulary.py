"""``config/vocabulary.yaml``: what it ships, what it refuses."""

import pandas as pd
import pytest

from e2i_dagster.config.criteria import Criterion
from e2i_dagster.errors import ConfigError
from e2i_dagster.tables.vocabulary import load_vocabulary

SHIPPED = load_vocabulary()


def test_what_is_shipped():
    assert SHIPPED.values("brand") == ("Remibrutinib", "Fabhalta", "Kisqali", "competitor", "other")
    assert SHIPPED.values("region") == ("northeast", "south", "midwest", "west")
    assert len(SHIPPED.values("state")) == 51 and "TX" in SHIPPED.values("state")
    assert "0-17" in SHIPPED.values("age_group")


def test_aliases_become_values_and_the_unknown_stays():
    given = pd.Series(["LNP023", "Kisqali", "All_Brands", "mystery", None])
    assert SHIPPED.canonical("brand", given).tolist() == ["Fabhalta", "Kisqali", pd.NA, "mystery", pd.NA]
    assert SHIPPED.unknown("brand", given).tolist() == [True, False, True, True, False]
    assert SHIPPED.canonical("region", given).tolist()[:2] == ["LNP023", "Kisqali"]


def test_both_forms_of_c3_glomerulopathy_are_in_its_cohort():
    from e2i_dagster.cohorts import read_cohort

    both = {f"N0{place}.{form}" for place in range(8) for form in "6A"}
    rules = {rule.name: rule for rule in read_cohort("fabhalta_c3g").rules}
    criterion = rules["diagnosis_code"].criterion
    assert isinstance(criterion, Criterion)
    assert set(criterion.values) == both


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("LNP023: Fabhalta", "LNP023: Nothing"), "not listed: Nothing"),
        (("LNP023: Fabhalta", "Kisqali: Fabhalta"), "both as value and as alias"),
        (("[WS1, WS2, WS3]", "[WS1, WS1]"), "listed twice"),
        (("[WS1, WS2, WS3]", "[]"), "workstream"),
    ],
)
def test_a_wrong_file_is_refused_with_what_is_wrong(tmp_path, change, message):
    from e2i_dagster.policy_files.environment import config_folder

    text = (config_folder() / "vocabulary.yaml").read_text()
    assert change[0] in text
    (tmp_path / "vocabulary.yaml").write_text(text.replace(*change))
    with pytest.raises(ConfigError, match=message):
        load_vocabulary(tmp_path)


def test_an_unknown_vocabulary_lists_the_known_ones():
    with pytest.raises(ConfigError, match="Known: acceptance_status"):
        SHIPPED.values("colours")
