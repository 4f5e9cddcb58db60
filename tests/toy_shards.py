"""A writer of a packed store that kills itself, as kill -9 does, in the middle of sealing a shard.

python toy_shards.py FOLDER
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np

from wsss_jax.data import shards, stores


def main(folder):
    shards.GROUP = 4
    store = stores.open_store(folder)
    for number in range(11):
        if number == 7:  # the next one completes a group
            shards.ArrayRecordWriter = Dying
        print(f"i{number}", flush=True)
        store.put_mask(f"i{number}", np.full((3, 4), number % 3, np.uint8))


class Dying:
    """Writes two records and dies at the third."""

    def __init__(self, path, options):
        self.path, self.count = Path(path), 0

    def write(self, content):
        self.path.write_bytes(content)
        self.count += 1
        if self.count == 3:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
