# shellcheck shell=bash
# Sourced first by every job: goes to the root of the repository, reads the site's settings, enters its environment.
# What a job is given by the environment are paths and flags; paths may be relative to where it was submitted. Leaves
# nothing; begin() makes FOLDER/logs.
set -euo pipefail

# Ends the job with a message for its log: what is wrong, and the cure.
die() {
    echo "${SLURM_JOB_NAME:-$0}: error: $*" >&2
    exit 1
}

# Makes the paths in the variables of those names absolute and of one spelling, where they are set.
make_absolute() {
    local name
    for name; do
        if [[ -n ${!name:-} ]]; then
            printf -v "$name" %s "$(realpath --canonicalize-missing --no-symlinks -- "${!name}")"
        fi
    done
}
make_absolute SRC SHARDS RUN SETTINGS SITE SCRATCH_LOCAL

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
[[ -z ${SITE:-} || -r $SITE ]] || die "SITE=$SITE: no such file; copy slurm/site.example.sh to begin with"
if [[ -z ${SITE:-} ]]; then
    SITE=slurm/site.sh
    [[ -r $SITE ]] || SITE=slurm/site.example.sh
fi
# shellcheck source=slurm/site.example.sh
source slurm/site.example.sh # for what a site's file leaves out
# shellcheck source=slurm/site.example.sh
source "$SITE"

# This job as Slurm names it: 123, or 123_4 in an array. The number alone may stand for the whole array.
job_id=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-${SLURM_JOB_ID:-}}
# shellcheck disable=SC2034 # the jobs use it
CORES=${SLURM_CPUS_PER_TASK:-1}

# Enters the environment, and has the log be found in FOLDER/logs by the names of job and task.
begin() {
    local log
    mkdir -p "$1/logs"
    log=$(readlink -f "/proc/$$/fd/1" || true)
    if [[ -f $log && $(dirname "$log") != "$(readlink -f "$1/logs")" ]]; then
        ln -sf "$log" "$1/logs/${SLURM_JOB_NAME:-job}-$job_id.log"
    fi
    echo "$(date '+%F %T') ${SLURM_JOB_NAME:-$0} $job_id begins on ${SLURM_JOB_NODELIST:-$(hostname)}" \
        "(start $((${SLURM_RESTART_COUNT:-0} + 1)))"
    enter_environment
    command -v "${PYTHON[0]}" >/dev/null ||
        die "${PYTHON[0]}: no such command; set PYTHON and enter_environment in $SITE, see slurm/site.example.sh"
    "${PYTHON[@]}" -c 'import sys; from importlib.util import find_spec
sys.exit(not all(map(find_spec, ("fire", "simplejpeg", "torch"))))' 2>/dev/null ||
        die "${PYTHON[*]}: cannot import what cxr-simclr needs; install it, as docs/cluster.md says, or set PYTHON" \
            "and enter_environment in $SITE, see slurm/site.example.sh"
}

# Flags as words, into the array `flags`: as a shell splits them, so that quotes keep a blank within one.
split_flags() {
    xargs -r true <<<"$1" 2>/dev/null || die "$1: cannot be split into flags; close the quotes"
    # shellcheck disable=SC2034 # the jobs use it
    mapfile -d '' -t flags < <(xargs -r printf '%s\0' <<<"$1")
}

# Puts this job, of an array this task alone, back into the queue, and ends. Slurm ends the caller: the last call.
requeue() {
    echo "$(date '+%F %T') $job_id is requeued$1"
    scontrol requeue "$job_id"
    exit 75
}

# The seconds until Slurm ends this job; 0 where it has no end, or does not say.
seconds_left() {
    local end
    end=$(squeue --noheader --jobs="$job_id" --format=%e 2>/dev/null || true)
    end=$(date -d "$end" +%s 2>/dev/null || date +%s)
    echo $((end - $(date +%s)))
}
