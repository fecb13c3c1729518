"""The process that lists an archive."""

from pathlib import Path

from ray_app.archives import BlockPlan
from ray_app.archives.listing import ListingProcess, ListingRequest
from ray_app.child_process import SECRETS
from tests.make.waiting import wait_until


def test_listing_process_has_no_secret_of_an_endpoint(tmp_path, monkeypatch):
    for name in SECRETS:
        monkeypatch.setenv(name, f"{name.lower()}-of-twenty-letters")
    monkeypatch.setenv("A_PROXY", "needed-to-read-the-source")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_bytes(b"one")
    request = ListingRequest(
        run=str(tmp_path / "run"),
        lease=0,
        sources=(str(tmp_path / "photos"),),
        plan=BlockPlan(),
        every_s=60,
    )
    with ListingProcess(request) as listing:
        wait_until(lambda: list(tmp_path.glob("run/manifest/0/*/_complete")), 60)
        environment = Path(f"/proc/{listing.pid}/environ").read_bytes()
    assert b"needed-to-read-the-source" in environment
    assert b"of-twenty-letters" not in environment
