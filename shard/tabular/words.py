"""Compare the cells of a table with known words, such as words for "unknown"."""

from __future__ import annotations

import re
import unicodedata

import numpy as np
import numpy.typing as npt
import pandas as pd

_INVISIBLE = re.compile("[\u200b-\u200f\u2060\ufeff\u00ad]")  # zero-width characters, direction marks, soft hyphens
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


def factorize(cells: pd.Series) -> tuple[npt.NDArray[np.intp], list[str]]:
    """Encode a column as indices [N] into its distinct texts, so that each is parsed once. A missing cell is ""."""
    codes, texts = pd.factorize(cells)  # a missing cell has code -1, the index of the last text
    return codes, [*map(str, texts), ""]


def fold(text: str) -> str:
    """Normalise a text: composed, lower case, single blanks, no outer quotes, no invisible characters."""
    text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).casefold()
    return " ".join(unicodedata.normalize("NFC", text).strip().strip(_QUOTES).split())


def says_unknown(folded: str) -> bool:
    """Whether a folded cell is blank or means "unknown": "", "n/a", "unknown", "___"."""
    return folded.strip("[]()") in _UNKNOWN or folded in _UNKNOWN or not folded.strip("-–—_.?*/ ")
