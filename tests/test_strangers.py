"""Nobody without a run's own secret has anything from it: tried from an address of this machine
that is not loopback, and from loopback.
"""

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
import yaml

from tests.make import stranger
from tests.make.archives import write_many
from tests.make.ray_head import free_ports, title_of
from tests.make.waiting import family_of, kill_family, wait_until
from tests.simulation.archive import build_sample_archive

ROOT = Path(__file__).resolve().parents[1]
NO = {401, 403, 404, 405, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED}
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
SECRETS = {
    name: f"{name.lower()}-of-twenty-letters" for name in ("TOUCHSTONE_TOKENS", "TOUCHSTONE_TOKEN")
}
CLI = ("-m", "ray_app.cli")
TESTS_OWN = re.compile(r"\btests[./]")  # servers that other tests of this process left running
pytestmark = pytest.mark.ray


@pytest.fixture(scope="session")
def outside():
    return stranger.outside_address() or pytest.skip("this machine has no address but loopback")


def taken_but_refused(host, found, marker):
    """Those of these ports that take a connection and answer, unlike a worker that is ending; what
    they do for a stranger, with no token and with a wrong one, is nothing.
    """
    taken = []
    for one in (one for one in found if stranger.is_open(host, one.port)):
        for token in (None, stranger.WRONG):
            answers = stranger.http_answers(host, one.port, stranger.http_requests(marker), token)
            codes = (
                {}
                if answers
                else stranger.grpc_answers(host, one.port, stranger.grpc_methods(), token)
            )
            taken += [one] if (answers or codes) and token is None else []
            # an idle worker ended meanwhile
            no = NO if stranger.is_open(host, one.port) else NO | {grpc.StatusCode.UNAVAILABLE}
            assert not {
                what: said for what, said in {**answers, **codes}.items() if said not in no
            }, one
    assert not Path(marker).exists()
    return taken


def test_a_local_ray_obeys_nobody_else(ray_cluster, outside, tmp_path):
    found = [one for one in stranger.listeners(os.getpid()) if not TESTS_OWN.search(one.title)]
    assert {one.address for one in found} == {"127.0.0.1"}
    assert taken_but_refused(outside, found, tmp_path / "marker") == []
    gcs = next(one for one in found if "gcs_server" in one.title)
    pages = [
        one
        for one in found
        if stranger.http_answers("127.0.0.1", one.port, [("GET", "/metrics", None)])
        == {("GET", "/metrics"): 200}
    ]
    assert (
        len(
            taken_but_refused(
                "127.0.0.1", [one for one in found if one not in pages], tmp_path / "marker"
            )
        )
        >= 6
    )
    asked = "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo"
    assert stranger.grpc_answers("127.0.0.1", gcs.port, [asked], os.environ["RAY_AUTH_TOKEN"]) == {
        asked: grpc.StatusCode.OK
    }


def test_the_session_is_for_this_user_alone(ray_cluster):
    import ray

    session = Path(ray._private.worker._global_node.get_session_dir_path())
    assert session.parents[1].stat().st_mode & 0o777 == 0o700


def photographs(folder):
    return write_many(folder / "photos", 300)


def score(folder):
    return [
        *CLI,
        "score",
        photographs(folder),
        "--out",
        folder / "run",
        "--ensemble",
        "tiny",
        "--set",
        "block_members=8",
    ]


def score_job(folder):
    return ["jobs/score.py", *score(folder)[3:]]


def evaluate(folder):
    archive = build_sample_archive(folder / "archive", files=120)
    words = ["evaluate", archive.folder, "--labels", archive.labels, "--out", folder / "out"]
    return [*CLI, *words, "--ensemble", "tiny", "--perturb", "jpeg:50"]


def train(folder):
    from tests.training.trainings import command, recipe

    labels = folder / "labels.csv"
    labels.write_text("path,label,group\n" + "".join(f"{path},{'fake' if number % 2 else 'real'},{number // 2}\n"
                      for number, path in enumerate(sorted(photographs(folder).rglob("*.jpg")))))  # fmt: skip
    written = folder / "recipe.yaml"
    written.write_text(yaml.safe_dump(recipe(labels, workers={"count": 2}, loop={"epochs": 1000})))
    return command(written, folder / "out")[1:]


def generate(folder):
    from tests.datajobs.generate.cards import write_card, write_prompts
    from tests.datajobs.generate.pipelines import tiny_sd3

    card = write_card(folder, "tiny-sd3", "StableDiffusion3Pipeline", tiny_sd3(folder / "model"))
    words = [
        *CLI,
        "data",
        "generate",
        card,
        "--prompts",
        write_prompts(folder / "prompts.txt", 64),
        "--out",
        folder / "out",
    ]
    return [*words, "--set", "device=cpu", "--set", "cluster.workers=2", "--set", "cluster.cpus=2"]


@contextmanager
def running(words, folder, **variables):
    """A command with an operator's secrets in its environment, and with what would open a Ray of
    0.8.0; killed in the end, by its pids.
    """
    environment = (
        os.environ | SECRETS | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)} | variables
    )
    command = [sys.executable, *map(str, words)]
    with open(folder / "errors", "w") as errors:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        yield process
    finally:
        kill_family(process)


def is_working(process):
    """Whether a worker has been given something to do, and both agents listen."""
    assert process.poll() is None
    titles = [title_of(pid) for pid in family_of(process.pid)]
    if not any(
        title.startswith("ray::") and not title.startswith((*AGENTS, "ray::IDLE"))
        for title in titles
    ):
        return False
    listening = {one.title.split()[0] for one in stranger.listeners(process.pid)}
    return listening.issuperset(AGENTS)


def secrets_inherited(pid):
    """The variables among SECRETS that the descendants of a process have, by their titles."""
    found = {}
    for child in family_of(pid)[1:]:
        try:
            environment = Path(f"/proc/{child}/environ").read_bytes()
        except OSError:  # It has ended.
            continue
        held = [name for name, value in SECRETS.items() if value.encode() in environment]
        if held:
            found[title_of(child)] = held
    return found


def gcs_of(found):
    return next(one.port for one in found if "gcs_server" in one.title)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "words",
    [score, score_job, evaluate, train, generate],
    ids=lambda words: words.__name__,
)
def test_a_command_obeys_nobody_while_it_runs(words, outside, tmp_path):
    with running(words(tmp_path), tmp_path) as process:
        wait_until(
            lambda: (
                is_working(process) and (words is not train or any(tmp_path.glob("out/history/*")))
            ),
            300,
        )
        # it cannot finish before we have looked; what it has started goes on
        process.send_signal(signal.SIGSTOP)
        found = stranger.listeners(process.pid)
        assert taken_but_refused(outside, found, tmp_path / "marker") == []
        assert not stranger.joins(f"{outside}:{gcs_of(found)}")
        assert not stranger.joins(f"127.0.0.1:{gcs_of(found)}", stranger.WRONG)
        assert secrets_inherited(process.pid) == {}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_endpoint_answers_who_has_its_token_and_its_ray_obeys_nobody(outside, tmp_path):
    port = free_ports(1)[0]
    words = [*CLI, "serve", "--ray", "--ensemble", "tiny", "--host", "0.0.0.0", "--port", port]
    with running(words, tmp_path, RAY_SERVE_ENABLE_HA_PROXY="1") as process:
        assert process.stdout.readline() == f"http://127.0.0.1:{port}/\n", (
            tmp_path / "errors"
        ).read_text()
        found = stranger.listeners(process.pid)
        taken = taken_but_refused(outside, found, tmp_path / "marker")
        replicas = {one for one in taken if one.title.startswith("ray::ServeReplica:touchstone:")}
        assert {one.port for one in taken} - {one.port for one in replicas} == {port}
        assert not stranger.joins(f"{outside}:{gcs_of(found)}")
        assert secrets_inherited(process.pid) == {}
        asked = ("GET", "/metrics", None)
        assert stranger.http_answers(outside, port, [asked], SECRETS["TOUCHSTONE_TOKENS"]) == {
            asked[:2]: 200
        }
        family = set(family_of(process.pid))
        process.kill()
        process.wait()
        wait_until(
            lambda: (
                not [
                    pid for pid in family if title_of(pid) and not title_of(pid).startswith(AGENTS)
                ]
            ),
            60,
        )
        # The agents miss their head after a minute.
        wait_until(lambda: not [pid for pid in family if title_of(pid)], 120)
