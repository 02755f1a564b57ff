# shellcheck shell=bash disable=SC2034
# What is particular to your cluster. Copy this to slurm/site.sh, which git does not look at, and change the copy, or
# name another file by SITE=PATH. Where there is none, this one is read as it stands. Every script here sources it, on
# the login node and on the compute nodes.

# What sbatch is given with each job that wants cores alone, and with each that wants a GPU: partition, account, quality
# of service, whatever `sbatch --help` knows.
CPU_OPTIONS=()             # (--partition=cpu --account=imaging)
GPU_OPTIONS=(--gres=gpu:1) # (--partition=gpu --account=imaging --gres=gpu:a100:1)

# What runs before the work, in the root of the repository: modules, and the environment that holds the packages.
enter_environment() {
    # module load cuda/12.4
    # eval "$(conda shell.bash hook)" && conda activate cxr
    if [[ -d .venv ]]; then
        # shellcheck source=/dev/null
        source .venv/bin/activate
    fi
}

# How Python is called. In a container, which must see the repository, the data, the shards and the runs:
# PYTHON=(apptainer exec --nv --bind /data,/scratch /containers/cxr-simclr.sif python)
PYTHON=(python)

# A disk of the compute nodes' own. Shards that fit are copied there before training, and checked by their hashes.
SCRATCH_LOCAL=${SCRATCH_LOCAL:-} # ${SLURM_TMPDIR:-/local}
