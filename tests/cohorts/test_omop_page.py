"""The page about OMOP: its example runs, its tables are those of the code."""

from __future__ import annotations

import contextlib
import io
import re

from e2i_dagster.cohorts.omop import expression as circe
from e2i_dagster.cohorts.omop.domains import DOMAINS, TABLES
from e2i_dagster.policy_files.environment import CHECKOUT

PAGE = (CHECKOUT / "docs/omop.md").read_text(encoding="utf-8")


def test_the_example_gives_what_the_page_says(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (said,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "docs/omop.md", "exec"), {})
    assert printed.getvalue().split() == [*said.split(), "{0:", "1,", "1:", "1}"]


def test_the_page_lists_every_attribute_of_every_domain():
    on_page = {
        name: re.findall(r"`(\w+)`", attributes)
        for name, attributes in re.findall(
            r"^\| `(\w+)` \| (`CodesetId`.*|`First`.*) \|$", PAGE, re.MULTILINE
        )
    }
    nested = set(circe.Criteria.model_fields)
    for model, domain in DOMAINS.items():
        read = [
            field.alias
            for name, field in model.model_fields.items()
            if name not in nested
            and not any(isinstance(getattr(one, "func", None), circe.Refusal) for one in field.metadata)
        ]
        assert on_page.pop(model.__name__) == read
        flags = {clause.negated_by for clause in domain.clauses.values() if clause.negated_by}
        source = {domain.source_concept[0]} if domain.source_concept else set()
        by_plan = {"codeset_id", "first", "user_defined_period"} | flags | source
        assert {circe.circe_key(name) for name in set(domain.clauses) | by_plan} >= set(read)
    assert not on_page


def test_expressions_name_only_columns_that_are_read():
    for domain in DOMAINS.values():
        columns = {name.removesuffix("*") for name in TABLES[domain.table]} | {"start_date", "end_date"}
        texts = [domain.start, domain.end, domain.visit, f"r.{domain.id_column}", *domain.counted.values()]
        texts += [clause.expression for clause in domain.clauses.values()]
        for text in texts:
            assert set(re.findall(r"\br\.(\w+)", text)) <= columns, (domain.table, text)
