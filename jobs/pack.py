r"""Run `touchstone data pack` as a Ray job: pack an archive into shards.

The arguments are those of `touchstone data pack`. Submit the job with:

    ray job submit --working-dir . -- python jobs/pack.py s3://bucket/photos \
        --out s3://bucket/shards --as webdataset
"""

import sys
from pathlib import Path

if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[0]  # Python put the folder of this file there.
# An uploaded checkout is not an installed package.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from ray_app.cli.__main__ import script

if __name__ == "__main__":
    script(["data", "pack", *sys.argv[1:]], typed=["python", "jobs/pack.py", *sys.argv[1:]])
