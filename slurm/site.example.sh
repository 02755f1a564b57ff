# shellcheck shell=bash disable=SC2034
# The settings of your cluster. Copy this file to slurm/site.sh, which git ignores, and edit the copy, or name another
# file with SITE=PATH. Without a copy, these defaults apply. Every script in slurm/ sources the settings, on the login
# node and on the compute nodes.

# Options for sbatch, of jobs that need only cores and of jobs that need a GPU: partition, account, quality of service,
# or any other option in `sbatch --help`.
CPU_OPTIONS=()             # (--partition=cpu --account=imaging)
GPU_OPTIONS=(--gres=gpu:1) # (--partition=gpu --account=imaging --gres=gpu:a100:1)

# The device of training and probes, unless --device is among the flags. With cuda, a job whose PyTorch finds no GPU
# ends at once instead of computing on the cores for days. A cluster without GPUs: DEVICE=cpu GPU_OPTIONS=(--gres=none)
DEVICE=cuda

# Runs at the start of each job, in the root of the repository: load modules and activate the environment.
enter_environment() {
    # module load cuda/12.4
    # eval "$(conda shell.bash hook)" && conda activate cxr
    if [[ -d .venv ]]; then
        # shellcheck source=/dev/null
        source .venv/bin/activate
    fi
}

# The Python command. A container must have access to the repository, the data, the shards and the runs:
# PYTHON=(apptainer exec --nv --bind /data,/scratch /containers/cxr-simclr.sif python)
PYTHON=(python)

# A local disk of the compute nodes. Shards that fit are copied there before training, and their hashes are verified.
SCRATCH_LOCAL=${SCRATCH_LOCAL:-} # ${SLURM_TMPDIR:-/local}
