"""Names of findings: CheXpert's, NIH's, and rules that decide whether a column name may be a finding's."""

from __future__ import annotations

import re

from shard.tabular.columns import fold_name
from shard.tabular.sex import coded_columns
from shard.tabular.words import fold, says_unknown

CHEXPERT_FINDINGS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema",
    "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture",
    "Support Devices",
)  # fmt: skip
NIH_FINDINGS = (
    "No Finding", "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia",
    "Pneumothorax", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
)  # fmt: skip

# Names of columns that may contain 0 and 1 but are not findings: partitions, readers, acquisition, the patient.
# Whole names (without blanks, underscores and digits), first words, and last words.
_NOT_FINDINGS = {
    "whole": """unnamed fold folds split subset partition set index idx id row rowid number no nr num order rank seed
        random study series exam examination visit followup session scan slice frame image picture file filename path
        folder weight weights height width bmi size rows columns bits year month day date time datetime age group
        cohort stratum cluster batch chunk part shard site center centre hospital institution clinic ward department
        source dataset database origin scanner machine manufacturer vendor modality reader readers rater raters
        annotator annotators radiologist notes note comment comments remark remarks text report impression history
        indication quality inverted rotation view views projection viewposition laterality side portable lateral
        frontal ap pa appa erect supine version sex gender male female race ethnicity train training istrain intrain
        test testing istest intest valid isvalid val isval validation isvalidation holdout isholdout exclude
        excluded include included keep drop usable corrupt duplicate duplicated checked reviewed verified flag""",
    "first": """n num number count nb id age sex gender view fold split unnamed race ethnicity insurance site hospital
        center centre scanner vendor manufacturer reader rater annotator""",
    "last": """id ids idx index no nr num number uid uuid count counts weight weights group fold folds split set date
        time datetime year years month months age path file filename folder notes note comment comments seed pred preds
        prediction predictions prob probability score scores logit logits confidence hash train
        training validation val remark remarks report text""",
}
_WHOLE, _FIRST, _LAST = ({*words.split()} for words in _NOT_FINDINGS.values())
_COMPOUND = re.compile("(?:patient|subject|image|study|series|case|sample|scan|exam|record|row|file|site|hospital)"
                     "(?:id|no|nr|number|uid|index|idx|name|date|age|sex)")  # fmt: skip
SECOND = re.compile(r"(.+)\.\d+")  # Edema.1, pandas' name for a second Edema


def is_well_known(column: str) -> bool:
    """Whether a column has the name of a finding of CheXpert or NIH, in any spelling."""
    return fold_name(column) in {fold_name(name) for name in (*CHEXPERT_FINDINGS, *NIH_FINDINGS)}


def has_name(column: str) -> bool:
    """Whether a column has a name with letters, which neither pandas made nor means "unknown"."""
    name = fold(column)
    return not re.fullmatch(r"unnamed: \d+(?:_level_\d+)?(?:\.\d+)*", name) and not says_unknown(name) and any(
        letter.isalpha() for letter in name)  # fmt: skip


def may_be_finding(column: str) -> bool:
    """Whether a name may be a finding's: without a word for something else, and not pandas' "Edema.1"."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[^\W\d_])(?=\d)", " ", column)  # AgeGroup, fold1
    words = [word for word in re.findall(r"[^\W_]+", fold(spaced)) if not word.isdigit()]
    joined = "".join(words)
    return not (SECOND.fullmatch(column.strip()) or joined in _WHOLE or words[0] in _FIRST or words[-1] in _LAST
                or _COMPOUND.fullmatch(joined) or coded_columns([column]))  # fmt: skip
