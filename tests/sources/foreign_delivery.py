"""A supplier's delivery in its own words: other names, separators, dates, codes, a brand of its own."""

from pathlib import Path

import numpy as np
import pandas as pd

#: The supplier's brand, which nobody shipped.
BRAND = "Examplumab"


def foreign_tables(n_patients: int = 400, seed: int = 5) -> dict[str, pd.DataFrame]:
    """Prescribers, episodes (every third patient has two), findings per episode, and drug events.

    Returns:
        Frames by the supplier's file name, with the supplier's column names and spellings.
    """
    draw = np.random.default_rng(seed)
    doctors = [f"DR-{k:04d}" for k in range(20)]
    prescribers = pd.DataFrame(
        {"PrescriberNo": doctors, "Speciality": draw.choice(["Neurology", "General"], 20), "State": "CA"}
    )
    patient = np.concatenate([np.arange(n_patients), np.arange(0, n_patients, 3)])
    n = len(patient)
    start = pd.Timestamp("2024-01-05") + pd.to_timedelta(draw.integers(0, 150, n), unit="D")
    age = draw.integers(12, 85, n)
    episodes = pd.DataFrame(
        {
            "EpisodeNo": [f"E-{k:05d}" for k in range(n)],
            "MemberID": [f"0{k:05d}" for k in patient],
            "EpisodeStartDt": start.strftime("%d.%m.%Y"),
            "PrescriberNo": draw.choice(doctors, n),
            "Product": BRAND,
            "Sex": draw.choice(["female", "male"], n),
            "Age_at_Dx": age,
            "Rgn": draw.choice(["West", "South"], n),
            "Payer": draw.choice(["Commercial", "Medicare"], n),
        }
    )
    attacks = draw.normal(6, 3, n).clip(0).round(1)
    findings = pd.DataFrame(
        {
            "EpisodeNo": episodes["EpisodeNo"],
            "Dx_Cd": draw.choice(["G43.709", "G43.711", "G44.1"], n, p=[0.5, 0.3, 0.2]),
            "Dx_Dt": start.strftime("%d.%m.%Y"),
            "First_Obs_Dt": (start - pd.Timedelta(days=400)).strftime("%d.%m.%Y"),
            "Last_Obs_Dt": pd.Series(start + pd.Timedelta(days=300)).dt.strftime("%d.%m.%Y"),
            "monthly_migraine_days": pd.Series(attacks).map(lambda value: str(value).replace(".", ",")),
            "triptan_overuse": draw.choice(["true", "false", ""], n, p=[0.1, 0.8, 0.1]),
        }
    )
    chosen = draw.choice(n, n, replace=True)
    # Events in every month of the year: a month without any is a missing delivery.
    events = pd.DataFrame(
        {
            "EvtNo": [f"RX-{k:06d}" for k in range(n)],
            "EpisodeNo": episodes["EpisodeNo"].to_numpy()[chosen],
            "MemberID": episodes["MemberID"].to_numpy()[chosen],
            "EvtDt": (start[chosen] + pd.to_timedelta(draw.integers(1, 250, n), unit="D")).strftime(
                "%d.%m.%Y"
            ),
            "EvtTyp": "RX",
            "Product": BRAND,
        }
    )
    return {
        "prescribers": prescribers,
        "episodes": episodes,
        "episode_findings": findings,
        "drug_events": events,
    }


def write_foreign(folder: Path, *only: str, **changed: pd.DataFrame) -> Path:
    """The delivery as semicolon-separated files in a Western European encoding.

    Args:
        only: names of the files to write, besides those of ``changed``; all of them by default.
        changed: frames in the place of the supplier's, or besides them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tables = foreign_tables()
    for name, frame in {**({name: tables[name] for name in only} or tables), **changed}.items():
        frame.to_csv(folder / f"{name}.csv", sep=";", index=False, encoding="cp1252")
    return folder


COHORT = """
brand: Examplumab
indication: migraine
title: Adults with frequent migraine
version: 1.0.0
status: draft
own_fields: {monthly_migraine_days: number, triptan_overuse: boolean}
inclusion_criteria:
  - {field: age_at_diagnosis, operator: ">=", value: 18}
  - {field: diagnosis_code, operator: in, value: ["G43.7.*"]}
  - {field: monthly_migraine_days, operator: ">=", value: 4}
exclusion_criteria:
  - {field: triptan_overuse, operator: "==", value: true}
temporal_requirements:
  {lookback_days: 365, followup_days: 180, index_date_field: diagnosis_date, followup: require}
examples:
  - name: everything fits
    patient: &typical
      age_at_diagnosis: 40
      diagnosis_code: G43.709
      monthly_migraine_days: 8
      triptan_overuse: false
      diagnosis_date: 2024-03-01
      first_observation_date: 2022-01-01
      last_observation_date: 2024-12-01
    expect: in
  - name: another headache
    patient: {<<: *typical, diagnosis_code: G44.1}
    expect: {out: diagnosis_code}
"""
