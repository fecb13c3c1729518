"""What a layout says of sources and of single rows."""

import pickle

import pytest

from ray_app.archives import Archive, ListedMember
from ray_app.archives.members import MemberLocation
from ray_app.errors import ConfigError


def told(layout, *sources, **settings):
    """What a layout, sent to a task, says of each member that it labels, by the end of its name;
    and the subset each counts to.
    """
    items = list(Archive([str(source) for source in sources], **settings))
    layout = pickle.loads(pickle.dumps(layout.prepare(items)))
    found = {}
    for item in items:
        if (labels := layout.labels(item)) is not None:
            found[(item.member or item.uri).rpartition("/")[2]] = (
                labels,
                layout.subset(item, labels),
            )
    return found


def fields(found, *names):
    """Of what `told` gave, these labels of each member."""
    return {
        member: tuple(getattr(labels, name) for name in names)
        for member, (labels, _) in found.items()
    }


def row(place="/data/train-00000-of-00001.parquet", **columns):
    return ListedMember(place, "7", 0, "", -1, columns, MemberLocation("parquet", 7))


def refused(layout, item):
    """With which words a layout refuses a member."""
    with pytest.raises(ConfigError) as raised:
        layout.labels(item)
    return raised.value.message
