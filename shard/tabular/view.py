"""View: AP, PA, lateral, frontal (which of the two isn't said) or oblique, from the words of archives."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pandas as pd

from shard.tabular.words import fold, says_unknown

VIEWS = ("AP", "PA", "lateral", "frontal", "oblique")
_PHRASES = (
    (r"[aá]nt[eé]ro[\W_]*posterior|anterior[\W_]*(?:to[\W_]*)?posterior|ventro[\W_]*dorsal|\ba[\W_]?p\b|前后位|前後像",
     " ap "),
    (r"p[oó]st[eé]ro[\W_]*anterior|posterior[\W_]*(?:to[\W_]*)?anterior|dorso[\W_]*ventral|\bp[\W_]?a\b|后前位|後前像",
     " pa "),
    (r"(?:cross|x)[\W_]*table", " horizontal "),
    (r"侧位|側面|側位", " lateral "),
    (r"正位|正面", " frontal "),
    (r"x[\W_]?rays?\b", " "),
)  # fmt: skip
_WORDS = {
    "AP": "ap anteroposterior",
    "PA": "pa posteroanterior",
    "lateral": """lateral laterals lat latl ll rl llat rlat latéral latérale laterale seitlich seitenaufnahme profil
        profile perfil""",
    "frontal": "frontal front frontale face",
    "oblique": "oblique obl lao rao lpo rpo oblicua oblicuo oblíqua schräg",
    # What says how the patient lay or stood, or that it is a chest film, changes nothing.
    "beside": """supine erect upright portable mobile bedside standing sitting seated semi semierect semiupright
        recumbent prone horizontal vertical bed icu axial lordotic grid nongrid inspiration expiration inspiratory
        expiratory insp exp chest cxr thorax thx lung lungs rx radiograph radiography view projection film image single
        de en position liegend stehend sitzend supino acostado acostada pie bipedestación couché debout""",
    "decubitus": "lld rld decub decubitus décubitus decubito decúbito dec ld",
    "side": "left right lt rt l r izquierda izquierdo derecha derecho gauche droite links rechts",
}
_VIEW = {word: view for view in VIEWS for word in _WORDS[view].split()}
_BESIDE, _DECUBITUS, _SIDES = ({*_WORDS[name].split()} for name in ("beside", "decubitus", "side"))


def read_views(texts: Iterable[str]) -> dict[str, str | None]:
    """The cells of one column → what read_view says; but L beside R is a side, and not understood."""
    views = {text: read_view(text) for text in texts}
    letters = {text: fold(text) for text in views if len(text.strip()) == 1}
    return {**views, **{text: None for text in letters if "r" in letters.values()}}


def read_view(text: str) -> str | None:
    """The view of a cell, "" where it is blank or says that it isn't known, None where it isn't understood.

    " pa " is PA, "AP SUPINE" and "ap_horizontal" are AP, "LL", "L" and "Left lateral" are lateral, "LAO" is oblique. A
    decubitus film is no lateral one: its view is AP or PA where it says so. None: "PA and lateral", "LORDOTIC", "LLD".
    """
    folded = fold(text)
    if says_unknown(folded):
        return ""
    folded = re.sub(r"view\s*\d+|\b1\s*view\b", " ", folded.replace("_", " "))  # view1_frontal; CHEST AP 1 VIEW
    for phrase, word in _PHRASES:
        folded = re.sub(phrase, word, folded)
    words = set(re.findall(r"[^\W_]+", folded))
    views = {_VIEW[word] for word in words if word in _VIEW}
    rest = words - set(_VIEW) - _BESIDE
    if words & _DECUBITUS:
        views -= {"lateral"} if len(views) > 1 else set()
        return _only(views, rest - _DECUBITUS - _SIDES) if views <= {"AP", "PA"} else None
    if words == {"l"}:  # PadChest's
        return "lateral"
    if "oblique" in views:
        return _only(views - {"AP", "PA", "frontal"}, rest - _SIDES - {"anterior", "posterior"})
    if views in ({"AP", "frontal"}, {"PA", "frontal"}):
        views -= {"frontal"}
    return _only(views, rest - _SIDES if "lateral" in views else rest)


def join_views(side: pd.Series, projection: pd.Series) -> pd.Series:
    """CheXpert's two columns as one: lateral where `side` says so, else what `projection` says.

    LL of a frontal image, as 17 in CheXpert have it, contradicts itself: both words are kept, and make no view.
    """
    side, projection = side.str.strip(), projection.str.strip()
    views = {text: read_view(text) for text in (*side.unique(), *projection.unique())}
    both = projection.where(projection.map(views) != "lateral", side + " " + projection)
    found: pd.Series = both.where(side.map(views) != "lateral", "lateral")
    return found


def _only(views: set[str], rest: set[str]) -> str | None:
    """The one view, where there is one and no word is left over."""
    return views.pop() if len(views) == 1 and not rest else None
