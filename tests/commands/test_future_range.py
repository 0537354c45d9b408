"""Data whose range ends after today, by the command: no month is left unchecked, whatever the clock says."""

import datetime as dt
import json
import re
from pathlib import Path

#: The last day of the synthetic data.
SYNTHETIC_END = dt.date(2024, 12, 31)
TABLES = ("hcp_profiles", "patient_journeys", "patient_clinical", "treatment_events")
_DAY = re.compile(r"\b(20[12]\d-\d\d-\d\d)(?=[T ,\"\r\n])")


def end_of_month(day: dt.date) -> dt.date:
    return (day.replace(day=1) + dt.timedelta(days=32)).replace(day=1) - dt.timedelta(days=1)


def test_every_month_of_a_range_that_ends_in_the_future_is_loaded_and_checked(
    environment, command, process, tmp_path
):
    """Months before, the running one, and one after it."""
    running = dt.datetime.now(dt.UTC).date()
    months = [(running.replace(day=15) + dt.timedelta(days=30 * k)).strftime("%Y-%m") for k in (-1, 0, 1)]
    end = end_of_month(dt.date.fromisoformat(f"{months[-1]}-01"))
    sources = Path(environment["E2I_CONFIG"]) / "sources.yaml"
    text = sources.read_text(encoding="utf-8")
    assert "data_end: 2024-12-31" in text
    text = re.sub(r'first_month: "[^"]*"', f'first_month: "{months[0]}"', text)
    sources.write_text(text.replace("data_end: 2024-12-31", f"data_end: {end}"), encoding="utf-8")
    drawn, files = tmp_path / "drawn", tmp_path / "files"
    assert command("generate", str(drawn), "--patients", "400", "--seed", "7").returncode == 0
    files.mkdir()
    for table in TABLES:
        moved = _DAY.sub(
            lambda found: (dt.date.fromisoformat(found[1]) + (end - SYNTHETIC_END)).isoformat(),
            (drawn / f"{table}.csv").read_text(encoding="utf-8"),
        )
        (files / f"{table}.csv").write_text(moved, encoding="utf-8")

    loaded = process("load", "--from", str(files), "--json")

    assert loaded.returncode == 0, loaded.stdout + loaded.stderr
    events = json.loads(loaded.stdout)["tables"]["treatment_events"]
    assert sorted(events["partitions"]) == months and set(events["reasons"]) == {"before_first_month"}
    shown = command("gate", "show", "--json")
    versions = json.loads(shown.stdout)["data_versions"]
    assert sorted(one["partition"] for one in versions if one["table"] == "treatment_events") == months
    assert {one["state"] for one in versions if one["table"] in TABLES[1:]} <= {"passed", "warning"}, versions
