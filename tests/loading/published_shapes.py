"""Small folders in published shapes, of our own making: no row is of a person or of a published file."""

import uuid
from pathlib import Path

import numpy as np
import pandas as pd

#: Folder name -> file name -> rows, all text.
Folder = dict[str, pd.DataFrame]


def _texts(columns: dict) -> pd.DataFrame:
    return pd.DataFrame(columns).astype("string")


def _days(draw: np.random.Generator, n: int, first: str = "2023-01-05", days: int = 300) -> pd.Series:
    return pd.Series(pd.Timestamp(first) + pd.to_timedelta(draw.integers(0, days, n), unit="D"))


def npi(base: int) -> str:
    """A valid identifier from nine digits, by the check digit as it is written on paper."""
    total = 24
    for place, digit in enumerate(f"{base:09d}"):
        value = int(digit) * (2 if place % 2 == 0 else 1)
        total += value - 9 if value > 9 else value
    return f"{base:09d}{-total % 10}"


def claims() -> Folder:
    """Twelve beneficiaries in files of two years, of whom the last has nothing else; the others' claims and fills."""
    draw = np.random.default_rng(1)
    people = [f"{k:016X}" for k in range(1, 13)]
    of_year = {
        "DESYNPUF_ID": people,
        "BENE_BIRTH_DT": [f"19{30 + k}0{1 + k % 9}01" for k in range(12)],
        "BENE_DEATH_DT": "",
        "BENE_SEX_IDENT_CD": ["1", "2"] * 6,
        "BENE_RACE_CD": "1",
        "SP_STATE_CODE": ["05", "33", "54"] * 4,
        "BENE_COUNTY_CD": "010",
    }
    n = 30
    starts = _days(draw, n)
    codes = np.array(["4019", "25000", "V5869", "7088", ""])
    outpatient = {
        "DESYNPUF_ID": draw.choice(people[:11], n),
        "CLM_ID": [f"5420{k:011d}" for k in range(n)],
        "SEGMENT": "1",
        "CLM_FROM_DT": starts.dt.strftime("%Y%m%d"),
        "CLM_THRU_DT": (starts + pd.Timedelta(days=1)).dt.strftime("%Y%m%d"),
        "PRVDR_NUM": "2600RA",
        "CLM_PMT_AMT": [f"{amount}.00" for amount in draw.integers(10, 300, n)],
        "AT_PHYSN_NPI": draw.choice([npi(223_000_000), npi(223_000_001), ""], n),
        **{f"ICD9_DGNS_CD_{k}": draw.choice(codes, n) for k in range(2, 11)},
        **{f"HCPCS_CD_{k}": draw.choice(["99213", "J2357", ""], n) for k in range(1, 4)},
    }
    outpatient["ICD9_DGNS_CD_1"] = draw.choice(codes[:4], n)
    # A second segment of a claim has no days, and one claim no diagnosis.
    outpatient["SEGMENT"] = ["1"] * (n - 1) + ["2"]
    frame = _texts(outpatient)
    frame.loc[n - 1, ["CLM_FROM_DT", "CLM_THRU_DT"]] = ""
    frame.loc[0, [name for name in frame.columns if name.startswith("ICD9")]] = ""
    inpatient = frame.iloc[1:6].assign(
        CLM_ID=[f"1967{k:011d}" for k in range(5)], CLM_ADMSN_DT=frame["CLM_FROM_DT"].iloc[1:6]
    )
    fills = {
        "DESYNPUF_ID": draw.choice(people[:11], 20),
        "PDE_ID": [f"2335{k:011d}" for k in range(20)],
        "SRVC_DT": _days(draw, 20).dt.strftime("%Y%m%d"),
        "PROD_SRVC_ID": draw.choice(["00078094661", "00781150610"], 20),
        "QTY_DSPNSD_NUM": "30.000",
        "DAYS_SUPLY_NUM": draw.choice(["30", "90"], 20),
        "PTNT_PAY_AMT": "10.00",
        "TOT_RX_CST_AMT": [f"{cost}.00" for cost in draw.integers(20, 900, 20)],
    }
    return {
        "DE1_0_2022_Beneficiary_Summary_File_Sample_1.csv": _texts(of_year),
        "DE1_0_2023_Beneficiary_Summary_File_Sample_1.csv": _texts(of_year),
        "DE1_0_Outpatient_Claims_Sample_1.csv": frame,
        "DE1_0_Inpatient_Claims_Sample_1.csv": inpatient,
        "DE1_0_Prescription_Drug_Events_Sample_1.csv": _texts(fills),
    }


def synthea() -> Folder:
    """Eight patients, of whom the last has no encounter."""
    draw = np.random.default_rng(2)

    def ids(n: int) -> list[str]:
        return [str(uuid.UUID(bytes=draw.bytes(16), version=4)) for _ in range(n)]

    people, doctors, visits = ids(8), ids(2), ids(20)
    who = draw.choice(people[:7], 20)
    when = _days(draw, 20)
    start = when.dt.strftime("%Y-%m-%dT08:30:00Z")
    patients = {
        "Id": people,
        "BIRTHDATE": [f"19{50 + 5 * k}-0{1 + k}-15" for k in range(8)],
        "DEATHDATE": "",
        "SSN": "999-00-0000",
        "FIRST": "Given1",
        "LAST": "Name1",
        "MARITAL": "M",
        "RACE": "white",
        "ETHNICITY": "nonhispanic",
        "GENDER": ["M", "F"] * 4,
        "CITY": "Boston",
        "STATE": "Massachusetts",
        "COUNTY": "Suffolk County",
        "ZIP": "02108",
    }
    encounters = {
        "Id": visits,
        "START": start,
        "STOP": when.dt.strftime("%Y-%m-%dT09:00:00Z"),
        "PATIENT": who,
        "ORGANIZATION": "o1",
        "PROVIDER": draw.choice(doctors, 20),
        "PAYER": "p1",
        "ENCOUNTERCLASS": draw.choice(["wellness", "ambulatory", "emergency", "inpatient"], 20),
        "CODE": "162673000",
        "DESCRIPTION": "General examination of patient (procedure)",
        "BASE_ENCOUNTER_COST": "129.16",
        "TOTAL_CLAIM_COST": "704.20",
        "PAYER_COVERAGE": "554.20",
        "REASONCODE": "",
        "REASONDESCRIPTION": "",
    }
    seen = {"PATIENT": who[:12], "ENCOUNTER": visits[:12]}
    conditions = {
        "START": when[:12].dt.strftime("%Y-%m-%d"),
        "STOP": "",
        **seen,
        "CODE": draw.choice(["444814009", "38341003"], 12),
        "DESCRIPTION": draw.choice(["Viral sinusitis (disorder)", "Hypertension"], 12),
    }
    medications = {
        "START": start[:12],
        "STOP": (when[:12] + pd.Timedelta(days=14)).dt.strftime("%Y-%m-%dT08:30:00Z"),
        "PAYER": "p1",
        **seen,
        "CODE": "313782",
        "DESCRIPTION": "Acetaminophen 325 MG Oral Tablet",
        "BASE_COST": "5.00",
        "PAYER_COVERAGE": "0.00",
        "DISPENSES": "1",
        "TOTALCOST": "5.00",
        "REASONCODE": "444814009",
        "REASONDESCRIPTION": "",
    }
    procedures = {
        "START": start[:12],
        "STOP": start[:12],
        **seen,
        "CODE": "430193006",
        "DESCRIPTION": "Medication Reconciliation (procedure)",
        "BASE_COST": "431.40",
        "REASONCODE": "",
        "REASONDESCRIPTION": "",
    }
    observations = {
        "DATE": start[:12],
        **seen,
        "CATEGORY": ["laboratory", "vital-signs", "survey"] * 4,
        "CODE": ["718-7", "8302-2", "72514-3"] * 4,
        "DESCRIPTION": ["Hemoglobin", "Body Height", "Pain severity"] * 4,
        "VALUE": "14.1",
        "UNITS": "g/dL",
        "TYPE": "numeric",
    }
    careplans = {
        "Id": ids(3),
        "START": "2023-02-01",
        "STOP": "",
        "PATIENT": who[:3],
        "ENCOUNTER": visits[:3],
        "CODE": "53950000",
        "DESCRIPTION": "Respiratory therapy",
        "REASONCODE": "10509002",
        "REASONDESCRIPTION": "Acute bronchitis (disorder)",
    }
    providers = {
        "Id": doctors,
        "ORGANIZATION": "o1",
        "NAME": "Name2",
        "GENDER": "F",
        "SPECIALITY": "GENERAL PRACTICE",
        "ADDRESS": "1 Street",
        "CITY": "Boston",
        "STATE": "MA",
        "ZIP": "02108",
    }
    made = dict(
        patients=patients,
        encounters=encounters,
        conditions=conditions,
        medications=medications,
        procedures=procedures,
        observations=observations,
        careplans=careplans,
        providers=providers,
    )
    return {f"{name}.csv": _texts(columns) for name, columns in made.items()}


def omop() -> Folder:
    """Ten persons with one observation period each but for the last; names of columns in capital letters."""
    draw = np.random.default_rng(3)
    people = [str(k) for k in range(1, 11)]
    person = {
        "person_id": people,
        "gender_concept_id": ["8507", "8532"] * 5,
        "year_of_birth": [str(1950 + k) for k in range(10)],
        "month_of_birth": "",
        "day_of_birth": "",
        "birth_datetime": ["1950-03-15 00:00:00", *[""] * 9],
        "race_concept_id": "0",
        "ethnicity_concept_id": "0",
        "provider_id": "1",
        "person_source_value": people,
    }
    period = {
        "observation_period_id": [f"9{k}" for k in people[:9]],
        "person_id": people[:9],
        "observation_period_start_date": "2022-06-01",
        "observation_period_end_date": "2023-12-31",
        "period_type_concept_id": "32882",
    }

    def events(table: str, day: str, n: int, **more) -> pd.DataFrame:
        return _texts(
            {
                f"{table}_id": [str(k) for k in range(1, n + 1)],
                "person_id": draw.choice(people[:9], n),
                day: _days(draw, n).dt.strftime("%Y-%m-%d"),
                "provider_id": draw.choice(["1", ""], n),
                **more,
            }
        )

    concepts = {
        "concept_id": ["45591453", "19019273"],
        "concept_name": ["Idiopathic urticaria", "omalizumab"],
        "domain_id": ["Condition", "Drug"],
        "vocabulary_id": ["ICD10CM", "RxNorm"],
        "concept_code": ["L50.1", "302379"],
    }
    made = dict(
        person=_texts(person),
        observation_period=_texts(period),
        condition_occurrence=events(
            "condition_occurrence",
            "condition_start_date",
            15,
            condition_concept_id="139902",
            condition_source_value="L50.8",
            condition_source_concept_id=draw.choice(["45591453", "0"], 15),
        ),
        drug_exposure=events(
            "drug_exposure",
            "drug_exposure_start_date",
            14,
            drug_concept_id=draw.choice(["19019273", "0"], 14),
            drug_source_value="00078094661",
            days_supply="28",
        ),
        visit_occurrence=events(
            "visit_occurrence",
            "visit_start_date",
            13,
            visit_concept_id=draw.choice(["9201", "9202", "9203"], 13),
        ),
        measurement=events(
            "measurement", "measurement_date", 6, measurement_source_value="718-7", value_as_number="13"
        ),
        death=_texts({"person_id": ["3"], "death_date": ["2023-12-30"], "death_type_concept_id": ["32817"]}),
        provider=_texts(
            {
                "provider_id": ["1"],
                "provider_name": [""],
                "npi": [npi(323_000_000)],
                "specialty_concept_id": ["38004456"],
                "specialty_source_value": ["Dermatology"],
            }
        ),
        concept=_texts(concepts),
    )
    return {f"{name}.csv": frame.rename(columns=str.upper) for name, frame in made.items()}


def nppes() -> Folder:
    """Five persons, one organization, one deactivated number without any other field."""
    code, switch = "Healthcare Provider Taxonomy Code_{}", "Healthcare Provider Primary Taxonomy Switch_{}"
    place = "Provider Business Practice Location Address"
    frame = _texts(
        {
            "NPI": [npi(423_000_000 + k) for k in range(7)],
            "Entity Type Code": [*["1"] * 5, "2", ""],
            "Provider Organization Name (Legal Business Name)": [*[""] * 5, "Clinic 1", ""],
            "Provider Last Name (Legal Name)": [*[f"Name{k}" for k in range(5)], "", ""],
            "Provider First Name": [*["Given"] * 5, "", ""],
            f"{place} City Name": [*["BOSTON"] * 6, ""],
            f"{place} State Name": ["MA", "CA", "NY", "PR", "ONTARIO", "MA", ""],
            f"{place} Postal Code": [*["021080000"] * 6, ""],
            "NPI Deactivation Date": [*[""] * 6, "01/31/2020"],
            **{code.format(k): "" for k in range(1, 16)},
            **{switch.format(k): "" for k in range(1, 16)},
        }
    )
    frame.loc[:5, code.format(1)] = "207N00000X"
    frame.loc[:5, switch.format(1)] = "Y"
    # The primary taxonomy of one is the eleventh, and one has none.
    frame.loc[1, [code.format(11), switch.format(11), switch.format(1)]] = ["207K00000X", "Y", "N"]
    frame.loc[2, switch.format(1)] = "N"
    return {"npidata_pfile_20240101-20240107.csv": frame}


FOLDERS = {"claims": claims, "synthea": synthea, "omop": omop, "nppes": nppes}


def write(name: str, folder: Path) -> Path:
    """The folder of a shape as files; ``claims`` and ``nppes`` quoted as their publishers do."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, frame in FOLDERS[name]().items():
        frame.to_csv(folder / file, index=False, quoting=1 if name == "nppes" else 0, lineterminator="\n")
    return folder
