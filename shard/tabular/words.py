"""How a cell of a table is compared with known words, and which words say that nothing is known."""

from __future__ import annotations

import re
import unicodedata

import numpy as np
import numpy.typing as npt
import pandas as pd

_UNSEEN = re.compile("[\u200b-\u200f\u2060\ufeff\u00ad]")  # zero-width characters, marks of direction, soft hyphens
_QUOTES = "\"'`´‘’“”«»"
_UNKNOWN = frozenset({
    "", "nan", "na", "n/a", "n.a.", "#n/a", "<na>", "nat", "nil", "none", "null", "(null)", "blank", "(blank)", "\\n",
    "unknown", "unkown", "unk", "unkn", "unknow", "undefined", "undetermined", "unspecified", "missing", "empty",
    "not available", "not applicable", "not known", "not stated", "not reported", "not recorded", "not specified",
    "no data", "redacted", "removed", "withheld", "anonymous", "anonymized", "anonymised",
    "unbekannt", "keine angabe", "k.a.", "desconocido", "desconocida", "sin dato", "sin datos", "desconhecido",
    "desconhecida", "não informado", "inconnu", "inconnue", "sconosciuto", "sconosciuta", "onbekend", "okänd",
    "ukjent", "ukendt", "nieznany", "nieznana", "неизвестно", "не указано", "不明", "未知", "알수없음", "bilinmiyor",
})  # fmt: skip


def places_of(cells: pd.Series) -> tuple[npt.NDArray[np.intp], list[str]]:
    """A column as [N] places in a list of its different texts, so that each is read once; a missing cell is ""."""
    places, texts = pd.factorize(cells)  # of a missing one -1, which is the last
    return places, [*map(str, texts), ""]


def fold(text: str) -> str:
    """The text in one spelling: composed, no capitals, no quotes around it, single blanks, nothing invisible."""
    text = _UNSEEN.sub("", unicodedata.normalize("NFKC", text)).casefold()
    return " ".join(unicodedata.normalize("NFC", text).strip().strip(_QUOTES).split())


def says_unknown(folded: str) -> bool:
    """Whether a cell, folded, is blank or says that nothing is known: "", "N/A", "Unknown", "___"."""
    return folded.strip("[]()") in _UNKNOWN or folded in _UNKNOWN or not folded.strip("-–—_.?*/ ")
