"""Small deliveries for the tests of loading."""

import secrets
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa

TEXT = "string[pyarrow]"


def npi(base: int) -> str:
    """A valid identifier from nine digits, by the check digit as it is written on paper."""
    total = 24
    for place, digit in enumerate(f"{base:09d}"):
        value = int(digit) * (2 if place % 2 == 0 else 1)
        total += value - 9 if value > 9 else value
    return f"{base:09d}{-total % 10}"


@pytest.fixture(scope="module")
def module_database(template: str) -> Iterator[str]:
    """Address of a warehouse that the tests of one module share."""
    from e2i_dagster.database import connection

    name = f"e2i_{secrets.token_hex(6)}"
    with connection._admin(connection._url("owner", "e2i")) as admin:
        admin.exec_driver_sql(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
    yield connection._text(connection._url("owner", name))
    connection.dispose()
    connection.drop_database(name)


@pytest.fixture
def database(module_database: str, monkeypatch: pytest.MonkeyPatch) -> sa.Engine:
    """The owner's engine for the module's warehouse, empty; ``E2I_DATABASE_URL`` names it."""
    from e2i_dagster.database import connection
    from e2i_dagster.tables import OPTIONAL_RAW_TABLES, RAW_TABLES

    monkeypatch.setenv("E2I_DATABASE_URL", module_database)
    engine = connection.engine("owner")
    # Several statements of DELETE are faster than TRUNCATE on tables with few rows.
    with engine.begin() as session:
        records = ("load_rejects", "load_completed_dates", "ml_table_loads")
        for table in (*records, *reversed(RAW_TABLES + OPTIONAL_RAW_TABLES)):
            session.exec_driver_sql(f"DELETE FROM {table}")
    return engine


@pytest.fixture
def hcps() -> pd.DataFrame:
    """Twenty professionals, as text."""
    return pd.DataFrame(
        {
            "hcp_id": [f"HCP{i:08d}" for i in range(20)],
            "npi": [npi(123_000_000 + i) for i in range(20)],
            "geographic_region": ["west", "south"] * 10,
            "decile": [str(1 + i % 10) for i in range(20)],
            "zip_code": [f"0{1000 + i}" for i in range(20)],
        },
        dtype=TEXT,
    )


@pytest.fixture
def journeys() -> pd.DataFrame:
    """Forty journeys of forty patients, as text."""
    return pd.DataFrame(
        {
            "patient_journey_id": [f"PJ{i:016d}" for i in range(40)],
            "patient_id": [f"PAT{i:08d}" for i in range(40)],
            "journey_start_date": ["2023-01-01"] * 40,
            "brand": ["Remibrutinib"] * 40,
            "gender": ["F", "M"] * 20,
            "hcp_id": [f"HCP{i % 20:08d}" for i in range(40)],
        },
        dtype=TEXT,
    )


@pytest.fixture
def make_events() -> Callable[..., pd.DataFrame]:
    """Makes treatment events of the forty journeys over the months 2024-01 to 2024-04, as text."""

    def make(rows: int = 400, first: int = 0) -> pd.DataFrame:
        number = np.arange(first, first + rows)
        days = np.datetime64("2024-01-01") + (number * 7 % 120)
        return pd.DataFrame(
            {
                "treatment_event_id": [f"TE{i:025d}" for i in number],
                "patient_journey_id": [f"PJ{i % 40:016d}" for i in number],
                "patient_id": [f"PAT{i % 40:08d}" for i in number],
                "hcp_id": [f"HCP{i % 20:08d}" for i in number],
                "event_date": days.astype(str),
                "event_type": "prescription",
                "cost": [f"{i % 90}.125" for i in number],
                "icd_codes": '["L50.1"]',
                "lab_values": '{"ldh": 1}',
            },
            dtype=TEXT,
        )

    return make


@pytest.fixture
def content(database: sa.Engine) -> Callable[..., pd.DataFrame]:
    """Reads a table, by key, without the times that the database keeps and without load ids."""

    def read(table: str, *columns: str) -> pd.DataFrame:
        with database.connect() as connection:
            frame = pd.read_sql(sa.text(f"SELECT * FROM {table} ORDER BY 1"), connection)
        kept = frame.drop(columns=[name for name in ("created_at", "updated_at") if name in frame.columns])
        return kept[list(columns)] if columns else kept

    return read
