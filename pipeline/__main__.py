"""python -m pipeline preview SHARDS --out=views.png"""

from pipeline.preview import preview
from shard.cli import run

if __name__ == "__main__":
    run("python -m pipeline", {"preview": preview})
