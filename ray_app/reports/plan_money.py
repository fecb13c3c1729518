"""The lines of a plan for whoever pays: requests, bytes and the bill, each with the price it was reckoned at."""

from collections.abc import Iterator, Mapping
from typing import Any

from ray_app.reports import wording
from ray_app.reports.text_table import aligned

_NO_PRICE = "not known: no price per hour is given (--cluster NAME or FILE, or --price-per-hour)"


def request_lines(plan: Mapping[str, Any]) -> Iterator[str]:
    """What is asked of the stores, and how many bytes come from the source."""
    requests = plan["requests"]
    read = f"{wording.size(plan['bytes_read'])} read"
    if not any(requests.values()):
        yield f"none that a store would bill: everything is on this machine; {read}"
        return
    yield f"{requests['list']:,} LIST, {requests['get']:,} GET, {requests['put']:,} PUT, at the least; {read}"
    if any(kind.startswith("tar.") for kind in plan["kinds"]) and plan["workers"] > 1:
        yield "more for compressed tars: they can only be read from their beginning, by every worker that gets a part of one"


def cost_lines(plan: Mapping[str, Any]) -> Iterator[str]:
    """The bill line by line and in total, in whatever currency the prices are."""
    cost, prices, requests, forecast = plan["cost"], plan["prices"], plan["requests"], plan["forecast"]
    hours = None if forecast is None else forecast["hours"]
    is_priced = bool(prices["per_hour"] or plan["cluster"]["nodes"])
    rows = [["compute", *_compute(cost, prices, hours if is_priced else None, is_priced)]]
    puts, gets = prices["put_per_1000"], prices["get_per_1000"]
    if any(requests.values()):
        rows += [
            ["LIST", wording.money(cost["lists"]), f"{requests['list']:,} at {puts:g} per 1,000"],
            ["GET", wording.money(cost["gets"]), f"{requests['get']:,} at {gets:g} per 1,000"],
            ["PUT", wording.money(cost["puts"]), f"{requests['put']:,} at {puts:g} per 1,000"],
            ["egress", wording.money(cost["egress"]), f"{wording.size(plan['bytes_read'])} at {prices['egress_per_gb']:g} per GB"],
        ]
    rows.append(["total", wording.money(cost["total"]), _total(cost, is_priced)])
    widths = [max(wording.columns(row[column]) for row in rows) for column in range(3)]
    yield from (aligned(row, widths, right={1}) for row in rows)


def _compute(cost: Mapping[str, Any], prices: Mapping[str, Any], hours: float | None, is_priced: bool) -> tuple[str, str]:
    if hours is None:
        return wording.NONE, "not known: no probe was made" if is_priced else _NO_PRICE
    return wording.money(cost["compute"]), f"{wording.measured(hours)} hours at {prices['per_hour']:g} per hour"


def _total(cost: Mapping[str, Any], is_priced: bool) -> str:
    if cost["compute"] is None or not is_priced:
        return "without the machines"
    each = "" if cost["per_1000_members"] is None else f", {wording.money(cost['per_1000_members'])} per 1,000 members"
    share = "" if cost["compute_share"] is None else f"; {wording.percent(cost['compute_share'])} of it is compute"
    return f"in the currency of the prices{each}{share}"
