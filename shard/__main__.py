"""python -m shard build | merge | verify | info | upload | phantom | names"""

from shard.cli import run
from shard.deidentify import names
from shard.flags import Command
from shard.info import info
from shard.merge import merge
from shard.phantom.archive import phantom
from shard.upload import upload
from shard.verify import verify
from shard.write import build

COMMANDS: dict[str, Command] = {"build": build, "merge": merge, "verify": verify, "info": info, "upload": upload,
                                "phantom": phantom, "names": names}  # fmt: skip

if __name__ == "__main__":
    run("python -m shard", COMMANDS)
