r"""Run `touchstone data collect` as a Ray job: fetch the images of a list of URLs.

The arguments are those of `touchstone data collect`. Submit the job with:

    ray job submit --working-dir . -- python jobs/collect.py s3://bucket/pd.json --out s3://bucket/dflip \
        --contact me@example.org
"""

import sys
from pathlib import Path

if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[0]  # Python put the folder of this file there.
# An uploaded checkout is not an installed package.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from ray_app.cli.__main__ import script

if __name__ == "__main__":
    script(["data", "collect", *sys.argv[1:]], typed=["python", "jobs/collect.py", *sys.argv[1:]])
