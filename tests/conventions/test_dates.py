"""No statement makes a day of text: DuckDB's own casts differ between its versions and take 05-01-23 for the year 5."""

import re

from e2i_dagster.policy_files.environment import CHECKOUT

#: What is cast where, each with a type already: bound dates, checked columns, columns of the warehouse.
TYPED = {
    "cohorts/omop/folder.py": {"{quoted}", "{quoted}::TIMESTAMPTZ AT TIME ZONE 'UTC'", "NULL"},
    "cohorts/omop/plan.py": {"{plan.bind(window.start_date)}", "{plan.bind(window.end_date)}", "{plan.bind(day)}",
                             "{plan.bind(period.start_date)}", "{plan.bind(period.end_date)}"},
    "features/compute.py": {"t.trigger_timestamp", "{dated_by}", "{ARRIVAL}"},
    "warehouse/read.py": {"{}"},
    # A moment of a kept row, as PostgreSQL itself wrote it.
    "warehouse/reversals.py": {"{}"},
}  # fmt: skip


def casts(text: str) -> list[str]:
    """What is cast to a day or a moment in the SQL of a module."""
    found = []
    for line in text.splitlines():
        for match in re.finditer(
            r"(?i)::(?:DATE|TIMESTAMP)|CAST\(.* AS (?:DATE|TIMESTAMP)|\bstrptime\(", line
        ):
            if match[0].startswith("::"):
                found.append(line[: match.start()])
            elif not line[: match.start()].endswith("dt.datetime."):
                found.append(line)
    return found


def test_days_are_cast_only_from_what_has_a_type():
    unknown = []
    for path in sorted((CHECKOUT / "e2i_dagster").rglob("*.py")):
        name = path.relative_to(CHECKOUT / "e2i_dagster").as_posix()
        known = TYPED.get(name, set())
        unknown += [
            f"{name}: {before.strip()[-80:]}"
            for before in casts(path.read_text(encoding="utf-8"))
            if not any(before.endswith((one, f"({one})")) for one in known)
        ]
    assert not unknown, "text becomes a day by warehouse.moments alone:\n" + "\n".join(unknown)


def test_a_cast_of_text_would_be_noticed():
    assert casts("SELECT event_date::DATE FROM t") and casts("TRY_CAST(cell AS TIMESTAMP)")
    assert casts("strptime(cell, '%Y')") and not casts("dt.datetime.strptime(text, form)")
