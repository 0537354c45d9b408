"""Formats that are known and not read, with what has to be done with a file of one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from e2i_dagster.errors import InputError
from e2i_dagster.sources.formats.records import refusal

_AS_TEXT = "Save each sheet as CSV (UTF-8)"
_AS_TABLES = "Write the segments that you need as CSV, one row for each record, with your interface engine"


@dataclass(frozen=True)
class Refused:
    """A known format without a reader: its name, what to do, its first bytes (a pattern), and its endings."""

    name: str
    remedy: str
    starts: bytes | None = None
    endings: tuple[str, ...] = ()

    @property
    def reason(self) -> str:
        """Why a file of it is not read, and what to do."""
        return f"{self.name}, which is not read. {self.remedy}"

    def error(self, path: Path) -> InputError:
        """The refusal of a file of it."""
        return refusal(path, f"{self.name}, which is not read", f"{self.remedy}.", value=self.name)


#: A file is of the first whose beginning or, failing all, whose ending it has.
REFUSED = (
    Refused("an Excel workbook", _AS_TEXT, rb"PK\x03\x04(?s:.{0,4000}?)xl/", (".xlsx", ".xlsm", ".xlsb")),
    Refused("a spreadsheet (OpenDocument)", _AS_TEXT, rb"PK\x03\x04(?s:.{0,100}?)opendocument", (".ods",)),
    Refused("an Excel workbook of before 2007", _AS_TEXT, rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", (".xls",)),
    Refused("a ZIP archive", "Unpack it into the folder", rb"PK\x03\x04", (".zip",)),
    Refused(
        "an archive",
        "Unpack it into the folder",
        rb"7z\xbc\xaf|\x28\xb5\x2f\xfd|BZh|\xfd7zXZ",
        (".7z", ".zst", ".bz2", ".xz", ".tar"),
    ),
    Refused(
        "a SAS catalogue",
        "Its value labels are shown where it lies beside the sas7bdat files that use them; it has no rows",
        rb"\x00{12}\xc2\xea\x81\x63",
        (".sas7bcat",),
    ),
    Refused(
        "a SAS file by PROC CPORT",
        "Write it with the XPORT engine: libname out xport 'dm.xpt'; proc copy in=work out=out; select dm; run;",
        rb"\*\*COMPRESSED\*\*",
        (".cpt", ".stc"),
    ),
    Refused(
        "an SPSS file",
        "In SPSS: SAVE TRANSLATE /TYPE=CSV, or in Python: pyreadstat.read_sav(path)[0].to_parquet(...)",
        rb"\$FL[23]",
        (".sav", ".zsav", ".por"),
    ),
    Refused(
        "a Stata file",
        "In Stata: export delimited, or in Python: pandas.read_stata(path).to_parquet(...)",
        rb"<stata_dta>|[\x71-\x73][\x01\x02]\x01\x00",
        (".dta",),
    ),
    Refused(
        "an R file",
        "In R: arrow::write_parquet(data, 'table.parquet')",
        rb"RD[AX][23]\n",
        (".rds", ".rdata", ".rda"),
    ),
    Refused(
        "an Arrow or Feather file",
        "Write it as Parquet: pyarrow.parquet.write_table",
        rb"ARROW1|FEA1",
        (".arrow", ".feather"),
    ),
    Refused("an Avro file", "Write it as Parquet or CSV", rb"Obj\x01", (".avro",)),
    Refused("an ORC file", "Write it as Parquet", rb"ORC", (".orc",)),
    Refused("an HDF5 file", "Write each table as Parquet or CSV", rb"\x89HDF\r\n", (".h5", ".hdf5")),
    Refused(
        "a SQLite database", "Write each table as Parquet or CSV", rb"SQLite format 3\x00", (".sqlite", ".db")
    ),
    Refused("a PDF", "Ask for the data themselves", rb"%PDF-", (".pdf",)),
    Refused("an HL7 v2 message", _AS_TABLES, rb"(?:[BF]HS\|[^\r\n]*[\r\n]+)*MSH\|\^~", (".hl7",)),
    Refused(
        "an X12 interchange, such as an 835 or 837 claim",
        _AS_TABLES,
        rb"ISA([^\w\s]).{2}\1",
        (".x12", ".edi", ".837", ".835"),
    ),
    Refused(
        "a CDA document (C-CDA)",
        "Ask for a FHIR bulk export (NDJSON)",
        rb"\s*(?:<\?xml[^>]*>\s*)?(?:<[?!][^>]*>\s*)*<ClinicalDocument",
    ),
    Refused(
        "a CDISC ODM or Dataset-XML file",
        "Ask for Dataset-JSON 1.1 or XPT",
        rb"\s*(?:<\?xml[^>]*>\s*)?(?:<[?!][^>]*>\s*)*<(?:\w+:)?ODM",
    ),
    Refused("an XML file", "Ask for CSV, Parquet, or a FHIR bulk export (NDJSON)", rb"\s*<\?xml", (".xml",)),
    Refused(
        "a FHIR Bundle",
        "Ask for the bulk export (NDJSON), or write one line for each resource, one file for each type: "
        "jq -c '.entry[].resource | select(.resourceType==\"Patient\")' bundle.json > Patient.ndjson",
        rb'\s*\{(?s:.{0,2000}?)"resourceType"\s*:\s*"Bundle"',
    ),
    Refused(
        "FHIR resources of a type that is not read",
        "The types that are read are in docs/fhir.md; take the file out of `files` of the mapping",
        rb'\s*\{(?s:.{0,2000}?)"resourceType"\s*:',
    ),
    Refused(
        "JSON of no known kind",
        "Dataset-JSON 1.1 and FHIR R4 (NDJSON) are read; write others as CSV or Parquet",
        None,
        (".json", ".ndjson", ".jsonl"),
    ),
)


def refused_by_content(start: bytes) -> Refused | None:
    """The format that is not read of a file that begins with ``start``."""
    return next((form for form in REFUSED if form.starts is not None and re.match(form.starts, start)), None)


def refused_by_ending(path: Path) -> Refused | None:
    """The format that is not read of a file called so."""
    suffix = path.suffix.lower()
    return next((form for form in REFUSED if suffix in form.endings), None)
