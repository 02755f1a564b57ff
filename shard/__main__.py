"""python -m shard build | merge | verify | info | phantom | names"""

from shard.cli import run
from shard.deidentify import names
from shard.info import info
from shard.merge import merge
from shard.phantom.archive import phantom
from shard.verify import verify
from shard.write import build

if __name__ == "__main__":
    run("python -m shard", {"build": build, "merge": merge, "verify": verify, "info": info, "phantom": phantom,
                            "names": names})  # fmt: skip
