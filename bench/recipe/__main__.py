"""python -m bench.recipe SHARDS --imagenet=FILE --out=DIR"""

from bench.recipe.study import bench_recipe
from shard.cli import run

if __name__ == "__main__":
    run("python -m bench.recipe", bench_recipe)
