r"""Run `touchstone train` as a Ray job: train a detector.

The arguments are those of `touchstone train`. Submit the job with:

    ray job submit --working-dir . -- python jobs/train.py configs/train/community-forensics.yaml \
        --out s3://bucket/cf --set workers.count=8
"""

import sys
from pathlib import Path

if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[0]  # Python put the folder of this file there.
# An uploaded checkout is not an installed package.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from ray_app.cli.__main__ import script

if __name__ == "__main__":
    script(["train", *sys.argv[1:]], typed=["python", "jobs/train.py", *sys.argv[1:]])
