"""FHIR R4 as NDJSON (bulk export): one line for each resource, one file for each type, flattened to columns.

:data:`COLUMNS` is all that is taken of a resource. A line that is no JSON, is of another type than the first, or has a
value of another type than FHIR gives the element is malformed. References become the id of what they refer to; those to
resources that the folder does not have are counted.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from e2i_dagster.sources.formats.records import (
    BATCH_BYTES,
    ColumnNotes,
    FileSummary,
    Format,
    Records,
    open_bytes,
    refusal,
    with_nulls,
)
from e2i_dagster.tables.arrow import compute

if TYPE_CHECKING:
    import pyarrow as pa

    from e2i_dagster.config.mapping import FileFormat

ICD10CM = "http://hl7.org/fhir/sid/icd-10-cm"
ICD9CM = "http://hl7.org/fhir/sid/icd-9-cm"
SNOMED = "http://snomed.info/sct"
RXNORM = "http://www.nlm.nih.gov/research/umls/rxnorm"
NDC = "http://hl7.org/fhir/sid/ndc"
LOINC = "http://loinc.org"
NPI = "http://hl7.org/fhir/sid/us-npi"
US_CORE = "http://hl7.org/fhir/us/core/StructureDefinition"

Kind = Literal["text", "number", "integer", "boolean", "reference"]


@dataclass(frozen=True)
class Column:
    """Where a column comes from.

    Attributes:
        path: elements by name; ``name[]`` is the first of several, ``name[key=value]`` the first whose
            ``key`` is ``value``, and with ``[*]`` behind it all of them, joined by ``; ``; ``name[2]`` is the second.
        to: resource that a reference refers to.
    """

    path: str
    kind: Kind = "text"
    to: str | None = None


def _reference(path: str, to: str) -> Column:
    return Column(f"{path}.reference", "reference", to)


def _coded(name: str, path: str, **systems: str) -> dict[str, Column]:
    """A CodeableConcept: its code by system, its first code with its system, and its words."""
    return {
        **{
            f"{name}_{short}": Column(f"{path}.coding[system={system}].code")
            for short, system in systems.items()
        },
        f"{name}_code": Column(f"{path}.coding[].code"),
        f"{name}_system": Column(f"{path}.coding[].system"),
        f"{name}_display": Column(f"{path}.coding[].display"),
        f"{name}_text": Column(f"{path}.text"),
    }


def _valued(name: str, path: str) -> dict[str, Column]:
    """What an Observation, or one of its components, has as value."""
    return {
        f"{name}value": Column(f"{path}valueQuantity.value", "number"),
        f"{name}comparator": Column(f"{path}valueQuantity.comparator"),
        f"{name}unit": Column(f"{path}valueQuantity.unit"),
        f"{name}unit_code": Column(f"{path}valueQuantity.code"),
        f"{name}value_code": Column(f"{path}valueCodeableConcept.coding[].code"),
        f"{name}value_display": Column(f"{path}valueCodeableConcept.coding[].display"),
        f"{name}value_text": Column(f"{path}valueString"),
        f"{name}value_boolean": Column(f"{path}valueBoolean", "boolean"),
        f"{name}value_integer": Column(f"{path}valueInteger", "integer"),
        f"{name}value_date": Column(f"{path}valueDateTime"),
        f"{name}interpretation": Column(f"{path}interpretation[].coding[].code"),
        f"{name}absent_reason": Column(f"{path}dataAbsentReason.coding[].code"),
    }


_EVERY = {"id": Column("id"), "last_updated": Column("meta.lastUpdated")}
_DRUG = _coded("medication", "medicationCodeableConcept", rxnorm=RXNORM, ndc=NDC)
#: Resource type to its columns.
COLUMNS: Mapping[str, Mapping[str, Column]] = {
    "Patient": {
        **_EVERY,
        "mrn": Column("identifier[type.text=Medical Record Number].value"),
        "birth_date": Column("birthDate"),
        "gender": Column("gender"),
        "birth_sex": Column(f"extension[url={US_CORE}/us-core-birthsex].valueCode"),
        "race_code": Column(
            f"extension[url={US_CORE}/us-core-race].extension[url=ombCategory].valueCoding.code"
        ),
        "race": Column(
            f"extension[url={US_CORE}/us-core-race].extension[url=ombCategory][*].valueCoding.display"
        ),
        "race_text": Column(f"extension[url={US_CORE}/us-core-race].extension[url=text].valueString"),
        "ethnicity_code": Column(
            f"extension[url={US_CORE}/us-core-ethnicity].extension[url=ombCategory].valueCoding.code"
        ),
        "ethnicity": Column(
            f"extension[url={US_CORE}/us-core-ethnicity].extension[url=ombCategory].valueCoding.display"
        ),
        "deceased": Column("deceasedBoolean", "boolean"),
        "death_date": Column("deceasedDateTime"),
        "state": Column("address[].state"),
        "city": Column("address[].city"),
        "zip_code": Column("address[].postalCode"),
        "active": Column("active", "boolean"),
        "practitioner_id": _reference("generalPractitioner[]", "Practitioner"),
    },
    "Practitioner": {
        **_EVERY,
        "npi": Column(f"identifier[system={NPI}].value"),
        "first_name": Column("name[].given[]"),
        "last_name": Column("name[].family"),
        "specialty": Column("qualification[].code.text"),
        "specialty_code": Column("qualification[].code.coding[].code"),
        "state": Column("address[].state"),
        "city": Column("address[].city"),
        "zip_code": Column("address[].postalCode"),
        "active": Column("active", "boolean"),
    },
    "Encounter": {
        **_EVERY,
        "patient_id": _reference("subject", "Patient"),
        "practitioner_id": _reference("participant[].individual", "Practitioner"),
        "status": Column("status"),
        "class": Column("class.code"),
        **_coded("type", "type[]", snomed=SNOMED),
        **_coded("reason", "reasonCode[]", icd10cm=ICD10CM, snomed=SNOMED),
        "start": Column("period.start"),
        "end": Column("period.end"),
        "discharge_disposition": Column("hospitalization.dischargeDisposition.coding[].code"),
    },
    "Condition": {
        **_EVERY,
        "patient_id": _reference("subject", "Patient"),
        "encounter_id": _reference("encounter", "Encounter"),
        "practitioner_id": _reference("asserter", "Practitioner"),
        **_coded("code", "code", icd10cm=ICD10CM, icd9cm=ICD9CM, snomed=SNOMED),
        "clinical_status": Column("clinicalStatus.coding[].code"),
        "verification_status": Column("verificationStatus.coding[].code"),
        "category": Column("category[].coding[].code"),
        "severity": Column("severity.coding[].display"),
        "onset_date": Column("onsetDateTime"),
        "onset_start": Column("onsetPeriod.start"),
        "abatement_date": Column("abatementDateTime"),
        "recorded_date": Column("recordedDate"),
    },
    "Medication": {
        **_EVERY,
        **_coded("medication", "code", rxnorm=RXNORM, ndc=NDC),
        "status": Column("status"),
    },
    "MedicationRequest": {
        **_EVERY,
        "patient_id": _reference("subject", "Patient"),
        "encounter_id": _reference("encounter", "Encounter"),
        "practitioner_id": _reference("requester", "Practitioner"),
        "condition_id": _reference("reasonReference[]", "Condition"),
        **_DRUG,
        "medication_id": Column("medicationReference.reference", "reference", "Medication"),
        "status": Column("status"),
        "intent": Column("intent"),
        "authored_on": Column("authoredOn"),
        "dosage": Column("dosageInstruction[].text"),
        "quantity": Column("dispenseRequest.quantity.value", "number"),
        "days_supply": Column("dispenseRequest.expectedSupplyDuration.value", "number"),
        "refills": Column("dispenseRequest.numberOfRepeatsAllowed", "integer"),
    },
    "MedicationDispense": {
        **_EVERY,
        "patient_id": _reference("subject", "Patient"),
        "encounter_id": _reference("context", "Encounter"),
        "practitioner_id": _reference("performer[].actor", "Practitioner"),
        "request_id": _reference("authorizingPrescription[]", "MedicationRequest"),
        **_DRUG,
        "medication_id": Column("medicationReference.reference", "reference", "Medication"),
        "status": Column("status"),
        "prepared_on": Column("whenPrepared"),
        "handed_over_on": Column("whenHandedOver"),
        "quantity": Column("quantity.value", "number"),
        "days_supply": Column("daysSupply.value", "number"),
    },
    "Observation": {
        **_EVERY,
        "patient_id": _reference("subject", "Patient"),
        "encounter_id": _reference("encounter", "Encounter"),
        "practitioner_id": _reference("performer[]", "Practitioner"),
        "status": Column("status"),
        "category": Column("category[].coding[].code"),
        **_coded("code", "code", loinc=LOINC, snomed=SNOMED),
        "effective_date": Column("effectiveDateTime"),
        "effective_start": Column("effectivePeriod.start"),
        "issued": Column("issued"),
        **_valued("", ""),
    },
}


def component_columns(number: int) -> dict[str, Column]:
    """The columns of the component ``number`` (from 1) of an Observation."""
    name, path = f"component{number}_", f"component[{number}]."
    return {**_coded(name.rstrip("_"), f"{path}code", loinc=LOINC), **_valued(name, path)}


#: Where an Observation has its components; not a column.
_COMPONENTS = Column("component[].id")
_TYPE = re.compile(rb'"resourceType"\s*:\s*"(\w+)"')
_REFERENCE = (
    r"^(?:urn:(?:uuid|oid):|(?:.*/)?(?P<type>[A-Z][A-Za-z]+)/)(?P<id>[A-Za-z0-9.\-]{1,64})(?:/_history/.*)?$"
)
_CONDITIONAL = r"^(?P<type>[A-Z][A-Za-z]+)\?identifier=(?P<system>.*?)(?:\||%7C)(?P<value>.+)$"
_BLANKS = b" \t\r\n\xef\xbb\xbf"
_NAMED = re.compile(r"\.(nd)?jsonl?(\.gz)?$", re.IGNORECASE)
_STEP = re.compile(
    r"(?P<name>\w+)(?P<list>\[(?:(?P<key>[a-zA-Z.]+)=(?P<value>[^\]]*)|(?P<place>\d+))?\])?(?P<all>\[\*\])?"
)


def _recognise(start: bytes) -> bool:
    found = _TYPE.search(start)
    return (
        start.lstrip(b"\xef\xbb\xbf \r\n\t")[:1] == b"{"
        and found is not None
        and found[1].decode() in COLUMNS
    )


def _open(path: Path, form: FileFormat) -> Records:
    import pyarrow as pa

    resource = _type_of(path)
    if resource is None:
        known = ", ".join(COLUMNS)
        raise refusal(path, f"its first lines name no resource type that is read ({known})")
    columns = dict(COLUMNS[resource])
    watched = resource == "Observation"
    if watched:
        for number in range(form.components):
            columns |= component_columns(number + 1)
    schema = pa.schema([(name, _arrow(column.kind)) for name, column in columns.items()])
    summary = FileSummary(
        lines=0,
        columns={name: ColumnNotes(display=f"{resource}.{column.path}") for name, column in columns.items()},
    )
    references = {name: _References(column.to) for name, column in columns.items() if column.to is not None}

    more_components = 0

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal more_components
        needed = [*columns.values(), *([_COMPONENTS] if watched else [])]
        for resources in _resources(path, needed, summary, resource):
            if watched:
                more_components += _longer(resources.column("component"), form.components)
            cells = [_flat(resources, column) for column in columns.values()]
            for place, (name, source) in enumerate(columns.items()):
                if source.kind == "reference":
                    cells[place] = references[name].resolved(cells[place], path.parent)
            yield with_nulls(pa.record_batch(cells, schema=schema), form)
        if more_components:
            read = f"more than {form.components}" if form.components else "components, which are not read"
            summary.notes.append(
                f"{more_components:,} Observations have {read}; `components: N` in the mapping reads the first N"
            )
        for name, seen in references.items():
            summary.notes += seen.notes(name, path.parent)

    return Records(schema, batches(), summary)


def _type_of(path: Path) -> str | None:
    """The resource type of a file, as its first resource says."""
    with open_bytes(path) as stream:
        found = _TYPE.search(stream.read(1 << 16))
    name = found[1].decode() if found else None
    return name if name in COLUMNS else None


# --- lines to resources


def _resources(
    path: Path, columns: Iterable[Column], summary: FileSummary, resource: str
) -> Iterator[pa.Table]:
    """The resources of a file by blocks of lines, each with the elements that ``columns`` need."""
    schema = _schema_of([Column("resourceType"), *columns])
    first = 1
    with open_bytes(path) as stream:
        while lines := stream.readlines(BATCH_BYTES):
            filled = [(number, line) for number, line in enumerate(lines, first) if line.strip(_BLANKS)]
            summary.blank += [number for number, line in enumerate(lines, first) if not line.strip(_BLANKS)]
            summary.lines = (summary.lines or 0) + len(filled)
            first += len(lines)
            yield from _parsed(filled, schema, summary, resource)
    summary.malformed.sort()


def _parsed(
    lines: list[tuple[int, bytes]], schema: pa.Schema, summary: FileSummary, resource: str
) -> list[pa.Table]:
    """Numbered lines as resources; where the parser refuses them, each half by itself, down to the line."""
    import pyarrow as pa
    from pyarrow import json as arrow_json

    if not lines:
        return []
    text = b"\n".join(line.strip(_BLANKS) for _, line in lines)
    found = None
    # Not the parser's own check: it takes text that is no UTF-8.
    with contextlib.suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError):
        text.decode()
        found = arrow_json.read_json(
            pa.BufferReader(text),
            arrow_json.ReadOptions(use_threads=False, block_size=len(text) + 1),
            arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
    if found is None or found.num_rows != len(lines):
        if len(lines) == 1:
            summary.malformed.append((lines[0][0], lines[0][1].decode(errors="replace").strip()))
            return []
        half = len(lines) // 2
        return [
            row for part in (lines[:half], lines[half:]) for row in _parsed(part, schema, summary, resource)
        ]
    pc = compute()
    ours = pc.fill_null(pc.equal(found.column("resourceType"), resource), False)
    if not pc.all(ours).as_py():
        other = np.flatnonzero(~ours.to_numpy())
        summary.malformed += [(lines[place][0], lines[place][1].decode().strip()) for place in other]
        found = found.filter(ours)
    return [found] if found.num_rows else []


def _schema_of(columns: Iterable[Column]) -> pa.Schema:
    """The elements that the paths of ``columns`` need, nested as FHIR has them."""
    import pyarrow as pa

    tree: dict[str, Any] = {}

    def grow(path: str, leaf: Kind) -> None:
        node = tree
        for step in _STEP.finditer(path):
            entry = node.setdefault(step["name"], {"list": False, "leaf": leaf, "inner": {}})
            entry["list"] |= step["list"] is not None
            node = entry["inner"]
            if step["key"]:
                inner = node
                for name in step["key"].split("."):
                    inner = inner.setdefault(name, {"list": False, "leaf": "text", "inner": {}})["inner"]

    for column in columns:
        grow(column.path, column.kind)

    def typed(entry: dict[str, Any]) -> pa.DataType:
        inner = [(name, typed(inner_column)) for name, inner_column in entry["inner"].items()]
        kind = pa.struct(inner) if inner else _arrow(entry["leaf"])
        return pa.list_(kind) if entry["list"] else kind

    return pa.schema([(name, typed(entry)) for name, entry in tree.items()])


def _arrow(kind: Kind) -> pa.DataType:
    import pyarrow as pa

    return {"number": pa.float64(), "integer": pa.int64(), "boolean": pa.bool_()}.get(kind, pa.string())


# --- resources to columns


def _spread(resources: pa.Table, path: str) -> tuple[pa.Array, pa.Array | None]:
    """Values at a path and, where it leads through lists, the place of the resource that each is of."""
    import pyarrow as pa

    pc = compute()
    values: Any = None
    rows: Any = None
    for step in _STEP.finditer(path):
        if values is None:
            values = pa.concat_arrays(resources.column(step["name"]).chunks)
        else:
            values = pc.struct_field(values, step["name"])
        if step["list"] is None:
            continue
        parents = pc.list_parent_indices(values)
        rows = parents if rows is None else rows.take(parents)
        values = pc.list_flatten(values)
        if step["key"]:
            wanted = pc.fill_null(
                pc.equal(pc.struct_field(values, step["key"].split(".")), step["value"]), False
            )
            values, rows = values.filter(wanted), rows.filter(wanted)
        if step["place"]:
            places = parents.to_numpy()
            first = np.searchsorted(places, places)
            wanted = pa.array(np.arange(len(values)) - first + 1 == int(step["place"]))
            values, rows = values.filter(wanted), rows.filter(wanted)
    return values, rows


def _longer(lists: pa.ChunkedArray, length: int) -> int:
    """How many of the lists have more than ``length`` members."""
    pc = compute()
    return pc.sum(pc.greater(pc.list_value_length(lists), length)).as_py() or 0


def _flat(resources: pa.Table, column: Column) -> pa.Array:
    """A column: for each resource the first value at its path, or all of them as one text."""
    import pyarrow as pa

    pc = compute()
    values, rows = _spread(resources, column.path)
    if rows is None:
        return values
    there = pc.is_valid(values)
    values, places = values.filter(there), rows.filter(there).to_numpy(zero_copy_only=False)
    if "[*]" in column.path:
        borders = np.searchsorted(places, np.arange(resources.num_rows + 1))
        joined = pc.binary_join(pa.ListArray.from_arrays(pa.array(borders, pa.int32()), values), "; ")
        return pc.if_else(pc.equal(joined, ""), None, joined)
    filled, first = np.unique(places, return_index=True)
    taken = np.full(resources.num_rows, -1)
    taken[filled] = first
    return values.take(pa.array(taken, pa.int64(), mask=taken < 0))


# --- references


@dataclass
class _References:
    """The references of a column to resources of one type, and what became of them."""

    to: str
    others: Counter[str] = field(default_factory=Counter)
    unknown: int = 0
    ids: list[pa.Array] = field(default_factory=list)

    def resolved(self, cells: pa.Array, folder: Path) -> pa.Array:
        """The id of what each reference refers to; null where that is of another type, or not known."""
        import pyarrow as pa

        pc = compute()
        coded = cells.dictionary_encode()
        parts = pc.extract_regex(coded.dictionary, _REFERENCE)
        kind, found = (pc.struct_field(parts, name) for name in ("type", "id"))
        odd = pc.or_(pc.is_null(parts), pc.invert(pc.is_in(kind, pa.array(["", self.to]))))
        if pc.any(odd).as_py():
            # The few that are no plain references to a resource of the type, each by itself.
            counts = np.bincount(coded.indices.drop_null().to_numpy(), minlength=len(found))
            places = np.flatnonzero(odd.to_numpy(zero_copy_only=False))
            known = [
                self._odd(
                    coded.dictionary[int(place)].as_py(), kind[int(place)].as_py(), counts[place], folder
                )
                for place in places
            ]
            found = pc.replace_with_mask(found, odd, pa.array(known, pa.string()))
        self.ids.append(found.drop_null())
        return found.take(coded.indices)

    def _odd(self, text: str, kind: str | None, count: int, folder: Path) -> str | None:
        """The id that a reference by identifier leads to; None, counted, for one that leads to none of the type."""
        named = re.match(_CONDITIONAL, text)
        if kind is not None:
            self.others[kind] += int(count)
            return None
        known = named and _by_identifier(_files_of(folder, self.to)).get((named["system"], named["value"]))
        self.unknown += 0 if known else int(count)
        return known

    def notes(self, name: str, folder: Path) -> list[str]:
        """What a person should know of the column ``name``."""
        import pyarrow as pa

        said = [
            f"{name}: {count:,} references are to a {other}, none to a {self.to}"
            for other, count in self.others.items()
        ]
        if self.unknown:
            said.append(
                f"{name}: {self.unknown:,} references name no {self.to} of the folder by id or identifier"
            )
        ids = compute().unique(pa.concat_arrays(self.ids)) if self.ids else pa.array([], pa.string())
        files = _files_of(folder, self.to)
        lost = (
            len(ids)
            if not files
            else int(np.sum(~compute().is_in(ids, value_set=_ids(files)).to_numpy(zero_copy_only=False)))
        )
        if lost:
            where = (
                f"are not in the {self.to} files of the folder"
                if files
                else f"are referred to, and the folder has no {self.to} file"
            )
            said.append(f"{name}: {lost:,} different {self.to} resources {where}")
        return said


#: Path, time of change and size of a file, so that another file of that name is read anew.
_File = tuple[Path, int, int]


def _files_of(folder: Path, resource: str) -> tuple[_File, ...]:
    """The NDJSON files of a folder that hold resources of a type."""
    files = (path for path in sorted(folder.iterdir()) if _NAMED.search(path.name) and path.is_file())
    return tuple(
        (path, path.stat().st_mtime_ns, path.stat().st_size) for path in files if _type_of(path) == resource
    )


@lru_cache(maxsize=8)
def _ids(files: tuple[_File, ...]) -> pa.Array:
    import pyarrow as pa

    column = Column("id")
    return pa.concat_arrays(
        [
            _flat(some, column)
            for path, *_ in files
            for some in _resources(path, [column], FileSummary(), _type_of(path) or "")
        ]
        or [pa.array([], pa.string())]
    )


@lru_cache(maxsize=2)
def _by_identifier(files: tuple[_File, ...]) -> dict[tuple[str, str], str]:
    """(system, value) of each identifier to the id of its resource."""
    wanted = [Column("id"), Column("identifier[].system"), Column("identifier[].value")]
    found: dict[tuple[str, str], str] = {}
    for path, *_ in files:
        for some in _resources(path, wanted, FileSummary(), _type_of(path) or ""):
            (ids, _), (systems, rows), (values, _) = (_spread(some, column.path) for column in wanted)
            if rows is not None:
                owners = ids.take(rows)
                found |= dict(
                    zip(
                        zip(systems.to_pylist(), values.to_pylist(), strict=True),
                        owners.to_pylist(),
                        strict=True,
                    )
                )
    return found


FORMAT = Format("FHIR R4 (NDJSON)", _recognise, _open, gzipped=True)
