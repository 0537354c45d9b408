"""Codes as they are compared: the systems, their shapes, and one form for all spellings of a code."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

#: Blanks of any width, none too, of which no code begins or ends with one.
BLANKS = (
    " \t\n\r\x0b\x0c\x85\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u200b"
    "\u200c\u200d\u2028\u2029\u202f\u205f\u2060\u3000\ufeff"
)
#: Written for a hyphen: the soft one, Unicode's hyphens and dashes, the minus sign, and their wide forms.
DASHES = "[\u00ad\u2010-\u2015\u2212\ufe58\ufe63\uff0d]"
#: A hyphen however it is written: cells are compared with the shapes of codes as they were delivered.
HYPHEN = f"[-{DASHES[1:]}"
#: What separates the parts of a National Drug Code.
NDC_SEPARATOR = f"[- {DASHES[1:]}"
#: Forms of a National Drug Code with its parts separated, and where the missing zero belongs.
NDC_FORMS: tuple[tuple[str, int | None], ...] = (
    (rf"^[0-9]{{5}}{NDC_SEPARATOR}[0-9]{{4}}{NDC_SEPARATOR}[0-9]{{2}}$", None),
    (rf"^[0-9]{{4}}{NDC_SEPARATOR}[0-9]{{4}}{NDC_SEPARATOR}[0-9]{{2}}$", 0),
    (rf"^[0-9]{{5}}{NDC_SEPARATOR}[0-9]{{3}}{NDC_SEPARATOR}[0-9]{{2}}$", 5),
    (rf"^[0-9]{{5}}{NDC_SEPARATOR}[0-9]{{4}}{NDC_SEPARATOR}[0-9]$", 9),
)
#: Ten digits without hyphens, of which it is unknown which part lacks its zero; fewer where a column of numbers
#: lost the zeros in front, which may have been eleven digits or ten.
NDC_UNDECIDED = r"^[0-9]{1,10}(?:\.0+)?$"
NDC_FRACTION = r"\.0+$"
NDC_DIGITS = 10
#: What holds a drug code, or several, and cannot be read: parts that lost zeros, or digits and more beside.
NDC_UNREADABLE = (
    rf"^[0-9]{{1,5}}{NDC_SEPARATOR}[0-9]{{1,4}}{NDC_SEPARATOR}[0-9]{{1,2}}$|(?:[0-9][^0-9]*){{9,}}"
)
#: Digits alone are no such cell: codes of other systems have twelve and more.
ONLY_DIGITS = r"^[0-9]*$"
#: Where the zero can belong that ten digits lack.
NDC_ZEROS: tuple[int, ...] = tuple(place for _, place in NDC_FORMS if place is not None)

#: A cell with several codes: ``["L50.1", "J30.1"]`` with any quotes, ``{L50.1,J30.1}`` or ``L50.1; J30.1``. Of it these
#: characters are no part of a code, and these separate two.
LIST_MARKS = "[\\[\\]{}()'\"\u2018-\u201f]"
LIST_SEPARATOR = f"[{BLANKS}]*[,;|\u3001\uff0c\uff1b\uff5c][{BLANKS}]*"
#: What stands before and after each code of a cell in the form in which they are compared.
BAR = "|"
BETWEEN = BAR + BAR


@dataclass(frozen=True)
class CodeSystem:
    """A system of codes.

    Attributes:
        title: its name for people.
        shape: regular expression of one code in upper case, without outer blanks.
        expected: the shape in words.
        event_column: column of the events that holds its codes; ``code`` where no table has one.
    """

    title: str
    shape: str
    expected: str
    event_column: str = "code"


_CPT = r"[0-9]{5}|[0-9]{4}[AFMTU]"

#: Shapes: ICD-10-CM and ICD-9-CM (CDC, CMS); CPT (AMA: five digits, ``A`` vaccinations, ``F`` category II,
#: ``T`` category III, laboratory analyses ``U`` and ``M``); HCPCS level II (CMS); NDC (21 CFR 207.33 and the
#: 11 digits of claims); LOINC Users' Guide (check digit mod 10); NPI (CMS, check digit over prefix 80840).
SYSTEMS: dict[str, CodeSystem] = {
    "icd10cm": CodeSystem(
        "ICD-10-CM diagnosis",
        r"^[A-Z][0-9AB][0-9A-Z](?:\.?[0-9A-Z]{1,4})?$",
        "a letter, two characters, and up to four more after the dot, such as L50.1 or T36.0X1A",
        "icd_codes",
    ),
    "icd9cm": CodeSystem(
        "ICD-9-CM diagnosis",
        r"^(?:[0-9]{3}(?:\.?[0-9]{1,2})?|V[0-9]{2}(?:\.?[0-9]{1,2})?|E[0-9]{3}(?:\.?[0-9])?)$",
        "three digits (or V and two, E and three) and up to two more after the dot, such as 708.1 or V58.69",
        "icd_codes",
    ),
    "cpt": CodeSystem(
        "CPT procedure",
        rf"^(?:{_CPT})$",
        "five digits, or four and A, F, M, T or U, such as 95004 or 0075T",
        "cpt_codes",
    ),
    "hcpcs": CodeSystem(
        "HCPCS procedure (level I is CPT)",
        rf"^(?:{_CPT}|[A-V][0-9]{{4}})$",
        "a letter and four digits, such as J2357, or a CPT code",
        "cpt_codes",
    ),
    "ndc": CodeSystem(
        "National Drug Code",
        "|".join([form for form, _ in NDC_FORMS] + ["^[0-9]{10,11}$"]),
        "5-4-2, 4-4-2, 5-3-2 or 5-4-1 digits with hyphens, or 11 digits, such as 00078-0946-61",
        "drug_ndc",
    ),
    "loinc": CodeSystem(
        "LOINC laboratory test",
        rf"^[1-9][0-9]{{0,6}}{HYPHEN}[0-9]$",
        "digits, a hyphen and the check digit, such as 718-7",
        "loinc_codes",
    ),
    "npi": CodeSystem(
        "National Provider Identifier",
        r"^[0-9]{10}$",
        "ten digits whose last is the check digit over prefix 80840",
    ),
}
#: What is a code of none of the systems: digits alone (SNOMED CT, RxNorm), drug codes that lost zeros, ICD-10-PCS.
_OTHERS = ("[0-9]+", "[0-9]{1,5}-[0-9]{1,4}-[0-9]{1,2}", "[0-9BCDFGHX][0-9A-HJ-NP-Z]{6}")
#: Words: every code has a digit.
_WORDS = "[^0-9\u0660-\u0669\u06f0-\u06f9\uff10-\uff19|]*"
#: One part of a list of codes that is a code of any system or no code for certain. What is neither (``99213-25``,
#: ``J30.1 L50.1``, ``ICD10:L50.1``) is any code or none.
READABLE_PART = r"\|(?:{})\|".format(
    "|".join(
        [*(system.shape.replace("^", "").replace("$", "") for system in SYSTEMS.values()), *_OTHERS, _WORDS]
    )
)
#: Columns of the events that hold the codes of a system; frames with one code to an event have ``code``.
EVENT_CODE_COLUMNS = frozenset(system.event_column for system in SYSTEMS.values()) - {"code"}
#: Other names of a system; case, hyphens, blanks and underscores do not count in any name.
ALIASES = {"icd10": "icd10cm", "icd9": "icd9cm", "cpt4": "cpt"}
#: What the digits 80840 before an NPI add to the sum of its digits.
NPI_PREFIX_SUM = 24


def known_system(name: str) -> str:
    """The system called ``name``: ``NDC``, ``ICD-10-CM`` and ``icd10`` are understood.

    Raises:
        ValueError: there is no such system; lists the known ones and the nearest.
    """
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    plain = ALIASES.get(plain, plain)
    if plain not in SYSTEMS:
        near = get_close_matches(plain, [*SYSTEMS, *ALIASES], n=1)
        meant = f" Did you mean {ALIASES.get(near[0], near[0])!r}?" if near else ""
        raise ValueError(f"no code system {name!r}.{meant} Known: {', '.join(SYSTEMS)}")
    return plain


def plain(code: str) -> str:
    """A code in upper case, without outer blanks, every dash a hyphen."""
    return re.sub(DASHES, "-", code.strip(BLANKS).upper())


def normal_code(code: str, system: str | None = None) -> str:
    """A code as it is compared: upper case, without dots and outer blanks; a drug code (``ndc``) as 11 digits.

    Every dash is a hyphen (:func:`plain`). A drug code of no known form is left as it is written.
    """
    text = plain(code)
    if system != "ndc":
        return text.replace(".", "")
    for form, place in NDC_FORMS:
        if re.match(form, text):
            digits = re.sub(NDC_SEPARATOR, "", text)
            return digits if place is None else f"{digits[:place]}0{digits[place:]}"
    return text


def normal_prefix(code: str, system: str | None = None) -> str:
    """The beginning of codes as they are compared; of a drug code its closed parts get their missing zeros."""
    text = plain(code)
    if system != "ndc":
        return text.replace(".", "")
    *closed, last = re.split(NDC_SEPARATOR, text.removesuffix("."))
    return "".join(part.zfill(width) for part, width in zip(closed, (5, 4, 2), strict=False)) + last


def is_undecided(code: str, system: str | None) -> bool:
    """Whether it cannot be known which code is meant: a drug code of ten digits, or fewer, without hyphens."""
    return system == "ndc" and re.match(NDC_UNDECIDED, code.strip(BLANKS)) is not None


def readings(code: str, system: str | None) -> tuple[str, ...]:
    """The codes, as they are compared, that ``code`` can stand for.

    One; three for a drug code that is undecided, whose first reading has all its zeros in front; none for a cell with a
    drug code that cannot be read (:data:`NDC_UNREADABLE`), which is any code or none.
    """
    if is_undecided(code, system):
        digits = re.sub(NDC_FRACTION, "", code.strip(BLANKS)).zfill(NDC_DIGITS)
        return tuple(f"{digits[:place]}0{digits[place:]}" for place in NDC_ZEROS)
    normal = normal_code(code, system)
    if system == "ndc" and not re.match(ONLY_DIGITS, normal) and re.search(NDC_UNREADABLE, normal):
        return ()
    return (normal,)


def listed(cell: str) -> str:
    """The codes of a cell in their order, in upper case, each between bars: ``|L50.1||J30.1|``.

    Takes one code, ``["L50.1", "J30.1"]``, ``{L50.1,J30.1}`` and codes separated by comma, semicolon or bar.
    For every system but ``ndc``, whose codes come one to a cell.
    """
    text = re.sub(LIST_MARKS, "", re.sub(DASHES, "-", cell.upper())).strip(BLANKS)
    return f"{BAR}{re.sub(LIST_SEPARATOR, BETWEEN, text)}{BAR}"


def normal_list(cell: str) -> str:
    """The codes of a cell as they are compared: :func:`listed` without dots, ``|L501||J301|``."""
    return listed(cell).replace(".", "")


def is_readable(cell: str, *, first: bool = False) -> bool:
    """Whether every part of a cell with codes, or its ``first``, is a code of some system or no code for certain."""
    codes = listed(cell)
    return re.match(READABLE_PART, codes) is not None if first else not re.sub(READABLE_PART, "", codes)


def fits(code: str, system: str) -> bool:
    """Whether ``code`` has the shape of ``system``, and the check digit where it has one (LOINC, NPI).

    An undecided drug code does.
    """
    text = plain(code)
    if re.fullmatch(SYSTEMS[system].shape, text) is None:
        return False
    digits = [int(character) for character in text if character.isdigit()]
    if system == "loinc":
        return luhn_sum(digits) % 10 == 0
    return npi_holds(digits) if system == "npi" else True


def cell_shape(systems: Sequence[str], *, several: bool = False) -> str:
    """Regular expression of a cell whose codes are of one of ``systems`` and decided, in any case.

    Args:
        several: the cell is a list, ``["L50.1", "J30.1"]``. Check digits are not asked for.
    """
    forms = [form for form, _ in NDC_FORMS] + ["^[0-9]{11}$"]
    shapes = [form for name in systems for form in (forms if name == "ndc" else [SYSTEMS[name].shape])]
    code = rf"\s*(?:{'|'.join(shape.removeprefix('^').removesuffix('$') for shape in shapes)})\s*"
    cell = rf'\[\s*(?:"{code}"(?:\s*,\s*"{code}")*)?\s*\]' if several else code
    return f"^(?i:{cell})$"


def npi_holds(digits: Sequence[Any]) -> Any:
    """Whether the last of ten digits is the check digit of an NPI (CMS, 2004); args as :func:`luhn_sum`."""
    return (luhn_sum(digits) + NPI_PREFIX_SUM) % 10 == 0


def luhn_sum(digits: Sequence[Any]) -> Any:
    """The sum of the Luhn formula (ISO/IEC 7812-1): a multiple of 10 when the last digit is the check digit.

    Args:
        digits: from the first to the check digit, each a whole number from 0 to 9, or an array or column
            expression of such numbers.

    Returns:
        From the right, every second digit doubled (less 9 above 9), all of them added.
    """
    total: Any = 0
    for place, digit in enumerate(reversed(digits)):
        total = total + (digit * 2 - digit // 5 * 9 if place % 2 else digit)
    return total
