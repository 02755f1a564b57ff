#!/usr/bin/env bash
# Submits all steps from radiographs to the report as a chain of dependent jobs, and prints how to watch them. Run it
# again after a failure: finished steps are skipped and unfinished ones resume.
#
#   SRC=/data/CheXpert-v1.0-small SHARDS=/scratch/shards RUN=/scratch/runs/a slurm/submit.sh
#   SHARDS=/scratch/shards RUN=/scratch/runs/a slurm/submit.sh pretrain probe                   # some of the steps
#   SHARDS=/scratch/shards RUN=/scratch/runs/s SETTINGS=sweep.txt slurm/submit.sh sweep probe   # many runs, compared
#
# Steps: shard, pretrain or sweep, probe; by default shard pretrain probe.
#
# Variables: SRC, SHARDS and RUN as in slurm/*.sbatch, with absolute or relative paths; the site's settings are in
# slurm/site.sh. Optional: SHARD_PARTS (16) and PROBE_PARTS (1), the tasks of their arrays; SETTINGS or SEEDS (5) for a
# sweep; SHARD_FLAGS, TRAIN_FLAGS, PROBE_FLAGS, such as --size=320 or "--tasks='Edema,Lung Opacity'"; SHARD_OPTIONS,
# TRAIN_OPTIONS, PROBE_OPTIONS for sbatch, such as "--time=12:00:00 --mem=32G".
# Output: that of the steps, and all logs in RUN/logs.
set -euo pipefail

# shellcheck source=slurm/job.sh
source "$(dirname "${BASH_SOURCE[0]}")/job.sh"

# requested SCRIPT: the resources that its own lines ask for. Options that follow override them.
requested() {
    sed -nE 's/^#SBATCH (--(gres|nodes|ntasks-per-node|cpus-per-task|time)=.*)/\1/p' "$1" | paste -sd ' '
}

# job NAME TASKS SCRIPT gpu|cores FOLDER OPTION…: checks that Slurm would accept a job or, in the second pass, submits
# it to start after the previous one. TASKS: of its array, 0 for a single job. FOLDER: its output folder.
job() {
    local name=$1 tasks=$2 script=$PWD/slurm/$3 resource=$4 folder=$5 log=%x-%j array=
    shift 5
    local options=("${CPU_OPTIONS[@]}" --gres=none)
    [[ $resource == cores ]] || options=("${GPU_OPTIONS[@]}")
    if ((tasks)); then
        options+=(--array="0-$((tasks - 1))")
        log=%x-%A_%a array=", $tasks tasks"
    fi
    options+=(--job-name="cxr-$name" --output="$RUN/logs/$log.log" --comment="$mark$folder" --export=ALL "$@")
    if [[ $checking == yes ]]; then
        sbatch --test-only "${options[@]}" "$script" >/dev/null 2>"$errors" ||
            die "$name: sbatch reports: $(paste -sd ' ' "$errors"); its options were $(requested "$script") ${options[*]};" \
                "correct CPU_OPTIONS and GPU_OPTIONS in $SITE, or override some with SHARD_OPTIONS, TRAIN_OPTIONS or" \
                "PROBE_OPTIONS; nothing was submitted"
        return
    fi
    if [[ -n $last ]]; then
        options+=(--dependency="$wait:$last" --kill-on-invalid-dep=yes)
    fi
    if ! last=$(sbatch --parsable "${options[@]}" "$script" 2>"$errors"); then
        [[ ${#ids[@]} -eq 0 ]] || scancel "${ids[@]}"
        die "$name: sbatch reports: $(paste -sd ' ' "$errors"); the previous jobs were cancelled"
    fi
    last=${last%%;*} # on a federation of clusters, the name of this cluster follows
    ids+=("$last")
    steps+=("$name:$last")
    printf '  %-9s job %s%s\n' "$name" "$last" "$array"
}

unset MERGE PARTS FLAGS # set below for each job

# Submits the jobs of a step.
submit() {
    local options
    case $1 in
        shard)
            read -ra options <<<"${SHARD_OPTIONS:-}"
            FLAGS=${SHARD_FLAGS:-} PARTS=$shard_parts \
                job shard "$shard_parts" shard.sbatch cores "$SHARDS" "${options[@]}"
            MERGE=1 job merge 0 shard.sbatch cores "$SHARDS" --cpus-per-task=1 --time=01:00:00
            ;;
        pretrain)
            read -ra options <<<"${TRAIN_OPTIONS:-}"
            FLAGS=${TRAIN_FLAGS:-} job pretrain 0 pretrain.sbatch gpu "$RUN" "${options[@]}"
            ;;
        sweep)
            read -ra options <<<"${TRAIN_OPTIONS:-}"
            FLAGS=${TRAIN_FLAGS:-} job sweep "$runs" sweep.sbatch gpu "$RUN" "${options[@]}"
            ;;
        probe)
            read -ra options <<<"${PROBE_OPTIONS:-}"
            if ((probe_parts == 1)); then
                FLAGS=${PROBE_FLAGS:-} job probe 0 probe.sbatch gpu "$RUN" "${options[@]}"
            else
                FLAGS=${PROBE_FLAGS:-} job probe "$probe_parts" probe.sbatch gpu "$RUN" "${options[@]}"
                MERGE=1 job report 0 probe.sbatch cores "$RUN" --cpus-per-task=1 --time=01:00:00
            fi
            ;;
    esac
}

if [[ " $* " == *" --help "* || " $* " == *" -h "* ]]; then
    sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' slurm/submit.sh
    exit 0
fi
(($#)) || set -- shard pretrain probe
for step; do
    [[ $step =~ ^(shard|pretrain|sweep|probe)$ ]] || die "$step: no such step; available: shard, pretrain, sweep, probe"
done
[[ " $* " != *" pretrain "* || " $* " != *" sweep "* ]] ||
    die "pretrain sweep: both write into RUN; name one, or submit them separately with another RUN"
selected=() # each once, in order
for step in shard pretrain sweep probe; do
    [[ " $* " != *" $step "* ]] || selected+=("$step")
done
[[ -n ${SHARDS:-} ]] || die "set SHARDS to the output folder of the step shard"
[[ -n ${RUN:-} ]] || die "set RUN to the folder of the run"
[[ $RUN != *%* ]] || die "RUN=$RUN: Slurm expands a % in the name of a log; choose another name"

# Ends with an error if the flags contain relative paths or flags that the scripts set.
check_flags() {
    local flag
    split_flags "$1"
    for flag in "${flags[@]}"; do
        [[ ! $flag =~ ^--(deidentify|table|imagenet[-_]weights|draws[-_]file|cache|resume|init)=([^/~].*)$ ||
            $flag =~ ^--(resume=(auto|never)|init=(imagenet|timm/.*|hf-hub:.*))$ ]] || die "$flag: give an absolute path; jobs run in $PWD"
        [[ ! $flag =~ ^--(no)?(dali|shards|out|workers|parts?)(=.*)?$ ]] ||
            die "$flag: the scripts set it from SHARDS, RUN, SHARD_PARTS, PROBE_PARTS and --cpus-per-task; omit it"
    done
}
for given in "${SHARD_FLAGS:-}" "${TRAIN_FLAGS:-}" "${PROBE_FLAGS:-}"; do
    check_flags "$given"
done
if [[ $SHARDS == *://* && " ${selected[*]} " == *" shard "* ]]; then
    die "SHARDS=${SHARDS%%://*}://…: a build needs a folder; build there, then put it at the address with:" \
        "python -m shard upload"
elif [[ -r $SHARDS/manifest.json && " ${selected[*]} " == *" shard "* ]]; then
    echo "$SHARDS/manifest.json exists: skipping the step shard"
    [[ -z ${SHARD_FLAGS:-} ]] || echo "SHARD_FLAGS=$SHARD_FLAGS: ignored; for other shards name another folder"
    mapfile -t selected < <(printf '%s\n' "${selected[@]}" | grep -vx shard)
elif [[ " ${selected[*]} " == *" shard "* ]]; then
    [[ -n ${SRC:-} ]] || die "set SRC to the folder with the radiographs and their table"
    [[ -d $SRC ]] || die "SRC=$SRC: no such folder"
elif [[ $SHARDS != *://* && ! -r $SHARDS/manifest.json ]]; then
    die "SHARDS=$SHARDS: no manifest.json there; run the step shard too"
fi
((${#selected[@]})) || exit 0
shard_parts=${SHARD_PARTS:-16} probe_parts=${PROBE_PARTS:-1} runs=${SEEDS:-5}
if [[ " ${selected[*]} " == *" sweep "* && -n ${SETTINGS:-} ]]; then
    [[ -r $SETTINGS ]] || die "SETTINGS=$SETTINGS: no such file"
    mapfile -t lines < <(grep -Ev '^[[:space:]]*(#|$)' "$SETTINGS")
    runs=${#lines[@]}
    ((runs)) || die "SETTINGS=$SETTINGS: names no run; write a run's name and its flags on each line"
    for line in "${lines[@]}"; do
        check_flags "$line"
    done
fi
for given in SHARD_PARTS="$shard_parts" PROBE_PARTS="$probe_parts" SEEDS="$runs"; do
    [[ ${given#*=} =~ ^[1-9][0-9]*$ ]] || die "$given: expects a whole number from 1"
done
export SRC SHARDS RUN SETTINGS SITE
# Concurrent submissions wait here, and then find the jobs of the first one. (The kernel releases the lock on exit.)
exec 9>"${TMPDIR:-/tmp}/cxr-simclr-submit-$(id -u).lock"
flock 9
mark="cxr-simclr " # prefix of a job's comment, which contains its output folder
for folder in "$SHARDS" "$RUN"; do
    busy=$(squeue --me --noheader --format='%i|%k' |
        awk -F'|' -v comment="$mark$folder" '$2 == comment {print $1}' | paste -sd ' ')
    [[ -z $busy ]] ||
        die "$folder: jobs that write there are queued or running: $busy; watch them with squeue --me, or scancel them"
done

errors=$(mktemp)
trap 'rm -f "$errors"' EXIT
last='' wait=afterok ids=() steps=()
for checking in yes no; do
    [[ $checking == yes ]] || mkdir -p "$RUN/logs"
    for step in "${selected[@]}"; do
        submit "$step"
    done
    [[ $checking == no ]] || job chain 0 chain.sbatch cores "$RUN"
done
wait=afterany
STEPS="${steps[*]}" job chain 0 chain.sbatch cores "$RUN"
printf -v quoted_run %q "$RUN" # quoted, as it may contain spaces
cat <<EOF

Each job waits for the previous one. If one fails, the later ones are cancelled, and
  $quoted_run/logs/cxr-chain-$last.log
reports which and why. Fix the cause and run the same command again: it resumes.

Watch:   squeue --me
         tail -f $quoted_run/logs/*.log
$(if [[ " ${selected[*]} " == *" pretrain "* || " ${selected[*]} " == *" sweep "* ]]; then
    echo "         ${PYTHON[*]} -m train status $quoted_run"
fi)
Stop:    scancel ${ids[*]}
EOF
