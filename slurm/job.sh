# shellcheck shell=bash
# Sourced first by every job: changes to the root of the repository and reads the site's settings. begin() enters the
# environment. Variables contain paths and flags; paths may be relative to the folder of submission.
# Output: none; begin() creates FOLDER/logs.
set -euo pipefail

# Prints an error message and ends the job.
die() {
    echo "${SLURM_JOB_NAME:-$0}: error: $*" >&2
    exit 1
}

# Has shards at an address fetched into a cache on the node's local disk SCRATCH_LOCAL, if it is set.
cache_locally() {
    if [[ $SHARDS == *://* && -n ${SCRATCH_LOCAL:-} ]]; then
        export CXR_CACHE=${CXR_CACHE:-$SCRATCH_LOCAL/cxr-cache}
    fi
}

# Makes the paths in the named variables absolute and canonical, if they are set. An address is left as it is.
make_absolute() {
    local name
    for name; do
        if [[ -n ${!name:-} && ${!name} != *://* ]]; then
            printf -v "$name" %s "$(realpath --canonicalize-missing --no-symlinks -- "${!name}")"
        fi
    done
}
make_absolute SRC SHARDS RUN SETTINGS SITE SCRATCH_LOCAL

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
[[ -z ${SITE:-} || -r $SITE ]] || die "SITE=$SITE: no such file; copy slurm/site.example.sh to start with"
if [[ -z ${SITE:-} ]]; then
    SITE=slurm/site.sh
    [[ -r $SITE ]] || SITE=slurm/site.example.sh
fi
# shellcheck source=slurm/site.example.sh
source slurm/site.example.sh # defaults for settings that the site's file omits
# shellcheck source=slurm/site.example.sh
source "$SITE"

# The id of this job: 123, or 123_4 in an array, where 123 can mean the whole array.
job_id=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-${SLURM_JOB_ID:-}}
# shellcheck disable=SC2034 # the jobs use it
CORES=${SLURM_CPUS_PER_TASK:-1}

# Enters the environment, and links the log into FOLDER/logs under the names of job and task.
begin() {
    local log
    mkdir -p "$1/logs"
    log=$(readlink -f "/proc/$$/fd/1" || true)
    if [[ -f $log && $(dirname "$log") != "$(readlink -f "$1/logs")" ]]; then
        ln -sf "$log" "$1/logs/${SLURM_JOB_NAME:-job}-$job_id.log"
    fi
    echo "$(date '+%F %T') ${SLURM_JOB_NAME:-$0} $job_id starts on ${SLURM_JOB_NODELIST:-$(hostname)}" \
        "(start $((${SLURM_RESTART_COUNT:-0} + 1)))"
    enter_environment
    command -v "${PYTHON[0]}" >/dev/null ||
        die "${PYTHON[0]}: no such command; set PYTHON and enter_environment in $SITE, see slurm/site.example.sh"
    "${PYTHON[@]}" -c 'import sys; from importlib.util import find_spec
sys.exit(not all(map(find_spec, ("fire", "simplejpeg", "torch"))))' 2>/dev/null ||
        die "${PYTHON[*]}: cannot import the dependencies of cxr-simclr; install them as in docs/cluster.md, or set" \
            "PYTHON and enter_environment in $SITE, see slurm/site.example.sh"
}

# Splits flags into the array `flags` as a shell does: quotes keep a space within a flag.
split_flags() {
    xargs -r true <<<"$1" 2>/dev/null || die "$1: cannot be split into flags; close the quotes"
    # shellcheck disable=SC2034 # the jobs use it
    mapfile -d '' -t flags < <(xargs -r printf '%s\0' <<<"$1")
}

# Sets the array DEVICE_FLAG to --device=DEVICE, or to nothing if one of the flags sets the device.
choose_device() {
    local flag
    DEVICE_FLAG=(--device="$DEVICE")
    for flag; do
        # shellcheck disable=SC2034 # the jobs use it
        [[ $flag != --device && $flag != --device=* ]] || DEVICE_FLAG=()
    done
}

# Requeues this job, or only this task of an array, and exits. Slurm kills the job; nothing runs after this call.
requeue() {  # slurm/train.sh decides when
    echo "$(date '+%F %T') $job_id is requeued$1"
    scontrol requeue "$job_id"
    exit 75
}

# Prints the seconds until Slurm ends this job; 0 if it has no limit or Slurm does not report it.
seconds_left() {
    local end
    end=$(squeue --noheader --jobs="$job_id" --format=%e 2>/dev/null || true)
    end=$(date -d "$end" +%s 2>/dev/null || date +%s)
    echo $((end - $(date +%s)))
}
