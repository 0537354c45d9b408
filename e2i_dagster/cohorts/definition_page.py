"""A definition as people read it: sentences, status, and its examples with their verdicts."""

from __future__ import annotations

from typing import Any

from e2i_dagster.config.cohort import CohortDefinition


def definition_page(definition: CohortDefinition) -> dict[str, Any]:
    """Metadata of the definition's page in the UI: version, status, sentences, examples."""
    return {
        "title": definition.title,
        "version": definition.version,
        "status": status_words(definition),
        "definition_hash": definition.definition_hash,
        "definition_md": sentences_markdown(definition),
        "examples_md": examples_markdown(definition),
    }


def status_words(definition: CohortDefinition) -> str:
    """Whether the definition is approved, by whom and when, or what a draft means."""
    consent = definition.approval
    if consent is None:
        return "draft: models on it stay in development"
    return f"approved by {consent.by} on {consent.on.isoformat()}"


def sentences_markdown(definition: CohortDefinition) -> str:
    """The definition in sentences, one per line."""
    return "\n".join(f"- {sentence}" for sentence in definition.sentences())


def examples_markdown(definition: CohortDefinition) -> str:
    """The invented patients of the file and the verdict that each must get."""
    if not definition.examples:
        return "The file has no examples."
    lines = ["| invented patient | verdict | rules that remove the patient |", "|---|---|---|"]
    for example in definition.examples:
        out = ", ".join(sorted(example.failed_rules))
        lines.append(f"| {example.name} | {'out' if out else example.expect} | {out} |")
    return "\n".join(lines)
