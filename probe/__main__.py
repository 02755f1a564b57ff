"""python -m probe report RUN --shards=DIR"""

from probe.report import report
from shard.cli import run

if __name__ == "__main__":
    run("python -m probe", {"report": report})
