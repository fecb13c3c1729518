"""An endpoint for others: tokens, load, metrics, a folder sent to it, an end without a loss; on a
cluster, a new release under load.
"""

import dataclasses
import secrets
import shutil
import signal

import httpx
import pytest
import yaml

from benchmarks.load import Load, load, photographs_in
from ray_app.serving.ray_server import SERVE_VARIABLES
from tests.ray_head import free_ports, ray_head
from tests.scoring.conftest import wait_until
from tests.serving.cards import write_stricter

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]

SERVING = "docs/serving.md"
TOKEN = secrets.token_urlsafe(32)
WRONG = "f" * len(TOKEN)


@pytest.fixture
def engineer(with_sample):
    return dataclasses.replace(with_sample, variables={"TOUCHSTONE_TOKEN": TOKEN})


@pytest.fixture
def pictures(sample):
    return [
        one
        for one in photographs_in(sample / "archive" / "photographs")
        if one.name.endswith((".jpg", ".png"))
    ]


def asking(url, token=TOKEN):
    return httpx.Client(
        base_url=url,
        headers={"Authorization": f"Bearer {token}"} if token else {},
        trust_env=False,
        timeout=60,
    )


def test_an_endpoint_obeys_its_tokens_bears_load_and_ends_without_a_loss(engineer, pictures, truth):
    [port] = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    names = {"…": TOKEN, "0.0.0.0": f"0.0.0.0 --port {port}"}
    with engineer.begins(
        "docs/endpoint-limits.md", "touchstone serve --host 0.0.0.0", names
    ) as served:
        wait_until(lambda: served.said(r"^http://"))
        for token in (None, WRONG):
            with asking(url, token) as stranger:
                assert stranger.post("/v1/score", content=pictures[0].data).status_code == 401
        done = load(
            Load(f"{url}/v1/score", clients=16, seconds=5, token=TOKEN, precision="bf16"), pictures
        )
        assert (done.other, done.wrong, done.lost) == (0, 0, 0), done.troubles
        assert done.ok > 16
        with asking(url) as known:
            metrics = known.get("/metrics").text
        assert (
            f'ray_touchstone_requests_total{{route="/v1/score",status="200"}} {done.ok:.1f}\n'
            in metrics
        )
        assert 'ray_touchstone_refusals_total{code="unauthorized"} 2.0\n' in metrics
        names = {"http://127.0.0.1:8000": url, "demo-run/": ""}
        told = engineer.types("README.md", "touchstone score --endpoint", names)
        desk = [path.rpartition("/")[2] for path in truth if path.startswith("desk/")]
        assert [name for name in desk if name not in told.stdout] == []
        assert served.ends(signal.SIGTERM) == 0


def test_a_new_release_fails_no_request(engineer, pictures):
    file, [port] = engineer.folder / "configs" / "serve" / "ensemble.yaml", free_ports(1)
    shutil.copytree(
        next(engineer.wheel.folder.glob("lib/*/site-packages/ray_app/_configs")),
        engineer.folder / "configs",
    )
    config, url = yaml.safe_load(file.read_text()), f"http://127.0.0.1:{port}"
    (engineer.home / "tokens").write_text(f"{TOKEN}\n")
    config["proxy_location"], config["http_options"] = (
        "HeadOnly",
        config["http_options"] | {"host": "127.0.0.1", "port": port},
    )
    args = config["applications"][0]["args"]
    args["access"]["tokens_file"] = str(engineer.home / "tokens")

    def release(at_head, ensemble):
        args["ensembles"] = [ensemble]
        file.write_text(yaml.safe_dump(config))
        at_head.types(SERVING, "serve deploy configs/serve/ensemble.yaml")

    def served():
        try:
            with asking(url) as known:
                answer = known.get("/readyz")
        except httpx.TransportError:
            return None
        return answer.json()["ensembles"][0]["fingerprint"] if answer.status_code == 200 else None

    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with ray_head(
        cpus=4,
        programs=engineer.wheel.bin,
        environment=engineer.environment() | secret | SERVE_VARIABLES,
    ) as head:
        at_head = dataclasses.replace(
            engineer,
            variables=engineer.variables | secret | {"RAY_DASHBOARD_ADDRESS": head.address},
        )
        release(at_head, "tiny")
        before, seen = wait_until(served), set()

        def update(second, tally):
            if second == 2:
                release(at_head, write_stricter(engineer.folder))
            seen.add(served())

        def is_through(tally):
            return seen - {None, before} and all(served() not in (None, before) for _ in range(6))

        asked = Load(f"{url}/v1/score", clients=16, seconds=240, token=TOKEN, precision="bf16")
        done = load(asked, pictures, on_second=update, until=is_through)
        assert is_through(done), "the new release did not come"
        assert (done.other, done.wrong) == (0, 0), done.troubles
        assert set(done.statuses) <= {"200", "503"}
        assert done.ok > 100
