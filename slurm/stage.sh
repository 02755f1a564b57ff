#!/usr/bin/env bash
# Copies shards to a local disk of this node: slurm/stage.sh SHARDS COPY PYTHON…   (train.sh calls it on each node)
#
# Output: COPY, with all hashes verified against the manifest, or nothing. Exit status 3: the shards do not fit. Jobs on
# the same node share a copy; a second job waits until it is complete.
set -euo pipefail
shards=$1 copy=$2
shift 2

log() { echo "$(hostname): $*"; }

mkdir -p "$(dirname "$copy")"
exec 9>"$copy.lock"
flock 9
if [[ -d $copy ]] && "$@" -m shard verify "$copy" --quick >/dev/null 2>&1; then
    log "$copy exists already"
    exit 0
fi
rm -rf "$copy" "$copy".part
required=$(du --summarize --block-size=1 "$shards" | cut -f 1)
free=$(df --output=avail --block-size=1 "$(dirname "$copy")" | tail -n 1)
if ((required > free)); then
    log "$(dirname "$copy"): $((free >> 20)) MiB are free, $shards takes $((required >> 20)) MiB: not copied"
    exit 3
fi
trap 'rm -rf "$copy.part"' EXIT
cp -r "$shards" "$copy.part"
"$@" -m shard verify "$copy.part" || { log "$copy.part: differs from the manifest of $shards: not used"; exit 1; }
mv "$copy.part" "$copy"
log "$copy: copied and verified"
