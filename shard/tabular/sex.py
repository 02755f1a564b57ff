"""Sex: F or M, from a cell's words or from a column whose header says what its 1 and 0 stand for."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pandas as pd

from shard.tabular.words import fold, says_unknown

# Words of one meaning, letters that mean the same wherever they are used among them (W, K and Ж are female in every
# language that has them). Those that depend on the language, such as Spanish M for mujer, are in _letters.
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
    """The cells of one column → F, M, "" (blank, or says that it isn't known) or None (not understood).

    A single letter is read by the others of its column: M is male, but not beside H or V and without F, where it may
    be a Spanish mujer. A number is a code, and says nothing by itself.
    """
    folded = {text: fold(text) for text in texts}
    known = {**_SEX, **_letters({word.rstrip(".") for word in folded.values()})}
    return {text: _read(word, known) for text, word in folded.items()}


def read_sex(text: str) -> str | None:
    """One cell's sex, as read_sexes has it, where there is no column around it: that of a DICOM file."""
    return read_sexes([text])[text]


def _letters(letters: set[str]) -> dict[str, str | None]:
    """What single letters mean, or that they can't be told, where others of the column change it."""
    changed: dict[str, str | None] = {}
    if "f" not in letters and letters & {"h", "v"}:  # hombre, mujer; varón, mujer; man, vrouw; varón, hembra
        changed |= {"m": None}
    if "f" in letters and "m" not in letters:
        changed |= {"h": "M"} if "h" in letters else {}  # French homme
        changed |= {"f": None} if "n" in letters else {}  # Hungarian férfi is a man, nő a woman
    if "k" in letters and "m" not in letters and "e" in letters:
        changed |= {"e": "M"}  # Turkish erkek
    return changed


def _read(word: str, known: dict[str, str | None]) -> str | None:
    if says_unknown(word) or word == "u":
        return ""
    parts = [part for part in re.split(r"[\s/|,;:()\[\]=.\-]+", word) if part]
    words = [part for part in parts if not re.fullmatch(r"\d", part)]  # of "1 (male)", "0=F", "F - Female"
    found = {known.get(part) for part in words}
    return found.pop() if len(found) == 1 else None


def coded_columns(names: Iterable[str]) -> list[str]:
    """Of a table's columns those that say a sex by their header: Male, is_female, "Sex (1=M, 0=F)"."""
    return [name for name in names if _flagged(name) or _codes(name)]


def with_sex(raw: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """A table with a column sex: its own or, where it has none, one of the columns that say it by their header, whose
    names come too."""
    coded = [] if "sex" in raw.columns else coded_columns(map(str, raw.columns))
    return (raw.assign(sex=decode(raw[coded])) if coded else raw), coded


def decode(columns: pd.DataFrame) -> pd.Series:
    """The words that coded_columns stand for, a row each: Male, Female, blank, or the cell where it is no code.

    Of columns Female and Male both, a row where they agree; one where both are 1 keeps both, and is not understood.
    """
    said = [_words_of(columns[name].astype("str").fillna(""), str(name)) for name in columns]
    if len(said) == 1:
        return said[0]
    frame = pd.concat(said, axis=1)
    return frame.apply(lambda row: " / ".join(dict.fromkeys(word for word in row if word)), axis=1)


def _words_of(cells: pd.Series, name: str) -> pd.Series:
    sex, codes = _flagged(name), dict(_codes(name))
    if sex:
        other = _NAMES["M" if sex == "F" else "F"]
        codes = dict.fromkeys(_TRUE, _NAMES[sex]) | dict.fromkeys(_FALSE, other)
    words = {text: codes.get(fold(text), "" if says_unknown(fold(text)) else text) for text in cells.unique()}
    return cells.map(words)


def _flagged(name: str) -> str:
    """F or M where a column is named after one of them, blank where not."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)  # isMale
    found = _FLAG.fullmatch(re.sub(r"[\W_]+", " ", fold(spaced)).strip())
    return (_SEX[found[1] or found[2]]) if found else ""


def _codes(name: str) -> dict[str, str]:
    """Code → Female or Male, of a header such as "Sex (1=M, 0=F)" or "gender: male=1 female=2"; {} of others."""
    found = _CODED.fullmatch(fold(name))
    rest = found[1] if found else ""
    pairs = re.findall(r"(\d)\s*[=:\-]\s*([^\W\d_]+)", rest)
    pairs = pairs or [(code, word) for word, code in re.findall(r"([^\W\d_]+)\s*[=:]\s*(\d)", rest)]
    sexes = {code: _SEX.get(word) for code, word in pairs}
    if sorted(filter(None, sexes.values())) != ["F", "M"] or len(sexes) != 2:
        return {}
    return {spelt: _NAMES[str(sex)] for code, sex in sexes.items() for spelt in (code, f"{code}.0")}
