"""Ids in one form: what a person would call one patient is one patient, however two tables write it."""

from __future__ import annotations

import re
import unicodedata

import pandas as pd

from shard.note import Note, counted

FOLDED = "in another form than it is read in"  # of notes
# Full-width letters and digits, and hyphens and apostrophes of other widths than ASCII's, which look the same.
_ALIKE: dict[int, int | str] = {
    **{0xFEE0 + code: code for code in range(0x21, 0x7F)}, **dict.fromkeys([*range(0x2010, 0x2016), 0x2212], "-"),
    **dict.fromkeys([0x2018, 0x2019, 0x02BC], "'"),
}  # fmt: skip
# Invisible beside format characters (Cf): a joiner, variation selectors, fillers.
_INVISIBLE = {0x034F, *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0), 0x115F, 0x1160, 0x3164, 0xFFA0}
_LONGEST = 30  # digits of a number: 1E+999 is no id


def one_form(text: str) -> str:
    """The form of an id in which it is compared.

    Letters composed (NFC), in ASCII's width; no invisible characters; blanks, tabs and line breaks as one blank, none
    at the ends; no pair of quotes around it; and a whole number as its digits, however pandas or a spreadsheet wrote
    it: 1.0 is 1, 1,234 is 1234, 1.9E+07 is 19000000. 007 stays 007, and upper case is not lower case.
    """
    if re.fullmatch(r"[A-Za-z0-9_-]*", text):
        return text
    seen = "".join(letter for letter in text if letter.isspace() or (
        ord(letter) not in _INVISIBLE and unicodedata.category(letter) not in ("Cf", "Cc")))  # fmt: skip
    plain = " ".join(unicodedata.normalize("NFC", seen.translate(_ALIKE)).split())
    if quoted := re.fullmatch(r"\"([^\"]+)\"|'([^']+)'", plain):
        return one_form(quoted[1] or quoted[2])
    return _as_digits(plain)


def _as_digits(text: str) -> str:
    """A whole number without decimals, marks between thousands and exponent; any other text as it is."""
    if re.fullmatch(r"-?[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.0*)?", text):
        return text.partition(".")[0].replace(",", "")
    if whole := re.fullmatch(r"(-?[0-9]+)[.,]0*", text):
        return whole[1]
    if power := re.fullmatch(r"(-?[1-9])(?:[.,]([0-9]+))?[Ee]\+([0-9]{1,2})", text):
        decimals, places = (power[2] or "").rstrip("0"), int(power[3])
        if len(decimals) <= places <= _LONGEST:
            return power[1] + decimals.ljust(places, "0")
    return text


def in_one_form(ids: pd.Series, name: str) -> tuple[pd.Series, list[Note]]:
    """Ids of dtype str in one form, and a note where that changed more than blanks around them, or joined two.

    name: of the column, for the note.
    """
    odd = [text for text in ids.unique() if not re.fullmatch(r"[A-Za-z0-9_-]*", text)]
    forms = {text: one_form(text) for text in odd}
    changed = {text: form for text, form in forms.items() if text != form}
    if not changed:
        return ids, []
    joined = _joined(ids, forms)
    told = {text: form for text, form in changed.items() if form != text.strip() or form in joined}
    same: pd.Series = ids.map(changed).fillna(ids)
    if not told:
        return same, []
    rows = int(ids.isin(told).sum())
    text, form = next(iter(sorted(told.items())))
    merging = f", which makes {len(joined)} of them one with another" if joined else ""
    fact = f"{counted(rows, 'row has', 'rows have')} a {name} {FOLDED}{merging}"
    return same, [Note(fact, f"{text!a} as {form!a}")]


def _joined(ids: pd.Series, forms: dict[str, str]) -> set[str]:
    """The forms that several of the ids have."""
    spelt: dict[str, set[str]] = {}
    for text, form in forms.items():
        spelt.setdefault(form, set()).add(text)
    plain = set(ids[ids.isin(spelt)].unique())
    return {form for form, texts in spelt.items() if len(texts | ({form} & plain)) > 1}


def without_prefix(ids: pd.Series, letter: str) -> pd.Series:
    """Numbers as ids, without the letter that folders and other tables put before them, and the decimals behind it:
    s59000001 and s59000001.0 are 59000001."""
    return ids.str.replace(rf"(?i)^{letter}(\d+)(?:\.0*)?$", r"\1", regex=True)
