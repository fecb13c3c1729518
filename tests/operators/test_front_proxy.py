"""configs/proxy/nginx.conf says what the endpoint says: the same limits, the same shape of
refusals, and nothing that a client claims.
"""

import json
import re
from pathlib import Path

import yaml

from ray_app.serving.config import ServeConfig
from ray_app.serving.refusal import MESSAGES

ROOT = Path(__file__).resolve().parents[2]
CONF = (ROOT / "configs/proxy/nginx.conf").read_text()


def seconds(pattern):
    return int(re.search(pattern, CONF)[1])


def test_proxy_has_the_limits_of_the_endpoint():
    config = yaml.safe_load((ROOT / "configs/serve/ensemble.yaml").read_text())
    served = ServeConfig.model_validate(config["applications"][0]["args"])
    http = config["http_options"]
    sizes = re.findall(r"client_max_body_size (\d+)m;", CONF)
    assert [int(size) * 2**20 for size in sizes] == [served.limits.max_body_bytes]
    assert seconds(r"proxy_read_timeout (\d+)s") > http["request_timeout_s"]
    assert seconds(r"client_body_timeout (\d+)s;") > served.limits.deadline_s
    assert seconds(r"keepalive_timeout (\d+)s; +# shorter") < http["keep_alive_timeout_s"]


def test_answers_of_the_proxy_have_the_shape_of_ours():
    bodies = re.findall(r"return (\d+) '(\{.*?\})'", CONF)
    assert {int(status) for status, _ in bodies} == {400, 404, 413, 421, 429, 431, 503, 504}
    for _, body in bodies:
        said = json.loads(body)
        assert set(said) == {"code", "message", "limit", "observed", "request_id"}
        assert said["code"] in MESSAGES


def test_forged_headers_do_not_pass_the_proxy():
    passed = dict(re.findall(r"proxy_set_header (\S+) ([^;]+);", CONF))
    assert passed["X-Forwarded-For"] == "$remote_addr"
    for name in (
        *("Forwarded", "X-Real-IP", "X-Forwarded-Host", "X-Request-Timeout-Seconds"),
        *("X-Request-Disconnect-Disabled", "X-Session-Id", "Serve-Multiplexed-Model-Id"),
    ):
        assert passed[name] == '""', name
