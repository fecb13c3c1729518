"""The endpoint without Ray: real detectors, real decoder processes, real HTTP, groups asked in this
process.
"""

from contextlib import contextmanager

import httpx

from ray_app.serving import ServeConfig
from ray_app.serving.engine import EndpointScorer, started_decoders
from ray_app.serving.http.app import create_app
from ray_app.serving.metrics import Meter
from ray_app.serving.release import groups_of, plan_release
from ray_app.serving.replica import DetectorGroup
from tests.serving.http.live import serving


class Troubled:
    """A real group behind troubles that happen first, in the order given: exceptions, or what
    another generation offers.

    `asked`: the detectors that each request for scores wanted.
    """

    def __init__(self, group, *troubles, profile=()):
        self.group, self.asked = group, []
        self._troubles = {"score": list(troubles), "profile": list(profile)}

    async def _ask(self, kind, ask):
        if not self._troubles[kind]:
            return await getattr(self.group, kind)(ask)
        trouble = self._troubles[kind].pop(0)
        if isinstance(trouble, Exception):
            raise trouble
        return trouble

    async def score(self, ask):
        self.asked.append(ask.detectors)
        return await self._ask("score", ask)

    async def profile(self, ask):
        return await self._ask("profile", ask)

    async def describe(self):
        return await self.group.describe()


def loaded_group(name, config, meter=None):
    """A group in this process, as the server without Ray has it."""
    group = DetectorGroup(name, meter or Meter())
    group.load(config)
    return group


def local_scorer(config, meter=None):
    """An EndpointScorer over groups in this process."""
    meter = meter or Meter()
    groups = {
        name: loaded_group(name, config, meter) for name in groups_of(plan_release(config)[0])
    }
    return EndpointScorer(config, groups, started_decoders(config), meter)


@contextmanager
def local_endpoint(config=None):
    """The whole application on a free port; (url, app) while it runs."""
    config = config or ServeConfig(ensembles=("tiny",))
    meter = Meter()
    app = create_app(config, local_scorer(config, meter), meter)
    with served(app) as url:
        yield url, app


@contextmanager
def served(app):
    """An ASGI application behind a real server on a free port, from its start to its end."""
    with serving(app, lifespan="on") as port:
        yield f"http://127.0.0.1:{port}"


def client(url, **options):
    """An HTTP client that no proxy of the environment sees."""
    return httpx.Client(base_url=url, trust_env=False, timeout=60, **options)
