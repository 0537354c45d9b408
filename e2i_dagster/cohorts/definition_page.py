"""A definition as people read it: sentences, status, and its examples with their verdicts."""

from __future__ import annotations

from typing import Any

from e2i_dagster.config.cohort import CohortDefinition
from e2i_dagster.display import Table, Words


def definition_page(definition: CohortDefinition) -> dict[str, Any]:
    """Metadata of the definition's page in the UI: version, status, sentences, examples."""
    return {
        "title": definition.title,
        "version": definition.version,
        "status": status_words(definition),
        "definition_hash": definition.definition_hash,
        "definition": Words(definition.sentences(), "list"),
        "examples": examples_table(definition),
    }


def status_words(definition: CohortDefinition) -> str:
    """Whether the definition is approved, by whom and when, or what a draft means."""
    consent = definition.approval
    if consent is None:
        return "draft: models on it stay in development"
    return f"approved by {consent.by} on {consent.on.isoformat()}"


def examples_table(definition: CohortDefinition) -> Table:
    """The invented patients of the file and the verdict that each must get."""
    return Table(
        ("invented patient", "verdict", "rules that remove the patient"),
        [
            (example.name, "out" if example.failed_rules else example.expect, sorted(example.failed_rules))
            for example in definition.examples
        ],
        empty="The file has no examples.",
    )
