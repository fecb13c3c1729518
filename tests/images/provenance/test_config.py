"""A trust list is read once, and refused where it holds no certificates."""

import pytest

from ray_app.errors import ConfigError
from ray_app.images.provenance import ProvenanceConfig, ProvenancePolicy
from tests.images.provenance.signing import authority


def test_a_file_or_its_text(tmp_path):
    (tmp_path / "list.pem").write_text(authority().root)
    wanted = ProvenancePolicy(trust_list=authority().root)
    assert (
        ProvenanceConfig(trust_list=str(tmp_path / "list.pem")).policy() == ProvenanceConfig(trust_list=authority().root).policy() == wanted
    )
    assert ProvenanceConfig().policy() == ProvenancePolicy()
    assert ProvenanceConfig(read=False, trust_list="nowhere").policy() is None


@pytest.mark.parametrize(
    "content", [b"", b"no certificates", b"\xff\xfe", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_what_holds_no_certificate_is_refused(content, tmp_path):
    path = tmp_path / "list.pem"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"provenance\.trust_list"):
        ProvenanceConfig(trust_list=str(path)).policy()
    with pytest.raises(ConfigError, match="No such file"):
        ProvenanceConfig(trust_list=str(tmp_path / "other.pem")).policy()
