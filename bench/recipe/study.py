"""Run the recipe study: what do ten shots give, from ImageNet's weights, from random ones, and after pre-training?

python -m bench.recipe SHARDS --imagenet=FILE --out=DIR. The recipe is chosen on the patients of split valid, from the
cells of bench/recipe/grid.py. All other patients are tested once, by cross-fitting: encoders are pre-trained on the
patients outside a fold, and tested on the fold.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np

from bench.recipe.choice import CHOICE, Candidate, choose, find_candidates, read_choice
from bench.recipe.claim import claim_jobs, make_claim
from bench.recipe.design import Study, check_shards
from bench.recipe.grid import choose_cells
from bench.recipe.jobs import job_workers
from bench.recipe.page import Page, table, write_page
from shard.address import Place
from shard.cache import AS_SET, CacheFlags, open_shards
from shard.errors import InputError
from shard.flags import SHARDS, Flag, validate_call
from shard.machine import cores
from shard.manifest import read_manifest


@validate_call
def bench_recipe(
    shards: Annotated[Place, replace(SHARDS, help="Folder of JPEG shards, or its address. They are built with "
                                     "--partners and have the splits train, valid and test.")], *,
    imagenet: Annotated[Path, Flag("File of ImageNet's weights of EfficientNet-Lite0, with timm's names.", "study",
                                   metavar="FILE")],
    out: Annotated[Path, Flag("Folder for the runs.", "running", metavar="DIR")],
    results: Annotated[Path | None, Flag("Folder for the results, small files. A run with a result is not trained "
                                         "again.", "study", metavar="DIR", default="OUT/results")] = None,
    cells: Annotated[tuple[str, ...], Flag("Cells of the grid to train; bench/recipe/grid.py lists them.", "study",
                                           metavar="NAME,…", default="all")] = (),
    seeds: Annotated[int, Flag("Seeds of each cell. Only cells with all of them may be chosen.", "study",
                               low=1, high=100)] = 3,
    claim: Annotated[int, Flag("Seeds of the claim, which tests the chosen cells and their rivals on all patients who "
                               "chose nothing; 0 makes none.", "study", low=0, high=100)] = 0,
    train: Annotated[bool, Flag("Whether to train; otherwise only results are read.", "running")] = True,
    page: Annotated[Path | None, Flag("Write the results as Markdown to this file, with a figure next to it.", "study",
                                      metavar="FILE")] = None,
    draws: Annotated[int, Flag("Support sets of a task, the same for all encoders.", "study", low=2, high=10**4)] = 100,
    jobs: Annotated[int, Flag("Runs trained at the same time.", "running", low=1, high=256)] = 1,
    minutes: Annotated[float, Flag("Start no run after this time; 0 sets no limit.", "running",
                                   low=0, high=10**5)] = 0.0,
    workers: Annotated[int, Flag("Loader threads of a run; 0 divides the cores among the runs.", "running",
                                 low=0, high=4096)] = 0,
    cache: CacheFlags = AS_SET,
) -> None:  # fmt: skip
    """Choose a recipe on validation patients, and test it, with its rivals, on all other patients.

    The same command resumes a study that was stopped. The first command chooses; --claim then tests the choice, which
    is kept in --results and not made again.

        python -m bench.recipe nih --imagenet=lite0.safetensors --out=runs/recipe
        python -m bench.recipe nih --imagenet=lite0.safetensors --out=runs/recipe --claim=5
    """
    folder = open_shards(shards, cache)
    manifest = read_manifest(folder)
    check_shards(folder, manifest)
    if not imagenet.is_file():
        raise InputError(f"--imagenet={imagenet}: no such file; give ImageNet's weights of EfficientNet-Lite0")
    study = Study(folder, manifest, imagenet, out, results or out / "results", choose_cells(cells), seeds, draws,
                  workers or max(1, cores() // jobs))
    if train:
        with job_workers(jobs, out / "workers.log", minutes) as pool:
            pending = study.pending(study.choice_jobs())
            pool.run([job for job in pending if not job.pooling])
            for job in pending:
                if job.pooling:  # one at a time: those of a cell share its run, and may have to train it
                    pool.run([job])
            if claim:
                pool.run(study.pending(claim_jobs(study, choose(study, claim), claim)))
    candidates = find_candidates(study)
    choice = read_choice(study.results / CHOICE)
    made = make_claim(study, choice, claim) if claim and choice is not None else None
    print(rank_candidates([*candidates.values()]))
    content = Page(study, candidates, choice, made, page.with_suffix(".svg").name if page else "")
    if made is not None:
        print(f"\n{content.text()}")
    if page is not None:
        write_page(page, content)


def rank_candidates(candidates: list[Candidate]) -> str:
    """Render a table of the candidates on validation patients, the best first."""
    ranked = sorted(candidates, key=lambda candidate: -float(np.mean(candidate.means)))
    return table(["mean AUROC", "cell", "px", "seeds"], [
        [f"{np.mean(one.means):.4f}", one.name, str(one.size), str(len(one.scores))] for one in ranked])  # fmt: skip
