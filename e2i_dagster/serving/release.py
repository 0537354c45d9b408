"""A release: one bento with every model version that its service answers for.

The bento holds copies of the MLflow model folders and a manifest with the digest of each file, the
signatures and the versions of the libraries. It is immutable: its version is the digest of the
manifest, so building the same models again finds the bento that is there. Nothing is installed or
fetched, neither here nor when it is served.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version as library_version
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from e2i_dagster.config.serving import ServiceName, ServingPolicy
from e2i_dagster.display import Table
from e2i_dagster.errors import InputError, UnavailableError
from e2i_dagster.pipeline.code import source_code
from e2i_dagster.policy_files.base import digest_of
from e2i_dagster.policy_files.environment import state_folder
from e2i_dagster.serving.models import differing_files, file_digests, require_trusted
from e2i_dagster.serving.request_schema import Signature, mlmodel
from e2i_dagster.serving.state import bentoml_folder, library_environment

MANIFEST = "manifest.json"
SERVICE = "service.py"

#: Libraries that decide how a stored model behaves: a service starts only with these versions.
LIBRARIES = ("scikit-learn", "skops", "numpy")

#: Path of a request is ``/<model name>/predict``, so a name is one plain path segment.
_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$"

_SERVICE_SOURCE = '''"""Entry point of the bento: the service described by the manifest beside this file."""

from pathlib import Path

from e2i_dagster.serving.service import bento_service

service = bento_service(Path(__file__).resolve().parent)
'''


class ModelToServe(BaseModel):
    """A registered model version and where its files are on this machine.

    Attributes:
        folder: local copy of the MLflow model (has the file ``MLmodel``).
        problem_type: decides the service, see ``config/serving.yaml``.
        scope: scope that the model was trained for.
        threshold: probability from which on the second of two classes is predicted; None: the most
            probable class.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model_name: str = Field(pattern=_NAME)
    version: str = Field(min_length=1)
    folder: Path
    problem_type: str
    scope: str | None = None
    threshold: float | None = Field(default=None, ge=0, le=1)

    @classmethod
    def of_model(cls, folder: Path, *, model_name: str, version: str) -> ModelToServe:
        """The model in ``folder`` as training stored it: problem type, scope and threshold are in its
        metadata.

        Raises:
            InputError: there is no model, or its metadata does not say what kind of problem it answers.
        """
        stored = mlmodel(folder).get("metadata") or {}
        if "problem_type" not in stored:
            raise InputError(
                f"The metadata of the model {model_name}/{version} has no problem_type, which decides the service.",
                remedy="Register it again, or give problem_type, scope and threshold.",
            )
        return cls(
            model_name=model_name,
            version=version,
            folder=folder,
            problem_type=stored["problem_type"],
            scope=stored.get("scope"),
            threshold=stored.get("threshold"),
        )


class ReleasedModel(BaseModel):
    """One model version inside a release.

    Attributes:
        folder: path inside the bento's source folder.
        files: SHA-256 of each file below ``folder``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model_name: str
    version: str
    problem_type: str
    scope: str | None
    threshold: float | None
    folder: str
    files: dict[str, str]
    signature: Signature

    @property
    def model_id(self) -> str:
        """``name/version``, as in the prediction log."""
        return f"{self.model_name}/{self.version}"

    @property
    def digest(self) -> str:
        """Digest of the model's files and of how it is asked."""
        return digest_of([self.files, self.threshold, self.signature.model_dump(mode="json")])


class Manifest(BaseModel):
    """What a bento holds, as written into it.

    Attributes:
        code: digest of the product's code that answers, which the bento does not hold itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    service: ServiceName
    models: tuple[ReleasedModel, ...] = Field(min_length=1)
    libraries: dict[str, str]
    policy: ServingPolicy
    code: str = ""

    @property
    def version(self) -> str:
        """Version of the bento: digest of everything in the manifest."""
        return digest_of(self.model_dump(mode="json"))

    def model(self, name: str) -> ReleasedModel | None:
        """The model ``name``; None if the release has none of this name."""
        return next((model for model in self.models if model.model_name == name), None)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest in ``folder``.

        Raises:
            InputError: it is missing or not a manifest of this version of the product.
        """
        path = folder / MANIFEST
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise InputError(
                f"{folder} holds no release: {MANIFEST} is missing.",
                file=folder / MANIFEST,
                remedy="Give the folder of a release, or build it again.",
            ) from None
        except ValidationError as error:
            fields = ", ".join(
                ".".join(map(str, problem["loc"])) for problem in error.errors(include_input=False)[:5]
            )
            raise InputError(
                f"{path} is not a manifest of this version ({fields}).", remedy="Build it again."
            ) from None


class Release(BaseModel):
    """A built bento.

    Attributes:
        tag: BentoML tag, ``service:version``.
        path: folder of the bento.
        reused: the same bento was there already.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    volatile_fields: ClassVar[set[str]] = {"reused"}

    service: ServiceName
    version: str
    tag: str
    path: Path
    models: tuple[ReleasedModel, ...]
    reused: bool = False

    def model(self, name: str) -> ReleasedModel | None:
        """The model ``name``; None if the release has none of this name."""
        return next((model for model in self.models if model.model_name == name), None)

    def damage(self) -> str:
        """What is wrong with the bento's folder in words; empty when it is what was built."""
        source = self.path / "src"
        if not (self.path / "bento.yaml").is_file():
            return f"no longer there: {self.path}"
        try:
            manifest = Manifest.read(source)
        except InputError as error:
            return f"damaged: {error}"
        if manifest.version != self.version:
            return f"damaged: {source / MANIFEST} is of another release"
        if (source / SERVICE).read_text(encoding="utf-8") != _SERVICE_SOURCE:
            return f"{source / SERVICE} is not what this version builds"
        differing = [
            str(source / model.folder / name)
            for model in manifest.models
            for name in differing_files(source / model.folder, model.files)
        ]
        return f"damaged: {', '.join(differing)} missing, added or changed" if differing else ""

    def to_metadata(self) -> dict[str, Any]:
        """Tag, folder, size and a table of the models."""
        return {
            "bento": self.tag,
            "path": str(self.path),
            "bytes": sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file()),
            "reused": self.reused,
            "models": Table(
                ("model", "version", "problem type", "features", "digest"),
                [
                    (
                        model.model_name,
                        model.version,
                        model.problem_type,
                        len(model.signature.features),
                        model.digest,
                    )
                    for model in self.models
                ],
            ),
        }

    def to_record(self) -> dict[str, Any]:
        """Labels kept with the deployment: model ids and digests."""
        return {"bento_tag": self.tag, "models": {model.model_id: model.digest for model in self.models}}


def build_release(
    models: Sequence[ModelToServe],
    *,
    service: ServiceName = "classification",
    state: Path | None = None,
    policy: ServingPolicy | None = None,
) -> Release:
    """Build the bento of ``service`` with ``models``, or find it when it is there and whole.

    Raises:
        InputError: no model, two versions of one name, a model of another service's kind, without
            signature or not stored as skops.
        VerdictError: a stored model contains types that are not trusted.
        UnavailableError: BentoML could not build; its last lines are given.
    """
    policy = policy or ServingPolicy.load()
    state = state or state_folder()
    _require_fitting(models, service, policy)
    ordered = sorted(models, key=lambda model: model.model_name)
    for model in ordered:
        require_trusted(model.folder, policy)
    manifest = Manifest(
        service=service,
        models=tuple(_released(model, position) for position, model in enumerate(ordered)),
        libraries={name: library_version(name) for name in LIBRARIES},
        policy=policy,
        code=source_code().digest_of_module("e2i_dagster.serving.service"),
    )
    path = bentoml_folder(state) / "bentos" / service / manifest.version
    release = Release(
        service=service,
        version=manifest.version,
        tag=f"{service}:{manifest.version}",
        path=path,
        models=manifest.models,
        reused=True,
    )
    if not release.damage():
        return release
    # BentoML refuses to build a version whose folder is there.
    shutil.rmtree(path, ignore_errors=True)
    _build(manifest, [model.folder for model in ordered], state)
    return release.model_copy(update={"reused": False})


def read_release(path: Path) -> Release:
    """The release whose bento is in the folder ``path``.

    Raises:
        InputError: there is no bento, or it was not built by :func:`build_release`.
    """
    manifest = Manifest.read(path / "src")
    return Release(
        service=manifest.service,
        version=path.name,
        tag=f"{manifest.service}:{path.name}",
        path=path,
        models=manifest.models,
        reused=True,
    )


def _require_fitting(models: Sequence[ModelToServe], service: ServiceName, policy: ServingPolicy) -> None:
    if not models:
        raise InputError(
            "A release needs models; none was given.",
            field="models",
            remedy="Give at least one model version.",
        )
    if service not in policy.services:
        raise InputError(
            f"There is no service {service!r} in config/serving.yaml.",
            remedy=f"Use one of: {', '.join(policy.services)}.",
        )
    names = [model.model_name for model in models]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(
            f"A release has one version of each model; several were given of {', '.join(repeated)}.",
            field="models",
            value=repeated[0],
            remedy="Give one version of each.",
        )
    strange = [model for model in models if policy.service_of(model.problem_type) != service]
    if strange:
        found = ", ".join(f"{model.model_name} ({model.problem_type})" for model in strange)
        raise InputError(
            f"The service {service} takes {', '.join(policy.services[service].problem_types)}; found {found}.",
            field="models",
            value=found,
            remedy="Release them for the service that takes them.",
        )


def _released(model: ModelToServe, position: int) -> ReleasedModel:
    return ReleasedModel(
        model_name=model.model_name,
        version=model.version,
        problem_type=model.problem_type,
        scope=model.scope,
        threshold=model.threshold,
        folder=f"models/{position}",
        files=file_digests(model.folder),
        signature=Signature.of_model(model.folder),
    )


def _build(manifest: Manifest, folders: Sequence[Path], state: Path) -> None:
    """Run BentoML's build in a process of its own: it reads its folder from the environment once per
    process, imports the service by name and changes the working folder, none of which may happen to
    the process that runs the pipeline."""
    store = bentoml_folder(state)
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="release-", dir=store) as name:
        context = Path(name)
        (context / SERVICE).write_text(_SERVICE_SOURCE, encoding="utf-8")
        (context / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
        for model, folder in zip(manifest.models, folders, strict=True):
            shutil.copytree(folder, context / model.folder)
        built = subprocess.run(
            [sys.executable, "-m", "e2i_dagster.serving.release", name, manifest.service, manifest.version],
            env={**os.environ, **library_environment(state, store)},
            cwd=name,
            capture_output=True,
            text=True,
            check=False,
        )
    if built.returncode:
        tail = "\n".join((built.stdout + built.stderr).strip().splitlines()[-12:])
        raise UnavailableError(
            f"BentoML could not build {manifest.service}:{manifest.version}:\n{tail}",
            field=manifest.service,
            remedy="Correct what its last lines say, then run again.",
        )


def _build_here(context: str, service: str, version: str) -> None:
    """Build with BentoML's Python API in this process; two builders of one version do not disturb
    each other, since the bento is registered by a rename and the same content is the same version."""
    import bentoml
    from bentoml.exceptions import BentoMLException

    requirements: Mapping[str, str] = Manifest.read(Path(context)).libraries
    try:
        bentoml.bentos.build(
            "service:service",
            name=service,
            version=version,
            build_ctx=context,
            include=["*"],
            labels={"product": "e2i_dagster", "service": service},
            # Only written down for building an image elsewhere; nothing is resolved or installed.
            python={
                "packages": ["e2i-dagster", *(f"{name}=={found}" for name, found in requirements.items())],
                "lock_packages": False,
            },
        )
    except BentoMLException as error:
        if "already exists" not in str(error):
            raise


if __name__ == "__main__":
    _build_here(*sys.argv[1:4])
