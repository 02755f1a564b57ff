#!/usr/bin/env bash
# Copies shards to a disk of this node's own: slurm/stage.sh SHARDS COPY PYTHON…   (called once a node by train.sh)
#
# Leaves COPY, each file's hash as the manifest has it, or nothing. Status 3: it does not fit. Jobs that share a node
# share a copy; who comes second waits for it.
set -euo pipefail
shards=$1 copy=$2
shift 2

say() { echo "$(hostname): $*"; }

mkdir -p "$(dirname "$copy")"
exec 9>"$copy.lock"
flock 9
if [[ -d $copy ]] && "$@" -m shard verify "$copy" --quick >/dev/null 2>&1; then
    say "$copy is there already"
    exit 0
fi
rm -rf "$copy" "$copy".part
wanted=$(du --summarize --block-size=1 "$shards" | cut -f 1)
free=$(df --output=avail --block-size=1 "$(dirname "$copy")" | tail -n 1)
if ((wanted > free)); then
    say "$(dirname "$copy"): $((free >> 20)) MiB are free, $shards takes $((wanted >> 20)) MiB: not copied"
    exit 3
fi
trap 'rm -rf "$copy.part"' EXIT
cp -r "$shards" "$copy.part"
"$@" -m shard verify "$copy.part" || { say "$copy.part: is not what $shards should be: not used"; exit 1; }
mv "$copy.part" "$copy"
say "$copy: copied and verified"
