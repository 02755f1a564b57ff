"""python -m pipeline preview SHARDS --out=views.png"""

from pipeline.preview import preview
from shard.cli import run
from shard.flags import Command

COMMANDS: dict[str, Command] = {"preview": preview}

if __name__ == "__main__":
    run("python -m pipeline", COMMANDS)
