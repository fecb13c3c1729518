"""The endpoint without Ray: real detectors, real decoder processes, real HTTP, groups asked in this process."""

import asyncio
import threading
from contextlib import contextmanager

import httpx

from ray_app.inference.decoder_pool import IsolatedDecoders
from ray_app.serving import ServeConfig
from ray_app.serving.engine import EndpointScorer
from ray_app.serving.http.app import create_app
from ray_app.serving.jobs import RayJobs
from ray_app.serving.release import groups_of, plan_release
from ray_app.serving.replica import DetectorGroup
from tests.serving.http.live import serving


class LocalGroup:
    """A group in this process; asked by one at a time, as a deployed one is (`serving.app`)."""

    def __init__(self, name, config):
        self.group = DetectorGroup(name)
        self._one_at_a_time = threading.Lock()
        self.group.load(config)

    async def score(self, ask):
        return (await asyncio.to_thread(self._score, ask))[0]

    def _score(self, ask):
        with self._one_at_a_time:
            return self.group.score([ask])

    async def profile(self, ask):
        return (await asyncio.to_thread(self.group.profile, [ask]))[0]

    async def describe(self):
        return self.group.generation


class CountingMeter:
    """Keeps what it is told."""

    def __init__(self):
        self.requests, self.refusals, self.verdicts, self.stages = [], [], [], []

    def request(self, route, status, seconds):
        self.requests.append((route, status))

    def stage(self, name, seconds):
        self.stages.append((name, seconds))

    def refused(self, code):
        self.refusals.append(code)

    def verdict(self, ensemble, verdict):
        self.verdicts.append((ensemble, verdict))

    def batch(self, group, size, waited_s):
        pass

    def in_flight(self, n):
        pass

    async def exposition(self):
        return f"touchstone_requests_total {len(self.requests)}\n"


def local_scorer(config, meter=None):
    """An EndpointScorer over groups in this process."""
    spec, _, _ = plan_release(config)
    groups = {name: LocalGroup(name, config) for name in groups_of(spec)}
    decoders = IsolatedDecoders(
        config.images, processes=config.decoders, wall_limit_s=config.limits.decode_limit_s, formats=config.limits.formats,
        provenance=config.provenance.policy(),
    )  # fmt: skip
    decoders.start()
    return EndpointScorer(config, groups, decoders, meter or CountingMeter())


@contextmanager
def local_endpoint(config=None):
    """The whole application on a free port; (url, app) while it runs."""
    config = config or ServeConfig(ensembles=("tiny",))
    meter = CountingMeter()
    scorer = local_scorer(config, meter)
    app = create_app(config, scorer, RayJobs(config, None), meter)
    app.state.meter = meter
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
