"""Names that users choose for findings, encoders and paths are never confused with the report's own names."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision

from probe.baselines import baseline_names
from probe.draws_file import read_draws, write_draws
from probe.encoder import Encoder
from probe.encoders import open_encoders
from probe.fewshot import make_draws
from probe.measure import GRID
from probe.names import absolute_spec, check_name, join_tasks, name_mean, split_spec, split_tasks
from probe.page.figures import Picture, plot_roc
from probe.page.formats import Sheet, to_latex, to_markdown
from probe.page.svg import inline_svg
from probe.page.write import Section, with_unique_names
from probe.report import make_report
from probe.settings import Settings
from shard.errors import InputError
from shard.manifest import read_manifest
from shard.write import build
from tests.conftest import Shards
from train.weights.preprocessing import Input
from train.weights.source import Source

IMAGES = Input(32, 0.5, 0.25)
ODD = ("Mean", "mean over tasks", 'a, "b" = c', "=1+1", "Mass (left)", "x|<b>y</b>", "NA")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights in a folder and file named as by Hydra and PyTorch Lightning."""
    path = tmp_path_factory.mktemp("sweep") / "lr=0.001" / "epoch=9-step=1000.pth"
    path.parent.mkdir()
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), path)
    return path


def open_here(*given: str, inputs: str = "") -> list[Encoder]:
    return open_encoders(given, (), default=IMAGES, size=0, imagenet_weights=None, seed=0, inputs=inputs)


@pytest.fixture(scope="module")
def odd_shards(radiographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Shards whose findings have the names ODD and random labels."""
    out = tmp_path_factory.mktemp("odd")
    frames = [pd.read_csv(radiographs / f"{split}.csv").assign(split=split) for split in ("train", "valid")]
    table = pd.concat(frames, ignore_index=True)
    path = table["Path"].str.removeprefix("CheXpert-v1.0-small/")
    rng = np.random.default_rng(0)
    labels = {name: rng.integers(0, 2, len(table)) for name in ODD}
    patient = path.str.extract(r"(patient\d+)", expand=False)
    pd.DataFrame({"path": path, "patient": patient, "split": table["split"], **labels}).to_csv(
        out / "table.csv", index=False)  # fmt: skip
    build(radiographs, out / "shards", table=out / "table.csv", size=32, workers=1,
          findings=join_tasks(ODD))  # fmt: skip
    return Shards(out / "shards", read_manifest(out / "shards"))


@pytest.mark.long
def test_finding_called_mean_is_not_confused_with_the_mean(odd_shards: Shards, file: Path, tmp_path: Path) -> None:
    def tables(tasks: tuple[str, ...], out: Path) -> tuple[pd.DataFrame, pd.DataFrame, str]:
        make_report(Settings(encoders=(str(file),), shards=odd_shards.folder, out=out, tasks=tasks, size=32, draws=2,
                             shots=("2",), baselines=("thumbnail",), device="cpu", workers=1,
                             cache=tmp_path / "features", input="epoch=9-step=1000:imagenet"), 0, 1)  # fmt: skip
        return *(pd.read_csv(out / f"{name}.csv") for name in ("table", "differences")), (out / "table.md").read_text()

    several, differences, text = tables(("NA", "Mean", "x|<b>y</b>"), tmp_path / "several")
    alone, differences_alone, _ = tables(("Mean",), tmp_path / "alone")
    for frame, expected in ((several, alone),
                            (differences.drop(columns="p_holm"), differences_alone.drop(columns="p_holm"))):
        own = frame[frame["task"] == "Mean"].reset_index(drop=True)
        assert len(own)
        pd.testing.assert_frame_equal(own, expected, check_dtype=False)  # blank columns have no dtype
    assert odd_shards.manifest.findings == ODD
    mean = "Mean over tasks (2)"  # "Mean over tasks" is a finding too
    assert f"| NA | Mean | x\\|&lt;b>y&lt;/b> | {mean} |" in text and "a mean AUROC over 3 tasks" in text
    cells = several[(several["test"] == "all") & (several["metric"] == "auroc") & (several["probe"] == "linear")]
    cells = cells[cells["encoder"] == "Thumbnail"].set_index("task", drop=True)
    others = [cells["mean"][name] for name in cells.index if name != mean]
    assert cells["mean"][mean] == pytest.approx(np.mean(others))


def test_name_of_the_mean_differs_from_all_findings() -> None:
    assert name_mean(["Mass", "Edema"]) == "Mean"
    assert name_mean(["mean"]) == name_mean([" MEAN"]) == name_mean(["Me\u200ban"]) == "Mean over tasks"
    assert name_mean(ODD) == "Mean over tasks (2)"


@pytest.mark.parametrize(
    ("text", "tasks"),
    [
        ("Mean", ("Mean",)), ('a, "b" = c', ('a, "b" = c',)), ("Mass (left)", ("Mass (left)",)),
        ('NA,a, "b" = c, =1+1', ("NA", 'a, "b" = c', "=1+1")), (" NA , Mean ", ("NA", "Mean")),
        ("[NA,Mean]", ("NA", "Mean")),
        (join_tasks(ODD), ODD), ("mean", ("mean",)), ("NA,Edema,Mean", ("NA", "Edema", "Mean")), ("NA,", ("NA",)),
    ],
)  # fmt: skip
def test_tasks_are_split_by_exact_names_first(text: str, tasks: tuple[str, ...]) -> None:
    assert split_tasks(text, ODD) == tasks


def test_single_name_precedes_a_list_unless_quoted() -> None:
    findings = ("A", "B", "A,B")
    assert split_tasks("A,B", findings) == ("A,B",) and split_tasks('"A","B"', findings) == ("A", "B")
    for tasks in (("A,B", "A"), ("A", "B", "A,B"), ("A,B",)):
        assert split_tasks(join_tasks(tasks), findings) == tasks
        settings = Settings(encoders=("w.pth",), shards=Path("s"), out=Path("o"), tasks=tasks)
        (word,) = (word for word in shlex.split(settings.command()) if word.startswith("--tasks="))
        assert split_tasks(word.removeprefix("--tasks="), findings) == tasks


def test_command_with_odd_tasks_can_be_repeated(odd_shards: Shards, tmp_path: Path) -> None:
    for text in ('a, "b" = c', "Mass (left),=1+1"):
        settings = Settings.from_flags(encoders=("w.pth",), shards=odd_shards.folder, out=tmp_path, tasks=text)
        again = next(word for word in shlex.split(settings.command()) if word.startswith("--tasks="))
        assert split_tasks(again.removeprefix("--tasks="), ODD) == settings.tasks and set(settings.tasks) <= set(ODD)


def test_draws_file_round_trips_odd_names(tmp_path: Path, labels: pd.DataFrame) -> None:
    labels = labels.rename(columns={"Mass": "NA"}).assign(**{'=a, "b"': labels["Mass"]})
    labels["key"] = ["NA", "null", *labels["key"][2:]]
    drawn = {task: make_draws(labels, task, shots=2, draws=2, seed=0) for task in ("NA", '=a, "b"')}
    (tmp_path / "draws.csv").write_bytes(write_draws(drawn, labels))
    assert b"'=a" in write_draws(drawn, labels)  # escaped: a spreadsheet would run it as a formula
    again = read_draws(tmp_path / "draws.csv", labels)
    assert write_draws(again, labels) == write_draws(drawn, labels) and list(again) == list(drawn)


def test_path_with_equals_signs_is_opened(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent.parent)
    relative = Path("lr=0.001/epoch=9-step=1000.pth")
    for path in (file, relative, Path(f"./{relative}")):
        assert split_spec(str(path)) == ("", Source("", path)) and split_spec(f"A={path}") == ("A", Source("", path))
        assert split_spec(f"lr=1e-3={path}") == ("lr=1e-3", Source("", path))
    assert split_spec(f"={file}") == ("", Source("", file))
    assert split_spec(f"A=1={file}::key") == ("A=1", Source("", Path(f"{file}::key")))
    assert split_spec(f"{relative}::key") == ("", Source("", Path(f"{relative}::key")))
    for spec, expected in {"A=absent": ("A", Path("absent")), "absent": ("", Path("absent")), "A=": ("A", Path()),
                           "absent=1=b.pth": ("absent", Path("1=b.pth")), "/absent/lr=0.1": ("", Path("/absent/lr=0.1"))
                           }.items():  # fmt: skip
        assert split_spec(spec) == (expected[0], Source("", expected[1])), spec
    assert split_spec("A=" + 300 * "x")[0] == "A"  # too long for a file name
    Path("A=lr=0.001").mkdir()  # an existing path has precedence
    assert split_spec("A=lr=0.001") == ("", Source("", Path("A=lr=0.001")))
    opened = open_here(str(relative), f"A={relative}", inputs="epoch=9-step=1000:imagenet,A:imagenet")
    assert [encoder.name for encoder in opened] == ["epoch=9-step=1000", "A"]


def test_architectures_and_names_to_download_are_no_part_of_an_encoders_name(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    for spec, expected in {
        f"timm/resnet18={file}": ("", Source("timm/resnet18", file)),
        f"A=timm/resnet18.a1_in1k={file}": ("A", Source("timm/resnet18.a1_in1k", file)),
        f"lr=1e-3=torchvision/densenet121={file}::key": ("lr=1e-3", Source("torchvision/densenet121",
                                                                           Path(f"{file}::key"))),
        "A=timm/resnet18=absent=1.pth": ("A", Source("timm/resnet18", Path("absent=1.pth"))),
        "timm/resnet18": ("", Source("timm/resnet18", None)), "A=timm/vit.x": ("A", Source("timm/vit.x", None)),
        "hf-hub:microsoft/rad-dino": ("", Source("hf-hub:microsoft/rad-dino", None)),
        "rad=hf-hub:microsoft/rad-dino@main": ("rad", Source("hf-hub:microsoft/rad-dino@main", None)),
        "timm/a/absent.pth": ("", Source("", Path("timm/a/absent.pth"))),
    }.items():  # fmt: skip
        assert split_spec(spec) == expected, spec
        assert str(expected[1]) == spec.removeprefix(f"{expected[0]}=")
    assert absolute_spec("A=timm/resnet18") == "A=timm/resnet18"
    assert absolute_spec(f"timm/resnet18={file.name}") == f"timm/resnet18={file}"
    assert [source.name for source in (Source("timm/vit.x", None), Source("hf-hub:a/rad-dino", None),
                                       Source("timm/vit", file))] == ["vit.x", "rad-dino", file.stem]  # fmt: skip
    Path("timm").mkdir()
    Path("timm/resnet18").touch()  # an existing path has precedence
    assert split_spec("timm/resnet18") == ("", Source("", Path("timm/resnet18")))


def test_default_out_of_a_run_with_an_equals_sign_in_its_path(file: Path, shards: Shards) -> None:
    for spec in (str(file.parent), f"A={file.parent}"):
        assert Settings.from_flags(encoders=(spec,), shards=shards.folder).out == file.parent / "report"


@pytest.mark.parametrize(
    "name", ["Scratch", "scratch", "THUMBNAIL", "ImageNet", "Pure noise", "pure  NOISE", "\uff33cratch",
             "Scr\u200batch", "Majority class", "guessing (share of positives)", "Imagenet (a download)", "Scratch, 10",
             "Thumbnail − Scratch"],
)  # fmt: skip
def test_reserved_encoder_names_are_refused_before_opening(
    name: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("probe.encoders.open_encoder", lambda *_: pytest.fail("was opened"))
    with pytest.raises(InputError, match=r"would be read as the report's own .* NAME=PATH"):
        open_here(f"{name}={file}")


@pytest.mark.parametrize("name", ["X (collapsed)", "X (Collapsed, 3)", "A − B"])
def test_encoder_names_with_marks_of_reports_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"is a mark that reports add to names; give it another name: NAME=PATH"):
        check_name(name, ())


def test_names_that_resemble_reserved_ones_are_allowed() -> None:
    for name in ("ImageNet-21k", "Scratch 2", "scratchy", "Mean", "SimCLR", "A, 10", "noise", "collapsed", "A - B",
                 "=1+1", '<b> "c" | d'):
        check_name(name, ("Scratch", "ImageNet", "Pure noise"))
    with pytest.raises(InputError, match="one line of text"):
        check_name("a\nb", ())


def test_file_named_like_a_baseline_needs_a_name(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "imagenet.pth"
    other.write_bytes(file.read_bytes())
    with pytest.raises(InputError, match="an encoder called imagenet would be read as the report's own ImageNet"):
        open_here(str(other))
    (encoder,) = open_here(f"theirs={other}", inputs="theirs:imagenet")
    assert encoder.name == "theirs" not in baseline_names()


def test_names_are_escaped_in_markdown_latex_and_svg() -> None:
    sheet = Sheet("T", ["", "a|b", "x\ny"], [["[A] <script>", "p < 0.001 [0, 1]", "c\\|d"], ["*", "", ""]])
    text = to_markdown([sheet], ["<img src=x> is a name"])
    assert r"|  | a\|b | x y |" in text and r"| [A] &lt;script> | p < 0.001 [0, 1] | c\\\|d |" in text
    assert "- &lt;img src=x> is a name" in text
    tex = to_latex([sheet], "note")
    assert "\n{}[A] $<$script$>$ &" in tex and "\n{}* &" in tex and "x y" in tex
    page = inline_svg(b'<svg viewBox="0 0 1 1"><g id="a"/><use href="#a"/><text>id="a" url(#a</text></svg>', "n")
    assert '<g id="n-a"/><use href="#n-a"/><text>id="a" url(#a</text>' in page
    picture = plot_roc({"_a": GRID}, {"_a": "black"}, "Mass")
    assert re.search(r"<text[^>]*>\s_a</text>", picture.content.decode())  # in the legend


def test_pictures_of_similar_findings_have_distinct_file_names() -> None:
    pictures = [Picture(name, "", name.encode()) for name in ("roc-mass", "roc-mass", "roc-x")]
    renamed = with_unique_names([Section("A", "", pictures[:2]), Section("B", "", pictures)])
    names = [picture.name for section in renamed for picture in section.pictures]
    assert names == ["roc-mass", "roc-mass-2", "roc-mass-3", "roc-mass-4", "roc-x"]
