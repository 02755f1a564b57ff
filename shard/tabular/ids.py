"""Normalise ids, so that a patient has one id however tables write it."""

from __future__ import annotations

import re
import unicodedata

import pandas as pd

from shard.note import Note, counted

NORMALISED = "that is normalised"  # in notes
# Characters that look like ASCII: full-width letters and digits, and other hyphens and apostrophes.
_LOOKALIKES: dict[int, int | str] = {
    **{0xFEE0 + code: code for code in range(0x21, 0x7F)}, **dict.fromkeys([*range(0x2010, 0x2016), 0x2212], "-"),
    **dict.fromkeys([0x2018, 0x2019, 0x02BC], "'"),
}  # fmt: skip
# Invisible characters outside category Cf: a joiner, variation selectors, fillers.
_INVISIBLE = {0x034F, *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0), 0x115F, 0x1160, 0x3164, 0xFFA0}
_LONGEST = 30  # digits of a number: 1E+999 is not an id


def normalise_id(text: str) -> str:
    """Return the normal form of an id, which is what joins compare.

    Letters are composed (NFC) and in ASCII's width. Invisible characters, blanks at the ends and a pair of quotes are
    removed; other blanks, tabs and line breaks become single blanks. An integer becomes its digits, however pandas
    or a spreadsheet wrote it: 1.0 is 1, 1,234 is 1234, 1.9E+07 is 19000000. 007 stays 007. Case matters.
    """
    if re.fullmatch(r"[A-Za-z0-9_-]*", text):
        return text
    visible = "".join(letter for letter in text if letter.isspace() or (
        ord(letter) not in _INVISIBLE and unicodedata.category(letter) not in ("Cf", "Cc")))  # fmt: skip
    plain = " ".join(unicodedata.normalize("NFC", visible.translate(_LOOKALIKES)).split())
    if quoted := re.fullmatch(r"\"([^\"]+)\"|'([^']+)'", plain):
        return normalise_id(quoted[1] or quoted[2])
    return _as_digits(plain)


def _as_digits(text: str) -> str:
    """Write an integer without decimals, thousands separators or exponent. Leave any other text unchanged."""
    if re.fullmatch(r"-?[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.0*)?", text):
        return text.partition(".")[0].replace(",", "")
    if whole := re.fullmatch(r"(-?[0-9]+)[.,]0*", text):
        return whole[1]
    if power := re.fullmatch(r"(-?[1-9])(?:[.,]([0-9]+))?[Ee]\+([0-9]{1,2})", text):
        decimals, places = (power[2] or "").rstrip("0"), int(power[3])
        if len(decimals) <= places <= _LONGEST:
            return power[1] + decimals.ljust(places, "0")
    return text


def normalise_ids(ids: pd.Series, name: str) -> tuple[pd.Series, list[Note]]:
    """Normalise ids of dtype str, with a note if that changed more than outer blanks, or made two ids equal.

    name: the column, for the note.
    """
    unusual = [text for text in ids.unique() if not re.fullmatch(r"[A-Za-z0-9_-]*", text)]
    forms = {text: normalise_id(text) for text in unusual}
    changed = {text: form for text, form in forms.items() if text != form}
    if not changed:
        return ids, []
    merged = _merged_forms(ids, forms)
    noted = {text: form for text, form in changed.items() if form != text.strip() or form in merged}
    same: pd.Series = ids.map(changed).fillna(ids)
    if not noted:
        return same, []
    rows = int(ids.isin(noted).sum())
    text, form = next(iter(sorted(noted.items())))
    merging = f", which makes {len(merged)} of them equal to another" if merged else ""
    fact = f"{counted(rows, 'row has', 'rows have')} a {name} {NORMALISED}{merging}"
    return same, [Note(fact, f"{text!a} as {form!a}")]


def _merged_forms(ids: pd.Series, forms: dict[str, str]) -> set[str]:
    """Return the normalised forms shared by several raw ids."""
    texts_of: dict[str, set[str]] = {}
    for text, form in forms.items():
        texts_of.setdefault(form, set()).add(text)
    plain = set(ids[ids.isin(texts_of)].unique())
    return {form for form, texts in texts_of.items() if len(texts | ({form} & plain)) > 1}


def strip_prefix(ids: pd.Series, letter: str) -> pd.Series:
    """Remove a letter before numeric ids, and decimals after it: s59000001 and s59000001.0 become 59000001."""
    return ids.str.replace(rf"(?i)^{letter}(\d+)(?:\.0*)?$", r"\1", regex=True)
