"""Deliveries in the shapes of others: a claims extract, an extract of the OMOP model, datasets of a trial.

The patients are invented: adults with migraine, some of whom start a preventive treatment (``Examplumab``) within 90
days. Whether they do depends on what their records show before that day, so that a model has something to find; the
probabilities are in :func:`draw_courses` and nowhere in the files. The columns are those of the published layouts that
``e2i import check`` knows; no row is of a person or of a published file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from e2i_dagster.errors import InputError
from e2i_dagster.synthetic.raw_tables import npi
from e2i_dagster.synthetic.streams import Streams

#: First day of observation, and the last one.
FIRST, LAST = pd.Timestamp("2022-01-01"), pd.Timestamp("2024-12-31")
#: National drug codes (invented labeler) of the acute and of the preventive treatment.
ACUTE_NDC, PREVENTIVE_NDC = "99999010130", "99999020201"
#: ICD-10-CM codes: migraine, anxiety disorder, hypertension.
MIGRAINE, ANXIETY, HYPERTENSION = "G43709", "F411", "I10"


def draw_courses(patients: int, seed: int) -> pd.DataFrame:
    """One row for each patient: who they are, what happened before the diagnosis, whether and when they start.

    ``logit P(start within 90 days) = -1.9 + 0.8 (acute fills - 3) + 1.6 anxiety + 1.4 emergency - 0.03 (age - 45)``

    Returns:
        number (1 to ``patients``), born and diagnosed (days), female, state (a US postal code), acute_fills (0 to
        6, in the 180 days before the diagnosis), anxiety, emergency (bool, on record in these days), probability,
        started (day, NaT for those who do not), and the day of everything that happens in ``on WHAT [n]``.
    """
    streams = Streams(seed)
    age = streams.integer("foreign/age", 20, 70, patients)
    diagnosed = FIRST + pd.to_timedelta(streams.integer("foreign/diagnosed", 240, 1060, patients), unit="D")
    fills = streams.integer("foreign/acute_fills", 0, 6, patients)
    anxiety = streams.uniform("foreign/anxiety", patients) < 0.3
    emergency = streams.uniform("foreign/emergency", patients) < 0.25
    logit = -1.9 + 0.8 * (fills - 3) + 1.6 * anxiety + 1.4 * emergency - 0.03 * (age - 45)
    probability = 1 / (1 + np.exp(-logit))
    starts = streams.uniform("foreign/starts", patients) < probability
    delay = pd.to_timedelta(streams.integer("foreign/delay", 5, 85, patients), unit="D")
    states = np.array(["NY", "PA", "TX", "FL", "OH", "IL", "CA", "WA"])

    def before(name: str, low: int, high: int, happens: pd.Series | np.ndarray) -> pd.Series:
        """A day from ``low`` to ``high`` days before the diagnosis."""
        days = pd.to_timedelta(streams.integer(f"foreign/on/{name}", low, high, patients), unit="D")
        return pd.Series(diagnosed - days).where(happens)

    some_day = pd.to_timedelta(streams.integer("foreign/on/visit", 0, 1090, patients), unit="D")
    started = pd.Series(diagnosed + delay).where(starts)
    days = {
        "on migraine": diagnosed,
        "on hypertension": before(
            "hypertension", 1, 200, streams.uniform("foreign/pressure", patients) < 0.2
        ),
        **{f"on acute {n}": before(f"acute {n}", 27 * n - 24, 27 * n, fills >= n) for n in range(1, 7)},
        "on anxiety": before("anxiety", 1, 170, anxiety),
        "on emergency": before("emergency", 1, 170, emergency),
        "on preventive": started,
        # Everybody is seen at the beginning and at the end, which is how long they are observed.
        "on visit 1": FIRST,
        "on visit 2": FIRST + some_day,
        "on visit 3": LAST,
    }
    return pd.DataFrame(
        {
            "number": np.arange(1, patients + 1),
            "born": diagnosed
            - pd.to_timedelta(
                365.25 * age + streams.integer("foreign/birthday", 1, 360, patients), unit="D"
            ).round("D"),
            "diagnosed": diagnosed,
            "female": streams.uniform("foreign/female", patients) < 0.7,
            "state": states[streams.integer("foreign/state", 0, len(states) - 1, patients)],
            "acute_fills": fills,
            "anxiety": anxiety,
            "emergency": emergency,
            "probability": probability,
            "started": started,
            **days,
        }
    )


def _happenings(courses: pd.DataFrame) -> pd.DataFrame:
    """What happened to whom: ``number, day, what``; the order is that of patients and days."""
    on = [name for name in courses.columns if name.startswith("on ")]
    rows = courses.melt("number", on, "what", "day").dropna(subset="day")
    rows["what"] = rows["what"].str.split().str[1]
    rows = rows[rows["day"] <= LAST].sort_values(["number", "day", "what"], ignore_index=True)
    return rows.assign(row=np.arange(1, len(rows) + 1))


def omop_extract(courses: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Files of the OMOP Common Data Model 5.4: person, observation_period, conditions, drugs, visits, provider,
    concept."""
    rows = _happenings(courses)
    day = rows["day"].dt.strftime("%Y-%m-%d")
    codes = {"migraine": (101, "G43.709"), "anxiety": (102, "F41.1"), "hypertension": (103, "I10")}
    drugs = {"acute": (201, ACUTE_NDC), "preventive": (202, PREVENTIVE_NDC)}
    diseased, drugged = rows["what"].isin(list(codes)), rows["what"].isin(list(drugs))
    seen = rows["what"].isin(["visit", "emergency"])
    meant = rows["what"].map({**codes, **drugs})
    concept = meant.str[0].astype("Int64")
    concepts = [
        (101, "Migraine, unspecified, not intractable", "Condition", "ICD10CM", "G43.709"),
        (102, "Generalized anxiety disorder", "Condition", "ICD10CM", "F41.1"),
        (103, "Essential (primary) hypertension", "Condition", "ICD10CM", "I10"),
        (201, "acute migraine treatment", "Drug", "RxNorm", "1"),
        (202, "Examplumab", "Drug", "RxNorm", "2"),
    ]
    person = courses["number"]
    return {
        "person.csv": pd.DataFrame(
            {
                "person_id": person,
                "gender_concept_id": np.where(courses["female"], 8532, 8507),
                "year_of_birth": courses["born"].dt.year,
                "birth_datetime": courses["born"].dt.strftime("%Y-%m-%d 00:00:00"),
                "race_concept_id": 0,
                "ethnicity_concept_id": 0,
                "provider_id": 1 + person % 20,
                "person_source_value": person,
            }
        ),
        "observation_period.csv": pd.DataFrame(
            {
                "observation_period_id": person,
                "person_id": person,
                "observation_period_start_date": f"{FIRST:%Y-%m-%d}",
                "observation_period_end_date": f"{LAST:%Y-%m-%d}",
                "period_type_concept_id": 32882,
            }
        ),
        "condition_occurrence.csv": pd.DataFrame(
            {
                "condition_occurrence_id": rows["row"],
                "person_id": rows["number"],
                "condition_start_date": day,
                "provider_id": 1 + rows["number"] % 20,
                "condition_concept_id": 0,
                "condition_source_value": meant.str[1],
                "condition_source_concept_id": concept,
            }
        )[diseased],
        "drug_exposure.csv": pd.DataFrame(
            {
                "drug_exposure_id": rows["row"],
                "person_id": rows["number"],
                "drug_exposure_start_date": day,
                "provider_id": 1 + rows["number"] % 20,
                "drug_concept_id": concept,
                "drug_source_value": meant.str[1],
                "days_supply": 28,
            }
        )[drugged],
        "visit_occurrence.csv": pd.DataFrame(
            {
                "visit_occurrence_id": rows["row"],
                "person_id": rows["number"],
                "visit_start_date": day,
                "provider_id": 1 + rows["number"] % 20,
                "visit_concept_id": np.where(rows["what"] == "emergency", 9203, 9202),
            }
        )[seen],
        "provider.csv": pd.DataFrame(
            {
                "provider_id": np.arange(1, 21),
                "provider_name": "",
                "npi": "",
                "specialty_concept_id": 38004458,
                "specialty_source_value": "Neurology",
            }
        ),
        "concept.csv": pd.DataFrame(
            concepts, columns=["concept_id", "concept_name", "domain_id", "vocabulary_id", "concept_code"]
        ),
    }


def claims_extract(courses: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Files in the layout of the CMS synthetic public use files: beneficiaries, outpatient claims with diagnosis
    columns 1 to 10, prescription drug events; days ``yyyymmdd``."""
    rows = _happenings(courses)
    member = rows["number"].map("{:016X}".format)
    day = rows["day"].dt.strftime("%Y%m%d")
    social_security = {"NY": 33, "PA": 39, "TX": 45, "FL": 10, "OH": 36, "IL": 14, "CA": 5, "WA": 50}
    filled = rows["what"].isin(["acute", "preventive"])
    first = rows["what"].map({"migraine": MIGRAINE, "anxiety": ANXIETY, "hypertension": HYPERTENSION})
    claims = pd.DataFrame(
        {
            "DESYNPUF_ID": member,
            "CLM_ID": 542_000_000_000_000 + rows["row"],
            "SEGMENT": 1,
            "CLM_FROM_DT": day,
            "CLM_THRU_DT": day,
            "PRVDR_NUM": "2600RA",
            "CLM_PMT_AMT": (np.where(rows["what"] == "emergency", 640, 95) + rows["row"] * 7 % 40).astype(
                str
            ),
            "AT_PHYSN_NPI": np.asarray(npi(rows["number"].to_numpy() % 20 + 30_000_000)),
            "ICD9_DGNS_CD_1": first.fillna("Z0000"),
            "ICD9_DGNS_CD_2": np.where(rows["what"] == "emergency", "R519", ""),
            **{f"ICD9_DGNS_CD_{n}": "" for n in range(3, 11)},
            "HCPCS_CD_1": np.where(rows["what"] == "emergency", "99284", "99213"),
            "HCPCS_CD_2": "",
        }
    )[~filled]
    fills = pd.DataFrame(
        {
            "DESYNPUF_ID": member,
            "PDE_ID": 233_500_000_000_000 + rows["row"],
            "SRVC_DT": day,
            "PROD_SRVC_ID": np.where(rows["what"] == "acute", ACUTE_NDC, PREVENTIVE_NDC),
            "QTY_DSPNSD_NUM": "9.000",
            "DAYS_SUPLY_NUM": 28,
            "PTNT_PAY_AMT": "10.00",
            "TOT_RX_CST_AMT": np.where(rows["what"] == "acute", "60.00", "690.00"),
        }
    )[filled]
    beneficiaries = pd.DataFrame(
        {
            "DESYNPUF_ID": courses["number"].map("{:016X}".format),
            "BENE_BIRTH_DT": courses["born"].dt.strftime("%Y%m%d"),
            "BENE_DEATH_DT": "",
            "BENE_SEX_IDENT_CD": np.where(courses["female"], 2, 1),
            "BENE_RACE_CD": 1,
            "SP_STATE_CODE": courses["state"].map(social_security).map("{:02d}".format),
            "BENE_COUNTY_CD": "010",
        }
    )
    return {
        "beneficiaries_2024.csv": beneficiaries,
        "outpatient_claims.csv": claims,
        "drug_events.csv": fills,
    }


def trial_datasets(courses: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Datasets of a trial: ADSL (subjects), CM (concomitant medication, SDTM, with an ISO day) and ADQS (monthly
    migraine days at the start), as SAS transport files of version 5."""
    rows = _happenings(courses)
    subject = rows["number"].map("EX-501-{:05d}".format)
    taken = rows["what"].isin(["acute", "preventive"])
    medication = pd.DataFrame(
        {
            "STUDYID": "EX-501",
            "USUBJID": subject,
            "CMSEQ": rows.groupby("number").cumcount() + 1.0,
            "CMDECOD": np.where(rows["what"] == "acute", "RIZATRIPTAN", "EXAMPLUMAB"),
            "CMDOSE": np.where(rows["what"] == "acute", 10.0, 140.0),
            "CMDOSU": "mg",
            "CMSTDTC": rows["day"].dt.strftime("%Y-%m-%d"),
        }
    )[taken]
    subjects = pd.DataFrame(
        {
            "STUDYID": "EX-501",
            "USUBJID": courses["number"].map("EX-501-{:05d}".format),
            "SUBJID": courses["number"].map("{:05d}".format),
            "AGE": ((courses["diagnosed"] - courses["born"]).dt.days // 365.25).astype(float),
            "SEX": np.where(courses["female"], "F", "M"),
            "RFSTDTC": courses["diagnosed"].dt.strftime("%Y-%m-%d"),
            "LSTALVDT": (LAST - pd.Timestamp("1960-01-01")).days * 1.0,
            "ANXFL": np.where(courses["anxiety"], "Y", "N"),
            "EMERGFL": np.where(courses["emergency"], "Y", "N"),
        }
    )
    questionnaire = pd.DataFrame(
        {
            "USUBJID": subjects["USUBJID"],
            "PARAMCD": "MMD",
            "AVISITN": 0.0,
            "AVAL": 4.0 + 2 * courses["acute_fills"] + (courses["number"] % 2),
            "ADT": (courses["diagnosed"] - pd.Timestamp("1960-01-01")).dt.days.astype(float),
        }
    )
    return {"adsl.xpt": subjects, "cm.xpt": medication, "adqs.xpt": questionnaire}


SHAPES: Mapping[str, Callable[[pd.DataFrame], dict[str, pd.DataFrame]]] = {
    "claims": claims_extract,
    "omop": omop_extract,
    "trial": trial_datasets,
}
#: SAS formats of the variables that hold a day.
_SAS_DAYS = ("LSTALVDT", "ADT")


def write_shape(shape: str, folder: Path, *, patients: int, seed: int) -> dict[Path, int]:
    """Draw ``patients`` and write them into ``folder`` in one of ``SHAPES``; returns the rows of each file.

    Raises:
        InputError: there is no such shape.
        OSError: the folder cannot be written.
    """
    if shape not in SHAPES:
        raise InputError(
            f"{shape!r} is not a shape that is generated.",
            field="shape",
            value=shape,
            remedy=f"Use one of: {', '.join(SHAPES)}.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for name, frame in SHAPES[shape](draw_courses(patients, seed)).items():
        path = folder / name
        if path.suffix == ".xpt":
            import pyreadstat

            formats = {column: "DATE9." for column in _SAS_DAYS if column in frame}
            pyreadstat.write_xport(
                frame,  # pyright: ignore[reportArgumentType] (its stub has a frame of its own)
                str(path),
                table_name=path.stem.upper(),
                file_format_version=5,
                variable_format=formats,
            )
        else:
            frame.to_csv(path, index=False, lineterminator="\n")
        written[path] = len(frame)
    return written
