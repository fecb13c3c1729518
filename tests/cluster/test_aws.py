"""cluster.yaml and configs/aws: Ray's own AWS code, and a run, against servers (moto's) that refuse
what a policy does not allow.

What moto does not look at: conditions of policies, `iam:PassRole`, and `ssm:GetParameters` for the
image's name (docs/cluster.md).
"""

import copy
import json
from pathlib import Path

import boto3
import botocore.client
import pytest
import yaml
from ray.autoscaler._private.aws import utils
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.tags import (
    TAG_RAY_LAUNCH_CONFIG,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_NAME,
    TAG_RAY_USER_NODE_TYPE,
)

from benchmarks.photographs import write_photographs
from ray_app.errors import StorageError
from tests.make.runs import score_here
from tests.make.servers.s3 import S3Server

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
POLICIES = {path.stem: path.read_text() for path in (ROOT / "configs/aws").glob("*.json")}
CONFIG = yaml.safe_load((ROOT / "cluster.yaml").read_text())


def without(action):
    """The rights of a node without one of them."""
    policy = json.loads(POLICIES["node"])
    for statement in policy["Statement"]:
        statement["Action"] = [one for one in actions_of(statement) if one != action] or [
            "s3:ListAllMyBuckets"
        ]
    return json.dumps(policy)


def actions_of(statement):
    return [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]


def allowed(name):
    """The actions of a policy."""
    statements = json.loads(POLICIES[name])["Statement"]
    return {action for statement in statements for action in actions_of(statement)}


def allowed_on_ec2(name):
    return {action for action in allowed(name) if action.startswith("ec2:")}


USERS = POLICIES | {action: without(action) for action in sorted(allowed("node"))}
PROFILES = ("touchstone-head", "touchstone-node")
# each user, its policy and its key; each profile and its role; the bucket
SETUP_CALLS = 3 * len(USERS) + 3 * len(PROFILES) + 1


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """The access keys of a user for each policy, as variables; the servers obey policies from then
    on.
    """
    folder, environment = tmp_path_factory.mktemp("aws"), pytest.MonkeyPatch()
    environment.setenv("INITIAL_NO_AUTH_ACTION_COUNT", str(SETUP_CALLS))
    with S3Server.start(folder) as server:
        for name, value in server.environment.items():
            environment.setenv(name, value)
        credentials = {"aws_access_key_id": "a", "aws_secret_access_key": "b"}
        iam, found = boto3.client("iam", region_name="us-east-1", **credentials), {}
        for name, policy in USERS.items():
            name = name.replace(":", "-")
            iam.create_user(UserName=name)
            # Of DeleteObjects moto asks for the right to delete the bucket's own address first; S3
            # asks for that to each object alone.
            objects = policy.replace(
                '"arn:aws:s3:::BUCKET/*"', '["arn:aws:s3:::BUCKET", "arn:aws:s3:::BUCKET/*"]'
            )
            document = objects.replace("BUCKET", "bucket").replace("ACCOUNT", "1" * 12)
            iam.put_user_policy(UserName=name, PolicyName="p", PolicyDocument=document)
            key = iam.create_access_key(UserName=name)["AccessKey"]
            found[name] = {
                "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
                "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
            }
        for name in PROFILES:
            iam.create_role(RoleName=name, AssumeRolePolicyDocument="{}")
            iam.create_instance_profile(InstanceProfileName=name)
            iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
        server.client().create_bucket(Bucket="bucket")
        yield found
    environment.undo()


@pytest.fixture
def as_user(keys, monkeypatch, tmp_path):
    """Act as one of them from here on."""
    monkeypatch.setenv("HOME", str(tmp_path))

    def act(name):
        for variable, value in keys[name].items():
            monkeypatch.setenv(variable, value)
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
        for cache in (utils.resource_cache, utils.client_cache):
            cache.cache_clear()

    yield act
    for cache in (utils.resource_cache, utils.client_cache):
        cache.cache_clear()


@pytest.fixture
def calls(monkeypatch):
    """What AWS was asked, as (action, parameters)."""
    made, call = [], botocore.client.BaseClient._make_api_call

    def noting(self, operation, parameters):
        made.append((f"{self.meta.service_model.service_name}:{operation}", parameters))
        return call(self, operation, parameters)

    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", noting)
    return made


def scale_up_and_down(config, node_type):
    """One node of this type comes, is tagged and looked at, and goes; all by Ray's provider."""
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    kind = "head" if node_type == "head" else "worker"
    tags = {
        TAG_RAY_NODE_KIND: kind,
        TAG_RAY_USER_NODE_TYPE: node_type,
        TAG_RAY_LAUNCH_CONFIG: "a",
        TAG_RAY_NODE_NAME: f"ray-{kind}",
    }
    node_config = config["available_node_types"][node_type]["node_config"]
    provider.create_node(copy.deepcopy(node_config), tags, 1)
    [node] = provider.non_terminated_nodes({TAG_RAY_NODE_KIND: kind})
    provider.set_node_tags(node, {"ray-node-status": "up-to-date"})
    assert provider.node_tags(node)["ray-node-status"] == "up-to-date"
    assert provider.internal_ip(node)
    provider.terminate_nodes([node])
    assert provider.non_terminated_nodes({TAG_RAY_NODE_KIND: kind}) == []


def test_ray_up_and_autoscaler_need_the_rights_of_their_files(as_user, calls):
    as_user("user")
    config = prepare_config(copy.deepcopy(CONFIG))
    validate_config(config)
    config = AWSNodeProvider.bootstrap_config(
        AWSNodeProvider.fillout_available_node_types_resources(config)
    )
    assert Path(config["auth"]["ssh_private_key"]).stat().st_mode & 0o777 == 0o600
    scale_up_and_down(config, "head")
    assert {action for action, _ in calls} == allowed_on_ec2("user")

    calls.clear()
    as_user("head")
    for node_type in ("gpu_spot", "cpu"):
        scale_up_and_down(config, node_type)
    assert {action for action, _ in calls} == allowed_on_ec2("head")
    started = [parameters for action, parameters in calls if action == "ec2:RunInstances"]
    for parameters in started:
        # Ray hands the name on, EC2 resolves it.
        assert parameters["ImageId"].startswith("resolve:ssm:/aws/service/")
        assert parameters["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert parameters["IamInstanceProfile"] == {"Name": "touchstone-node"}

    gpu = config["available_node_types"]["gpu_spot"]["resources"]
    assert {"CPU": 16, "GPU": 1, "accelerator_type:L4": 1}.items() <= gpu.items()


def test_run_needs_each_right_of_node_json(as_user, tmp_path):
    write_photographs(tmp_path / "photos", 3, size=(64, 64))
    as_user("node")
    _, rows = score_here("s3://bucket/run", tmp_path / "photos")
    assert len(rows) == 3
    _, again = score_here("s3://bucket/again", "s3://bucket/run")
    assert len(again) > 0
    for action in sorted(allowed("node") - {"s3:AbortMultipartUpload"}):
        as_user(action.replace(":", "-"))
        with pytest.raises(StorageError, match="bucket"):
            score_here(f"s3://bucket/{action[3:]}", tmp_path / "photos")
