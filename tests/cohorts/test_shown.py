"""What is shown of a cohort: small cells cannot be read or computed; figure and tables are whole."""

import base64
from xml.etree import ElementTree

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from e2i_dagster.cohorts import CohortDefinition, build_cohort, read_cohort
from e2i_dagster.cohorts.characteristics import characteristics, characteristics_table
from e2i_dagster.cohorts.disclosure import is_small, shown_steps, suppressed


def chain(removed, start):
    return suppressed(np.array(removed, dtype=int), start)


def test_large_counts_and_zeros_are_shown():
    hidden, remaining = chain([100, 0, 20], 500)
    assert not hidden.any()
    assert not remaining.any()


def test_a_small_cell_takes_its_neighbour_with_it():
    hidden, remaining = chain([100, 5, 20, 30], 500)
    assert hidden.tolist() == [False, True, True, False]
    assert remaining.tolist() == [False, True, False, False]


def test_a_small_last_cell_looks_backwards():
    hidden, remaining = chain([100, 30, 5], 500)
    assert hidden.tolist() == [False, True, True]
    assert remaining.tolist() == [False, True, False]


def test_a_lone_small_cell_hides_the_final_count():
    hidden, remaining = chain([5], 500)
    assert hidden.tolist() == [True]
    assert remaining.tolist() == [True]


def test_a_small_final_count_hides_what_led_to_it():
    hidden, remaining = chain([100, 393], 500)
    assert hidden.tolist() == [False, True]
    assert remaining.tolist() == [False, True]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([0, 0, 1, 5, 10, 11, 40]), min_size=1, max_size=8), st.integers(0, 120))
def test_hidden_cells_are_known_only_as_sums_of_eleven_or_more(removed, spare):
    start = sum(removed) + spare
    hide_removed, hide_remaining = chain(removed, start)
    cells = [*removed, start - sum(removed)]
    hidden = [*hide_removed.tolist(), bool(hide_remaining[-1])]
    # No small removed count and no small remaining count is visible.
    assert not any(is_small(c) and not h for c, h in zip(cells, hidden, strict=True))
    remaining = start - np.cumsum(removed)
    assert not any(is_small(int(r)) and not h for r, h in zip(remaining, hide_remaining, strict=True))
    if start < 11:
        return  # the start itself is shown as <11
    # The visible remaining counts cut the chain into runs; each run with hidden cells must be safe.
    run, runs = [], []
    for k, cell in enumerate(cells):
        run.append((cell, hidden[k]))
        ends = k == len(cells) - 1 or (not hide_remaining[k] and not (k == len(cells) - 2 and hidden[-1]))
        if ends:
            runs.append(run)
            run = []
    for run in runs:
        secret = [cell for cell, is_hidden in run if is_hidden]
        if secret:
            assert sum(secret) >= 11, (removed, start)
            assert sum(cell > 0 for cell in secret) >= 2, (removed, start)


def small_cohort(n=60):
    definition = CohortDefinition.model_validate(
        {
            "brand": "Examplumab",
            "indication": "demo",
            "title": "Adults <& others>",
            "inclusion_criteria": [{"field": "age", "operator": ">=", "value": 18}],
            "exclusion_criteria": [{"field": "risk", "operator": "==", "value": True}],
            "temporal_requirements": {"lookback_days": 0, "followup_days": 0},
        }
    )
    day = pd.Timestamp("2024-01-01")
    frame = pd.DataFrame(
        {
            "patient_id": [f"CANARY{k}" for k in range(n)],
            "patient_journey_id": [f"J{k}" for k in range(n)],
            "age": [17] * 7 + [40] * (n - 7),
            "risk": pd.array([None] * 10 + [True] * 15 + [False] * (n - 25), dtype="boolean"),
            "diagnosis_date": day,
            "first_observation_date": day,
            "last_observation_date": day,
        }
    )
    return build_cohort(definition, frame)


def test_metadata_shows_no_small_cell_and_no_patient():
    metadata = small_cohort().to_metadata()
    text = str({k: v for k, v in metadata.items() if k != "consort"})
    svg = base64.b64decode(metadata["consort"].data).decode()
    for shown in (text, svg):
        assert "CANARY" not in shown
        assert "Removed: 7" not in shown
        assert "7, 53" not in shown
        assert "suppressed" in shown
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg")
    assert "Adults <& others>" in "".join(root.itertext())


def test_unknown_and_gain_of_a_hidden_step_are_hidden_too():
    cohort = small_cohort()
    steps = {s.criterion: s for s in shown_steps(cohort.attrition, cohort.input_patients)}
    assert steps["age"].removed == steps["age"].marginal_gain == "suppressed"
    assert steps["lookback"].removed == "0"


def test_an_ordinary_cohort_shows_its_numbers():
    shipped = read_cohort("remibrutinib_csu")
    assert "Remove patients whose pregnancy_status is true" in "\n".join(shipped.sentences())
    metadata = small_cohort(4_000).to_metadata()
    assert metadata["input_patients"] == 4_000


def test_the_share_in_exclusions_is_shown_only_where_nothing_is_hidden():
    n = 200
    frame = pd.DataFrame(
        {
            "patient_id": [f"P{k}" for k in range(n)],
            "patient_journey_id": [f"J{k}" for k in range(n)],
            "age": [17] * 60 + [40] * (n - 60),
            "risk": pd.array([True] * 20 + [False] * 80 + [True] * 20 + [False] * (n - 120), dtype="boolean"),
            "diagnosis_date": pd.Timestamp("2024-01-01"),
            "first_observation_date": pd.Timestamp("2024-01-01"),
            "last_observation_date": pd.Timestamp("2024-01-01"),
        }
    )
    table = build_cohort(small_cohort().definition, frame).to_metadata()["attrition"]
    # 40 are too young only, 20 at risk only, 20 both: 50 and 30 of 80.
    assert [row[-1] for row in table.texts[:3]] == ["0%", "62%", "38%"]
    assert "share in exclusions" not in small_cohort().to_metadata()["attrition"].columns


def test_those_lost_are_described_without_giving_a_small_group_away():
    n = 400
    frame = pd.DataFrame(
        {
            "patient_id": [f"P{k}" for k in range(n)],
            "patient_journey_id": [f"J{k}" for k in range(n)],
            "age": [17] * 100 + [40] * (n - 100),
            "age_at_diagnosis": [17] * 100 + [40] * (n - 100),
            "gender": (["F"] * 60 + ["M"] * 40) + ["F"] * 295 + ["U"] * 5,
            "risk": pd.array([False] * n, dtype="boolean"),
            "diagnosis_date": pd.Timestamp("2024-01-01"),
            "first_observation_date": pd.Timestamp("2024-01-01"),
            "last_observation_date": pd.Timestamp("2024-01-01"),
        }
    )
    cohort = build_cohort(small_cohort().definition, frame)
    lost, stayed = characteristics(cohort, frame)
    assert (lost.step, lost.persons, lost.median_age) == ("age", "100", 17)
    assert lost.shares == {"gender": {"F": 0.6, "M": 0.4}}
    # Five of unknown sex could be subtracted from the whole, so the others are hidden too.
    assert (stayed.step, stayed.shares) == ("eligible", {"gender": {"F": None, "U": None}})
    assert characteristics_table((lost, stayed)).texts == [
        ["age", "100", "17", "F 60%, M 40%"],
        ["eligible", "300", "40", "hidden"],
    ]


def test_a_person_with_several_journeys_is_lost_once_where_the_last_of_them_fails():
    day = pd.Timestamp("2024-01-01")
    frame = pd.DataFrame(
        {
            "patient_id": [f"P{k // 2}" for k in range(60)],
            "patient_journey_id": [f"J{k}" for k in range(60)],
            "age": [17, 40] * 30,
            "age_at_diagnosis": 40,
            "risk": pd.array([False, True] * 30, dtype="boolean"),
            "diagnosis_date": day,
            "first_observation_date": day,
            "last_observation_date": day,
        }
    )
    (lost,) = characteristics(build_cohort(small_cohort().definition, frame), frame)
    assert (lost.step, lost.persons) == ("risk", "30")


def test_unknown_safety_has_a_box_of_its_own():
    svg = small_cohort(4_000).consort_svg()
    assert "kept although a safety value is unknown" in svg
    assert svg.count("#fff6d6") == 1
    assert "Of them unknown: &lt;11" in svg
