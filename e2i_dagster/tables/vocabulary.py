"""``config/vocabulary.yaml``: accepted values and their aliases."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator, model_validator

from e2i_dagster.errors import ConfigError
from e2i_dagster.policy_files.base import Place, PolicyModel, did_you_mean, read_yaml, unknown
from e2i_dagster.policy_files.environment import config_folder

if TYPE_CHECKING:
    import pandas as pd


class Vocabulary(PolicyModel):
    """Accepted values of one vocabulary (value -> meaning) and other spellings of deliveries."""

    values: dict[str, str] = Field(min_length=1)
    aliases: dict[str, str | None] = {}

    @field_validator("values", mode="before")
    @classmethod
    def _plain_list(cls, given: Any) -> Any:
        if isinstance(given, list):
            if len(set(map(str, given))) != len(given):
                raise ValueError("a value is listed twice")
            return {value: "" for value in given}
        return given

    @model_validator(mode="after")
    def _aliases_lead_to_values(self) -> Vocabulary:
        unknown = sorted({target for target in self.aliases.values() if target} - set(self.values))
        if unknown:
            near = did_you_mean(unknown[0], self.values)
            raise ValueError(
                f"aliases lead to values that are not listed: {', '.join(unknown)}. {near}".rstrip()
            )
        shadowed = sorted(set(self.aliases) & set(self.values))
        if shadowed:
            raise ValueError(f"listed both as value and as alias: {', '.join(shadowed)}")
        return self


class ColumnMatching(PolicyModel):
    """How ``e2i import check`` finds our column for a supplier's.

    Attributes:
        words: parts of column names and the words that they stand for (``dt``: ``date``).
        generic_words: the same for words of many meanings, which count only where another column of the file says a
            word of the meaning.
        minimum: score from 0 to 1 (three quarters name, one quarter values) below which nothing is proposed.
        sample_rows: rows of each file that the proposal looks at.
    """

    words: dict[str, str] = {}
    generic_words: dict[str, str] = {}
    minimum: float = Field(default=0.6, gt=0, le=1)
    sample_rows: int = Field(default=20_000, ge=100)


class VocabularyPolicy(PolicyModel):
    """All of ``config/vocabulary.yaml``."""

    vocabularies: dict[str, Vocabulary]
    column_aliases: dict[str, dict[str, str]] = {}
    column_matching: ColumnMatching = Field(default_factory=ColumnMatching)

    def values(self, name: str) -> tuple[str, ...]:
        """Accepted values of the vocabulary ``name``, in the order of the file.

        Raises:
            ConfigError: there is no such vocabulary.
        """
        return tuple(self._vocabulary(name).values)

    def aliases(self, name: str) -> Mapping[str, str | None]:
        """Other spellings of the vocabulary ``name`` and what each is translated to."""
        return self._vocabulary(name).aliases

    def canonical(self, name: str, given: pd.Series) -> pd.Series:
        """``given`` with aliases replaced by accepted values; everything else is left as it is.

        An alias that stands for no value becomes null. Values that the vocabulary does not know pass
        through, so that the caller can reject them with what was delivered.
        """
        aliases = self.aliases(name)
        text = given.astype("string[pyarrow]")
        if not aliases:
            return text
        known = text.isin(list(aliases))
        return text.mask(known, text.map(dict(aliases)).astype("string[pyarrow]"))

    def unknown(self, name: str, given: pd.Series) -> pd.Series:
        """True where ``given`` has a value that the vocabulary ``name`` does not accept (null: False)."""
        return given.notna() & ~given.isin(list(self._vocabulary(name).values))

    def _vocabulary(self, name: str) -> Vocabulary:
        try:
            return self.vocabularies[name]
        except KeyError:
            known = ", ".join(sorted(self.vocabularies))
            raise ConfigError(
                f"config/vocabulary.yaml has no vocabulary {name!r}.",
                file="config/vocabulary.yaml",
                field="vocabularies",
                value=name,
                remedy=f"Known: {known}.",
            ) from None


def _problems(policy: VocabularyPolicy) -> Iterator[Place]:
    """Aliases of columns that no raw table has, and words of column names that can match no column."""
    from e2i_dagster.tables import OPTIONAL_RAW_TABLES, RAW_TABLES, frame_columns

    tables = (*RAW_TABLES, *OPTIONAL_RAW_TABLES)
    words = sorted({word for table in tables for name in frame_columns(table) for word in name.split("_")})
    for key in ("words", "generic_words"):
        for part, meaning in getattr(policy.column_matching, key).items():
            place = ("column_matching", key, part)
            if not re.fullmatch("[a-z0-9]+", part):
                yield (
                    place,
                    f"{part!r} is no part of a column name. Parts are split at anything but letters and digits, "
                    "and compared in lower case: write each part by itself, in lower case.",
                )
            for word in meaning.split():
                if word not in words:
                    near = did_you_mean(word, words)
                    yield (
                        place,
                        f"no column of a raw table has the word {word!r} in its name. {near}".rstrip(),
                    )
    for table, aliases in policy.column_aliases.items():
        yield from unknown(["column_aliases", table], table, tables, "raw table")
        if table in tables:
            for alias, column in aliases.items():
                yield from unknown(
                    ["column_aliases", table, alias], column, frame_columns(table), f"column of {table}"
                )


#: Where a suite of expectations names a vocabulary; read as text, as a suite that is wrong names it, too.
_NAMED_VOCABULARY = re.compile(r"""\bvocabulary:\s*["']?([\w-]+)""")
#: Where ``sources.yaml`` names a mapping.
_NAMED_MAPPING = re.compile(r"""^[^#\n]*\bmapping:\s*["']?([^"',}\s]+)""", re.MULTILINE)


def _unused(policy: VocabularyPolicy, suites: Iterable[Path]) -> Iterator[Place]:
    """Vocabularies that no column has and no suite of expectations in the folders ``suites`` names."""
    from e2i_dagster.tables import all_metadata, facts

    of_columns = {
        listed
        for table in all_metadata().sorted_tables
        for column in table.columns
        if "facts" in column.info and (listed := facts(column).vocabulary) is not None
    }
    texts = (_text(path) for folder in suites for path in folder.glob("*.yaml"))
    used = sorted(of_columns.union(*map(_NAMED_VOCABULARY.findall, texts)))
    for name in policy.vocabularies:
        if name not in used:
            near = did_you_mean(name, used)
            yield (
                ("vocabularies", name),
                f"no column and no suite of expectations uses the vocabulary {name!r}. "
                f"{near + ' ' if near else ''}Used: {', '.join(used)}.",
            )


def _folders_of_suites(folder: Path) -> Iterator[Path]:
    """Those of the configuration, and those beside the mapping that its ``sources.yaml`` names."""
    yield folder / "expectations"
    sources = folder / "sources.yaml"
    for named in _NAMED_MAPPING.findall(_text(sources)) if sources.is_file() else ():
        yield Path(named).expanduser().parent / "expectations"


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def load_vocabulary(folder: Path | None = None) -> VocabularyPolicy:
    """``vocabulary.yaml`` of ``folder`` (default: the configuration folder).

    Raises:
        ConfigError: the file is missing or wrong.
    """
    folder = folder or config_folder()

    def problems(policy: VocabularyPolicy) -> Iterator[Place]:
        yield from _problems(policy)
        yield from _unused(policy, _folders_of_suites(folder))

    return read_yaml(folder / "vocabulary.yaml", VocabularyPolicy, problems, checks_apart=True)
