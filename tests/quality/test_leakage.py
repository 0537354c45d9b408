"""The audit finds planted leaks of each kind and leaves honest frames alone."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from e2i_dagster.errors import InputError
from e2i_dagster.quality.leakage import LeakageReport, audit, extract_only_columns

N = 1_200


def _honest(seed: int = 0, n: int = N) -> pd.DataFrame:
    """One strong honest predictor (AUC about 0.83), noise, a category, missing cells, four splits."""
    rng = np.random.default_rng(seed)
    strong = rng.normal(size=n)
    label = (2.2 * strong + rng.logistic(size=n) > 0).astype(int)
    return pd.DataFrame(
        {
            "patient_id": [f"P{i}" for i in range(n)],
            "index_date": pd.Timestamp("2024-03-01"),
            "label": pd.array(label, dtype="Int64"),
            "strong": strong,
            "noise": np.where(rng.random(n) < 0.2, np.nan, rng.normal(size=n)),
            "visits": rng.poisson(2, n),
            "region": rng.choice(["south", "west", "midwest"], n),
            "last_visit_date": pd.Timestamp("2024-02-29") - pd.to_timedelta(rng.integers(0, 90, n), unit="D"),
            "split": rng.choice(["train", "validation", "test", "holdout"], n, p=[0.6, 0.2, 0.15, 0.05]),
        }
    )


def _audit(frame: pd.DataFrame) -> LeakageReport:
    return audit(frame, target="label", index_date="index_date", splits="split")


def test_at_most_one_of_fifty_honest_frames_has_a_finding() -> None:
    """Frames of several sizes; ``strong`` alone has an AUC of about 0.85, ``visits`` and its kin move together."""
    found = []
    for seed in range(50):
        frame = _honest(seed, n=(60, 200, 600)[seed % 3])
        frame = frame.assign(visits_squared=frame["visits"] ** 2, days_since_visit=frame["visits"] * 11.0)
        found += [report.findings] if (report := _audit(frame)).findings else []
    assert len(found) <= 1, found
    report = _audit(_honest())
    assert not report.blocking
    assert all(check.ran for check in report.checks)


LABEL = _honest()["label"].to_numpy(dtype=int)
RNG = np.random.default_rng(9)
NOISE = pd.to_timedelta(RNG.integers(0, 200, N), unit="D")


@pytest.mark.parametrize(
    ("leak", "rule"),
    [
        (LABEL + RNG.normal(scale=0.1, size=N), "leakage_target"),
        (-LABEL * 3.0, "leakage_target"),
        (LABEL.astype(bool), "leakage_target"),
        (np.where(LABEL == 1, "yes", "no"), "leakage_target"),
        (np.where(LABEL == 1, RNG.choice(["a", "b", "c"], N), RNG.choice(["d", "e"], N)), "leakage_target"),
        # Nonlinear: both ends stand for the label, correlation is near zero.
        (
            np.where(LABEL == 1, RNG.choice([-3.0, 3.0], N), 0.0) + RNG.normal(scale=0.3, size=N),
            "leakage_target",
        ),
        (np.where(LABEL == 1, RNG.normal(size=N), np.nan), "leakage_missing"),
        (pd.array(np.where(LABEL == 1, "filled", None), dtype="string[pyarrow]"), "leakage_missing"),
    ],
)
def test_a_proxy_of_the_label_blocks(leak: object, rule: str) -> None:
    report = _audit(_honest().assign(outcome_flag=leak))
    assert [(one.rule, one.columns, one.severity) for one in report.findings] == [
        (rule, ("outcome_flag",), "fatal")
    ]
    assert report.blocking


@pytest.mark.parametrize("kind", ["text", "three classes", "number"])
def test_other_labels_are_audited_too(kind: str) -> None:
    frame = _honest()
    if kind == "text":
        label: object = np.where(LABEL == 1, "responder", "non-responder")
        proxy = LABEL * 2
    elif kind == "three classes":
        classes = np.digitize(frame["strong"] + RNG.normal(size=N), [-0.7, 0.7])
        label, proxy = np.array(["low", "mid", "high"])[classes], np.array(["x", "y", "z"])[classes]
    else:
        label = frame["strong"] + RNG.normal(size=N)
        proxy = np.asarray(label) ** 2
    clean = _audit(frame.assign(label=label))
    assert not clean.findings
    found = _audit(frame.assign(label=label, proxy=proxy)).findings
    if kind == "number":  # a square keeps the size, not the sign
        found = _audit(frame.assign(label=label, proxy=np.asarray(label) * -2)).findings
    assert [one.columns for one in found] == [("proxy",)]


def test_a_column_that_tells_which_labels_lie_below_the_usual_one_is_found() -> None:
    """Eight in ten labels are the same number, one in ten lies below it and one above."""
    side = RNG.choice([-1.0, 0.0, 1.0], N, p=[0.1, 0.8, 0.1])
    label = side * RNG.uniform(1, 30, N)
    marked = (side < 0) + RNG.normal(scale=0.01, size=N)
    found = _audit(_honest().assign(label=label, marked=marked)).findings
    assert [one.columns for one in found] == [("marked",)]


def test_a_feature_that_is_mostly_one_number_is_asked_on_both_sides_of_it() -> None:
    """Of the cells 96 % are 5; the label is whether the others lie above it."""
    side = RNG.choice([-1.0, 0.0, 1.0], N, p=[0.02, 0.96, 0.02])
    cells = 5 + side * RNG.uniform(1, 4, N)
    found = _audit(_honest().assign(label=(cells > 5).astype(int), cells=cells)).findings
    assert [one.columns for one in found] == [("cells",)]


def test_extract_columns_are_refused_by_name() -> None:
    assert {"journey_status", "risk_score", "treatment_initiated"} <= extract_only_columns()
    assert not {"age_at_diagnosis", "patient_id", "event_date", "geographic_region"} & extract_only_columns()
    report = _audit(_honest().assign(risk_score=0.5, journey_status="active"))
    assert [(one.kind, one.columns) for one in report.findings] == [
        ("known_at", ("risk_score",)),
        ("known_at", ("journey_status",)),
    ]
    assert report.blocking
    own = audit(_honest().assign(own=1), target="label", extract_columns=["own"])
    assert [one.columns for one in own.findings] == [("own",)]


def test_dates_after_the_index_block() -> None:
    frame = _honest()
    frame.loc[:4, "last_visit_date"] = pd.Timestamp("2024-03-02")
    frame["note_date"] = "2024-03-01"
    frame.loc[0, "note_date"] = "2024-04-01T10:00:00"
    report = _audit(frame)
    assert [(one.columns, one.affected) for one in report.findings] == [
        (("last_visit_date",), 5),
        (("note_date",), 1),
    ]
    fixed = audit(frame, target="label", index_date=dt.date(2024, 5, 1))
    assert fixed.findings == ()
    only = audit(frame, target="label", index_date="index_date", date_columns=["note_date"])
    assert [one.columns for one in only.findings] == [("note_date",)]


@pytest.mark.parametrize(
    "pair",
    [
        ("train", "validation"),
        ("train", "test"),
        ("train", "holdout"),
        ("validation", "test"),
        ("validation", "holdout"),
        ("test", "holdout"),
    ],
)
def test_a_patient_in_any_two_splits_blocks(pair: tuple[str, str]) -> None:
    frame = _honest()
    first, second = (frame.index[frame["split"] == name][0] for name in pair)
    frame.loc[second, "patient_id"] = frame.loc[first, "patient_id"]
    findings = _audit(frame).findings
    assert len(findings) == 1
    assert findings[0].rule == "leakage_shared_patients"
    assert all(name in findings[0].evidence for name in pair)


def test_copied_rows_under_other_identifiers_block() -> None:
    frame = _honest()
    columns = ["strong", "noise", "visits", "region"]
    source = frame.index[frame["split"] == "validation"][:20]
    copies = frame.index[frame["split"] == "test"][:20]
    frame.loc[copies, columns] = frame.loc[source, columns].to_numpy()
    frame = frame.drop(columns="last_visit_date").astype({"strong": float, "noise": float, "visits": int})
    assert [one.rule for one in _audit(frame).findings] == ["leakage_duplicate_rows"]


def _wide(n: int = N) -> pd.DataFrame:
    """Honest frame with ten continuous features more and a feature of a few values."""
    rng = np.random.default_rng(5)
    more = {f"measure_{number}": rng.normal(size=n) for number in range(10)}
    return _honest(n=n).assign(**more, age=rng.integers(18, 90, n)).drop(columns="last_visit_date")


@pytest.mark.parametrize("pair", [("train", "validation"), ("validation", "test"), ("test", "holdout")])
@pytest.mark.parametrize(
    ("near", "rule"), [(False, "leakage_duplicate_rows"), (True, "leakage_near_duplicate_rows")]
)
def test_three_patients_under_second_identifiers_block(pair: tuple[str, str], near: bool, rule: str) -> None:
    frame = _wide()
    source = frame[frame["split"] == pair[0]].head(3)
    copies = source.assign(split=pair[1], patient_id=["C0", "C1", "C2"])
    if near:  # measured again a little differently, and a year older
        copies = copies.assign(measure_3=copies["measure_3"] + 0.002, age=copies["age"] + 1)
    findings = _audit(pd.concat([frame, copies], ignore_index=True)).findings
    assert [(one.rule, one.affected, one.severity) for one in findings] == [(rule, 3, "fatal")]
    assert all(name in findings[0].evidence for name in pair)


def test_every_kind_of_leak_is_found_among_all_others() -> None:
    frame = _wide()
    gap = pd.to_timedelta(np.where(LABEL == 1, 5, 60) + RNG.integers(0, 20, N), unit="D")
    frame = frame.assign(
        flipped=-LABEL * 3.0 + RNG.normal(scale=0.1, size=N),
        arm=np.where(LABEL == 1, "yes", "no"),
        confirmed=LABEL.astype(bool),
        ordered_later=np.where(LABEL == 1, RNG.normal(size=N), np.nan),
        risk_score=0.5,
        note_date=pd.Timestamp("2024-02-20"),
        last_visit_date=frame["index_date"] - gap,
    )
    frame.loc[:4, "note_date"] = pd.Timestamp("2024-03-02")
    first, second = (frame.index[frame["split"] == name][9] for name in ("train", "test"))
    frame.loc[second, "patient_id"] = frame.loc[first, "patient_id"]
    exact = frame[frame["split"] == "validation"].head(3).assign(split="test", patient_id=["C0", "C1", "C2"])
    near = frame[frame["split"] == "train"].head(3).assign(split="validation", patient_id=["D0", "D1", "D2"])
    near = near.assign(measure_3=near["measure_3"] + 0.002, age=near["age"] + 1)
    report = _audit(pd.concat([frame, exact, near], ignore_index=True))
    found = {(one.rule, columns) for one in report.findings for columns in one.columns or (None,)}
    assert {
        ("leakage_target", "flipped"),
        ("leakage_target", "arm"),
        ("leakage_target", "confirmed"),
        ("leakage_missing", "ordered_later"),
        ("leakage_known_at", "risk_score"),
        ("leakage_temporal", "note_date"),
        ("leakage_window", "last_visit_date"),
    } <= found
    assert {rule for rule, _ in found} >= {
        "leakage_shared_patients",
        "leakage_duplicate_rows",
        "leakage_near_duplicate_rows",
    }
    honest = {"strong", "noise", "visits", "region", "age", *(f"measure_{number}" for number in range(10))}
    assert not [one for one in report.findings if one.kind == "target" and honest & set(one.columns)]
    assert report.blocking and all(check.ran for check in report.checks)


@pytest.mark.parametrize("noise", [1e-6, 1e-3])
def test_five_features_tell_a_patient_delivered_twice(noise: float) -> None:
    rng = np.random.default_rng(0)
    values = {f"measure_{number}": rng.normal(size=1_000) for number in range(5)}
    frame = pd.DataFrame(
        {**values, "label": rng.integers(0, 2, 1_000), "split": rng.choice(["train", "test"], 1_000)}
    ).assign(patient_id=np.arange(1_000))
    again = frame[frame["split"] == "train"].head(10).assign(split="test", patient_id=np.arange(5_000, 5_010))
    again[list(values)] += rng.normal(scale=noise, size=(10, 5))
    report = audit(pd.concat([frame, again], ignore_index=True), target="label", splits="split")
    (finding,) = report.findings
    assert finding.rule == "leakage_near_duplicate_rows" and finding.severity == "fatal"
    # A copy that another patient happens to resemble, too, is not certain.
    assert 8 <= (finding.affected or 0) <= 10


def test_one_finding_is_enough_when_all_identities_are_doubled_at_random() -> None:
    """Twins inside a split are as frequent as across splits then, and still no accident."""
    frame = _wide(400)
    rng = np.random.default_rng(3)
    again = frame.assign(
        patient_id=[f"C{number}" for number in range(400)],
        split=rng.choice(["train", "validation", "test", "holdout"], 400, p=[0.6, 0.2, 0.15, 0.05]),
    )
    report = _audit(pd.concat([frame, again], ignore_index=True))
    assert len([one for one in report.findings if one.rule == "leakage_duplicate_rows"]) == 6


def test_patients_without_any_event_are_alike_by_chance() -> None:
    rng = np.random.default_rng(2)
    frame = _wide()
    silent = rng.random(N) < 0.5
    for name in [name for name in frame if name.startswith("measure_")]:
        frame.loc[silent, name] = np.nan
    frame.loc[silent, ["strong", "noise", "visits"]] = [0.0, np.nan, 0]
    rules = {one.rule for one in _audit(frame.assign(label=_honest()["label"])).findings}
    assert not rules & {"leakage_duplicate_rows", "leakage_near_duplicate_rows"}


def test_patients_with_little_on_record_are_alike_by_chance_in_small_splits_too() -> None:
    """Age, sex and two counts: a tenth of the rows equal another one, and a holdout of 5 % shows few of them."""
    found = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        busy = rng.random(N) < 0.4
        frame = pd.DataFrame(
            {
                "patient_id": [f"P{number}" for number in range(N)],
                "label": rng.integers(0, 2, N),
                "age": rng.integers(18, 90, N),
                "sex": rng.choice(["F", "M"], N),
                **{f"cost_{place}": np.where(busy, rng.normal(size=N), 0.0) for place in range(3)},
                **{f"count_{place}": rng.poisson(0.6, N) for place in range(2)},
                "split": rng.choice(["train", "validation", "test", "holdout"], N, p=[0.6, 0.2, 0.15, 0.05]),
            }
        )
        report = audit(frame, target="label", splits="split")
        found += any(one.rule == "leakage_duplicate_rows" for one in report.findings)
    assert found <= 1


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        # Cases are indexed shortly after their last visit, controls long after.
        ({"last_visit_date": lambda index, gap: index - gap}, ("last_visit_date",)),
        # Each date alone says nothing, the length of the window between them does.
        (
            {
                "window_start": lambda index, gap: index - NOISE - gap,
                "window_end": lambda index, gap: index - NOISE,
            },
            ("window_start", "window_end"),
        ),
    ],
)
def test_windows_that_depend_on_the_label_block(columns: dict[str, Callable], found: tuple[str, ...]) -> None:
    frame = _honest()
    gap = pd.to_timedelta(np.where(LABEL == 1, 5, 60) + RNG.integers(0, 20, N), unit="D")
    report = _audit(frame.assign(**{name: make(frame["index_date"], gap) for name, make in columns.items()}))
    assert report.blocking
    assert [(one.kind, one.rule, one.columns) for one in report.findings] == [
        ("window", "leakage_window", found)
    ]


def test_an_index_date_chosen_by_the_outcome_blocks() -> None:
    frame = _honest()
    frame["index_date"] += pd.to_timedelta(np.where(LABEL == 1, 0, 90) + RNG.integers(0, 30, N), unit="D")
    assert [one.columns for one in _audit(frame).findings if one.kind == "window"] == [("index date",)]


def test_the_outcome_window_is_named_and_rows_that_begin_inside_another_are_told() -> None:
    frame = _honest()
    frame.loc[:9, "last_visit_date"] = pd.Timestamp("2024-03-20")
    frame.loc[10:11, "last_visit_date"] = pd.Timestamp("2024-12-20")
    late = audit(frame, target="label", index_date="index_date", horizon_days=90).findings
    assert "10 of them inside the outcome window of 90 days" in late[0].evidence and late[0].affected == 12
    again = _honest().head(600)
    again = pd.concat([again, again.head(5).assign(index_date=pd.Timestamp("2024-04-01"))], ignore_index=True)
    (overlap,) = audit(again, target="label", index_date="index_date", horizon_days=90).findings
    assert (overlap.rule, overlap.affected, overlap.severity) == ("leakage_outcome_window", 5, "convention")


@pytest.mark.parametrize(
    ("column", "affected"),
    [
        (pd.Series(["2024-03-01T11:00:00"] * 3 + ["2024-03-01T12:30:00"] * (N - 3)), N - 3),
        (pd.Series([pd.Timestamp("2024-03-02").date()] * 4 + [None] * (N - 4), dtype=object), 4),
        (pd.Series(pd.period_range("2024-02", periods=2, freq="M").repeat(N // 2)), 0),
    ],
)
def test_dates_are_found_by_their_values_whatever_the_column_is_called(
    column: pd.Series, affected: int
) -> None:
    index = pd.Timestamp("2024-03-01T12:00:00")
    found = audit(
        _honest().assign(signed=column, index_date=index), target="label", index_date="index_date"
    ).findings
    assert [one.affected for one in found if one.kind == "temporal"] == ([affected] if affected else [])


def test_each_date_is_compared_at_the_coarser_precision_of_its_own_row() -> None:
    """Some index dates have a time of day, others are days: a date of the same day is after neither."""
    days = pd.Series([pd.Timestamp("2024-03-01T13:52:00"), pd.Timestamp("2024-03-01")] * (N // 2))
    same = pd.Series(["2024-03-01", "2024-03-01T10:00:00"] * (N // 2))
    late = same.mask(pd.Series(np.arange(N) < 4), "2024-03-02")
    for column, affected in ((same, 0), (late, 4), (same.mask(same.index < 4, "2024-04"), 0)):
        found = audit(
            _honest().assign(signed=column, index_date=days), target="label", index_date="index_date"
        ).findings
        after = [one.affected for one in found if one.kind == "temporal" and one.severity == "fatal"]
        assert after == ([affected] if affected else [])


def test_events_counted_back_from_after_the_index_block() -> None:
    frame = _honest().assign(days_since_last_refill=np.where(np.arange(N) < 7, -3.0, 12.0))
    (finding,) = [one for one in _audit(frame).findings if one.kind == "temporal"]
    assert (finding.columns, finding.affected) == (("days_since_last_refill",), 7)


def test_a_code_inside_a_text_with_a_value_for_each_row_blocks() -> None:
    note = [f"{'resp' if one else 'none'}-{number}" for number, one in enumerate(LABEL)]
    report = _audit(_honest().assign(note=note))
    assert [one.columns for one in report.findings] == [("note",)] and report.blocking


def test_outcomes_of_the_holdout_are_not_looked_at() -> None:
    frame = _honest()
    sealed = frame["split"] == "holdout"
    frame["proxy"] = np.where(sealed, frame["label"].astype(float), 0.5)
    frame.loc[~sealed, "proxy"] = RNG.normal(size=int((~sealed).sum()))
    swapped = frame.assign(label=frame["label"].where(~sealed, 1 - frame["label"]))
    assert _audit(frame) == _audit(swapped)


def test_an_error_inside_a_check_blocks_and_tells_no_value() -> None:
    class Unreadable:
        def __str__(self) -> str:
            raise RuntimeError("canary-value")

    report = _audit(_honest().assign(odd=[Unreadable() for _ in range(N)]))
    assert report.blocking
    assert {(one.rule, one.kind) for one in report.findings} >= {("check_error", "target")}
    assert not next(check for check in report.checks if check.kind == "target").ran
    assert "canary" not in str(report.to_metadata()) and "RuntimeError" in report.findings[0].evidence


def test_two_columns_of_one_name_are_an_error() -> None:
    with pytest.raises(InputError, match="two columns of one name: noise"):
        audit(pd.concat([_honest(), _honest()[["noise"]]], axis=1), target="label")


def test_coarse_features_coincide_by_chance_without_a_finding() -> None:
    frame = _honest()[["patient_id", "index_date", "label", "visits", "region", "split"]]
    assert _audit(frame).findings == ()


def test_splits_as_frames() -> None:
    frame = _honest()
    parts = {str(name): part.drop(columns="split") for name, part in frame.groupby("split")}
    clean = audit(frame.drop(columns="split"), target="label", splits=parts)
    assert clean.findings == ()
    assert set(clean.splits) == {"train", "validation", "test", "holdout"}
    same = audit(frame.drop(columns="split"), target="label", splits={**parts, "again": parts["test"]})
    assert {one.rule for one in same.findings} == {"leakage_shared_patients"}


def test_what_did_not_run_says_why() -> None:
    report = audit(_honest(n=20), target="label")
    assert {check.kind: check.reason for check in report.checks if not check.ran} == {
        "temporal": "no index date was given",
        "target": "20 labelled rows, at least 40 are needed",
        "window": "20 labelled rows, at least 40 are needed",
        "contamination": "no splits were given",
    }
    empty = _audit(_honest().iloc[:0])
    assert not empty.findings
    single = audit(_honest().assign(label=1), target="label")
    assert "single value" in str(single.to_metadata()["checks"].texts)


def test_unlabelled_rows_mixed_types_and_empty_columns_do_not_stop_it() -> None:
    frame = _honest().assign(mixed=[1, "a", None, 2.5] * (N // 4), empty=np.nan, nothing=None)
    frame.loc[:99, "label"] = pd.NA
    assert _audit(frame).findings == ()


def test_a_missing_column_is_an_error() -> None:
    with pytest.raises(InputError, match="has no column outcome"):
        audit(_honest(), target="outcome")


def test_the_report_holds_no_value_of_a_patient_and_the_frame_is_unchanged() -> None:
    frame = _honest().assign(proxy=np.where(LABEL == 1, "canary-1", "canary-0"))
    frame.loc[1, "patient_id"] = "P0"
    before = frame.copy(deep=True)
    report = _audit(frame)
    pd.testing.assert_frame_equal(frame, before)
    shown = str(report.to_metadata()) + str(report.to_record())
    assert "canary" not in shown
    assert "P0" not in shown


Drawn = Callable[[int, int, np.random.Generator], Any]


def _readmissions(column: Drawn, rows: int) -> pd.DataFrame:
    """2,000 stays, 10 % of them readmitted; the first ``rows`` are a category of ``column`` without a readmission."""
    rng = np.random.default_rng(4)
    n = 2_000
    readmitted = np.zeros(n, dtype=int)
    readmitted[rng.choice(np.arange(rows, n), 200, replace=False)] = 1
    return pd.DataFrame(
        {
            "patient_id": [f"P{i}" for i in range(n)],
            "patient_journey_id": [f"J{i}" for i in range(n)],
            "readmitted": readmitted,
            "age": rng.normal(60, 10, n),
            "ward": rng.choice(["surgery", "internal"], n),
            "discharge": column(n, rows, rng),
        }
    )


def _text(n: int, rows: int, rng: np.random.Generator) -> Any:
    return np.where(np.arange(n) < rows, "expired: in hospital", rng.choice(["home", "transfer"], n))


def _flag(n: int, rows: int, rng: np.random.Generator) -> Any:
    return pd.array(np.arange(n) < rows, dtype="boolean")


def _number(n: int, rows: int, rng: np.random.Generator) -> Any:
    return np.where(np.arange(n) < rows, 11.0, rng.permutation(n).astype(float) + 100)


def _code(n: int, rows: int, rng: np.random.Generator) -> Any:
    """A disposition as a number: 28 codes, of which 11 is not the most frequent."""
    return np.where(np.arange(n) < rows, 11, rng.choice([1, 1, 1, 1, 1, *range(2, 11), *range(12, 29)], n))


def _empty_text(n: int, rows: int, rng: np.random.Generator) -> Any:
    return pd.Series(rng.choice(["home", "transfer"], n), dtype="string").where(np.arange(n) >= rows)


def _empty_number(n: int, rows: int, rng: np.random.Generator) -> Any:
    return np.where(np.arange(n) < rows, np.nan, rng.normal(0, 3, n))


def _empty_flag(n: int, rows: int, rng: np.random.Generator) -> Any:
    return pd.Series(rng.random(n) < 0.5, dtype="boolean").where(np.arange(n) >= rows)


def _filled_text(n: int, rows: int, rng: np.random.Generator) -> Any:
    return pd.Series(rng.choice(["ward 1", "ward 2"], n), dtype="string").where(np.arange(n) < rows)


def _filled_number(n: int, rows: int, rng: np.random.Generator) -> Any:
    return np.where(np.arange(n) < rows, rng.exponential(2, n), np.nan)


def _filled_date(n: int, rows: int, rng: np.random.Generator) -> Any:
    day = pd.Timestamp("2023-01-01") + pd.to_timedelta(rng.integers(0, 300, n), unit="D")
    return pd.Series(day).where(np.arange(n) < rows)


def _empty_date(n: int, rows: int, rng: np.random.Generator) -> Any:
    day = pd.Timestamp("2023-01-01") + pd.to_timedelta(rng.integers(0, 300, n), unit="D")
    return pd.Series(day).where(np.arange(n) >= rows)


CATEGORIES = [
    (_text, ""), (_flag, ""), (_number, ""), (_code, ""),
    (_empty_text, " without a value"), (_empty_number, " without a value"), (_empty_flag, " without a value"),
    (_empty_date, " without a value"),
    (_filled_text, " with a value"), (_filled_number, " with a value"), (_filled_date, " with a value"),
]  # fmt: skip


@pytest.mark.parametrize(("column", "which"), CATEGORIES)
def test_a_large_category_without_an_event_cannot_have_the_outcome(column: Drawn, which: str) -> None:
    from e2i_dagster.cohorts import build_cohort
    from e2i_dagster.config.cohort import CohortDefinition

    frame = _readmissions(column, 300)
    (finding,) = audit(frame, target="readmitted").findings
    assert (finding.rule, finding.columns, finding.severity) == (
        "leakage_no_event",
        ("discharge",),
        "convention",
    )
    assert finding.affected == 300
    assert finding.evidence == (
        f"cannot have the outcome: none of 300 rows{which} has it, 10.0% of all rows have it"
    )
    # The proposed rule, in a cohort file, leaves exactly them out, and nothing is found any more.
    rule = yaml.safe_load(str(finding.proposal))
    definition = CohortDefinition.model_validate(
        {
            "brand": "Examplumab",
            "indication": "demo",
            "inclusion_criteria": [{"field": "age", "operator": ">", "value": 0}],
            "temporal_requirements": {"lookback_days": 0, "followup_days": 0, "index_date_field": "seen"},
            **rule,
        }
    )
    seen = pd.Timestamp("2024-01-01")
    patients = frame.assign(seen=seen, first_observation_date=seen, last_observation_date=seen)
    eligible = build_cohort(definition, patients).eligible["patient_id"]
    left = frame[frame["patient_id"].isin(set(eligible))]
    assert len(left) == 1_700 and left["readmitted"].sum() == 200
    assert not audit(left, target="readmitted").findings
    # Twenty of them may have none by chance.
    assert not audit(_readmissions(column, 20), target="readmitted").findings


def test_the_page_and_the_record_tell_the_rule_that_leaves_them_out() -> None:
    report = audit(_readmissions(_text, 300), target="readmitted")
    assert "exclusion_criteria:" in str(report.to_metadata()["findings"].texts)
    (row,) = [one for one in report.to_record()["rows"] if "cannot have" in one["details"]]
    assert "expired: in hospital" in row["remediation_action"]


def test_dates_are_read_as_the_loader_reads_them() -> None:
    frame = _honest().drop(columns="last_visit_date")
    index = frame["index_date"].dt.strftime("%Y-%m-%d")
    # A compact day and a moment with an offset that is the day before: both are read.
    visits = ["20240228", "2024-03-01T00:30:00+02:00"] * (len(frame) // 2)
    assert not _audit(frame.assign(index_date=index, visit=visits)).findings
    late = [*visits[:-1], "20240302"]
    assert [one.rule for one in _audit(frame.assign(index_date=index, visit=late)).findings] == [
        "leakage_temporal"
    ]
    # What could be two days is none, and it is told: it may lie after the index date.
    swapped = _audit(frame.assign(visit=["05/01/2024", "2024-02-28"] * (len(frame) // 2)))
    (finding,) = swapped.findings
    assert finding.columns == ("visit",) and "600 values are refused as ambiguous_date" in finding.evidence
    with pytest.raises(InputError, match=r"index_date has 1,200 value.*refused as ambiguous_date"):
        _audit(frame.assign(index_date="05/01/2024"))
