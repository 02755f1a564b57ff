"""Read the view from archives' words: AP, PA, lateral, oblique, or frontal (AP or PA is not specified)."""

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
    # Words for the position of the patient or the kind of image, which don't change the view.
    "neutral": """supine erect upright portable mobile bedside standing sitting seated semi semierect semiupright
        recumbent prone horizontal vertical bed icu axial lordotic grid nongrid inspiration expiration inspiratory
        expiratory insp exp chest cxr thorax thx lung lungs rx radiograph radiography view projection film image single
        de en position liegend stehend sitzend supino acostado acostada pie bipedestación couché debout""",
    "decubitus": "lld rld decub decubitus décubitus decubito decúbito dec ld",
    "side": "left right lt rt l r izquierda izquierdo derecha derecho gauche droite links rechts",
}
_VIEW = {word: view for view in VIEWS for word in _WORDS[view].split()}
_NEUTRAL, _DECUBITUS, _SIDES = ({*_WORDS[name].split()} for name in ("neutral", "decubitus", "side"))


def read_views(texts: Iterable[str]) -> dict[str, str | None]:
    """Map the cells of one column to their views, see read_view. L in a column with R is a side: not understood."""
    views = {text: read_view(text) for text in texts}
    letters = {text: fold(text) for text in views if len(text.strip()) == 1}
    return {**views, **{text: None for text in letters if "r" in letters.values()}}


def read_view(text: str) -> str | None:
    """Return the view in a cell, "" if it is blank or says "unknown", or None if it is not understood.

    " pa " is PA; "AP SUPINE" and "ap_horizontal" are AP; "LL", "L" and "Left lateral" are lateral; "LAO" is oblique. A
    decubitus image is not lateral: its view is AP or PA if the cell says so. Not understood: "PA and lateral",
    "LORDOTIC", "LLD".
    """
    folded = fold(text)
    if says_unknown(folded):
        return ""
    folded = re.sub(r"view\s*\d+|\b1\s*view\b", " ", folded.replace("_", " "))  # view1_frontal; CHEST AP 1 VIEW
    for phrase, word in _PHRASES:
        folded = re.sub(phrase, word, folded)
    words = set(re.findall(r"[^\W_]+", folded))
    views = {_VIEW[word] for word in words if word in _VIEW}
    rest = words - set(_VIEW) - _NEUTRAL
    if words & _DECUBITUS:
        views -= {"lateral"} if len(views) > 1 else set()
        return _only(views, rest - _DECUBITUS - _SIDES) if views <= {"AP", "PA"} else None
    if words == {"l"}:  # PadChest's word for lateral
        return "lateral"
    if "oblique" in views:
        return _only(views - {"AP", "PA", "frontal"}, rest - _SIDES - {"anterior", "posterior"})
    if views in ({"AP", "frontal"}, {"PA", "frontal"}):
        views -= {"frontal"}
    return _only(views, rest - _SIDES if "lateral" in views else rest)


def join_views(side: pd.Series, projection: pd.Series) -> pd.Series:
    """Combine CheXpert's two columns: lateral if `side` is lateral, else `projection`.

    A frontal image with projection LL, as 17 in CheXpert, contradicts itself: both words are kept, and are not
    understood.
    """
    side, projection = side.str.strip(), projection.str.strip()
    views = {text: read_view(text) for text in (*side.unique(), *projection.unique())}
    both = projection.where(projection.map(views) != "lateral", side + " " + projection)
    found: pd.Series = both.where(side.map(views) != "lateral", "lateral")
    return found


def _only(views: set[str], rest: set[str]) -> str | None:
    """Return the view if there is exactly one and no unknown word, else None."""
    return views.pop() if len(views) == 1 and not rest else None
