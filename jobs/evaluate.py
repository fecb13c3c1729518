r"""Run `touchstone evaluate` as a Ray job: evaluate a run, or score a labelled source and evaluate it.

The arguments are those of `touchstone evaluate`. Submit the job with:

    ray job submit --working-dir . -- python jobs/evaluate.py s3://bucket/openfake \
        --protocol openfake-v1 --out s3://bucket/figures
"""

import sys
from pathlib import Path

if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[0]  # Python put the folder of this file there.
# An uploaded checkout is not an installed package.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from ray_app.cli.__main__ import script

if __name__ == "__main__":
    script(["evaluate", *sys.argv[1:]], typed=["python", "jobs/evaluate.py", *sys.argv[1:]])
