"""The eleven raw tables of a :class:`Population`: rows, keys, dates, texts.

Rows that carry signal come first (the history before the index date, the initiation), rows that fill the
volume asked for come after and are unrelated to the outcome given those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from e2i_dagster.errors import InputError
from e2i_dagster.synthetic.population import (
    ENGAGEMENT_WINDOW,
    HIGH_ENGAGEMENT,
    HISTORY_DAYS,
    INSURANCE,
    Population,
    age_unknown,
)
from e2i_dagster.synthetic.processes import COURSES, course_probabilities
from e2i_dagster.synthetic.streams import (
    DATA_END,
    FIRST_DAY,
    Flags,
    Floats,
    Ints,
    Streams,
    booleans,
    constant,
    dates,
    integers,
    joined_text,
    keys,
    numbers,
    pc,
    pick,
    sigmoid,
    text_array,
    timestamps,
)
from e2i_dagster.tables.codes import NPI_PREFIX_SUM, luhn_sum

#: Places: region, state, city, first three digits of the ZIP code.
PLACES: tuple[tuple[str, str, str, str], ...] = (
    ("northeast", "NY", "Albany", "122"),
    ("northeast", "PA", "Pittsburgh", "152"),
    ("northeast", "MA", "Worcester", "016"),
    ("northeast", "NJ", "Trenton", "086"),
    ("south", "TX", "Austin", "787"),
    ("south", "FL", "Tampa", "336"),
    ("south", "GA", "Atlanta", "303"),
    ("south", "NC", "Raleigh", "276"),
    ("south", "TN", "Nashville", "372"),
    ("midwest", "OH", "Columbus", "432"),
    ("midwest", "IL", "Peoria", "616"),
    ("midwest", "MN", "Duluth", "558"),
    ("midwest", "MO", "Springfield", "658"),
    ("west", "CA", "Fresno", "937"),
    ("west", "WA", "Spokane", "992"),
    ("west", "CO", "Denver", "802"),
    ("west", "AZ", "Tucson", "857"),
)
_REGION_SHARE = {"northeast": 0.22, "south": 0.38, "midwest": 0.21, "west": 0.19}
_PLACE_WEIGHTS = [_REGION_SHARE[place[0]] / sum(other[0] == place[0] for other in PLACES) for place in PLACES]

#: Brands in the order of the groups of professionals who prescribe them.
BRANDS = ("Remibrutinib", "Fabhalta", "Kisqali")
_BRAND_CODES = (*BRANDS, "competitor", "other")

#: Specialties of each group of professionals with their weights, and the sub-specialty.
_SPECIALTIES: tuple[tuple[tuple[str, float, str], ...], ...] = (
    (
        ("dermatology", 0.50, "medical_dermatology"),
        ("allergy_immunology", 0.35, "adult_allergy"),
        ("rheumatology", 0.15, "clinical_rheumatology"),
    ),
    (
        ("hematology", 0.60, "benign_hematology"),
        ("internal_medicine", 0.30, "nephrology"),
        ("neurology", 0.10, "neuroimmunology"),
    ),
    (("oncology", 1.0, "medical_oncology"),),
)

_FIRST_NAMES = ("Ada", "Ben", "Clara", "Dan", "Elena", "Farid", "Grace", "Hugo", "Ines", "Jonas", "Kira", "Leo",
                "Mina", "Noah", "Olga", "Paul", "Rosa", "Sami", "Tara", "Viktor")  # fmt: skip
_LAST_NAMES = ("Abbot", "Baker", "Castell", "Dorn", "Ekwall", "Ferris", "Gantner", "Holm", "Ivers", "Jessen",
               "Kessler", "Lindt", "Marlow", "Nyberg", "Orlan", "Pryce", "Quill", "Rask", "Sorel", "Tamm")  # fmt: skip

_TITLES: dict[str, str] = {
    "L50": "Urticaria", "L20": "Atopic dermatitis", "D59.5": "Paroxysmal nocturnal hemoglobinuria",
    "D59.1": "Autoimmune hemolytic anemia", "D59.3": "Hemolytic-uremic syndrome", "D61": "Aplastic anemia",
    "N03": "Chronic nephritic syndrome", "N04": "Nephrotic syndrome", "N05": "Nephritic syndrome, unspecified",
    "N02": "Recurrent hematuria", "C50": "Malignant neoplasm of breast", "D05": "Carcinoma in situ of breast",
    "D24": "Benign neoplasm of breast", "C79": "Secondary malignant neoplasm",
}  # fmt: skip


@dataclass(frozen=True)
class _Care:
    """What a cohort's care looks like: drugs, laboratory test and procedure.

    ``drugs``: the brand first, then others as (brand code, name, class, dosage, NDC); the last one needs no
    earlier line of therapy. ``laboratory``: value name, LOINC code, mean, standard deviation.
    """

    drugs: tuple[tuple[str, str, str, str, str], ...]
    laboratory: tuple[str, str, float, float]
    procedure: tuple[str, str]


_CARE: dict[str, _Care] = {
    "remibrutinib_csu": _Care(
        (
            ("Remibrutinib", "remibrutinib", "BTK_inhibitor", "25mg_BID", "00078-1483-20"),
            ("other", "cetirizine", "H1_antihistamine", "10mg_QD", "55111-0699-01"),
            ("competitor", "omalizumab", "anti_IgE", "300mg_Q4W", "50242-0215-01"),
        ),
        ("ige", "19113-0", 180.0, 60.0),
        ("95004", "skin_test"),
    ),
    "fabhalta_pnh": _Care(
        (
            ("Fabhalta", "iptacopan", "complement_factor_B_inhibitor", "200mg_BID", "00078-1189-20"),
            ("competitor", "ravulizumab", "C5_inhibitor", "3300mg_Q8W", "25682-0022-01"),
            ("other", "prednisone", "corticosteroid", "20mg_QD", "00054-0018-20"),
        ),
        ("hemoglobin", "718-7", 9.5, 1.2),
        ("38221", "bone_marrow_biopsy"),
    ),
    "fabhalta_c3g": _Care(
        (
            ("Fabhalta", "iptacopan", "complement_factor_B_inhibitor", "200mg_BID", "00078-1189-20"),
            ("competitor", "pegcetacoplan", "C3_inhibitor", "1080mg_BIW", "73606-0010-01"),
            ("other", "mycophenolate", "immunosuppressant", "1000mg_BID", "00004-0259-01"),
        ),
        ("complement_c3", "4485-9", 70.0, 20.0),
        ("50200", "renal_biopsy"),
    ),
    "kisqali_hr_her2_bc": _Care(
        (
            ("Kisqali", "ribociclib", "CDK4_6_inhibitor", "600mg_QD", "00078-0874-63"),
            ("competitor", "fulvestrant", "SERD", "500mg_Q4W", "00310-0720-10"),
            ("other", "letrozole", "aromatase_inhibitor", "2.5mg_QD", "00078-0249-15"),
        ),
        ("ca_15_3", "6875-9", 45.0, 15.0),
        ("19083", "breast_biopsy"),
    ),
}

_SOURCES = ("IQVIA_APLD", "IQVIA_LAAD", "HealthVerity", "Komodo", "Veeva")

# Kinds of treatment events, in the order of the vocabulary that the tables use.
_EVENTS = ("diagnosis", "prescription", "lab_test", "procedure", "consultation", "hospitalization")
_DIAGNOSIS, _PRESCRIPTION, _LAB, _PROCEDURE, _CONSULTATION, _HOSPITAL = range(len(_EVENTS))


@dataclass(frozen=True)
class Professionals:
    """The professionals: group, academic flag, place and practice, one value per professional."""

    line: Ints
    academic: Flags
    practice: Ints
    place: Ints

    @property
    def size(self) -> int:
        """Number of professionals."""
        return len(self.line)


_PRACTICES = ("academic", "community", "private")


def draw_professionals(size: int, streams: Streams) -> Professionals:
    """Professionals in three groups, each with academic and other practices.

    Raises:
        InputError: fewer than six, the least that has both kinds in each group.
    """
    if size < 6:
        raise InputError(
            f"n_hcps={size}: expected at least 6, an academic and another professional for each of three brands.",
            field="n_hcps",
            value=size,
        )
    line = np.arange(size) % 3
    academic = streams.happens("hcp.academic", np.where(line == 2, 0.40, 0.25), size)
    academic[:3], academic[3:6] = True, False
    practice = np.where(academic, 0, 1 + streams.choice("hcp.practice", [0.65, 0.35], size))
    return Professionals(line, academic, practice, streams.choice("hcp.place", _PLACE_WEIGHTS, size))


def npi(numbers_: Ints) -> Any:
    """National Provider Identifiers: nine digits from ``numbers_`` and the check digit."""
    base = (100_000_000 + numbers_) * 10
    digits = [base // 10**position % 10 for position in range(9, -1, -1)]
    return keys("", base + -(luhn_sum(digits) + NPI_PREFIX_SUM) % 10, 10)


def hcp_profiles(hcps: Professionals, streams: Streams) -> pd.DataFrame:
    """The table ``hcp_profiles``."""
    size = hcps.size

    def null(name: str, share: float = 0.03) -> Flags:
        return streams.happens(f"hcp.{name}.null", share, size)

    number = np.arange(size)
    specialties = [item for group in _SPECIALTIES for item in group]
    starts = np.cumsum([0] + [len(group) for group in _SPECIALTIES])
    specialty = np.zeros(size, dtype=np.int64)
    for line, group in enumerate(_SPECIALTIES):
        drawn = starts[line] + streams.choice("hcp.specialty", [weight for _, weight, _ in group], size)
        specialty = np.where(hcps.line == line, drawn, specialty)
    mean = np.asarray([300.0, 200.0, 150.0])[hcps.practice]
    deviation = np.asarray([100.0, 75.0, 50.0])[hcps.practice]
    volume = np.clip(np.round(mean + deviation * streams.normal("hcp.volume", size)), 50, 600).astype(
        np.int64
    )
    target = np.round(volume * (0.1 + 0.2 * streams.uniform("hcp.target", size))).astype(np.int64)
    prescribing = np.round(target * (0.5 + 2.0 * streams.uniform("hcp.prescribing", size))).astype(np.int64)
    rank = np.argsort(np.argsort(prescribing, kind="stable"), kind="stable") / size
    influence = np.round(5 + 60 * streams.uniform("hcp.network", size) ** 2).astype(np.int64)
    territory = hcps.place * 10 + number % 10
    adoption = streams.choice("hcp.adoption", [0.025, 0.135, 0.34, 0.34, 0.16], size)
    categories = ("innovator", "early_adopter", "early_majority", "late_majority", "laggard")
    return pd.DataFrame(
        {
            "hcp_id": keys("HCP", number + 1, 8),
            # 7,654,321 shares no factor with 10^8, so that the identifiers differ.
            "npi": npi((number * 7_654_321 + 31_415_926 + streams.seed) % 100_000_000),
            "first_name": pick(_FIRST_NAMES, streams.integer("hcp.first", 0, len(_FIRST_NAMES) - 1, size)),
            "last_name": pick(_LAST_NAMES, streams.integer("hcp.last", 0, len(_LAST_NAMES) - 1, size)),
            "specialty": pick([item[0] for item in specialties], specialty),
            "sub_specialty": pick([item[2] for item in specialties], specialty, null("sub_specialty", 0.05)),
            "practice_type": pick(_PRACTICES, hcps.practice),
            "practice_size": pick(
                ("small", "medium", "large"), np.searchsorted([150, 300], volume), null("practice_size")
            ),
            "geographic_region": pick([place[0] for place in PLACES], hcps.place),
            "state": pick([place[1] for place in PLACES], hcps.place),
            "city": pick([place[2] for place in PLACES], hcps.place),
            "zip_code": _zip(hcps.place, streams.integer("hcp.zip", 0, 99, size), null("zip_code")),
            "priority_tier": integers(5 - np.floor(rank * 5)),
            "decile": integers(1 + np.floor(rank * 10)),
            "total_patient_volume": integers(volume),
            "target_patient_volume": integers(target),
            "prescribing_volume": integers(prescribing),
            "years_experience": integers(
                streams.integer("hcp.years", 2, 39, size), null("years_experience", 0.02)
            ),
            "affiliation_primary": pick(
                ("University hospital", "Community clinic", "Private practice"), hcps.practice
            ),
            "digital_engagement_score": numbers(streams.uniform("hcp.digital", size), 2),
            "preferred_channel": pick(
                ("email", "digital", "in_person", "rep_visit"),
                streams.choice("hcp.channel", [0.3, 0.2, 0.3, 0.2], size),
            ),
            "interaction_frequency": numbers(0.2 + 4.0 * streams.uniform("hcp.frequency", size), 1),
            "last_interaction_date": dates(
                streams.integer("hcp.last_contact", DATA_END - 180, DATA_END, size)
            ),
            "influence_network_size": integers(influence),
            "peer_influence_score": numbers(influence / 70.0, 2),
            "adoption_category": pick(categories, adoption),
            "coverage_status": booleans(streams.happens("hcp.covered", 0.92, size)),
            "territory_id": keys("TER", territory, 3),
            "sales_rep_id": _representative(hcps, number),
        }
    )


def _zip(place: Ints, last: Ints, null: Flags | None = None) -> Any:
    full = joined_text(pick([item[3] for item in PLACES], place), keys("", last, 2))
    return text_array(full if null is None else pc.if_else(pa.array(null), None, full))


def _representative(hcps: Professionals, hcp: Ints) -> Any:
    return keys("REP", hcps.place[hcp] * 10 + hcp % 10, 3)


def treating_professional(people: Population, hcps: Professionals, streams: Streams) -> Ints:
    """One professional per journey: of the brand's group, academic exactly where ``academic_hcp`` is 1."""
    draw = streams.uniform("patient.hcp", people.size)
    line = people.of_cohort("line")
    chosen = np.zeros(people.size, dtype=np.int64)
    for group in range(3):
        for academic in (False, True):
            pool = np.flatnonzero((hcps.line == group) & (hcps.academic == academic))
            mine = (line == group) & ((people.covariates.academic == 1) == academic)
            chosen[mine] = pool[np.floor(draw[mine] * len(pool)).astype(np.int64)]
    return chosen


def patient_journeys(
    people: Population, hcps: Professionals, hcp: Ints, engagement_score: Floats, streams: Streams
) -> pd.DataFrame:
    """The table ``patient_journeys``. ``engagement_score`` comes from :func:`engagement_events`."""
    size = people.size

    def null(name: str, share: float = 0.02) -> Flags:
        return streams.happens(f"patient.{name}.null", share, size)

    number = np.arange(size) + 1
    started = people.outcome
    ongoing = people.last_seen >= DATA_END
    place = np.where(
        streams.happens("patient.near", 0.85, size),
        hcps.place[hcp],
        streams.choice("patient.place", _PLACE_WEIGHTS, size),
    )
    since = people.last_seen - people.index
    stage = np.select([~started, since < 150, since < 400], [0, 1, 2], 3)
    stage = np.where(started & streams.happens("patient.switched", 0.06, size), 4, stage)
    status = np.where(ongoing, np.where(since < 120, 0, np.where(started, 1, 2)), 3)
    male_unknown = np.where(people.female, 0, 1)
    gender = np.where(streams.happens("patient.gender_unknown", 0.01, size), 2, male_unknown)
    lag = streams.integer("patient.lag", 12, 240, size)
    second = streams.integer("patient.second", 0, 86_399, size)
    comorbidity = streams.choice("patient.comorbidity", [0.5, 0.2, 0.15, 0.1, 0.05], size)
    other_code = ('["I10"]', '["E11.9"]', '["E78.5"]', '["J45.909"]', "[]")
    words = ('["hypertension"]', '["diabetes"]', '["hyperlipidemia"]', '["asthma"]', "[]")
    source = streams.choice("patient.source", [0.3, 0.2, 0.2, 0.2, 0.1], size)
    stacked = streams.happens("patient.stacked", 0.3, size)
    bands = ("0-17", "18-24", "25-34", "35-44", "45-54", "55-64", "65-74", "75+")
    quality = numbers(0.75 + 0.25 * streams.uniform("patient.quality", size), 2)
    risk = sigmoid(0.5 * people.covariates.z + streams.normal("patient.risk", size))
    no_age = age_unknown(size, streams)
    return pd.DataFrame(
        {
            "patient_journey_id": keys("PJ", number, 16),
            "patient_id": keys("PAT", number, 8),
            "patient_hash": keys("PH", (number * 7_654_321) % 10**12, 12),
            "journey_start_date": dates(people.first_seen),
            "journey_end_date": dates(people.last_seen, ongoing),
            "journey_duration_days": integers(people.last_seen - people.first_seen),
            "journey_stage": pick(
                (
                    "diagnosis",
                    "initial_treatment",
                    "treatment_optimization",
                    "maintenance",
                    "treatment_switch",
                ),
                stage,
            ),
            "journey_status": pick(("active", "stable", "transitioning", "completed"), status),
            "primary_diagnosis_code": people.code,
            "primary_diagnosis_desc": _titles(people),
            "secondary_diagnosis_codes": pick(other_code, comorbidity),
            "brand": _brand(people),
            "age_group": pick(
                bands, np.searchsorted([18, 25, 35, 45, 55, 65, 75], people.age, side="right"), no_age
            ),
            "age_at_diagnosis": integers(people.age, no_age),
            "gender": pick(("F", "M", "U"), gender),
            "geographic_region": pick([item[0] for item in PLACES], place),
            "state": pick([item[1] for item in PLACES], place),
            "zip_code": _zip(place, streams.integer("patient.zip", 0, 99, size), null("zip_code", 0.03)),
            "insurance_type": pick(
                [name for name, _ in INSURANCE], people.insurance, null("insurance", 0.015)
            ),
            "data_quality_score": numbers(quality, 2, null("quality")),
            "comorbidities": pick(words, comorbidity, null("comorbidities", 0.04)),
            "risk_score": numbers(risk, 2, null("risk", 0.03)),
            "data_source": pick(_SOURCES, source),
            "data_sources_matched": pick(
                [f'["{first}"]' for first in _SOURCES] + [f'["{first}", "Veeva"]' for first in _SOURCES],
                source + len(_SOURCES) * stacked,
            ),
            "source_match_confidence": numbers(0.8 + 0.2 * streams.uniform("patient.match", size), 2),
            "source_stacking_flag": booleans(stacked),
            "source_combination_method": pick(
                ("deterministic", "probabilistic", "hybrid"),
                streams.choice("patient.combination", [0.6, 0.25, 0.15], size),
            ),
            "source_timestamp": timestamps(people.index, second),
            "ingestion_timestamp": timestamps(people.index, second + lag * 3_600),
            "data_lag_hours": integers(lag),
            "hcp_id": _hcp_key(hcp),
            "disease_severity": people.covariates.severity,
            "academic_hcp": integers(people.covariates.academic),
            "engagement_score": engagement_score,
            "treatment_initiated": integers(started),
            "days_to_treatment": integers(np.where(started, people.days_to_treatment, 0), ~started),
        }
    )


def _hcp_key(hcp: Ints, null: Flags | None = None) -> Any:
    return keys("HCP", hcp + 1, 8, null)


def _journey_key(journey: Ints, null: Flags | None = None) -> Any:
    return keys("PJ", journey + 1, 16, null)


def _patient_key(journey: Ints) -> Any:
    return keys("PAT", journey + 1, 8)


def _brand(people: Population, journey: Ints | None = None) -> Any:
    cohort = people.cohort if journey is None else people.cohort[journey]
    return pick([item.brand for item in people.cohorts], cohort)


def _titles(people: Population) -> Any:
    codes = pd.Series(people.code)
    words = {
        code: next(title for prefix, title in _TITLES.items() if code.startswith(prefix))
        for code in codes.unique()
    }
    return codes.map(words).astype("string[pyarrow]").array


def patient_clinical(people: Population) -> pd.DataFrame:
    """The table ``patient_clinical``: one row per journey, only the columns of its cohort filled."""
    return pd.DataFrame(
        {
            "patient_journey_id": _journey_key(np.arange(people.size)),
            "diagnosis_code": people.code,
            "diagnosis_date": dates(people.index),
            "first_observation_date": dates(people.first_seen),
            "last_observation_date": dates(people.last_seen),
            **people.clinical,
        }
    )


def _repeat(counts: Ints) -> tuple[Ints, Ints]:
    """Journey of each event, and the event's place within it, for ``counts`` events per journey."""
    journey = np.repeat(np.arange(len(counts)), counts)
    return journey, np.arange(len(journey)) - np.repeat(np.cumsum(counts) - counts, counts)


def _history_day(people: Population, journey: Ints, name: str, streams: Streams) -> Ints:
    """A day within ``HISTORY_DAYS`` strictly before the index date, within the journey."""
    days = np.minimum(people.index - people.first_seen, HISTORY_DAYS)[journey]
    return people.index[journey] - streams.integer(name, 1, days, len(journey))


def _later_day(people: Population, journey: Ints, name: str, streams: Streams) -> Ints:
    """A day after the index date, within the journey."""
    days = (people.last_seen - people.index)[journey]
    return people.index[journey] + streams.integer(name, 1, days, len(journey))


def treatment_events(people: Population, hcp: Ints, size: int, streams: Streams) -> pd.DataFrame:
    """The table ``treatment_events``: exactly ``size`` rows.

    In this order as far as the volume goes: prescriptions of the brand that make the outcome, consultations
    and prescriptions of other drugs before the index date, the diagnosis on it, then filling rows
    (laboratory tests and procedures before the index date; refills, visits and tests after it).

    Raises:
        InputError: ``size`` is too small for the rows that carry the outcome and its causes.
    """
    everyone = np.arange(people.size)
    starters = np.flatnonzero(people.outcome)
    visits, _ = _repeat(people.covariates.consultations.astype(np.int64))
    other, _ = _repeat(people.covariates.prescriptions.astype(np.int64))
    needed = len(starters) + len(visits) + len(other)
    if size < needed:
        raise InputError(
            f"n_treatments={size}: these {people.size} patients need at least {needed} treatment events "
            "(prescriptions of the brand, consultations and other prescriptions before the index date).",
            field="n_treatments",
            value=size,
        )
    diagnosed = np.sort(streams.order("treatment.diagnosed", people.size)[: size - needed])
    filling = size - needed - len(diagnosed)
    first = people.index + people.days_to_treatment
    # Which other drug: without an earlier line of therapy only the last of the cohort's list.
    earlier = streams.happens("treatment.earlier_line", 0.7, len(other)) & ~_no_earlier_line(people)[other]
    parts = [
        _part(starters, first[starters], _PRESCRIPTION, 0, "new_rx"),
        _part(
            visits, _history_day(people, visits, "treatment.visit_day", streams), _CONSULTATION, -1, "visit"
        ),
        _part(
            other,
            _history_day(people, other, "treatment.other_day", streams),
            _PRESCRIPTION,
            np.where(earlier, 1, 2),
            "new_rx",
        ),
        _part(everyone[diagnosed], people.index[diagnosed], _DIAGNOSIS, -1, "confirmed"),
        *_filling_parts(people, starters, first, filling, streams),
    ]
    rows = pd.concat(parts, ignore_index=True)
    rows = rows.sort_values(["day", "journey", "kind"], kind="stable", ignore_index=True)
    return _treatment_frame(people, hcp, rows, streams)


def _no_earlier_line(people: Population) -> Flags:
    """Journeys whose clinical facts rule out the cohort's first other drug."""
    antihistamine = people.clinical["prior_antihistamine_therapy"]
    status = pd.Series(people.clinical["complement_inhibitor_status"])
    without = pd.array(antihistamine, dtype="boolean").fillna(True).to_numpy(dtype=bool)
    return ~without | status.eq("never").fillna(False).to_numpy(dtype=bool)


def _part(journey: Ints, day: Ints, kind: int, drug: Ints | int, subtype: str) -> pd.DataFrame:
    return pd.DataFrame({"journey": journey, "day": day, "kind": kind, "drug": drug, "subtype": subtype})


def _filling_parts(
    people: Population, starters: Ints, first: Ints, filling: int, streams: Streams
) -> list[pd.DataFrame]:
    """Rows unrelated to the outcome given its causes, ``filling`` of them."""
    kind = streams.choice("treatment.filling", [0.30, 0.05, 0.30, 0.20, 0.12, 0.03], filling)
    journey = streams.integer("treatment.filling_journey", 0, people.size - 1, filling)
    parts = []
    before = ((_LAB, "panel", 0), (_PROCEDURE, "diagnostic", 1))
    for event, subtype, code in before:
        mine = journey[kind == code]
        day = _history_day(people, mine, f"treatment.before_{code}", streams)
        parts.append(_part(mine, day, event, -1, subtype))
    # Refills follow a first prescription; where nobody started there is a follow-up visit instead.
    count = int(np.sum(kind == 2))
    if len(starters):
        mine = starters[streams.integer("treatment.refill_journey", 0, len(starters) - 1, count)]
        room = people.last_seen[mine] - first[mine]
        day = first[mine] + np.minimum(streams.integer("treatment.refill_day", 1, 180, count), room)
        parts.append(_part(mine, day, _PRESCRIPTION, 0, "refill"))
    else:
        mine = journey[kind == 2]
        day = _later_day(people, mine, "treatment.refill_day", streams)
        parts.append(_part(mine, day, _CONSULTATION, -1, "follow_up"))
    after = (
        (_CONSULTATION, "follow_up", 3),
        (_LAB, "monitoring", 4),
        (_HOSPITAL, "inpatient", 5),
    )
    for event, subtype, code in after:
        mine = journey[kind == code]
        day = _later_day(people, mine, f"treatment.after_{code}", streams)
        parts.append(_part(mine, day, event, -1, subtype))
    return parts


def _treatment_frame(people: Population, hcp: Ints, rows: pd.DataFrame, streams: Streams) -> pd.DataFrame:
    size = len(rows)
    journey, day = rows["journey"].to_numpy(), rows["day"].to_numpy()
    kind, drug = rows["kind"].to_numpy(), rows["drug"].to_numpy()
    care = [_CARE[cohort.key] for cohort in people.cohorts]
    cohort = people.cohort[journey]
    is_drug, is_lab, is_procedure = drug >= 0, kind == _LAB, kind == _PROCEDURE
    # Position of each drug in the flat list of three per cohort.
    flat = [item for entry in care for item in entry.drugs]
    position = cohort * 3 + np.maximum(drug, 0)
    no_drug = ~is_drug

    def null(name: str, share: float) -> Flags:
        return streams.happens(f"treatment.{name}.null", share, size)

    brand = np.where(is_drug, position, cohort * 3)
    value = numbers(
        np.maximum(
            np.asarray([entry.laboratory[2] for entry in care])[cohort]
            + np.asarray([entry.laboratory[3] for entry in care])[cohort]
            * streams.normal("treatment.laboratory", size),
            0.5,
        ),
        1,
    )
    laboratory = joined_text('{"', pick([entry.laboratory[0] for entry in care], cohort), '": ', value, "}")
    factor = np.exp(0.35 * streams.normal("treatment.cost", size))
    typical = np.asarray([150.0, 400.0, 90.0, 900.0, 180.0, 9_000.0])[kind]
    typical = np.where(is_drug, np.where(drug == 0, 12_000.0, 600.0), typical)
    cpt = ['["99204"]', "[]", '["36415"]', "", '["99214"]', '["99223"]']
    procedures = [f'["{entry.procedure[0]}"]' for entry in care]
    cpt_code = np.where(is_procedure, len(cpt) + cohort, kind)
    loinc = [f'["{entry.laboratory[1]}"]' for entry in care]
    codes = joined_text('["', pa.array(people.code).take(pa.array(journey)), '"]')
    subtypes = pd.Categorical(rows["subtype"])
    subtype = pick(list(subtypes.categories), subtypes.codes.astype(np.int64))
    if is_procedure.any():
        named = pick([entry.procedure[1] for entry in care], cohort)
        subtype = text_array(pc.if_else(pa.array(is_procedure), pa.array(named), pa.array(subtype)))
    order = rows.groupby("journey", sort=False).cumcount().to_numpy() + 1
    place = np.select([kind == _HOSPITAL, streams.happens("treatment.remote", 0.15, size)], [1, 2], 0)
    place = np.where(is_procedure & (place == 0), 1, place)
    lag = streams.integer("treatment.lag", 1, 14, size)
    return pd.DataFrame(
        {
            "treatment_event_id": keys("TE", np.arange(size) + 1, 25),
            "patient_journey_id": _journey_key(journey),
            "patient_id": _patient_key(journey),
            "hcp_id": _hcp_key(hcp[journey], null("hcp_id", 0.01)),
            "event_date": dates(day),
            "event_type": pick(_EVENTS, kind),
            "event_subtype": subtype,
            "brand": pick([item[0] for item in flat], brand),
            "drug_ndc": pick([item[4] for item in flat], position, no_drug),
            "drug_name": pick([item[1] for item in flat], position, no_drug),
            "drug_class": pick([item[2] for item in flat], position, no_drug),
            "dosage": pick([item[3] for item in flat], position, no_drug),
            "duration_days": integers(
                np.asarray([30, 60, 90])[streams.choice("treatment.supply", [0.6, 0.15, 0.25], size)], no_drug
            ),
            "icd_codes": text_array(codes),
            "cpt_codes": pick(cpt + procedures, cpt_code),
            "loinc_codes": pick([*loinc, "[]"], np.where(is_lab, cohort, len(loinc))),
            "lab_values": text_array(pc.if_else(pa.array(is_lab), laboratory, "{}")),
            "location_type": pick(("office", "hospital", "telehealth"), place),
            "facility_id": keys("FAC", hcp[journey] % 500 + 1, 4),
            "cost": numbers(typical * factor, 2, null("cost", 0.03)),
            "outcome_indicator": pick(
                ("improved", "stable", "worsened"),
                streams.choice("treatment.indicator", [0.35, 0.5, 0.15], size),
                null("outcome_indicator", 0.04),
            ),
            "adverse_event_flag": booleans(streams.happens("treatment.adverse", 0.04, size)),
            "discontinuation_flag": booleans(is_drug & streams.happens("treatment.stopped", 0.08, size)),
            "sequence_number": integers(order),
            "days_from_diagnosis": integers(day - people.index[journey]),
            "data_source": pick(
                _SOURCES, streams.choice("treatment.source", [0.3, 0.2, 0.2, 0.2, 0.1], size)
            ),
            "source_timestamp": timestamps(
                np.minimum(day + lag, DATA_END), streams.integer("treatment.second", 0, 86_399, size)
            ),
        }
    )


# Kinds of contacts with the channel that each uses.
_CONTACTS: tuple[tuple[str, str, float], ...] = (
    ("detailing", "rep_visit", 0.35),
    ("email", "email", 0.20),
    ("digital", "digital", 0.12),
    ("webinar", "digital", 0.10),
    ("call", "crm", 0.10),
    ("event", "in_person", 0.08),
    ("conference", "in_person", 0.05),
)


def treated_count(people: Population) -> int:
    """The least number of engagement events: one of high quality for every treated journey."""
    return int(people.treated.sum())


def engagement_events(
    people: Population, hcps: Professionals, hcp: Ints, size: int, streams: Streams
) -> tuple[pd.DataFrame, Floats]:
    """The table ``engagement_events`` (exactly ``size`` rows) and the engagement score of every journey.

    Every treated journey has one contact of quality 5 or more in the 180 days before its index date. The rest:
    contacts of quality below 5 in that window, older contacts and later ones of any quality, and contacts
    that belong to no journey. The score is the best quality in the window, 0 without a contact.

    Raises:
        InputError: ``size`` is below :func:`treated_count`.
    """
    treated = np.flatnonzero(people.treated)
    if size < len(treated):
        raise InputError(
            f"n_engagements={size}: these {people.size} patients need at least {len(treated)} engagement "
            "events, one for every journey with high engagement.",
            field="n_engagements",
            value=size,
        )
    rest = size - len(treated)
    kind = streams.choice("engagement.kind", [0.45, 0.12, 0.18, 0.25], rest)
    journey = streams.integer("engagement.journey", 0, people.size - 1, rest)
    # Without a day before the window the contact belongs to no journey.
    older = people.index[journey] - people.first_seen[journey] > ENGAGEMENT_WINDOW
    kind = np.where((kind == 1) & ~older, 3, kind)
    high = np.round(
        HIGH_ENGAGEMENT + (10.0 - HIGH_ENGAGEMENT) * streams.uniform("engagement.high", len(treated)), 2
    )
    low = np.round(0.5 + 4.49 * streams.uniform("engagement.low", rest), 2)
    any_quality = np.round(0.5 + 9.5 * streams.uniform("engagement.any", rest), 2)
    oldest = np.maximum((people.index - people.first_seen)[journey], ENGAGEMENT_WINDOW + 1)
    day = np.select(
        [kind == 0, kind == 1, kind == 2],
        [
            _history_day(people, journey, "engagement.low_day", streams),
            people.index[journey]
            - streams.integer("engagement.old_day", ENGAGEMENT_WINDOW + 1, oldest, rest),
            _later_day(people, journey, "engagement.later_day", streams),
        ],
        streams.integer("engagement.free_day", 0, DATA_END, rest),
    )
    rows = pd.DataFrame(
        {
            "journey": np.concatenate([treated, np.where(kind == 3, -1, journey)]),
            "day": np.concatenate([_history_day(people, treated, "engagement.high_day", streams), day]),
            "quality": np.concatenate([high, np.where(kind == 0, low, any_quality)]),
            "free_hcp": np.concatenate(
                [
                    np.zeros(len(treated), dtype=np.int64),
                    streams.integer("engagement.hcp", 0, hcps.size - 1, rest),
                ]
            ),
        }
    ).sort_values(["day", "journey", "quality"], kind="stable", ignore_index=True)
    owner = rows["journey"].to_numpy()
    free = owner < 0
    safe = np.where(free, 0, owner)
    who = np.where(free, rows["free_hcp"].to_numpy(), hcp[safe])
    ahead = people.index[safe] - rows["day"].to_numpy()
    in_window = ~free & (ahead >= 1) & (ahead <= ENGAGEMENT_WINDOW)
    quality = rows["quality"].to_numpy()
    score = np.zeros(people.size)
    np.maximum.at(score, owner[in_window], quality[in_window])
    contact = streams.choice("engagement.contact", [weight for _, _, weight in _CONTACTS], size)
    unknown = ~in_window & streams.happens("engagement.quality.null", 0.03, size)
    frame = pd.DataFrame(
        {
            "engagement_event_id": keys("ENG", np.arange(size) + 1, 12),
            "hcp_id": _hcp_key(who),
            "patient_journey_id": _journey_key(safe, free),
            "brand": pick(BRANDS, np.where(free, hcps.line[who], people.of_cohort("line")[safe])),
            "engagement_date": dates(rows["day"].to_numpy()),
            "engagement_type": pick([name for name, _, _ in _CONTACTS], contact),
            "channel": pick([channel for _, channel, _ in _CONTACTS], contact),
            "quality_score": numbers(quality, 2, unknown),
            "duration_minutes": numbers(2.0 + 43.0 * streams.uniform("engagement.minutes", size) ** 2, 1),
            "sales_rep_id": _representative(hcps, who),
            "data_source": constant("Veeva", size),
        }
    )
    return frame, score


_OUTCOMES = ("prescription_written", "prescription_filled", *COURSES)
_OUTCOME_VALUE = (0.0, 5_000.0, 15_000.0, 2_500.0, 0.0)


def outcome_events(people: Population, hcp: Ints, size: int, streams: Streams) -> pd.DataFrame:
    """The table ``outcome_events``: exactly ``size`` rows, all of journeys that initiated the brand.

    Journey by journey, in random order: written, filled (80 %), then adherent, switch or discontinue with
    :func:`~e2i_dagster.synthetic.processes.course_probabilities`, as far as the journey is observed; further
    fills where more rows are asked for.

    Raises:
        InputError: rows are asked for and nobody initiated.
    """
    starters = np.flatnonzero(people.outcome)
    if size and not len(starters):
        raise InputError(
            f"n_outcomes={size}: none of the {people.size} patients has an outcome.",
            field="n_outcomes",
            value=size,
            remedy="Draw more patients, or 0 outcomes.",
        )
    order = starters[streams.order("outcome.order", len(starters))]
    count = len(order)
    first = (people.index + people.days_to_treatment)[order]
    end = people.last_seen[order]
    filled_on = first + streams.integer("outcome.filled_day", 1, 6, count)
    later_on = filled_on + streams.integer("outcome.later_day", 30, 150, count)
    filled = streams.happens("outcome.filled", 0.80, count) & (filled_on <= end)
    later = filled & (later_on <= end)
    course = np.cumsum(course_probabilities(people.covariates)[order], axis=1)
    last = 2 + (streams.uniform("outcome.last", count)[:, None] >= course[:, :2]).sum(axis=1)
    chain = pd.DataFrame(
        {
            "journey": np.repeat(order, 3),
            "day": np.column_stack([first, filled_on, later_on]).ravel(),
            "kind": np.column_stack([np.zeros(count, np.int64), np.ones(count, np.int64), last]).ravel(),
        }
    )[np.column_stack([np.ones(count, dtype=bool), filled, later]).ravel()].head(size)
    missing = size - len(chain)
    if missing > 0:
        mine = streams.integer("outcome.more", 0, count - 1, missing)
        day = first[mine] + np.floor(
            streams.uniform("outcome.more_day", missing) * (end[mine] - first[mine] + 1)
        ).astype(np.int64)
        chain = pd.concat(
            [chain, pd.DataFrame({"journey": order[mine], "day": day, "kind": 1})], ignore_index=True
        )
    rows = chain.sort_values(["day", "journey", "kind"], kind="stable", ignore_index=True)
    journey, kind = rows["journey"].to_numpy(), rows["kind"].to_numpy()
    factor = 0.7 + 0.6 * streams.uniform("outcome.value", size)
    return pd.DataFrame(
        {
            "outcome_event_id": keys("OUT", np.arange(size) + 1, 12),
            "patient_journey_id": _journey_key(journey),
            "patient_id": _patient_key(journey),
            "hcp_id": _hcp_key(hcp[journey]),
            "brand": _brand(people, journey),
            "outcome_date": dates(rows["day"].to_numpy()),
            "outcome_type": pick(_OUTCOMES, kind),
            "value": numbers(
                np.asarray(_OUTCOME_VALUE)[kind] * factor,
                2,
                streams.happens("outcome.value.null", 0.02, size),
            ),
            "data_source": pick(_SOURCES, streams.choice("outcome.source", [0.3, 0.2, 0.2, 0.2, 0.1], size)),
        }
    )


def _noisy_logit(people: Population, journey: Ints, noise: Floats) -> Floats:
    p = np.clip(people.probability[journey], 1e-6, 1.0 - 1e-6)
    return np.log(p / (1.0 - p)) + noise


def ml_predictions(people: Population, hcp: Ints, size: int, streams: Streams) -> pd.DataFrame:
    """The table ``ml_predictions``: exactly ``size`` imported scores (``origin`` ``import``).

    Each is made 1 to 6 days after the index date, before anyone initiates. The value is the true logit with
    noise of standard deviation 3.2, pressed into (0, 1): its AUC against the outcome is about 0.70. What
    became of the patient is recorded when window and source lag are over.
    """
    journey = streams.integer("prediction.journey", 0, people.size - 1, size)
    ahead = streams.integer("prediction.day", 1, 6, size)
    second = streams.integer("prediction.second", 0, 86_399, size)
    order = np.lexsort((journey, second, people.index[journey] + ahead))
    journey, ahead, second = journey[order], ahead[order], second[order]
    day = people.index[journey] + ahead
    noise = 3.2 * streams.normal("prediction.noise", size)
    value = np.round(np.clip(sigmoid(0.35 * _noisy_logit(people, journey, noise)), 0.001, 0.999), 4)
    recorded = people.index[journey] + 90 + 14
    unknown = (recorded > DATA_END) | streams.happens("prediction.unrecorded", 0.03, size)
    version = streams.integer("prediction.version", 1, 4, size) - 1
    kind = streams.choice("prediction.type", [0.40, 0.15, 0.20, 0.10, 0.15], size)
    outcome = people.outcome[journey].astype(float)
    confidence = np.round(np.maximum(value, 1.0 - value), 4)
    probabilities = joined_text('{"0": ', np.round(1.0 - value, 4), ', "1": ', value, "}")
    return pd.DataFrame(
        {
            "prediction_id": keys("PRED", np.arange(size) + 1, 12),
            "origin": constant("import", size),
            "model_version": pick(("v1.0", "v2.0", "v3.0", "v4.0"), version),
            "model_type": pick(("xgboost", "lightgbm", "random_forest", "logistic_regression"), version),
            "prediction_timestamp": timestamps(day, second),
            "patient_id": _patient_key(journey),
            "hcp_id": _hcp_key(hcp[journey]),
            "prediction_type": pick(("propensity", "risk", "trigger", "churn", "next_best_action"), kind),
            "prediction_value": value,
            "prediction_class": pick(("0", "1"), (value >= 0.5).astype(np.int64)),
            "confidence_score": confidence,
            "probability_scores": text_array(probabilities),
            "top_features": constant('["disease_severity", "engagement_score"]', size),
            "model_auc": np.asarray([0.69, 0.70, 0.70, 0.71])[version],
            "model_precision": np.asarray([0.55, 0.56, 0.56, 0.57])[version],
            "model_recall": np.asarray([0.60, 0.61, 0.62, 0.62])[version],
            "model_pr_auc": np.asarray([0.58, 0.59, 0.59, 0.60])[version],
            "calibration_score": np.asarray([0.08, 0.07, 0.07, 0.06])[version],
            "brier_score": np.asarray([0.22, 0.22, 0.21, 0.21])[version],
            "segment_assignment": pick(
                ("low", "medium", "high"), np.searchsorted([0.35, 0.6], value).astype(np.int64)
            ),
            "actual_outcome": numbers(outcome, 0, unknown),
            "outcome_source": pick(
                ("automated", "manual"),
                streams.choice("prediction.outcome_source", [0.9, 0.1], size),
                unknown,
            ),
            "outcome_recorded_at": timestamps(recorded, second, unknown),
            "outcome_observation_window_days": integers(np.full(size, 90)),
        }
    )


_TRIGGER_TYPES = (
    "prescription_opportunity",
    "engagement_gap",
    "competitive_threat",
    "cross_sell",
    "reactivation",
    "adherence_risk",
    "churn_prevention",
    "treatment_switch",
)
_TRIGGER_ACTIONS = (
    "offer_samples",
    "schedule_visit",
    "share_evidence",
    "introduce_indication",
    "send_email",
    "adherence_support",
    "call_professional",
    "share_switch_guide",
)


def triggers(people: Population, hcp: Ints, size: int, streams: Streams) -> pd.DataFrame:
    """The table ``triggers``: exactly ``size`` rows.

    30 % fire before the index date; type and confidence of these are pure chance. The others fire 1 to 60
    days after it, and their confidence rises with the true probability of the outcome.
    """
    journey = streams.integer("trigger.journey", 0, people.size - 1, size)
    past = streams.happens("trigger.past", 0.3, size)
    reach = np.minimum((people.last_seen - people.index)[journey], 60)
    day = np.where(
        past,
        _history_day(people, journey, "trigger.past_day", streams),
        people.index[journey] + streams.integer("trigger.later_day", 1, reach, size),
    )
    second = streams.integer("trigger.second", 0, 86_399, size)
    order = np.lexsort((journey, second, day))
    journey, past, day, second = journey[order], past[order], day[order], second[order]
    noise = streams.normal("trigger.noise", size)
    logit = np.where(past, noise, 0.35 * _noisy_logit(people, journey, 3.0 * noise))
    confidence = np.round(0.5 + 0.49 * sigmoid(logit), 3)
    kind = streams.choice("trigger.type", [0.30, 0.18, 0.11, 0.11, 0.08, 0.12, 0.06, 0.04], size)
    lead = streams.integer("trigger.lead", 7, 60, size)
    delivery = streams.choice("trigger.delivery", [0.10, 0.60, 0.25, 0.05], size)
    delivered = (delivery == 1) | (delivery == 2)
    answer = np.where(
        delivered, streams.choice("trigger.acceptance", [0.15, 0.50, 0.20, 0.05, 0.10], size), 0
    )
    minutes = streams.integer("trigger.delay", 1, 2_880, size)
    looked = minutes + streams.integer("trigger.view_delay", 5, 2_880, size)
    tracked = streams.happens("trigger.tracked", 0.9, size)
    started = people.outcome[journey]
    gain = numbers(np.clip(0.25 + 0.35 * started + 0.15 * noise, 0.0, 1.0), 3, ~tracked)
    place = streams.choice("trigger.channel", [0.35, 0.25, 0.15, 0.10, 0.15], size)
    evidence = joined_text('{"confidence": ', confidence, "}")
    return pd.DataFrame(
        {
            "trigger_id": keys("TRG", np.arange(size) + 1, 25),
            "patient_id": _patient_key(journey),
            "hcp_id": _hcp_key(hcp[journey], streams.happens("trigger.hcp_id.null", 0.01, size)),
            "trigger_timestamp": timestamps(day, second),
            "trigger_type": pick(_TRIGGER_TYPES, kind),
            "priority": pick(
                ("critical", "high", "medium", "low"),
                streams.choice("trigger.priority", [0.10, 0.30, 0.40, 0.20], size),
            ),
            "confidence_score": confidence,
            "lead_time_days": integers(lead),
            "expiration_date": dates(np.minimum(day + lead, DATA_END)),
            "delivery_channel": pick(("email", "crm", "portal", "push", "rep_visit"), place),
            "delivery_status": pick(("pending", "delivered", "viewed", "failed"), delivery),
            "delivery_timestamp": timestamps(day, second + minutes * 60, ~delivered),
            "view_timestamp": timestamps(day, second + looked * 60, delivery != 2),
            "acceptance_status": pick(("pending", "accepted", "rejected", "deferred", "expired"), answer),
            "false_positive_flag": booleans(streams.happens("trigger.false", 0.12, size)),
            "trigger_reason": pick([name.replace("_", " ") for name in _TRIGGER_TYPES], kind),
            "causal_chain": constant('{"nodes": ["engagement_score", "treatment_initiated"]}', size),
            "supporting_evidence": text_array(evidence),
            "recommended_action": pick(_TRIGGER_ACTIONS, kind),
            "outcome_tracked": booleans(tracked),
            "outcome_value": gain,
            "change_type": constant("new", size),
        }
    )


# Figures by type: base per brand, standard deviation of the noise, monthly trend, decimals.
_FIGURES: tuple[tuple[str, str, tuple[float, float, float], float, float, int], ...] = (
    ("trx", "Total prescriptions", (15_000.0, 8_000.0, 50_000.0), 0.15, 0.02, 0),
    ("nrx", "New prescriptions", (3_000.0, 1_500.0, 10_000.0), 0.20, 0.03, 0),
    ("market_share", "Market share", (0.12, 0.08, 0.25), 0.05, 0.005, 4),
    ("conversion_rate", "Conversion rate", (0.15, 0.12, 0.22), 0.10, 0.01, 4),
    ("hcp_engagement_score", "Engagement of professionals", (6.5, 5.8, 7.2), 0.08, 0.005, 2),
)
_REGIONS = ("northeast", "south", "midwest", "west")
_REGION_FACTOR = (1.15, 0.95, 0.90, 1.00)


def business_metrics(size: int, streams: Streams) -> pd.DataFrame:
    """The table ``business_metrics``: exactly ``size`` rows, spread over all months.

    Sixty series (brand, region, figure) with several days a month; ``value = base * region * (1 + trend *
    month) * (1 + noise)``. The changes against last month and last year are computed from the same
    series, which starts a year before the first month shown.
    """
    months, series = 36, 60
    row = np.arange(size)
    month = row * months // max(size, 1)
    place = row - np.searchsorted(month, month)
    number, turn = (place + 7 * month) % series, place // series
    turns = max(int(turn.max(initial=0)) + 1, 1)
    brand, region, figure = number // 20, number // 5 % 4, number % 5
    # One value for every series, month (twelve before the first) and turn.
    base = np.asarray([item[2] for item in _FIGURES])
    grid = np.arange(series)
    level = base[grid % 5, grid // 20] * np.asarray(_REGION_FACTOR)[grid // 5 % 4]
    time = np.arange(-12, months)
    trend = np.asarray([item[4] for item in _FIGURES])[grid % 5]
    spread = np.asarray([item[3] for item in _FIGURES])[grid % 5]
    noise = streams.normal("metric.noise", series * len(time) * turns).reshape(turns, len(time), series)
    values = (
        level * (1.0 + trend * np.maximum(time, -12)[:, None]) * np.maximum(1.0 + 0.5 * spread * noise, 0.05)
    )
    decimals = np.asarray([item[5] for item in _FIGURES])[figure]
    scale = 10.0**decimals
    value = np.round(values[turn, month + 12, number] * scale) / scale
    year, before = values[turn, month, number], values[turn, month + 11, number]
    target = (
        np.round(
            level[number]
            * (1.0 + trend[number] * month)
            * (1.05 + 0.10 * streams.uniform("metric.target", size))
            * scale
        )
        / scale
    )
    first = (np.datetime64("2022-01", "M") + month).astype("datetime64[D]")
    days = ((np.datetime64("2022-01", "M") + month + 1).astype("datetime64[D]") - first).astype(int)
    day = (first - FIRST_DAY).astype(int) + (turn * days) // turns
    short = np.asarray(["REMI", "FABH", "KISQ"])
    areas = np.asarray(["NE", "S", "MW", "W"])
    names = np.asarray([item[0].upper() for item in _FIGURES])
    stamp = np.datetime_as_string(FIRST_DAY + day, unit="D")
    margin = value * 0.5 * np.asarray([item[3] for item in _FIGURES])[figure]
    key = joined_text("BM-", stamp, "-", short[brand], "-", areas[region], "-", names[figure], "-", turn)
    return pd.DataFrame(
        {
            "metric_id": text_array(key),
            "metric_date": dates(day),
            "metric_type": pick([item[0] for item in _FIGURES], figure),
            "metric_name": pick([item[1] for item in _FIGURES], figure),
            "brand": pick(BRANDS, brand),
            "region": pick(_REGIONS, region),
            "value": value,
            "target": target,
            "achievement_rate": numbers(value / target, 6),
            "year_over_year_change": numbers(value / year - 1.0, 6),
            "month_over_month_change": numbers(value / before - 1.0, 6),
            "roi": numbers(
                1.0 + 3.0 * streams.uniform("metric.roi", size),
                4,
                streams.happens("metric.roi.null", 0.03, size),
            ),
            "statistical_significance": numbers(0.85 + 0.14 * streams.uniform("metric.confidence", size), 3),
            "confidence_interval_lower": numbers(value - margin, 6),
            "confidence_interval_upper": numbers(value + margin, 6),
            "sample_size": integers(streams.integer("metric.sample", 50, 2_000, size)),
        }
    )


_CHAINS: tuple[tuple[str, ...], ...] = (
    ("engagement_score", "consultation", "treatment_initiated"),
    ("disease_severity", "treatment_initiated"),
    ("academic_hcp", "engagement_score", "treatment_initiated"),
    ("insurance_type", "prescription_filled"),
    ("engagement_score", "prescription_written", "prescription_filled", "adherent"),
)


def causal_paths(size: int, streams: Streams) -> pd.DataFrame:
    """The table ``causal_paths``: exactly ``size`` invented findings, spread over the whole time."""
    chain = streams.integer("path.chain", 0, len(_CHAINS) - 1, size)

    def listed(names: Sequence[str]) -> str:
        return "[" + ", ".join(f'"{name}"' for name in names) + "]"

    effect = numbers(0.05 + 0.4 * streams.uniform("path.effect", size), 3)
    lags = numbers(streams.uniform("path.validity", size), 3)
    return pd.DataFrame(
        {
            "path_id": keys("PATH", np.arange(size) + 1, 8),
            "discovery_date": dates(np.arange(size) * DATA_END // max(size - 1, 1)),
            "causal_chain": pick([f'{{"nodes": {listed(nodes)}}}' for nodes in _CHAINS], chain),
            "start_node": pick([nodes[0] for nodes in _CHAINS], chain),
            "end_node": pick([nodes[-1] for nodes in _CHAINS], chain),
            "intermediate_nodes": pick([listed(nodes[1:-1]) for nodes in _CHAINS], chain),
            "path_length": integers(np.asarray([len(nodes) - 1 for nodes in _CHAINS])[chain]),
            "causal_effect_size": effect,
            "confidence_level": numbers(0.6 + 0.39 * streams.uniform("path.confidence", size), 3),
            "method_used": pick(
                ("dowhy_refutation", "pc_algorithm", "granger", "transfer_entropy"),
                streams.choice("path.method", [0.4, 0.3, 0.2, 0.1], size),
            ),
            "confounders_controlled": constant('["disease_severity", "academic_hcp"]', size),
            "mediators_identified": pick([listed(nodes[1:-1]) for nodes in _CHAINS], chain),
            "interaction_effects": constant("{}", size),
            "time_lag_days": integers(streams.integer("path.lag", 1, 90, size)),
            "validation_status": pick(
                ("validated", "pending", "refuted"), np.searchsorted([0.6, 0.85], lags)
            ),
            "business_impact_estimate": numbers(
                effect * 1_000_000.0, 2, streams.happens("path.impact.null", 0.04, size)
            ),
        }
    )


_AGENTS: tuple[tuple[str, str, str], ...] = (
    ("orchestrator", "coordination", "routing"),
    ("causal_impact", "causal_analytics", "analysis"),
    ("drift_monitor", "monitoring", "monitoring"),
    ("prediction_synthesizer", "ml_predictions", "prediction"),
    ("feedback_learner", "self_improvement", "optimization"),
    ("data_preparer", "ml_foundation", "preparation"),
)


def agent_activities(size: int, streams: Streams) -> pd.DataFrame:
    """The table ``agent_activities``: exactly ``size`` invented runs, spread over the whole time."""
    agent = streams.integer("activity.agent", 0, len(_AGENTS) - 1, size)
    status = streams.choice("activity.status", [0.90, 0.05, 0.03, 0.02], size)
    records = streams.integer("activity.records", 10, 5_000, size)
    used = joined_text('{"memory_mb": ', streams.integer("activity.memory", 64, 2_048, size), "}")
    results = joined_text('{"records": ', records, "}")
    return pd.DataFrame(
        {
            "activity_id": keys("ACT", np.arange(size) + 1, 12),
            "agent_name": pick([name for name, _, _ in _AGENTS], agent),
            "agent_tier": pick([tier for _, tier, _ in _AGENTS], agent),
            "activity_timestamp": timestamps(
                np.arange(size) * DATA_END // max(size - 1, 1),
                streams.integer("activity.second", 0, 86_399, size),
            ),
            "activity_type": pick([kind for _, _, kind in _AGENTS], agent),
            "workstream": pick(("WS1", "WS2", "WS3"), streams.integer("activity.workstream", 0, 2, size)),
            "processing_duration_ms": integers(streams.integer("activity.duration", 20, 30_000, size)),
            "input_data": constant("{}", size),
            "records_processed": integers(records),
            "time_window": pick(("7d", "30d", "90d"), streams.integer("activity.window", 0, 2, size)),
            "analysis_results": text_array(results),
            "causal_paths_analyzed": integers(streams.integer("activity.paths", 0, 12, size)),
            "confidence_level": numbers(0.6 + 0.39 * streams.uniform("activity.confidence", size), 3),
            "recommendations": constant("[]", size),
            "actions_initiated": constant("[]", size),
            "impact_estimate": numbers(
                50_000.0 * streams.uniform("activity.impact", size),
                2,
                streams.happens("activity.impact.null", 0.04, size),
            ),
            "roi_estimate": numbers(0.5 + 3.0 * streams.uniform("activity.roi", size), 3),
            "status": pick(("success", "partial", "failed", "timeout"), status),
            "error_message": pick(("", "", "input incomplete", "time limit reached"), status, (status < 2)),
            "resource_usage": text_array(used),
        }
    )
