# shellcheck shell=bash
# Sourced, after job.sh, by the jobs that train: shards near the processor, the scheduler's signals, and the way back
# into the queue. To set: what slurm/pretrain.sbatch says. Leaves what training leaves.
set -euo pipefail

# Copies the shards to each node's own disk, where SCRATCH_LOCAL names one and they fit, and has SHARDS be the copy.
stage_shards() {
    local copy status=0
    [[ -n $SCRATCH_LOCAL ]] || return 0
    [[ -r $SHARDS/manifest.json ]] || return 0 # which training says more of
    copy=$SCRATCH_LOCAL/cxr-shards-$(sha256sum "$SHARDS/manifest.json" | cut -c 1-16)
    srun --ntasks-per-node=1 --ntasks="${SLURM_JOB_NUM_NODES:-1}" --cpus-per-task="$CORES" \
        slurm/stage.sh "$SHARDS" "$copy" "${PYTHON[@]}" || status=$?
    if [[ $status -eq 0 ]]; then
        SHARDS=$copy
    else
        echo "training reads $SHARDS itself"
    fi
}

# Trains RUN with the flags that follow, on as many ranks as the job has tasks, until it is finished or told to stop;
# then it has saved, and this job is requeued to go on. Kept in RUN: checkpoints, journals, the loss curve.
train() {
    local run=$1 status=0 step=
    shift
    told=
    # B: in --signal has Slurm tell this shell alone, which may be busy copying; srun passes the signal on to all ranks.
    trap 'told=yes; [[ -z ${step:-} ]] || kill -USR1 "$step" 2>/dev/null || true' USR1
    stage_shards
    [[ -z $told ]] || told_before "$run"
    srun --kill-on-bad-exit=1 --cpus-per-task="$CORES" \
        "${PYTHON[@]}" -m train --dali --shards="$SHARDS" --out="$run" --workers="$CORES" "$@" &
    step=$!
    [[ -z $told ]] || kill -USR1 "$step"
    while kill -0 "$step" 2>/dev/null; do
        wait "$step" || true # which a signal ends as well
    done
    wait "$step" || status=$?
    case $status in
        0) echo "$(date '+%F %T') trained: $run" ;;
        75) requeue "; it goes on from its checkpoint" ;;
        *)
            [[ -z $told ]] || told_before "$run"
            die "training ended with status $status, see above; when that is mended, submit the same again: it goes" \
                "on from the newest checkpoint in $run"
            ;;
    esac
}

# Told to stop before training had begun. Where the job's own time is up, another start would come no further.
told_before() {
    local left
    left=$(seconds_left)
    if ((left > 0 && left < 600)); then
        die "its time was up before training had begun; submit it again with a longer --time, as the signal comes" \
            "$left s before the end"
    fi
    requeue "; it was told to stop before training had begun"
}
