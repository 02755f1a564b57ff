"""The report as users get it: complete, self-contained, escaped, reproducible, and the same in parts."""

from __future__ import annotations

import base64
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch

from pipeline.augmentation import Augmentation
from probe.fewshot import FRACTION_DRAWS, make_draws
from probe.linear import fit_all, probe_draws
from probe.measure import ALL, BALANCED, LINEAR, Key, combine, list_units, measure
from probe.metrics import METRICS
from probe.page import sections
from probe.page.compose import amounts
from probe.page.gallery import neighbours
from probe.page.notes import list_notes
from probe.report import make_report, merge_report
from probe.settings import Settings, from_plain
from probe.slices import count_patients
from probe.statistics import resample, score
from probe.study import choose_tasks, open_study
from shard.errors import InputError
from shard.files import locked
from shard.formats import CHEXPERT_FINDINGS, TASKS
from shard.read import read_labels
from tests.conftest import ROOT, Shards, run_module
from train.frozen_features import standardise

SHOTS = ("1", "3", "all")
FIGURES = {"scores.svg", "loss.svg", "alignment.svg", "uniformity.svg", "neighbours.png", "views.png",
           *(f"occlusion-{task}.png" for task in ("cardiomegaly", "lung-opacity", "pleural-effusion",
                                                  "enlarged-cardiomediastinum")),
           *(f"{kind}-{task}.svg" for kind in ("roc", "map", "shots", "differences")
             for task in ("cardiomegaly", "lung-opacity", "pleural-effusion", "enlarged-cardiomediastinum")),
           "shots-mean.svg", "differences-mean.svg"}  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in place of ImageNet's."""
    file = tmp_path_factory.mktemp("weights") / "weights.pt"
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet").state_dict(), file)
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
    """The settings of the command in `probe`."""
    given = {"shots": SHOTS, "draws": 4, "device": "cpu", "imagenet_weights": weights, **others}
    return Settings(encoders=(str(run),), shards=shards.folder, out=out, **given)


def test_report_says_how_each_encoder_was_fed(report: Path) -> None:
    table = pd.read_csv(report / "table.csv")
    fed = {encoder: set(rows) for encoder, rows in table.groupby("encoder")["input"]}
    ((ours,), (imagenet,)) = fed["SimCLR"], fed["ImageNet"]
    assert "at 32 px, bilinear; mean 0." in ours and ours.endswith("from its checkpoint; features: mean over positions")
    assert "mean 0.5, std 0.5 (black is -1, white 1), as in its training" in imagenet
    rows = (report / "table.md").read_text().partition("**How each encoder was fed**")[2].splitlines()
    assert any(row.startswith("| SimCLR |") and row.endswith("| its checkpoint |") for row in rows)
    page = (report / "report.html").read_text()
    assert "<caption>How each encoder was fed</caption>" in page and "<td>mean over positions</td>" in page


def test_table_has_every_encoder_probe_task_and_metric(report: Path) -> None:
    table = pd.read_csv(report / "table.csv")
    assert set(table["encoder"]) == {"Scratch", "Thumbnail", "ImageNet", "SimCLR"}
    assert set(table["task"]) == {*TASKS, "Mean"} and set(table["metric"]) == set(METRICS)
    counted = table[table["test"].isin(["all", "balanced"])].groupby(["probe", "shots", "test"]).size()
    rows = 4 * 5 * 5  # encoders, tasks and their mean, metrics
    assert counted.to_dict() == {("linear", "1", "all"): rows, ("linear", "3", "all"): rows,
                                 ("linear", "3", "balanced"): rows, ("linear", "all", "all"): rows,
                                 ("knn", "3", "all"): rows, ("knn", "3", "balanced"): rows,
                                 ("linear, C = 0.1", "3", "all"): rows,
                                 ("linear, C = 10", "3", "all"): rows}  # fmt: skip
    assert table["mean"].between(0, 1).all()
    # Among its 20 test patients only effusion has 10 positive and 10 negative ones.
    with_interval = table[table["low"].notna()]
    assert set(with_interval["task"]) == {"Pleural Effusion"} and set(table.loc[table["low"].isna(), "task"]) > {"Mean"}
    assert table["withheld"].isna().equals(table["task"] == "Pleural Effusion")
    low, mean, high = (with_interval[name] for name in ("low", "mean", "high"))
    assert ((low <= mean) & (mean <= high)).all()
    assert table.groupby(["probe", "shots"])["draws"].unique().map(list).to_dict() == {
        ("linear", "1"): [4], ("linear", "3"): [4], ("linear", "all"): [1], ("knn", "3"): [4],
        ("linear, C = 0.1", "3"): [4], ("linear, C = 10", "3"): [4],
    }  # fmt: skip
    assert "| SimCLR |" in (report / "table.md").read_text() and "\\toprule" in (report / "table.tex").read_text()
    differences = pd.read_csv(report / "differences.csv")
    assert len(differences) == (3 + 2 + 1) * 5 and differences["difference"].notna().all()
    tested = differences[differences["p"].notna()]
    assert set(tested["task"]) == {"Pleural Effusion"} and tested["p"].between(0, 1).all()
    low, mean, high = (tested[name] for name in ("low", "difference", "high"))
    assert ((low <= mean) & (mean <= high)).all()
    assert {file.name for file in (report / "figures").iterdir()} == FIGURES


def test_page_is_complete_self_contained_and_marks_phantoms_as_synthetic(report: Path) -> None:
    page = (report / "report.html").read_text()
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:|#)|url\((?!#)|@import""", page)
    for text in ("SYNTHETIC", "none seen in pre-training", "Methods and limitations", "can&#39;t show",
                 "python -m train --shards=", "python -m probe report", "torch", "NT-Xent", "fingerprint", "Pure noise",
                 "Majority class", "too few", "nearest neighbours", *TASKS,
                 "no interval, p value or verdict for Cardiomegaly (8 positive test patients), "):  # fmt: skip
        assert text in page, text
    assert page.rstrip().endswith("</html>")
    assert page.count('role="img"') + page.count("<img ") == len(FIGURES)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


@pytest.fixture
def browser() -> Iterator[Any]:
    """A headless Chromium that records a page's requests and console messages."""
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


def test_page_in_a_browser(report: Path, browser: Any) -> None:
    from selenium.webdriver.common.by import By

    browser.get((report / "report.html").as_uri())
    assert browser.execute_script("return [...document.images].every(image => image.complete && image.naturalWidth)")
    assert browser.execute_script("return document.images.length") == 6
    assert browser.execute_script("return [...document.querySelectorAll('figure svg')].every("
                                  "svg => svg.getBoundingClientRect().height > 50)")  # fmt: skip
    assert browser.execute_script("return [...document.querySelectorAll('[role=img], img')].every(one => "
                                  "(one.getAttribute('aria-label') || one.alt).length > 20)")  # fmt: skip
    for width in (390, 1280):  # phone and desktop: only tables are wider, and scroll
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
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": dark})
    colour = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    assert browser.execute_script(colour, "figure svg text", "fill") == browser.execute_script(colour, "body", "color")
    rgb = [int(part) for part in re.findall(r"\d+", browser.execute_script(colour, "body", "color"))]
    assert min(rgb[:3]) > 200  # light text
    printed = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert printed.startswith(b"%PDF") and len(printed) > 50_000
    assert browser.get_log("browser") == []
    messages = [entry["message"] for entry in browser.get_log("performance")]
    requests = [re.search(r'"url":"(\w+):', message) for message in messages if 'Network.requestWillBeSent"' in message]
    assert {"file"} <= {request[1] for request in requests if request} <= {"file", "data"}


@pytest.mark.long
def test_report_from_draws_file_is_identical(
    report: Path, shards: Shards, trained: Path, weights: Path, tmp_path: Path
) -> None:
    """The draws of another process's report."""
    make_report(settings_of(trained, shards, tmp_path, weights, draws_file=report / "draws.csv"), 0, 1)
    for name in ("table.csv", "differences.csv", "draws.csv", "table.tex"):
        assert (tmp_path / name).read_bytes() == (report / name).read_bytes(), name


def test_second_process_on_one_folder_is_refused(shards: Shards, trained: Path, weights: Path, tmp_path: Path) -> None:
    with locked(tmp_path, "report"), pytest.raises(InputError, match="another process is writing there"):
        make_report(settings_of(trained, shards, tmp_path, weights), 0, 1)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.long
def test_killed_report_continues_to_the_same_bytes(
    report: Path, shards: Shards, trained: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    settings, cache = settings_of(trained, shards, tmp_path, weights, workers=1), tmp_path / "features"
    command = [sys.executable, "-m", *shlex.split(settings.command())[2:]]
    for _ in range(5):  # a process may end before it is killed
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and len(list(cache.glob("*.npy"))) < 1:
            time.sleep(0.002)
        process.kill()
        _, error = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), error
        if 0 < len(list(cache.glob("*.npy"))) < 8:  # of 4 encoders, for each of 2 splits
            break
        shutil.rmtree(cache, ignore_errors=True)
    kept = {file: file.stat().st_mtime_ns for file in cache.glob("*.npy")}
    assert 0 < len(kept) < 8 and not (tmp_path / "report.html").exists()
    monkeypatch.setattr("shard.progress.QUIET_S", 0.0)  # show progress at once
    make_report(settings, 0, 1)
    stderr = capsys.readouterr().err
    for line in ("reading labels: 121 of 121 images", "sampling draws: 4 of 4 tasks", "features: 121 of 121 images",
                 "occlusion maps: 8 of 8", "drawing figures: 11 of 11 sections"):  # fmt: skip
        assert line in stderr, line
    assert re.search(r"probing: (\d+) of \1 probes", stderr)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept and len(list(cache.glob("*.npy"))) == 8
    for name in ("table.csv", "differences.csv", "draws.csv", "table.tex", "figures/neighbours.png"):
        assert (tmp_path / name).read_bytes() == (report / name).read_bytes(), name


@pytest.mark.long
def test_report_of_parts_is_identical(
    shards: Shards, trained: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Byte-identical, for all kinds of units and for more draws than fit in one unit."""
    monkeypatch.setattr("probe.finetune.STEPS", 10)

    def settings(out: str, **others: Any) -> Settings:
        return settings_of(trained, shards, tmp_path / out, weights, **{
            "finetune": 1, "draws": 60, "tasks": ("Lung Opacity",), "baselines": ("scratch",), "shots": ("2", "all"),
            "cache": tmp_path / "features", **others})  # fmt: skip

    monkeypatch.setattr("probe.measure.STEPS", 10)
    with monkeypatch.context() as patched:
        patched.setattr("shard.progress.QUIET_S", 0.0)
        make_report(settings("whole"), 0, 1)
    assert "fine-tuning: 20 of 20 steps" in capsys.readouterr().err  # of two encoders
    for part in (2, 0):
        make_report(settings("parts"), part, 3)
    with pytest.raises(InputError, match="1 of 3 parts missing; measure them with --part=1 --parts=3"):
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
    assert table.groupby("probe")["draws"].max().to_dict() == {
        "linear": 60, "linear, C = 0.1": 60, "linear, C = 10": 60, "knn": 60, "finetune": 1,
    }  # fmt: skip
    assert "full fine-tuning" in (tmp_path / "parts" / "report.html").read_text()
    shutil.copytree(tmp_path / "parts" / "parts", tmp_path / "moved" / "parts")
    merge_report(tmp_path / "moved")  # writes next to the parts, not where they were measured
    assert (tmp_path / "moved" / "table.csv").read_bytes() == (tmp_path / "whole" / "table.csv").read_bytes()
    part = tmp_path / "parts" / "parts" / "1-of-3.npz"
    part.write_bytes(b"truncated")
    with pytest.raises(InputError, match=r"1-of-3\.npz: not a readable part"):
        merge_report(tmp_path / "parts")
    make_report(settings("parts", seed=1, finetune=0), 1, 3)
    with pytest.raises(InputError, match=r"with other settings, draws, shards or weights; .* with --part=\d --parts=3"):
        merge_report(tmp_path / "parts")


def test_parts_measured_on_a_gpu_are_merged_without_one(
    shards: Shards, trained: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's features have other keys in the cache than a CPU's, and the job that merges asks for no GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = settings_of(trained, shards, tmp_path, weights, device="cuda", tasks=("Lung Opacity",), shots=("2",),
                           draws=4, baselines=("thumbnail",))  # fmt: skip
    with monkeypatch.context() as patched:
        patched.setattr("probe.report.resolve_device", lambda device: "cpu")
        for part in range(2):
            make_report(settings, part, 2)
    merge_report(tmp_path)
    assert (tmp_path / "report.html").exists()
    for file in (tmp_path / "features").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="--device=cuda: PyTorch finds no GPU"):
        merge_report(tmp_path)


def test_measure_resamples_patients_not_images(
    shards: Shards, trained: Path, weights: Path, tmp_path: Path
) -> None:
    study = open_study(settings_of(trained, shards, tmp_path, weights, baselines=("thumbnail",), shots=("3",),
                                   tasks=("Lung Opacity",)))  # fmt: skip
    rng = np.random.default_rng(0)
    features = {name: rng.normal(size=(121, 8)).astype(np.float32) for name in ("Thumbnail", "SimCLR")}
    units = list_units(study)
    measured = combine(units, measure(study, units, features, torch.device("cpu")))
    draws, train = study.drawn["Lung Opacity"], (study.labels["split"] == "train").to_numpy()
    patients = np.full(121, -1)
    patients[~train], names = pd.factorize(study.labels["patient"][~train], sort=True)
    assert len(names) < (~train).sum()  # otherwise images and patients were the same
    for name in features:
        for probe, strength, test, members in (
            (LINEAR, 1.0, ALL, None), (LINEAR, 1.0, BALANCED, draws.balanced), ("linear, C = 0.1", 0.1, ALL, None),
            ("linear, C = 10", 10.0, ALL, None),
        ):  # fmt: skip
            decisions = probe_draws(standardise(features[name], train), *draws.support(3), draws.test,
                                    inverse_l2=strength)  # fmt: skip
            expected = score(decisions, draws.test_labels, patients[draws.test], resample(4, len(names)), members)
            scores = measured.scores[Key(name, probe, 3, "Lung Opacity", test)]
            assert np.array_equal(scores.both, expected.both, equal_nan=True), (name, probe, test)
            assert scores.rarer == min(count_patients(draws.test, draws.test_labels, patients)) and scores.supports
            people = study.labels["patient"].to_numpy()[draws.support(3)[0]]
            alike = people[:, :, None] == people[:, None, :]
            assert np.array_equal(scores.supports.patients[:, :, None] == scores.supports.patients[:, None, :], alike)


def test_fractions_are_probes_on_random_parts_of_the_labels(
    shards: Shards, trained: Path, weights: Path, tmp_path: Path
) -> None:
    """Each part is a unit of work; its probe is scikit-learn's, and the score the mean over parts."""
    study = open_study(settings_of(trained, shards, tmp_path, weights, baselines=(), shots=("3",), draws=2,
                                   tasks=("Lung Opacity",), fractions=(0.3, 0.6, 1e-3)))  # fmt: skip
    assert any("Lung Opacity is not measurable with 0.001 of its labels" in reason for reason in study.unmeasured)
    features = {"SimCLR": np.random.default_rng(0).normal(size=(121, 8)).astype(np.float32)}
    units = list_units(study)
    assert sum(unit.kind == "fractions" for unit in units) == FRACTION_DRAWS
    measured = combine(units, measure(study, units[::-1], features, torch.device("cpu"))[::-1])
    draws, standard = study.drawn["Lung Opacity"], standardise(features["SimCLR"], study.reference)
    assert amounts(study) == ["3", "30%", "60%"]
    for share in (0.3, 0.6):
        rows, classes = draws.fractions[share]
        decisions = np.concatenate([fit_all(standard, part, of_part, draws.test)
                                    for part, of_part in zip(rows, classes, strict=True)])  # fmt: skip
        expected = score(decisions, draws.test_labels, study.patients[draws.test],
                         resample(FRACTION_DRAWS, int(study.patients.max()) + 1))  # fmt: skip
        found = measured.scores[Key("SimCLR", LINEAR, f"{100 * share:g}%", "Lung Opacity", ALL)]
        assert np.allclose(found.both, expected.both, equal_nan=True)
        assert np.array_equal(found.draws, expected.draws) and found.supports is not None


@pytest.mark.long
def test_fractions_in_parts_give_the_same_table(
    shards: Shards, trained: Path, weights: Path, tmp_path: Path
) -> None:
    for out, parts in ((tmp_path / "one", 1), (tmp_path / "parts", 3)):
        settings = settings_of(trained, shards, out, weights, baselines=(), shots=("3",), draws=2, maps=1,
                               tasks=("Lung Opacity", "Pleural Effusion"), fractions=(0.4,))  # fmt: skip
        for part in range(parts):
            make_report(settings, part, parts)
        if parts > 1:
            merge_report(out)
    tables = [(tmp_path / name / "table.csv").read_bytes() for name in ("one", "parts")]
    assert tables[0] == tables[1] and b",40%," in tables[0]
    assert (tmp_path / "parts" / "report.toml").exists()


def test_shares_out_of_range_are_refused(shards: Shards, trained: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--fractions=0: needs shares between 0 and 1, such as"):
        settings_of(trained, shards, tmp_path, weights, fractions=(0.0,))


def test_probes_on_the_used_images_equal_those_on_all(
    shards: Shards, trained: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report computes features of its draws' images, of the test images and of a sample to standardise by."""
    monkeypatch.setattr("probe.used_images.REFERENCE", 20)
    tasks = ("Lung Opacity", "Pleural Effusion")
    settings = settings_of(trained, shards, tmp_path, weights, tasks=tasks, baselines=(), shots=("2", "40", "all"),
                           draws=3, all_limit=30, finetune=1)  # fmt: skip
    study = open_study(settings)
    labels = read_labels(shards.folder, shards.manifest, ("train", "valid"))
    drawn = {task: make_draws(labels, task, shots=40, draws=3, seed=0, all_limit=30) for task in tasks}
    reference = study.rows[study.reference]
    train = (labels["split"] == "train").to_numpy()
    used = set(reference) | set(np.flatnonzero(~train))
    for draws in drawn.values():  # the 40 shots are not measured, so their images are not used
        used |= {*draws.positive[:, :2].flat, *draws.negative[:, :2].flat, *draws.train}
    assert study.rows.tolist() == sorted(used) and len(used) < 121
    assert len(set(reference)) == 20 and train[reference].all()
    assert study.labels["key"].tolist() == labels["key"].iloc[study.rows].tolist()
    features = np.random.default_rng(0).normal(size=(121, 8)).astype(np.float32)
    units, tuned, shown = list_units(study), list[tuple[list[int], list[int]]](), list[int]()

    def record_tuning(module: Any, examples: torch.Tensor, classes: Any, tested: torch.Tensor, **_: Any) -> Any:
        tuned.append((examples.tolist(), tested.tolist()))
        return np.zeros(len(tested))

    def record_shown(*arguments: Any, **_: Any) -> torch.Tensor:
        shown.extend(arguments[3])
        return torch.zeros(len(arguments[3]), 1, 8, 8)

    monkeypatch.setattr("probe.measure.finetune", record_tuning)
    monkeypatch.setattr("probe.measure.read_images", lambda *arguments, **_: torch.tensor(arguments[3]))
    monkeypatch.setattr("probe.page.gallery.read_images", record_shown)
    measured = combine(units, measure(study, units, {"SimCLR": features[study.rows]}, torch.device("cpu")))
    assert tuned == [(draws.support(2)[0][0].tolist(), draws.test.tolist()) for draws in drawn.values()]
    neighbours(study, features[study.rows])
    assert [labels[task].iloc[query] for task, query in zip(tasks, shown[::6], strict=True)] == [1, 1]
    assert [train[row] for row in shown] == 2 * [False, *5 * [True]] and set(shown) <= used
    standard = standardise(features, np.isin(np.arange(121), reference))
    patients = np.full(121, -1)
    patients[~train], names = pd.factorize(labels["patient"][~train], sort=True)
    for task, draws in drawn.items():
        for shots, decisions in ((2, probe_draws(standard, *draws.support(2), draws.test)),
                                 ("all", fit_all(standard, draws.train, draws.train_labels, draws.test))):
            resamples = resample(len(decisions), len(names))
            expected = score(decisions, draws.test_labels, patients[draws.test], resamples)
            found = measured.scores[Key("SimCLR", LINEAR, shots, task, ALL)]
            assert np.allclose(found.both, expected.both, atol=1e-9, equal_nan=True), (task, shots)
    notes = " ".join(list_notes(study))
    assert "standardised by 20 of 97 training images, chosen at random, without their labels" in notes
    assert re.search(r"\(--all-limit\): 30 of \d+ for Lung Opacity, 30 of \d+ for Pleural Effusion\.", notes)


def test_probe_that_does_not_converge_is_named(
    shards: Shards, trained: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("probe.linear.STEPS", 1)
    study = open_study(settings_of(trained, shards, tmp_path, weights, baselines=("thumbnail",), shots=("3",),
                                   tasks=("Lung Opacity",)))  # fmt: skip
    features = {name: np.random.default_rng(0).normal(size=(121, 8)).astype(np.float32)
                for name in ("Thumbnail", "SimCLR")}  # fmt: skip
    with pytest.raises(InputError, match=r"Thumbnail, Lung Opacity: logistic regression did not converge .* --tasks"):
        measure(study, list_units(study), features, torch.device("cpu"))


def test_views_use_the_augmentation_of_the_run(
    shards: Shards, trained: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Views of other images of the patient are shown only for runs on the report's shards."""
    study, seen = open_study(settings_of(trained, shards, tmp_path, weights, baselines=())), list[Augmentation]()

    def preview(shards: Path, augmentation: Augmentation, **_: Any) -> tuple[bytes, list[str]]:
        seen.append(augmentation)
        return b"png", []

    monkeypatch.setattr(sections, "plot_preview", preview)
    (encoder,) = study.encoders
    assert encoder.state is not None
    own = {**encoder.state["augmentation"], "flip_probability": 0.0, "crop_area": (0.3, 1.0), "patient_positive": 0.5}
    for fingerprint, positive in ((study.manifest.fingerprint(), 0.5), ("other", 0.0)):
        state = {**encoder.state, "augmentation": own, "shards": fingerprint}
        sections.pretraining_sections(replace(study, encoders=[replace(encoder, state=state)]), {"SimCLR": "black"})
        assert seen.pop() == Augmentation(**{**own, "patient_positive": positive})


def test_settings_round_trip(tmp_path: Path) -> None:
    settings = Settings(encoders=(f"{tmp_path}/a", f"n={tmp_path}/lr=b"), shards=tmp_path, out=tmp_path / "out",
                        shots=("5", "all"), tasks=("Mass",), cache=tmp_path / "c", protocol="paper")  # fmt: skip
    assert from_plain(settings.plain()) == settings
    assert settings.command() == (f"python -m probe report {tmp_path}/a n={tmp_path}/lr=b --shards={tmp_path} "
                                  f"--out={tmp_path / 'out'} --shots=5,all --tasks=Mass --protocol=paper "
                                  f"--cache={tmp_path / 'c'}")  # fmt: skip


@pytest.mark.long
def test_compare_several_runs_with_the_published_protocol_first(
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


def test_tasks_and_shots_without_examples_are_reported_and_skipped(
    shards: Shards, trained: Path, weights: Path, tmp_path: Path
) -> None:
    tasks = ("Lung Opacity", "Fracture", "Lung Lesion")
    make_report(settings_of(trained, shards, tmp_path, weights, tasks=tasks, shots=("3", "40", "2000")), 0, 1)
    text = (tmp_path / "table.md").read_text()
    assert "Fracture is not measurable" in text
    assert re.search(r"Lung Opacity is not measurable with 40 shots: \d+ patients with positive training images", text)
    table = pd.read_csv(tmp_path / "table.csv")
    assert set(table["shots"]) == {3}
    assert set(table["task"]) == {"Lung Opacity"}
    row = next(line for line in text.splitlines() if line.startswith("| SimCLR |")).split("|")
    assert np.isfinite(float(row[2].split()[0])) and row[3].strip() == row[4].strip() == "n/a"


def test_archive_without_all_published_tasks_reports_its_findings(
    shards: Shards, capsys: pytest.CaptureFixture[str]
) -> None:
    def chosen(findings: tuple[str, ...], *tasks: str) -> tuple[list[str], str]:
        settings = Settings(encoders=("a",), shards=shards.folder, out=shards.folder, tasks=tasks)
        return choose_tasks(settings, replace(shards.manifest, findings=findings)), capsys.readouterr().err

    assert chosen(shards.manifest.findings) == (list(TASKS), "")
    assert chosen(("Effusion", "Cardiomegaly"), "Effusion") == (["Effusion"], "")
    tasks, stderr = chosen(("Effusion", "Cardiomegaly"))
    assert tasks == ["Cardiomegaly"]
    assert stderr == "tasks: Cardiomegaly, as in the published study; --tasks=A,B chooses others of: Effusion\n"
    with pytest.raises(InputError, match=r"none of Cardiomegaly, .* choose some with --tasks=A,B"):
        chosen(("Effusion",))


def test_finding_names_are_escaped_in_the_page(
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
    other = Shards(tmp_path / "shards", read_manifest(tmp_path / "shards"))
    settings = settings_of(trained, other, tmp_path / "out", weights, tasks=(nasty,))
    make_report(replace(settings, encoders=tuple(f"{name}={trained}" for name in "ABC")), 0, 1)
    page = (tmp_path / "out" / "report.html").read_text()
    # With more than two encoders the headline gives only their scores.
    assert re.search(r"With \d+ labelled examples? per class, AUROC on .*: "
                     r"A 0\.\d+.*; B 0\.\d+.*; C 0\.\d+[^;]*\.</p>", page)  # fmt: skip
    assert "POSSIBLY SEEN IN PRE-TRAINING" in page  # other shards than the run's
    assert nasty not in page and "&lt;script&gt;" in page
    assert CHEXPERT_FINDINGS[0] not in page
