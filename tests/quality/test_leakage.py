"""The audit finds planted leaks of each kind and leaves honest frames alone."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pandas as pd
import pytest

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


def test_honest_frames_have_no_finding() -> None:
    found = [report for seed in range(25) if (report := _audit(_honest(seed))).findings]
    assert found == []
    report = _audit(_honest())
    assert not report.blocking
    assert all(check.ran for check in report.checks)


LABEL = _honest()["label"].to_numpy(dtype=int)
RNG = np.random.default_rng(9)


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
        "contamination": "no splits were given",
    }
    empty = _audit(_honest().iloc[:0])
    assert not empty.findings
    single = audit(_honest().assign(label=1), target="label")
    assert "single value" in single.to_metadata()["checks_md"]


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
