# shellcheck shell=bash
# Sourced, after job.sh, by the jobs that train: copies shards to local disks, handles the scheduler's signals, and
# requeues the job. Variables and output: as in slurm/pretrain.sbatch.
set -euo pipefail

# Copies the shards to each node's local disk SCRATCH_LOCAL, if it is set and they fit, and points SHARDS to the copy.
# Shards at an address are fetched during training, into a cache there.
stage_shards() {
    local copy status=0
    [[ -n $SCRATCH_LOCAL ]] || return 0
    cache_locally
    [[ -r $SHARDS/manifest.json ]] || return 0 # an address, or training reports the missing manifest
    copy=$SCRATCH_LOCAL/cxr-shards-$(sha256sum "$SHARDS/manifest.json" | cut -c 1-16)
    srun --ntasks-per-node=1 --ntasks="${SLURM_JOB_NUM_NODES:-1}" --cpus-per-task="$CORES" \
        slurm/stage.sh "$SHARDS" "$copy" "${PYTHON[@]}" || status=$?
    if [[ $status -eq 0 ]]; then
        SHARDS=$copy
    else
        echo "training reads $SHARDS directly"
    fi
}

# train RUN FLAG…: trains on as many ranks as the job has tasks, until training is finished or a signal stops it. After
# a signal, training has saved a checkpoint and the job is requeued.
train() {
    local run=$1 status=0 step=
    shift
    stop_requested=
    # With B: in --signal, Slurm signals only this shell, which may be copying shards; srun forwards it to all ranks.
    trap 'stop_requested=yes; [[ -z ${step:-} ]] || kill -USR1 "$step" 2>/dev/null || true' USR1
    choose_device "$@"
    stage_shards
    [[ -z $stop_requested ]] || requeue_before_training "$run"
    srun --kill-on-bad-exit=1 --cpus-per-task="$CORES" \
        "${PYTHON[@]}" -m train --dali --shards="$SHARDS" --out="$run" --workers="$CORES" "${DEVICE_FLAG[@]}" \
        "$@" &
    step=$!
    [[ -z $stop_requested ]] || kill -USR1 "$step"
    while kill -0 "$step" 2>/dev/null; do
        wait "$step" || true # a signal also ends the wait
    done
    wait "$step" || status=$?
    case $status in
        0) echo "$(date '+%F %T') trained: $run" ;;
        75) requeue "; it resumes from its checkpoint" ;;
        *)
            [[ -z $stop_requested ]] || requeue_before_training "$run"
            die "training ended with status $status, see above; fix the cause and submit the same again: it resumes" \
                "from the newest checkpoint in $run"
            ;;
    esac
}

# Handles a stop signal that came before training started. At the job's time limit another start would get no further.
requeue_before_training() {
    local left
    left=$(seconds_left)
    if ((left > 0 && left < 600)); then
        die "the time limit was reached before training started; submit it again with a longer --time, as the signal" \
            "comes $left s before the end"
    fi
    requeue "; a signal stopped it before training started"
}
