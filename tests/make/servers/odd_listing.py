"""S3 servers whose listings differ from AWS's: other orders of keys, answers that lack something."""

import hashlib
import re

from benchmarks.listing_server import GivenKeys, ListingServer


def by_bytes(key):
    return key.encode()


def by_tree(key):
    """The files of a folder before its folders, whose names are compared without their slash."""
    *folders, name = key.split("/")
    return [*((1, folder) for folder in folders), (0, name)]


def by_hash(key):
    return hashlib.sha1(key.encode()).hexdigest()


ORDERS = {"bytes": by_bytes, "tree": by_tree, "hash": by_hash}
QUIRKS = ("twice", "no-token", "no-etag", "ignores-position")


class OddListingServer(ListingServer):
    """A bucket whose keys are listed in an `order` (a sort key), with some of `QUIRKS`."""

    def __init__(self, keys, order=by_bytes, quirks=(), **options):
        super().__init__(GivenKeys(keys), **options)
        self.order, self.quirks = order, frozenset(quirks)

    def _listed(self, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        limit = min(self.page, int(query.get("max-keys", 1000)))
        keys = sorted((key for key in self.keys if key.startswith(prefix)), key=self.order)
        entries = list(dict.fromkeys(_fold(key, prefix, delimiter) for key in keys))
        if "twice" in self.quirks:
            entries *= 2
        token, after, start = query.get("continuation-token"), query.get("start-after"), 0
        if "ignores-position" not in self.quirks:
            if token:
                start = int(token)
            elif after:
                start = sum(self.order(entry) <= self.order(after) for entry in entries)
        body = b"".join(map(_render, entries[start : start + limit]))
        if "no-etag" in self.quirks:
            body = re.sub(rb"<ETag>.*?</ETag>", b"", body)
        end = start + limit if start + limit < len(entries) else None
        answer = self._page(prefix, limit, min(limit, len(entries) - start), body, end)
        if "no-token" in self.quirks:
            answer = re.sub(rb"<NextContinuationToken>.*?</NextContinuationToken>", b"", answer)
        return answer


def _fold(key, prefix, delimiter):
    head, mark, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
    return f"{prefix}{head}{mark}" if mark else key


def _render(entry):
    text = GivenKeys([entry]).rendered(0, 1)
    if not entry.endswith("/"):
        return text
    key = re.search(rb"<Key>(.*?)</Key>", text)[1]
    return b"<CommonPrefixes><Prefix>%s</Prefix></CommonPrefixes>" % key
