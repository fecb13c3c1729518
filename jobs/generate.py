r"""Run `touchstone data generate` as a Ray job: generate images from prompts.

The arguments are those of `touchstone data generate`. Submit the job with:

    ray job submit --working-dir . -- python jobs/generate.py flux.1-dev \
        --prompts s3://bucket/prompts.parquet --out s3://bucket/flux
"""

import sys
from pathlib import Path

if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[0]  # Python put the folder of this file there.
# An uploaded checkout is not an installed package.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from ray_app.cli.__main__ import script

if __name__ == "__main__":
    script(["data", "generate", *sys.argv[1:]], typed=["python", "jobs/generate.py", *sys.argv[1:]])
