"""python -m bench.plan --images=N --source=WxH"""

from bench.plan.plan import plan
from shard.cli import run

if __name__ == "__main__":
    run("python -m bench.plan", plan)
