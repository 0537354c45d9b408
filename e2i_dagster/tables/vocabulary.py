"""``config/vocabulary.yaml``: accepted values and their aliases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator, model_validator

from e2i_dagster.config.names import unused_vocabularies, vocabulary_problems
from e2i_dagster.errors import ConfigError
from e2i_dagster.policy_files.base import Place, PolicyModel, did_you_mean, read_yaml
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
            raise ConfigError(f"config/vocabulary.yaml has no vocabulary {name!r}. Known: {known}.") from None


def load_vocabulary(folder: Path | None = None) -> VocabularyPolicy:
    """``vocabulary.yaml`` of ``folder`` (default: the configuration folder).

    Raises:
        ConfigError: the file is missing or wrong.
    """
    folder = folder or config_folder()

    def problems(policy: VocabularyPolicy) -> Iterator[Place]:
        yield from vocabulary_problems(policy)
        yield from unused_vocabularies(policy, folder / "expectations")

    return read_yaml(folder / "vocabulary.yaml", VocabularyPolicy, problems)
