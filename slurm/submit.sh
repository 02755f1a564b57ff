#!/usr/bin/env bash
# Submits the path from radiographs to the report as jobs that wait for one another, and says what to watch. Run again
# after one of them failed, it goes on: what is finished is not done again, what was begun is gone on with.
#
#   SRC=/data/CheXpert-v1.0-small SHARDS=/scratch/shards RUN=/scratch/runs/a slurm/submit.sh
#   SHARDS=/scratch/shards RUN=/scratch/runs/a slurm/submit.sh pretrain probe                   # some of the steps
#   SHARDS=/scratch/shards RUN=/scratch/runs/s SETTINGS=sweep.txt slurm/submit.sh sweep probe   # many runs, compared
#
# Steps: shard, pretrain or sweep, probe; by default shard pretrain probe.
#
# To set: SRC, SHARDS, RUN as in the scripts of those names, paths relative to where you are or absolute; the site's
# settings in slurm/site.sh. Where wanted: SHARD_PARTS (16) and PROBE_PARTS (1), tasks of their arrays; SETTINGS or
# SEEDS (5), a sweep's; SHARD_FLAGS, TRAIN_FLAGS, PROBE_FLAGS, as --size=320 or "--tasks='Edema,Lung Opacity'";
# SHARD_OPTIONS, TRAIN_OPTIONS, PROBE_OPTIONS for sbatch, as "--time=12:00:00 --mem=32G". Leaves what the steps leave,
# and all logs in RUN/logs.
set -euo pipefail

# shellcheck source=slurm/job.sh
source "$(dirname "${BASH_SOURCE[0]}")/job.sh"

# job NAME TASKS SCRIPT gpu|cores FOLDER OPTION…: checks that Slurm would take a job or, the second time, submits it,
# to begin when the last one is done. TASKS: of its array, 0 for a job by itself; FOLDER: where it writes.
job() {
    local name=$1 tasks=$2 script=$PWD/slurm/$3 on=$4 folder=$5 output=%x-%j array=
    shift 5
    local options=("${CPU_OPTIONS[@]}" --gres=none)
    [[ $on == cores ]] || options=("${GPU_OPTIONS[@]}")
    if ((tasks)); then
        options+=(--array="0-$((tasks - 1))")
        output=%x-%A_%a array=", $tasks tasks"
    fi
    options+=(--job-name="cxr-$name" --output="$RUN/logs/$output.log" --comment="$mark$folder" --export=ALL "$@")
    if [[ $checking == yes ]]; then
        sbatch --test-only "${options[@]}" "$script" >/dev/null 2>"$said" ||
            die "$name: sbatch says: $(paste -sd ' ' "$said"); it was asked with ${options[*]}; see CPU_OPTIONS and" \
                "GPU_OPTIONS in $SITE; nothing was submitted"
        return
    fi
    if [[ -n $last ]]; then
        options+=(--dependency="$wait:$last" --kill-on-invalid-dep=yes)
    fi
    if ! last=$(sbatch --parsable "${options[@]}" "$script" 2>"$said"); then
        [[ ${#ids[@]} -eq 0 ]] || scancel "${ids[@]}"
        die "$name: sbatch says: $(paste -sd ' ' "$said"); the jobs before it were cancelled"
    fi
    last=${last%%;*} # where there are several clusters, the name of this one follows
    ids+=("$last")
    steps+=("$name:$last")
    printf '  %-9s job %s%s\n' "$name" "$last" "$array"
}

unset MERGE PARTS FLAGS # of each job they are set below

# The jobs of a step.
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
    [[ $step =~ ^(shard|pretrain|sweep|probe)$ ]] || die "$step: no such step; there are shard, pretrain, sweep, probe"
done
[[ " $* " != *" pretrain "* || " $* " != *" sweep "* ]] ||
    die "pretrain sweep: both write into RUN; name one, or submit them one by one with another RUN"
wanted=() # each once, in their order
for step in shard pretrain sweep probe; do
    [[ " $* " != *" $step "* ]] || wanted+=("$step")
done
[[ -n ${SHARDS:-} ]] || die "set SHARDS to the folder of the shards, made by the step shard"
[[ -n ${RUN:-} ]] || die "set RUN to the folder of the run"
[[ $RUN != *%* ]] || die "RUN=$RUN: Slurm reads a % in the name of a log as its own; choose another name"

# Ends where flags hold what jobs can't be given so.
check_flags() {
    local flag
    split_flags "$1"
    for flag in "${flags[@]}"; do
        [[ ! $flag =~ ^--(deidentify|table|imagenet[-_]weights|draws[-_]file|cache|resume)=([^/~].*)$ ||
            $flag =~ ^--resume=(auto|never)$ ]] || die "$flag: give an absolute path; jobs run in $PWD"
        [[ ! $flag =~ ^--(no)?(dali|shards|out|workers|parts?)(=.*)?$ ]] ||
            die "$flag: the scripts set it, by SHARDS, RUN, SHARD_PARTS, PROBE_PARTS and --cpus-per-task; leave it out"
    done
}
for given in "${SHARD_FLAGS:-}" "${TRAIN_FLAGS:-}" "${PROBE_FLAGS:-}"; do
    check_flags "$given"
done
if [[ -r $SHARDS/manifest.json && " ${wanted[*]} " == *" shard "* ]]; then
    echo "$SHARDS has its manifest.json: not sharded again"
    [[ -z ${SHARD_FLAGS:-} ]] || echo "SHARD_FLAGS=$SHARD_FLAGS: not looked at; for other shards name another folder"
    mapfile -t wanted < <(printf '%s\n' "${wanted[@]}" | grep -vx shard)
elif [[ " ${wanted[*]} " == *" shard "* ]]; then
    [[ -n ${SRC:-} ]] || die "set SRC to the folder that holds the radiographs and their table"
    [[ -d $SRC ]] || die "SRC=$SRC: no such folder"
elif [[ ! -r $SHARDS/manifest.json ]]; then
    die "SHARDS=$SHARDS: no manifest.json there; run the step shard too"
fi
((${#wanted[@]})) || exit 0
shard_parts=${SHARD_PARTS:-16} probe_parts=${PROBE_PARTS:-1} runs=${SEEDS:-5}
if [[ " ${wanted[*]} " == *" sweep "* && -n ${SETTINGS:-} ]]; then
    [[ -r $SETTINGS ]] || die "SETTINGS=$SETTINGS: no such file"
    mapfile -t lines < <(grep -Ev '^[[:space:]]*(#|$)' "$SETTINGS")
    runs=${#lines[@]}
    ((runs)) || die "SETTINGS=$SETTINGS: names no run; a line is a run's name and its flags"
    for line in "${lines[@]}"; do
        check_flags "$line"
    done
fi
for given in SHARD_PARTS="$shard_parts" PROBE_PARTS="$probe_parts" SEEDS="$runs"; do
    [[ ${given#*=} =~ ^[1-9][0-9]*$ ]] || die "$given: wants a whole number from 1"
done
export SRC SHARDS RUN SETTINGS SITE
# Who submits at the same moment waits here, and then finds the jobs of who was first. (The lock ends with its owner.)
exec 9>"${TMPDIR:-/tmp}/cxr-simclr-submit-$(id -u).lock"
flock 9
mark="cxr-simclr " # the comment of a job, with the folder where it writes
for folder in "$SHARDS" "$RUN"; do
    busy=$(squeue --me --noheader --format='%i|%k' |
        awk -F'|' -v made="$mark$folder" '$2 == made {print $1}' | paste -sd ' ')
    [[ -z $busy ]] ||
        die "$folder: jobs that write there are queued or running: $busy; watch them with squeue --me, or scancel them"
done

said=$(mktemp)
trap 'rm -f "$said"' EXIT
last='' wait=afterok ids=() steps=()
for checking in yes no; do
    [[ $checking == yes ]] || mkdir -p "$RUN/logs"
    for step in "${wanted[@]}"; do
        submit "$step"
    done
    [[ $checking == no ]] || job chain 0 chain.sbatch cores "$RUN"
done
wait=afterany
STEPS="${steps[*]}" job chain 0 chain.sbatch cores "$RUN"
printf -v place %q "$RUN" # as a shell reads it, if there is a space in it
cat <<EOF

Each waits for the one before. If one fails, those after it are cancelled, and
  $place/logs/cxr-chain-$last.log
says which and why. When that is mended, run the same command again: it goes on.

Watch:   squeue --me
         tail -f $place/logs/*.log
$(if [[ " ${wanted[*]} " == *" pretrain "* || " ${wanted[*]} " == *" sweep "* ]]; then
    echo "         ${PYTHON[*]} -m train status $place"
fi)
Stop:    scancel ${ids[*]}
EOF
