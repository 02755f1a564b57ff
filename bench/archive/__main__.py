"""python -m bench.archive --images=N"""

from bench.archive.archive import bench_archive
from shard.cli import run

if __name__ == "__main__":
    run("python -m bench.archive", bench_archive)
