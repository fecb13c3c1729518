"""Images to label, as an audit of a run draws them."""

import io

from PIL import Image

FACTS = {
    "made_at": "2026-11-21T19:00:00+00:00",
    "run": "/data/run",
    "version": "0.7.0",
    "scored": 12345,
    "only_flagged": False,
}
NAMES = ("one, two.jpg", 'say "hi".jpg', "three.jpg", "four.jpg", "five.jpg")


def images(names=NAMES, members=None):
    """Return rows to label, and pictures of all rows except the fourth."""
    rows = [
        {
            "image_id": 2**62 + place,
            "uri": f"/archive/{name}",
            "member": (members or {}).get(place),
            "stratum": place % 3,
        }
        for place, name in enumerate(names)
    ]
    picture = io.BytesIO()
    Image.new("RGB", (48, 32), (120, 90, 60)).save(picture, "JPEG")
    shown = [row["image_id"] for place, row in enumerate(rows) if place != 3]
    return rows, dict.fromkeys(shown, picture.getvalue())
