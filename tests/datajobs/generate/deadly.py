"""A job whose process kills itself, as a machine that is switched off does, when it is about to write a given file."""

import json
import os
import signal
import sys

from ray_app.datajobs.generate import GenerateConfig
from ray_app.datajobs.generate.run import generate_images
from ray_app.storage import Store

_write = Store.write


def _deadly(self, path, data):
    if path == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)
    _write(self, path, data)


if __name__ == "__main__":
    Store.write = _deadly
    generate_images(GenerateConfig.model_validate(json.loads(sys.argv[1])))
