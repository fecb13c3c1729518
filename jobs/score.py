r"""Run `touchstone score` as a Ray job: score an archive.

The arguments are those of `touchstone score`. Submit the job with:

    ray job submit --working-dir . -- python jobs/score.py --config configs/score/overnight.yaml \
        s3://bucket/photos --out s3://bucket/run
"""

import sys
from pathlib import Path

if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[0]  # Python put the folder of this file there.
# An uploaded checkout is not an installed package.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from ray_app.cli.__main__ import script

if __name__ == "__main__":
    script(["score", *sys.argv[1:]], typed=["python", "jobs/score.py", *sys.argv[1:]])
