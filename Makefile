# make demo       synthetic radiographs → shards → SimCLR → 10-shot report, in out/demo
# make test       run the tests
# make lint       run ruff and mypy
# make test-long  run the longest tests: Slurm, several ranks and the recipe study from end to end, 20 to 25 minutes
# make test-versions   run the tests with PyTorch for CUDA 12, and with the oldest versions that setup.cfg allows
# make kills      kill a build and a training with SIGKILL at twenty random moments each, 5 minutes
# make faults     inject every fault into every command and write docs/faults.md, 20 minutes
# make fuzz       read 1,200 mutated inputs of each kind and write docs/fuzz.md, 10 minutes
# make docs       write docs/flags.md, the table of all flags
# make site       build the documentation as HTML, in out/site
# make locks      write requirements.txt and requirements-cuda12.txt: every pinned version with its hashes
# make sbom       write a bill of materials (CycloneDX) of the virtual environment, out/sbom.json
# make pictures   render the pictures in docs/ from the demo (the screenshot needs Debian's chromium)
# make archive    every step on a synthetic archive of CheXpert's 224,316 images, 30 minutes and 14 GB; run again to resume
# make gpu-check  on a machine with a GPU: run its tests, benchmarks and a killed run, and write out/gpu/gpu.md, 10 minutes
# All targets first create the virtual environment .venv, if it does not exist.

PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python
READY  := $(VENV)/installed
DEMO   := out/demo
# For drivers older than 580: make CONSTRAINTS=constraints-cuda12.txt … (docs/cluster.md)
CONSTRAINTS := constraints.txt
OLDEST := out/constraints-oldest.txt
comma  := ,
EXTRAS := bench,dev,dicom,docs,embed,export,huggingface,mlflow,remote,wandb

.PHONY: demo test test-long test-versions kills faults fuzz docs site locks sbom pictures archive gpu-check lint clean
.DELETE_ON_ERROR:

demo: $(DEMO)/report.html
	@echo "Open $(DEMO)/report.html"

# One thread in each of the two workers: more would compete for the cores.
test: $(READY)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist=worksteal -m "not long"

test-long: $(READY)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist=worksteal -m long

test-versions: $(OLDEST)
	$(MAKE) test VENV=.venv-cuda12 CONSTRAINTS=constraints-cuda12.txt
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS=$(OLDEST)

$(OLDEST): setup.cfg
	mkdir -p out
	sed -n 's/^    \([a-z0-9-]*\)\(\[[a-z0-9]*\]\)\{0,1\} >= \([0-9.]*\).*/\1==\3/p' setup.cfg > $@

kills: $(READY)
	KILLS=20 $(RUN) -m pytest -s -k killed_at_random_moments tests/test_kills.py tests/test_resume.py

faults: $(READY)
	FAULTS=all $(RUN) -m pytest -q -s tests/faults

fuzz: $(READY)
	FUZZ=1200 $(RUN) -m pytest -q -s tests/fuzz

archive: $(READY)
	$(RUN) -m bench.archive --page=docs/performance.md $(if $(IMAGES),--images=$(IMAGES))

gpu-check: $(READY)
	$(RUN) -m bench.gpu_check $(if $(SHARDS),--shards=$(SHARDS))

docs: $(READY)
	$(RUN) -m bench.flags

site: $(READY)
	$(RUN) -m mkdocs build

locks: .venv-release/installed
	for stack in "" -cuda12; do \
	    .venv-release/bin/uv pip compile --no-config --quiet --generate-hashes --no-annotate --no-emit-index-url \
	        --custom-compile-command "make locks" --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	        $(foreach extra,$(subst $(comma), ,$(EXTRAS)),--extra $(extra)) --constraint constraints$$stack.txt \
	        --output-file requirements$$stack.txt setup.cfg || exit 1; \
	done

sbom: $(READY) .venv-release/installed
	mkdir -p out
	.venv-release/bin/cyclonedx-py environment --output-reproducible --output-file out/sbom.json $(RUN)

.venv-release/installed:
	$(PYTHON) -m venv .venv-release
	.venv-release/bin/python -m pip install --quiet uv cyclonedx-bom
	touch $@

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m mypy

$(READY): setup.cfg pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is required, this is " + sys.version.split()[0] + "; use: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV) || { echo "python3 lacks venv here; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	$(RUN) -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[$(EXTRAS)]'
	touch $@

DEMO_IMAGES := 1600
# DALI exists only for Linux. Without it, torchvision makes the views.
DALI         = $(shell $(RUN) -c 'from pipeline.loader import has_dali; print("--dali" if has_dali() else "")')
DEMO_TRAIN   = $(DALI) --arch=resnet18 --size=64 --epochs=10 --batch-size=64 --lr=1e-3 \
               --temperature=0.2 --schedule=cosine --warmup-epochs=1

$(DEMO)/radiographs/valid.csv: | $(READY)
	$(RUN) -m shard phantom $(DEMO)/radiographs --images=$(DEMO_IMAGES)

$(DEMO)/shards/manifest.json: $(DEMO)/radiographs/valid.csv
	$(RUN) -m shard build $(DEMO)/radiographs $(DEMO)/shards

$(DEMO)/report.html: $(DEMO)/shards/manifest.json
	$(RUN) -m train $(DEMO_TRAIN) --shards=$(DEMO)/shards --out=$(DEMO)/run
	$(RUN) -m probe report $(DEMO)/run --shards=$(DEMO)/shards --out=$(DEMO)

pictures: $(DEMO)/report.html
	mkdir -p docs/pictures
	$(RUN) -m pipeline preview $(DEMO)/shards --out=docs/pictures/views.png --images=3 --size=128
	$(RUN) -m bench.io $(DEMO)/shards --json=out/bench-io.json --plot=docs/pictures/io.svg
	cp $(DEMO)/run/loss.png docs/pictures/loss.png
	chromium --headless --no-sandbox --hide-scrollbars --window-size=1000,1300 \
	    --screenshot=docs/pictures/report.png file://$(CURDIR)/$(DEMO)/report.html

clean:
	rm -rf out
