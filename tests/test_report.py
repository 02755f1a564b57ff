"""The report as a user gets it: by the command, complete, self-contained, escaped, the same twice and in parts."""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision

from pipeline.augmentation import Augmentation
from probe.linear import probe_draws
from probe.measure import ALL, BALANCED, LINEAR, Key, add_up, list_units, measure
from probe.page import compose
from probe.report import make_report, merge_report
from probe.settings import Settings, from_plain
from probe.statistics import METRICS, resample, score
from probe.study import choose_tasks, open_study
from shard.errors import InputError
from shard.files import locked
from shard.formats import CHEXPERT_FINDINGS, TASKS
from tests.conftest import Shards, run_module
from train.frozen_features import standardise

SHOTS = ("1", "3", "all")
FIGURES = {"scores.svg", "loss.svg", "alignment.svg", "uniformity.svg", "neighbours.png", "views.png",
           *(f"{kind}-{task}.svg" for kind in ("roc", "map", "shots", "differences")
             for task in ("cardiomegaly", "lung-opacity", "pleural-effusion", "enlarged-cardiomediastinum")),
           "shots-mean.svg", "differences-mean.svg"}  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stands for ImageNet's."""
    file = tmp_path_factory.mktemp("weights") / "weights.pt"
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), file)
    return file


@pytest.fixture(scope="module")
def report(shards: Shards, trained: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    done = probe(trained, shards, out, f"--imagenet-weights={weights}")
    assert done.returncode == 0, done.stderr
    return out


def probe(run: Path, shards: Shards, out: Path, *arguments: str):  # type: ignore[no-untyped-def]
    return run_module("probe", "report", str(run), f"--shards={shards.folder}", f"--out={out}", "--draws=4",
                      "--device=cpu", f"--shots={','.join(SHOTS)}", *arguments)  # fmt: skip


def settings_of(run: Path, shards: Shards, out: Path, weights: Path, **others: Any) -> Settings:
    """What the command has with those words."""
    given = {"shots": SHOTS, "draws": 4, "device": "cpu", "imagenet_weights": weights, **others}
    return Settings(encoders=(str(run),), shards=shards.folder, out=out, **given)


def test_the_table_holds_every_encoder_probe_task_and_metric(report: Path) -> None:
    table = pd.read_csv(report / "table.csv")
    assert set(table["encoder"]) == {"Scratch", "Thumbnail", "ImageNet", "SimCLR"}
    assert set(table["task"]) == {*TASKS, "Mean"} and set(table["metric"]) == set(METRICS)
    counted = table[table["test"].isin(["all", "balanced"])].groupby(["probe", "shots", "test"]).size()
    whole = 4 * 5 * 5  # encoders, tasks and their mean, metrics
    assert counted.to_dict() == {("linear", "1", "all"): whole, ("linear", "3", "all"): whole,
                                 ("linear", "3", "balanced"): whole, ("linear", "all", "all"): whole,
                                 ("knn", "3", "all"): whole, ("knn", "3", "balanced"): whole}  # fmt: skip
    assert table["mean"].between(0, 1).all()
    # Of its 20 test patients 10 have an effusion, and fewer have what the other tasks ask for.
    known = table[table["low"].notna()]
    assert set(known["task"]) == {"Pleural Effusion"} and set(table.loc[table["low"].isna(), "task"]) > {"Mean"}
    assert table["withheld"].isna().equals(table["task"] == "Pleural Effusion")
    assert ((known["low"] <= known["mean"]) & (known["mean"] <= known["high"])).all()
    assert table.groupby(["probe", "shots"])["draws"].unique().map(list).to_dict() == {
        ("linear", "1"): [4], ("linear", "3"): [4], ("linear", "all"): [1], ("knn", "3"): [4],
    }  # fmt: skip
    assert "| SimCLR |" in (report / "table.md").read_text() and "\\toprule" in (report / "table.tex").read_text()
    differences = pd.read_csv(report / "differences.csv")
    assert len(differences) == (3 + 2 + 1) * 5 and differences["difference"].notna().all()
    known = differences[differences["p"].notna()]
    assert set(known["task"]) == {"Pleural Effusion"} and known["p"].between(0, 1).all()
    low, mean, high = (known[name] for name in ("low", "difference", "high"))
    assert ((low <= mean) & (mean <= high)).all()
    assert {file.name for file in (report / "figures").iterdir()} == FIGURES


def test_the_page_is_whole_asks_for_nothing_outside_and_calls_phantoms_synthetic(report: Path) -> None:
    page = (report / "report.html").read_text()
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:|#)|url\((?!#)|@import""", page)
    for wanted in ("SYNTHETIC", "none seen in pre-training", "How to read this", "It can&#39;t show",
                   "python -m train --shards=", "python -m probe report", "torch", "NT-Xent", "fingerprint",
                   "Pure noise", "Majority class", "too few", "nearest neighbours", *TASKS,
                   "no interval, p value or verdict for Cardiomegaly (8 positive test patients), "):  # fmt: skip
        assert wanted in page, wanted
    assert page.rstrip().endswith("</html>")
    assert page.count('role="img"') + page.count("<img ") == len(FIGURES)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


@pytest.fixture
def browser() -> Iterator[Any]:
    """A headless Chromium that records what a page asks for and complains of."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install '.[dev]'")
    from selenium.webdriver.chrome.service import Service

    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("Debian's chromium and chromium-driver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chromium = webdriver.Chrome(options=options, service=Service(driver))
    yield chromium
    chromium.quit()


def test_the_page_in_a_real_browser(report: Path, browser: Any) -> None:
    from selenium.webdriver.common.by import By

    browser.get((report / "report.html").as_uri())
    assert browser.execute_script("return [...document.images].every(image => image.complete && image.naturalWidth)")
    assert browser.execute_script("return document.images.length") == 2
    assert browser.execute_script("return [...document.querySelectorAll('figure svg')].every("
                                  "svg => svg.getBoundingClientRect().height > 50)")  # fmt: skip
    assert browser.execute_script("return [...document.querySelectorAll('[role=img], img')].every(one => "
                                  "(one.getAttribute('aria-label') || one.alt).length > 20)")  # fmt: skip
    for width in (390, 1280):  # a phone and a desk: nothing sticks out but tables, which scroll in their boxes
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                                {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500})
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    table = browser.find_elements(By.CSS_SELECTOR, "table.scores")[0]
    mean = table.find_elements(By.CSS_SELECTOR, "thead button")[-1]
    shown = {}
    for turn in ("descending", "ascending"):
        mean.click()
        shown[turn] = [float(row.find_elements(By.TAG_NAME, "td")[-1].text.split()[0])
                       for row in table.find_elements(By.CSS_SELECTOR, "tbody tr")]  # fmt: skip
        assert table.find_elements(By.CSS_SELECTOR, "thead th")[-1].get_attribute("aria-sort") == turn
    assert shown["ascending"] == sorted(shown["ascending"]) == shown["descending"][::-1]
    wanted = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": wanted})
    colour = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    assert browser.execute_script(colour, "figure svg text", "fill") == browser.execute_script(colour, "body", "color")
    dark = [int(part) for part in re.findall(r"\d+", browser.execute_script(colour, "body", "color"))]
    assert min(dark[:3]) > 200  # light letters
    printed = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert printed.startswith(b"%PDF") and len(printed) > 50_000
    assert browser.get_log("browser") == []
    messages = [entry["message"] for entry in browser.get_log("performance")]
    asked = [re.search(r'"url":"(\w+):', message) for message in messages if 'Network.requestWillBeSent"' in message]
    assert {"file"} <= {found[1] for found in asked if found} <= {"file", "data"}


def test_the_same_draws_give_the_same_table(
    report: Path, shards: Shards, trained: Path, weights: Path, tmp_path: Path
) -> None:
    """Handed on in a file, in another process."""
    make_report(settings_of(trained, shards, tmp_path, weights, draws_file=report / "draws.csv"), 0, 1)
    for name in ("table.csv", "differences.csv", "draws.csv", "table.tex"):
        assert (tmp_path / name).read_bytes() == (report / name).read_bytes(), name


def test_two_at_once_on_one_folder_are_refused(shards: Shards, trained: Path, weights: Path, tmp_path: Path) -> None:
    with locked(tmp_path, "report"), pytest.raises(InputError, match="another process is writing there"):
        make_report(settings_of(trained, shards, tmp_path, weights), 0, 1)
    assert not (tmp_path / "report.html").exists()


def test_parts_give_what_one_process_gives(
    shards: Shards, trained: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all kinds of work, and of more draws than a part has at a time; to the byte."""
    written: list[Path] = []
    monkeypatch.setattr("probe.finetune.STEPS", 10)

    def settings(out: str, **others: Any) -> Settings:
        return settings_of(trained, shards, tmp_path / out, weights, **{
            "finetune": 1, "draws": 60, "tasks": ("Lung Opacity",), "baselines": ("scratch",), "shots": ("2", "all"),
            "cache": tmp_path / "features", **others})  # fmt: skip

    make_report(settings("whole"), 0, 1)
    for part in (2, 0):
        make_report(settings("parts"), part, 3)
    with pytest.raises(InputError, match="1 of 3 parts missing; make them with --part=1 --parts=3"):
        merge_report(tmp_path / "parts")
    assert not (tmp_path / "parts" / "report.html").exists()
    make_report(settings("parts"), 1, 3)
    merge_report(tmp_path / "parts")
    whole, parts = ({file.relative_to(out): file for file in out.rglob("*") if file.suffix in (".csv", ".tex", ".svg")}
                    for out in (tmp_path / "whole", tmp_path / "parts"))  # fmt: skip
    assert whole.keys() == parts.keys() and len(whole) > 10
    for name, file in whole.items():
        assert parts[name].read_bytes() == file.read_bytes(), name
    table = pd.read_csv(tmp_path / "parts" / "table.csv")
    assert table.groupby("probe")["draws"].max().to_dict() == {"linear": 60, "knn": 60, "finetune": 1}
    assert "full fine-tuning" in (tmp_path / "parts" / "report.html").read_text()
    shutil.copytree(tmp_path / "parts" / "parts", tmp_path / "moved" / "parts")
    with monkeypatch.context() as patch:  # written where the parts lie, not where they were made
        patch.setattr("probe.report._write", lambda study, measured, features: written.append(study.settings.out))
        merge_report(tmp_path / "moved")
    assert written == [tmp_path / "moved"]
    one = tmp_path / "parts" / "parts" / "1-of-3.npz"
    one.write_bytes(b"cut")
    with pytest.raises(InputError, match=r"1-of-3\.npz: not a part that can be read"):
        merge_report(tmp_path / "parts")
    make_report(settings("parts", seed=1, finetune=0), 1, 3)
    with pytest.raises(InputError, match=r"of other settings, draws, shards or weights .* with --part=\d --parts=3"):
        merge_report(tmp_path / "parts")


def test_what_is_measured_is_of_the_draws_and_resamples_patients_not_images(
    shards: Shards, trained: Path, weights: Path, tmp_path: Path
) -> None:
    study = open_study(settings_of(trained, shards, tmp_path, weights, baselines=("thumbnail",), shots=("3",),
                                   tasks=("Lung Opacity",)))  # fmt: skip
    rng = np.random.default_rng(0)
    features = {name: rng.normal(size=(121, 8)).astype(np.float32) for name in ("Thumbnail", "SimCLR")}
    units = list_units(study)
    found = add_up(units, measure(study, units, features, torch.device("cpu")))
    draws, train = study.drawn["Lung Opacity"], (study.labels["split"] == "train").to_numpy()
    patients = np.full(121, -1)
    patients[~train], names = pd.factorize(study.labels["patient"][~train], sort=True)
    assert len(names) < (~train).sum()  # or it would be the same
    for name in features:
        decisions = probe_draws(standardise(features[name], train), *draws.support(3), draws.test)
        for test, members in ((ALL, None), (BALANCED, draws.balanced)):
            wanted = score(decisions, draws.test_labels, patients[draws.test], resample(4, len(names)), members)
            scored = found.scores[Key(name, LINEAR, 3, "Lung Opacity", test)]
            assert np.array_equal(scored.both, wanted.both, equal_nan=True), (name, test)


def test_a_probe_that_does_not_converge_is_named(
    shards: Shards, trained: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("probe.linear.STEPS", 1)
    study = open_study(settings_of(trained, shards, tmp_path, weights, baselines=("thumbnail",), shots=("3",),
                                   tasks=("Lung Opacity",)))  # fmt: skip
    features = {name: np.random.default_rng(0).normal(size=(121, 8)).astype(np.float32)
                for name in ("Thumbnail", "SimCLR")}  # fmt: skip
    with pytest.raises(InputError, match=r"Thumbnail, Lung Opacity: logistic regression did not converge .* --tasks"):
        measure(study, list_units(study), features, torch.device("cpu"))


def test_the_views_shown_are_those_of_the_run(
    shards: Shards, trained: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of its augmentation, with partners where it learned from these very shards."""
    study, seen = open_study(settings_of(trained, shards, tmp_path, weights, baselines=())), list[Augmentation]()
    monkeypatch.setattr(compose, "plot_preview", lambda shards, augmentation, **_: (seen.append(augmentation), (b"png",
                                                                                                                []))[1])
    (encoder,) = study.encoders
    assert encoder.state is not None
    own = {**encoder.state["augmentation"], "flip_probability": 0.0, "crop_area": (0.3, 1.0), "patient_positive": 0.5}
    for fingerprint, positive in ((study.manifest.fingerprint(), 0.5), ("other", 0.0)):
        state = {**encoder.state, "augmentation": own, "shards": fingerprint}
        compose._pretraining(replace(study, encoders=[replace(encoder, state=state)]), {"SimCLR": "black"})
        assert seen.pop() == Augmentation(**{**own, "patient_positive": positive})


def test_settings_are_kept_as_they_were(tmp_path: Path) -> None:
    settings = Settings(encoders=(f"{tmp_path}/a", f"n={tmp_path}/lr=b"), shards=tmp_path, out=tmp_path / "out",
                        shots=("5", "all"), tasks=("Mass",), cache=tmp_path / "c", protocol="paper")  # fmt: skip
    assert from_plain(settings.plain()) == settings
    assert settings.command() == (f"python -m probe report {tmp_path}/a n={tmp_path}/lr=b --shards={tmp_path} "
                                  f"--out={tmp_path / 'out'} --shots=5,all --tasks=Mass --protocol=paper "
                                  f"--cache={tmp_path / 'c'}")  # fmt: skip


def test_several_runs_in_one_report_and_the_published_protocol_first(
    report: Path, shards: Shards, trained: Path, tmp_path: Path
) -> None:
    done = run_module("probe", "compare", f"A={trained}", f"B={trained}", f"--shards={shards.folder}", "--shots=3",
                      f"--out={tmp_path}", "--draws=2", "--baselines=thumbnail", "--protocol=paper",
                      "--tasks=Lung Opacity", f"--cache={report / 'features'}", "--device=cpu")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Published protocol, peak accuracy on balanced test sets" in done.stdout and "Pure noise" in done.stdout
    differences = pd.read_csv(tmp_path / "differences.csv")
    apart = differences.set_index(["encoder", "reference"])["difference"]
    assert set(apart.index) == {("A", "Thumbnail"), ("B", "Thumbnail"), ("B", "A")} and apart["B", "A"] == 0


def test_a_task_or_shots_without_examples_are_said_and_the_others_go_on(
    shards: Shards, trained: Path, weights: Path, tmp_path: Path
) -> None:
    tasks = ("Lung Opacity", "Fracture", "Lung Lesion")
    make_report(settings_of(trained, shards, tmp_path, weights, tasks=tasks, shots=("3", "40", "2000")), 0, 1)
    said = (tmp_path / "table.md").read_text()
    assert "Fracture is not measurable" in said
    assert re.search(r"Lung Opacity is not measurable with 40 shots: \d+ patients with positive training images", said)
    table = pd.read_csv(tmp_path / "table.csv")
    assert set(table["shots"]) == {3}
    assert set(table["task"]) == {"Lung Opacity"}
    row = next(line for line in said.splitlines() if line.startswith("| SimCLR |")).split("|")
    assert np.isfinite(float(row[2].split()[0])) and row[3].strip() == row[4].strip() == "n/a"


def test_an_archive_without_all_the_published_tasks_is_told_what_it_has(
    shards: Shards, capsys: pytest.CaptureFixture[str]
) -> None:
    def chosen(findings: tuple[str, ...], *tasks: str) -> tuple[list[str], str]:
        settings = Settings(encoders=("a",), shards=shards.folder, out=shards.folder, tasks=tasks)
        return choose_tasks(settings, replace(shards.manifest, findings=findings)), capsys.readouterr().err

    assert chosen(shards.manifest.findings) == (list(TASKS), "")
    assert chosen(("Effusion", "Cardiomegaly"), "Effusion") == (["Effusion"], "")
    tasks, said = chosen(("Effusion", "Cardiomegaly"))
    assert tasks == ["Cardiomegaly"]
    assert said == "tasks: Cardiomegaly, as in the published study; --tasks=A,B takes others of: Effusion\n"
    with pytest.raises(InputError, match=r"none of Cardiomegaly, .* name some with --tasks=A,B"):
        chosen(("Effusion",))


def test_labels_from_a_table_are_escaped_in_the_page(
    radiographs: Path, trained: Path, weights: Path, tmp_path: Path
) -> None:
    from shard.manifest import read_manifest
    from shard.write import build

    nasty = "<script>alert(1)</script>"
    source = tmp_path / "source"
    shutil.copytree(radiographs, source)
    frames = []
    for split in ("train", "valid"):
        frame = pd.read_csv(source / f"{split}.csv")
        path = frame["Path"].str.removeprefix("CheXpert-v1.0-small/")
        frames.append(pd.DataFrame({"path": path, "patient": path.str.extract(r"(patient\d+)", expand=False),
                                    "split": split, nasty: frame["Lung Opacity"]}))  # fmt: skip
    pd.concat(frames).to_csv(tmp_path / "table.csv", index=False)
    build(source, tmp_path / "shards", table=tmp_path / "table.csv", size=96, workers=1)
    made = Shards(tmp_path / "shards", read_manifest(tmp_path / "shards"))
    make_report(settings_of(trained, made, tmp_path / "out", weights, tasks=(nasty,)), 0, 1)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "POSSIBLY SEEN IN PRE-TRAINING" in page  # these are not the shards the run was trained on
    assert nasty not in page and "&lt;script&gt;" in page
    assert CHEXPERT_FINDINGS[0] not in page
