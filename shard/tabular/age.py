"""Age: whole years, read from numbers with or without units, from words and from DICOM's age strings."""

from __future__ import annotations

import re
from fractions import Fraction

from shard.tabular.words import fold, says_unknown

OLDEST = 120  # years; NIH's table has a patient aged 414
AGES = ((0, 40, "under 40"), (40, 60, "40 to 59"), (60, 80, "60 to 79"), (80, float("inf"), "80 and older"))
_PER_YEAR = {"years": 1, "months": 12, "weeks": 52, "days": 365, "hours": 8760}
_UNITS = {
    "years": """y yr yrs yo year years jahr jahre jahren lebensjahre año años ano anos an ans année années anno anni
        jaar år lat lata rok лет год года г 歳 才 岁 歲 周岁 세 tuổi yaş yaşında""",
    "months": """m mo mos mon mth mths mnth mnths month months monat monate monaten mes meses mois mese mesi maand
        maanden mån månader måned måneder miesiąc miesiące miesięcy месяц месяца месяцев мес 月 个月 個月 ヶ月 か月 カ月
        ヵ月 箇月 개월 tháng ay aylık""",
    "weeks": "w wk wks week weeks woche wochen semana semanas semaine semaines settimana settimane weken недель 周 週",
    "days": """d dy day days tag tage tagen día días dia dias jour jours giorno giorni dag dagen dager день дня дней
        天 日 일 ngày gün""",
    "hours": "h hr hrs hour hours std stunden horas heures ore uur",
}
_UNIT = {word: unit for unit, words in _UNITS.items() for word in words.split()}
_NUMBER = r"(?:\d{1,5}(?:\.\d*|,\d{1,2})?|\.\d+)"  # 57, 57., 57.0, 57,5, .5; not 1,000
_PAIR = re.compile(rf"({_NUMBER})\s*([^\W\d_]*)")
_AND = r"(?:\s*(?:,|&|and|und|et|e|y|i)?\s*)"
_AGE = re.compile(rf"{_NUMBER}\s*[^\W\d_]*(?:{_AND}{_NUMBER}\s*[^\W\d_]+){{0,2}}")
_BOUNDS = {  # patterns before and after an age that is only bounded on one side
    "more": (r">|over|above|older than|more than|greater than|über|älter als|más de|mayor de|mayores de|plus de|oltre"
             r"|ouder dan|mais de", ""),
    "least": (r">=|=>|≥|⩾|at least|from|ab|mindestens",
              r"\+|\bplus|(?:or|and|&|/)\s*(?:more|older|over|above|greater|up|upwards|higher)|und älter|oder älter"
              r"|und mehr|y más|o más|o mayor|et plus|ou plus|e più|ou mais|en ouder"),
    "less": (r"<|under|below|less than|younger than|unter|jünger als|menos de|menor de|moins de", ""),
    "most": (r"<=|=<|≤|⩽|up to|at most|bis", ""),
}  # fmt: skip
_NEWBORN = ("newborn", "new born", "neonate", "neugeborenes", "neugeboren", "recién nacido", "nouveau-né")


def read_age(text: str) -> str | None:
    """Return the whole years in a cell, "" if it is blank or says "unknown", or None if it is not understood.

    A bare number is years; units may be years, months, weeks, days or hours (057Y, 18M, 9D, 1 year 6 months, 45yrs). A
    bounded age is the lowest that it can be: "85 or more", "85+" and ">=85" are 85, ">89" is 90, "<1" and
    "under 6 months" are 0. Not understood: "<18", "40-49", negative numbers, ages over 120 years, other words.
    """
    folded = fold(text)
    if says_unknown(folded):
        return ""
    if folded in _NEWBORN:
        return "0"
    bound, rest = _split_bound(_strip_words(folded))
    if not _AGE.fullmatch(rest):
        return None
    pairs = [(Fraction(number.replace(",", ".").rstrip(".")), unit) for number, unit in _PAIR.findall(rest)]
    default = "years" if len(pairs) == 1 else ""  # a bare number is years, but not in "57, 6 months"
    pairs = [(number, _UNIT.get(unit or default, "")) for number, unit in pairs]
    order = [list(_PER_YEAR).index(unit) if unit else -1 for _, unit in pairs]
    if -1 in order or order != sorted(set(order)):  # an unknown unit, or units in wrong order: 3 days 2 years
        return None
    return _whole_years(pairs, bound)


def _strip_words(folded: str) -> str:
    """Remove words and marks around an age: Age: 45-year-old → 45 year, 45 y/o → 45 yo, 45 yrs. → 45 yrs."""
    text = re.sub(r"^(?:age[d]?|alter|edad)\s*[:=]?\s*(?=\S)", "", folded)
    text = re.sub(r"(?<=[^\W\d_])[./](?=[^\W\d_]|\s|$)", "", text)
    text = re.sub(r"(?<=\d)-(?=[^\W\d_])", " ", text)
    return re.sub(r"[\s-]+(?:old|of age|alt|de edad)\b", "", text)


def _split_bound(text: str) -> tuple[str, str]:
    """Split an age into its bound, a key of _BOUNDS or "" if it is exact, and the age itself."""
    for bound, (before, after) in sorted(_BOUNDS.items(), key=lambda item: item[0] not in ("least", "most")):
        if found := re.fullmatch(rf"(?:{before})\s*(\d.*)", text):
            return bound, found[1].strip()
        if after and (found := re.fullmatch(rf"(\d.*?)\s*(?:{after})\s*([^\W\d_]*)", text)):
            return bound, f"{found[1]} {found[2]}".strip()
    return "", text


def _whole_years(pairs: list[tuple[Fraction, str]], bound: str) -> str | None:
    age = sum((number / _PER_YEAR[unit] for number, unit in pairs), Fraction())
    step = Fraction(1, _PER_YEAR[pairs[-1][1]])
    if bound == "more":  # the next whole year, month or day
        age = (age // step + 1) * step
    if bound in ("less", "most"):
        return "0" if 0 < age < 1 or (age == 1 and bound == "less") else None
    return str(int(age)) if age <= OLDEST else None


def age_group(years: float) -> str:
    """Return the name of the AGES group that an age in years is in. Raises ValueError if it is in none."""
    for low, high, name in AGES:
        if low <= years < high:
            return name
    raise ValueError(f"age {years} is in no group")
