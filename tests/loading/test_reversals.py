"""Rows that take earlier rows back: matched, waiting, refused, and the same in any order."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from e2i_dagster.errors import ConfigError, InputError
from e2i_dagster.loading import rejects
from e2i_dagster.loading.load import load
from e2i_dagster.loading.resubmission import resubmit
from e2i_dagster.sources import files

PAGE = Path(__file__).resolve().parents[2] / "docs" / "loading.md"
NEGATIVE = """
tables:
  treatment_events:
    reversals:
      where: {column: cost, is: negative}
      matches_on: [patient_id, drug_ndc, event_date]
      amounts: [cost]
"""
STATUS = """
tables:
  treatment_events:
    reversals:
      where: {column: claim_status, in: [R, V]}
      refers_to: original_claim
"""


@pytest.fixture
def parents(database):
    """One patient with one journey."""
    with database.begin() as session:
        session.exec_driver_sql("DELETE FROM load_withdrawals")
    journey = {"patient_journey_id": ["J1"], "patient_id": ["P1"], "journey_start_date": ["2023-01-01"]}
    assert load({"patient_journeys": pd.DataFrame(journey, dtype="string[pyarrow]")}).success
    return database


def claim(key, cost="100", date="2024-03-01", **more):
    """One line of a claims file."""
    fixed = {"patient_journey_id": "J1", "patient_id": "P1", "event_type": "prescription"}
    return {
        "treatment_event_id": key,
        **fixed,
        "event_date": date,
        "drug_ndc": "00078-0001-15",
        "cost": cost,
        **more,
    }


@pytest.fixture
def deliver(parents, tmp_path):
    """Delivers lines as a file of treatment events and gives the counts."""

    def run(*lines, mapping=NEGATIVE, **options):
        folder = tmp_path / "in"
        folder.mkdir(exist_ok=True)
        pd.DataFrame(list(lines)).to_csv(folder / "treatment_events.csv", index=False)
        (folder / "mapping.yaml").write_text(mapping)
        delivery = files.read(folder, folder / "mapping.yaml")
        report = load(delivery, **{"success_threshold": 0.0, **options})
        return report.tables["treatment_events"]

    return run


@pytest.fixture
def active(content):
    """Keys of the treatment events of the table."""
    return lambda: set(content("treatment_events", "treatment_event_id").iloc[:, 0])


def test_the_example_of_the_page(parents, content, active, tmp_path):
    text = PAGE.read_text(encoding="utf-8").split("### Reversals\n", 1)[1]
    (tmp_path / "mapping.yaml").write_text(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[0])
    (tmp_path / "treatment_events.csv").write_text(re.findall(r"```csv\n(.*?)```", text, re.DOTALL)[0])
    done = load(files.read(tmp_path, tmp_path / "mapping.yaml")).tables["treatment_events"]
    # Reversals that wait do not count against the threshold.
    assert done.status == "loaded"
    assert (done.source, done.inserted, done.reversal, done.withdrawn, done.rejected) == (5, 2, 1, 1, 2)
    assert done.reasons == {"partial_reversal": 1, "unmatched_reversal": 1}
    assert active() == {"C1"}
    kept = content("load_withdrawals").iloc[0]
    assert (kept["row_key"], kept["reason"], kept["reversal_key"], kept["month"]) == (
        "C2",
        "reversed",
        "C3",
        "2024-03",
    )
    assert kept["reversal"]["cost"] == "-412.50" and kept["content"]["cost"] == 412.5
    loads = content("ml_table_loads")
    recorded = loads[loads["table_name"] == "treatment_events"].iloc[0]
    assert (recorded["reversals"], recorded["withdrawn"], recorded["lines"]) == (1, 1, 5)


def test_original_first_then_its_reversal_and_both_again(deliver, active):
    assert deliver(claim("A"), claim("B", date="2024-03-02")).inserted == 2
    dry = deliver(claim("R", "-100"), dry_run=True)
    assert (dry.reversal, dry.withdrawn, dry.partitions) == (1, 1, ("2024-03",))
    assert [(one.row, one.month, one.reason, one.reversal) for one in dry.going] == [
        ("A", "2024-03", "reversed", "R")
    ]
    assert active() == {"A", "B"}
    done = deliver(claim("R", "-100"))
    assert (done.source, done.reversal, done.withdrawn, done.partitions) == (1, 1, 1, ("2024-03",))
    assert active() == {"B"}
    # Delivered again, neither the original comes back nor is another row taken.
    again = deliver(claim("A"), claim("R", "-100"), claim("R", "-100"))
    counts = (again.source, again.unchanged, again.reversal, again.duplicate, again.withdrawn)
    assert counts == (3, 1, 1, 1, 0)
    assert active() == {"B"}
    changed = deliver(claim("A", "90"), claim("R", "-90"))
    assert changed.reasons == {"changed_after_reversal": 1, "changed_reversal": 1}
    assert active() == {"B"}


def test_a_reversal_before_its_original_waits_and_is_matched_when_resubmitted(deliver, parents, active):
    assert deliver(claim("R", "-100")).reasons == {"unmatched_reversal": 1}
    assert deliver(claim("A")).inserted == 1
    assert active() == {"A"}
    report = resubmit(parents)
    assert report.tables["treatment_events"].reversal == 1
    assert active() == set() and rejects.summary(parents).empty
    # The rule goes on with the reject that waits again.
    deliver(claim("S", "-70"))
    assert resubmit(parents).tables["treatment_events"].reasons == {"unmatched_reversal": 1}
    deliver(claim("B", "70"))
    assert resubmit(parents).tables["treatment_events"].reversal == 1
    assert active() == set()


def test_a_waiting_reversal_that_is_delivered_again_is_settled(deliver, parents, active):
    deliver(claim("R", "-100"))
    assert deliver(claim("A"), claim("R", "-100")).reversal == 1
    assert active() == set() and rejects.summary(parents).empty


def test_a_reversal_with_the_key_of_its_original(deliver, parents, active):
    rule = NEGATIVE.replace("matches_on: [patient_id, drug_ndc, event_date]", "refers_to: treatment_event_id")
    assert deliver(claim("A", "-100"), mapping=rule).reasons == {"unmatched_reversal": 1}
    # The original does not settle the reject that waits for it.
    assert deliver(claim("A"), mapping=rule).inserted == 1
    assert resubmit(parents).tables["treatment_events"].reversal == 1
    assert active() == set()
    both = deliver(claim("B"), claim("B", "-100"), claim("A"), claim("A", "-100"), mapping=rule)
    assert (both.inserted, both.reversal, both.unchanged, both.withdrawn) == (1, 2, 1, 1)
    assert active() == set()


def test_a_status_and_a_reference(deliver, active):
    lines = [
        claim("A", claim_status="P", original_claim=""),
        claim("B", claim_status="P", original_claim=""),
        claim("R", "", claim_status="V", original_claim="A"),
        claim("S", "", claim_status="R", original_claim="unknown"),
        claim("T", "", claim_status="R", original_claim=""),
        claim("U", "", claim_status="R", original_claim="A"),
    ]
    done = deliver(*lines, mapping=STATUS)
    assert (done.inserted, done.reversal, done.withdrawn) == (2, 1, 1)
    assert done.reasons == {"unmatched_reversal": 3}
    assert active() == {"B"}
    again = deliver(*lines, mapping=STATUS)
    assert (again.unchanged, again.reversal, again.withdrawn) == (2, 1, 0)


def test_what_reversals_may_look_like(deliver, active):
    """A quantity that the table does not keep, a decimal comma, a cell that is no number, an empty one."""
    rule = NEGATIVE.replace("column: cost", "column: quantity") + "    decimal: ','\n"
    done = deliver(
        claim("A", "1,5", quantity="30,5"),
        claim("R", "1,5", quantity=" -30,5"),
        claim("B", "7", quantity="many"),
        claim("C", "8", quantity=""),
        claim("S", "", quantity="-1"),
        claim("T", "8", quantity="-1", drug_ndc=""),
        mapping=rule,
    )
    assert (done.inserted, done.reversal, done.withdrawn) == (2, 1, 1)
    assert done.reasons == {"unmatched_reversal": 2, "number_format": 1}
    assert active() == {"C"}


def test_the_most_recent_of_several_and_never_more_than_there_are(deliver, active):
    made = "source_timestamp"
    deliver(claim("A", **{made: "2024-03-05"}), claim("B", **{made: "2024-03-04"}), claim("C", **{made: ""}))
    assert deliver(claim("R", "-100")).withdrawn == 1
    assert active() == {"B", "C"}
    assert deliver(claim("S", "-100")).withdrawn == 1
    assert active() == {"C"}
    both = deliver(claim("T", "-100"), claim("U", "-100"))
    assert (both.withdrawn, both.reasons) == (1, {"unmatched_reversal": 1})
    assert active() == set()
    # A more recent row of the group is reversed in place of the earliest, whose reversal is now its own.
    later = deliver(claim("D", **{made: "2024-03-06"}), claim("E", date="2024-03-02"))
    assert (later.inserted, later.withdrawn, later.restored) == (2, 1, 1)
    assert active() == {"C", "E"}


def test_a_failed_load_takes_nothing_back(deliver, active):
    deliver(claim("A"))
    done = deliver(claim("R", "-100"), claim("B", event_type="unheard_of"), success_threshold=0.9)
    assert (done.status, done.reversal, done.withdrawn) == ("failed", 0, 0)
    assert active() == {"A"}


def test_a_row_that_was_reversed_is_no_row_that_a_restated_month_lacks(deliver, content, active):
    rule = NEGATIVE + "    restates: month\n"
    deliver(claim("A"), claim("B", "50"), claim("R", "-100"), mapping=rule)
    done = deliver(claim("A"), claim("R", "-100"), claim("C", "60"), claim("S", "-50"), mapping=rule)
    assert (done.unchanged, done.reversal, done.withdrawn) == (1, 2, 1)
    assert active() == {"C"}
    kept = content("load_withdrawals").set_index("row_key")["reason"]
    assert kept.to_dict() == {"A": "reversed", "B": "reversed"}


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (
            "where: {column: cost, is: negative}, matches_on: [patient_id], amounts: [cost]",
            "without event_date",
        ),
        (
            "where: {column: cst, is: negative}, refers_to: drug_ndc, amounts: [cost]",
            "cst is no column of the delivery",
        ),
        (
            "where: {column: cost, is: negative}, matches_on: [event_date, icd_codes], amounts: [drug_ndc]",
            "amounts names drug_ndc, which is no number",
        ),
        (
            "where: {column: quantity, is: negative}, matches_on: [event_date], amounts: [quantity]",
            "quantity is not kept in treatment_events",
        ),
    ],
)
def test_a_rule_that_does_not_fit_the_table_is_refused(deliver, rule, said):
    mapping = f"tables: {{treatment_events: {{reversals: {{{rule}}}}}}}\n"
    with pytest.raises(InputError, match=said):
        deliver(claim("A", quantity="1", icd_codes="[]"), mapping=mapping)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("where: {column: cost}, refers_to: other", "say either"),
        ("where: {column: cost, is: negative}, amounts: [cost]", "how the original is found"),
        ("where: {column: cost, is: negative}, refers_to: other", "`amounts` is missing"),
        ("where: {column: cost, is: positive}, refers_to: other, amounts: [cost]", "negative"),
    ],
)
def test_a_rule_that_says_too_little_is_refused(deliver, rule, said):
    with pytest.raises(ConfigError, match=said):
        deliver(claim("A"), mapping=f"tables: {{treatment_events: {{reversals: {{{rule}}}}}}}\n")


def test_rows_that_others_refer_to_cannot_be_taken_back(tmp_path):
    (tmp_path / "hcp_profiles.csv").write_text("hcp_id,decile\nH1,1\n")
    (tmp_path / "mapping.yaml").write_text(
        "tables: {hcp_profiles: {reversals: {where: {column: decile, in: ['1']}, refers_to: hcp_id}}}\n"
    )
    with pytest.raises(InputError, match=r"patient_journeys, .*refer to its rows"):
        files.read(tmp_path, tmp_path / "mapping.yaml")


LINES = st.lists(
    st.tuples(
        st.sampled_from(["fill", "fill", "reversal"]), st.sampled_from(["10", "20"]), st.sampled_from([1, 2])
    ),
    min_size=1,
    max_size=9,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kinds=LINES, data=st.data(), made=st.booleans())
def test_any_split_and_order_of_deliveries_gives_what_one_delivery_gives(
    deliver, parents, content, active, kinds, data, made
):
    lines = []
    for number, (kind, cost, day) in enumerate(kinds):
        more = {"source_timestamp": f"2024-04-0{1 + number * 5 % 9}"} if made else {}
        sign = "-" if kind == "reversal" else ""
        lines.append(claim(f"K{number}", sign + cost, date=f"2024-03-0{day}", **more))

    def emptied():
        with parents.begin() as session:
            for table in ("treatment_events", "load_withdrawals", "load_rejects"):
                session.exec_driver_sql(f"DELETE FROM {table}")

    emptied()
    deliver(*lines)
    expected, waiting = active(), len(content("load_rejects"))
    fills = sum(kind == "fill" for kind, _, _ in kinds)
    matched = len(kinds) - fills - waiting
    assert len(expected) == fills - matched

    emptied()
    order = data.draw(st.permutations(lines))
    cuts = sorted(data.draw(st.lists(st.integers(1, len(lines)), max_size=3)))
    # Some lines come twice, in the same or in a later delivery.
    parts = [list(part) for part in np.split(np.array(order, dtype=object), cuts) if len(part)]
    parts[-1] += data.draw(st.lists(st.sampled_from(lines), max_size=3))
    inserted = withdrawn = restored = 0
    for part in parts:
        done = deliver(*part)
        assert done.source == len(part)
        inserted, withdrawn, restored = (
            inserted + done.inserted,
            withdrawn + done.withdrawn,
            restored + done.restored,
        )
    if not rejects.summary(parents).empty:
        done = resubmit(parents).tables["treatment_events"]
        inserted, withdrawn, restored = (
            inserted + done.inserted,
            withdrawn + done.withdrawn,
            restored + done.restored,
        )
    assert active() == expected
    assert inserted == fills and inserted - withdrawn + restored == len(expected)
    assert rejects.summary(parents)["rows"].sum() == waiting
    history = content("load_withdrawals")
    assert history.loc[history["restored_load_id"].isna(), "reversal_key"].is_unique


def test_columns_of_the_users_own_in_a_table_that_keeps_them(parents, content, tmp_path):
    lines = "J1,A,2.50\nJ2,B,7\nJ3,A,-2.5\nJ4,B,-6\n"
    journeys = {f"J{number}": f"P{number}" for number in range(2, 5)}
    frame = pd.DataFrame({"patient_journey_id": journeys.keys(), "patient_id": journeys.values()})
    load({"patient_journeys": frame.assign(journey_start_date="2023-01-01").astype("string[pyarrow]")})
    (tmp_path / "mapping.yaml").write_text(
        "tables: {patient_clinical: {reversals: {where: {column: units, is: negative}, matches_on: [batch], "
        "amounts: [units]}}}\n"
    )
    (tmp_path / "patient_clinical.csv").write_text("patient_journey_id,batch,units\n" + lines)
    for withdrawn in (1, 0):
        done = load(files.read(tmp_path, tmp_path / "mapping.yaml")).tables["patient_clinical"]
        assert (done.reversal, done.withdrawn, done.reasons) == (1, withdrawn, {"partial_reversal": 1})
    assert content("patient_clinical", "patient_journey_id").iloc[:, 0].tolist() == ["J2"]


SPELLINGS = ["00078-0001-15", "00078000115", " 00078 0001 15", "0078-0001-15"]


@pytest.mark.parametrize("original", SPELLINGS)
@pytest.mark.parametrize("later", [False, True])
def test_all_spellings_of_a_drug_code_find_the_original(deliver, active, original, later):
    """In one delivery and against the table; what was taken back is found again in its history."""
    fills = [claim(f"A{day}", drug_ndc=original, date=f"2024-03-0{day}") for day in range(1, 5)]
    takes = [
        claim(f"R{day}", "-100", drug_ndc=spelling, date=f"2024-03-0{day}")
        for day, spelling in enumerate(SPELLINGS, start=1)
    ]
    for lines in [fills, takes] if later else [[*fills, *takes]]:
        done = deliver(*lines)
    assert (done.reversal, done.withdrawn, done.reasons) == (4, 4, {})
    assert active() == set()
    again = deliver(*(dict(line, drug_ndc="00078-0001-15") for line in takes))
    assert (again.reversal, again.withdrawn, again.reasons) == (4, 0, {})


def test_a_drug_code_that_cannot_be_decided_finds_the_same_text_alone(deliver, active):
    """Ten digits without hyphens could be three codes."""
    deliver(claim("A", drug_ndc="0078000115"), claim("B", date="2024-03-02"))
    done = deliver(
        claim("R", "-100", drug_ndc="0078000115"),
        claim("S", "-100", drug_ndc="0078000115", date="2024-03-02"),
    )
    assert (done.reversal, done.reasons) == (1, {"unmatched_reversal": 1})
    assert active() == {"B"}


def test_a_diagnosis_and_an_own_code_find_the_original_in_every_spelling(parents, content, tmp_path):
    journeys = {f"J{number}": f"P{number}" for number in range(2, 5)}
    frame = pd.DataFrame({"patient_journey_id": journeys.keys(), "patient_id": journeys.values()})
    load({"patient_journeys": frame.assign(journey_start_date="2023-01-01").astype("string[pyarrow]")})
    (tmp_path / "mapping.yaml").write_text(
        "tables: {patient_clinical: {own: {drug: ndc}, reversals: {where: {column: units, is: negative}, "
        "matches_on: [diagnosis_code, drug], amounts: [units]}}}\n"
    )
    head = "patient_journey_id,diagnosis_code,drug,units\n"
    for lines in (
        "J1,L50.1,00078-0001-15,2\nJ2,L50.8,00078-0001-15,3\n",
        "J3,L501,00078000115,-2\nJ4,l508,0078-0001-15,-3\n",
    ):
        (tmp_path / "patient_clinical.csv").write_text(head + lines)
        done = load(files.read(tmp_path, tmp_path / "mapping.yaml")).tables["patient_clinical"]
    assert (done.reversal, done.withdrawn, done.reasons) == (2, 2, {})
    assert content("patient_clinical", "patient_journey_id").empty


def test_a_moment_and_a_status_find_the_original(parents, content, tmp_path):
    """The moment is the same in every spelling; what was taken back is found again in its history."""
    head = "trigger_id,patient_id,trigger_timestamp,confidence_score,state_of_row\n"
    first = "T1,P1,2024-03-01T08:00:00Z,0.5,ok\nT2,P1,2024-03-01T08:00:01Z,0.5,ok\n"
    (tmp_path / "mapping.yaml").write_text(
        "tables: {triggers: {reversals: {where: {column: state_of_row, in: [void]}, "
        "matches_on: [patient_id, trigger_timestamp], amounts: [confidence_score]}}}\n"
    )

    def delivered(text):
        (tmp_path / "triggers.csv").write_text(head + text)
        return load(files.read(tmp_path, tmp_path / "mapping.yaml"), success_threshold=0).tables["triggers"]

    assert delivered(first).inserted == 2
    void = "T3,P1,2024-03-01 03:00:00-05:00,0.5,void\n"
    assert (delivered(void).withdrawn, delivered(void).reversal) == (1, 1)
    assert delivered(first + void).unchanged == 2
    assert content("triggers", "trigger_id").iloc[:, 0].tolist() == ["T2"]
