"""Read sex, F or M, from words or from codes that a column header defines, such as "Sex (1=M, 0=F)"."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pandas as pd

from shard.tabular.words import fold, says_unknown

# Words, and letters that mean the same in all languages (W, K and Ж are female in every language that has them).
# Letters whose meaning depends on the language, such as Spanish M for mujer, are in _ambiguous_letters.
_WORDS = {
    "F": """female females woman women girl fem femal w k f ж 女 女性 女子 여 여자 여성
        weiblich frau mädchen femenino femenina mujer femme féminin feminin féminine feminine feminino feminina
        mulher femmina femminile donna vrouw vrouwelijk kvinna kvinde kvinne kvinnlig kobieta żena žena ženské nainen
        kadın kadin bayan женщина женский жен nữ""",
    "M": """male males man men boy masc m м 男 男性 男子 남 남자 남성
        männlich maennlich mannlich mann junge masculino masculina hombre varón varon homme masculin masculine
        homem maschio maschile uomo mannelijk manlig mężczyzna muž mies erkek bay мужчина мужской муж nam""",
}
_SEX = {word: sex for sex, words in _WORDS.items() for word in words.split()}
_NAMES = {"F": "Female", "M": "Male"}
_TRUE, _FALSE = ("1", "1.0", "true", "t", "yes", "y"), ("0", "0.0", "false", "f", "no", "n")
_FLAG = re.compile(r"(?:patient ?)?(?:is ?|sex ?|gender ?|sex ?is ?|gender ?is ?)?(female|male|woman|man)"
                   r"|(?:is|sex|gender) ?(f|m)")  # fmt: skip
_CODED = re.compile(r"(?:patient)?[\W_]*(?:sex|gender)(?![^\W\d_])(.*\d.*)")


def read_sexes(texts: Iterable[str]) -> dict[str, str | None]:
    """Map the cells of one column to F, M, "" (blank or "unknown") or None (not understood).

    Single letters are read in the context of the column: M is male, except with H or V and without F, where it may be
    the Spanish mujer. Numbers are codes, which are not understood without a header.
    """
    folded = {text: fold(text) for text in texts}
    known = {**_SEX, **_ambiguous_letters({word.rstrip(".") for word in folded.values()})}
    return {text: _read_words(word, known) for text, word in folded.items()}


def read_sex(text: str) -> str | None:
    """Return the sex in a single cell without a column, such as a DICOM tag; see read_sexes."""
    return read_sexes([text])[text]


def _ambiguous_letters(letters: set[str]) -> dict[str, str | None]:
    """The letters whose meaning changes because of others in the column. None: not understood."""
    changed: dict[str, str | None] = {}
    if "f" not in letters and letters & {"h", "v"}:  # hombre, mujer; varón, mujer; man, vrouw; varón, hembra
        changed |= {"m": None}
    if "f" in letters and "m" not in letters:
        changed |= {"h": "M"} if "h" in letters else {}  # French homme
        changed |= {"f": None} if "n" in letters else {}  # Hungarian férfi is a man, nő a woman
    if "k" in letters and "m" not in letters and "e" in letters:
        changed |= {"e": "M"}  # Turkish erkek
    return changed


def _read_words(word: str, known: dict[str, str | None]) -> str | None:
    if says_unknown(word) or word == "u":
        return ""
    parts = [part for part in re.split(r"[\s/|,;:()\[\]=.\-]+", word) if part]
    words = [part for part in parts if not re.fullmatch(r"\d", part)]  # in "1 (male)", "0=F", "F - Female"
    found = {known.get(part) for part in words}
    return found.pop() if len(found) == 1 else None


def coded_columns(names: Iterable[str]) -> list[str]:
    """Return the columns whose header defines a sex: Male, is_female, "Sex (1=M, 0=F)"."""
    return [name for name in names if _flagged_sex(name) or _codes(name)]


def with_sex(raw: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return a table with a column sex, either the existing one or one decoded from other columns, and their names."""
    coded = [] if "sex" in raw.columns else coded_columns(map(str, raw.columns))
    return (raw.assign(sex=decode_columns(raw[coded])) if coded else raw), coded


def decode_columns(columns: pd.DataFrame) -> pd.Series:
    """Decode coded_columns into one word per row: Male, Female, blank, or the cell itself if it is not a code.

    If there are columns Female and Male, they must agree: a row where both are 1 becomes "Male / Female", which is not
    understood.
    """
    decoded = [_decode(columns[name].astype("str").fillna(""), str(name)) for name in columns]
    if len(decoded) == 1:
        return decoded[0]
    frame = pd.concat(decoded, axis=1)
    return frame.apply(lambda row: " / ".join(dict.fromkeys(word for word in row if word)), axis=1)


def _decode(cells: pd.Series, name: str) -> pd.Series:
    sex, codes = _flagged_sex(name), dict(_codes(name))
    if sex:
        other = _NAMES["M" if sex == "F" else "F"]
        codes = dict.fromkeys(_TRUE, _NAMES[sex]) | dict.fromkeys(_FALSE, other)
    words = {text: codes.get(fold(text), "" if says_unknown(fold(text)) else text) for text in cells.unique()}
    return cells.map(words)


def _flagged_sex(name: str) -> str:
    """F or M if a column is named after it, such as is_female, else blank."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)  # isMale
    found = _FLAG.fullmatch(re.sub(r"[\W_]+", " ", fold(spaced)).strip())
    return (_SEX[found[1] or found[2]]) if found else ""


def _codes(name: str) -> dict[str, str]:
    """Map codes to Female or Male, for a header such as "Sex (1=M, 0=F)" or "gender: male=1 female=2"; else {}."""
    found = _CODED.fullmatch(fold(name))
    rest = found[1] if found else ""
    pairs = re.findall(r"(\d)\s*[=:\-]\s*([^\W\d_]+)", rest)
    pairs = pairs or [(code, word) for word, code in re.findall(r"([^\W\d_]+)\s*[=:]\s*(\d)", rest)]
    sexes = {code: _SEX.get(word) for code, word in pairs}
    if sorted(filter(None, sexes.values())) != ["F", "M"] or len(sexes) != 2:
        return {}
    return {spelling: _NAMES[str(sex)] for code, sex in sexes.items() for spelling in (code, f"{code}.0")}
