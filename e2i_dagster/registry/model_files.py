"""The files of a model in MLflow as they were logged, compared before the model is read and before it is reused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from upath import UPath

from e2i_dagster.errors import DamagedError
from e2i_dagster.versions import files

_FILES_TAG = "e2i.files"
_NAME_TAG = "e2i.model_name"
_REMEDY = (
    "Run `e2i run` again (for a model of effects `e2i causal estimate`): the model is logged once more and "
    "registered as a new version"
)


class ModelFiles(BaseModel):
    """Where the files of a logged model are, and what they were when it was logged.

    Attributes:
        name: of the model in the registry.
        uri: MLflow's address of the model, ``models:/<model id>``.
        location: folder or address of its files.
        files: path below ``location`` -> (length in bytes, SHA-256); empty of a model that was logged before they
            were kept.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    uri: str
    location: str
    files: dict[str, tuple[int, str]]

    @classmethod
    def note(cls, client: Any, model_id: str, name: str) -> ModelFiles:
        """Note the files of a model that was just logged, in tags of it."""
        from mlflow.artifacts import download_artifacts

        folder = Path(download_artifacts(artifact_uri=f"models:/{model_id}"))
        noted = {
            path.relative_to(folder).as_posix(): (len(content), files.checksum_of(content))
            for path in sorted(folder.rglob("*"))
            if path.is_file() and (content := path.read_bytes())
        }
        client.set_logged_model_tags(model_id, {_NAME_TAG: name, _FILES_TAG: json.dumps(noted)})
        return cls.noted(client, f"models:/{model_id}")

    @classmethod
    def noted(cls, client: Any, uri: str) -> ModelFiles:
        """What was noted of the model ``uri``: ``models:/<model id>``, ``<name>/<version>`` or ``<name>@<stage>``."""
        place = uri.removeprefix("models:/")
        if "@" in place:
            return cls.noted(client, client.get_model_version_by_alias(*place.split("@")).source)
        if "/" in place:
            return cls.noted(client, client.get_model_version(*place.split("/")).source)
        stored = client.get_logged_model(place)
        return cls(
            name=stored.tags.get(_NAME_TAG, stored.name),
            uri=uri,
            location=stored.artifact_location,
            files=json.loads(stored.tags.get(_FILES_TAG, "{}")),
        )

    def damage(self) -> str:
        """The first file that is missing or not what was logged, and what is wrong; empty when none is.

        In a store elsewhere, which keeps checksums itself, only lengths are compared.
        """
        place = UPath(self.location) if self._elsewhere else UPath(self._fetched())
        return next((f"damaged: {path}, {found}" for path, found in self._damaged(place)), "")

    def folder(self) -> Path:
        """A folder of this machine with the files, which are what was logged.

        Raises:
            DamagedError: a file is missing or damaged; it and the model are named.
        """
        if self._elsewhere:
            self._require_whole(UPath(self.location))
        folder = self._fetched()
        self._require_whole(UPath(folder))
        return folder

    @property
    def _elsewhere(self) -> bool:
        """Whether the files are in a store such as S3, neither here nor handed out by a tracking server."""
        served = self.location.partition(":")[0] in ("mlflow-artifacts", "http", "https")
        return not served and not files.is_local(UPath(self.location))

    def _fetched(self) -> Path:
        """A folder of this machine with the files: where they are, or a copy."""
        if self.location.startswith(("/", "file:")):
            return Path(UPath(self.location).path)
        from mlflow.artifacts import download_artifacts

        return Path(download_artifacts(artifact_uri=self.uri))

    def _require_whole(self, place: UPath) -> None:
        for path, found in self._damaged(place):
            raise DamagedError(
                f"{path} of the model {self.name} ({self.uri}) in MLflow is damaged: {found}. {_REMEDY}.",
                file=str(path),
                field=self.name,
                value=found,
                remedy=_REMEDY,
            )

    def _damaged(self, place: UPath) -> Iterator[tuple[UPath, str]]:
        for name, (size, checksum) in self.files.items():
            found = files.damage(place / name, size, checksum, whole=files.is_local(place))
            if found:
                yield place / name, found


__all__ = ["ModelFiles"]
