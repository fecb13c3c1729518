"""Jobs of an endpoint, on Ray's own job API: each is one `touchstone score` run on the endpoint's cluster (`RayJobs`).

Nothing is kept here: Ray knows a job by its id, and the run directory has what came of it. So any replica answers, and an update forgets
nothing. The command is made here, argument by argument: of a request it has a prefix that was checked, or the address of a list.
"""

import asyncio
import hashlib
import json
import logging
import re
import secrets
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from os.path import abspath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from ray_app.archives import uri_lists
from ray_app.archives.containers import kind_of
from ray_app.cluster.ray_cluster import SECRETS
from ray_app.config import named_configs
from ray_app.ensembles import load_ensemble_card
from ray_app.errors import ExitCode, TouchstoneError
from ray_app.runs import RunDirectory, current_rows
from ray_app.runs.document import RunSummary
from ray_app.serving import url_fetch
from ray_app.serving.config import ServeConfig
from ray_app.serving.http import schemas
from ray_app.serving.http.errors import Refusal
from ray_app.storage import Store, canonical, strip_secrets, urls

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

NO_CLUSTER = "jobs are runs on a Ray cluster: deploy the endpoint there, with `serve deploy`, or run `touchstone score` yourself"
NO_DIRECTORY = "jobs are switched off: the operator has not set a directory for their runs (jobs.directory)"
RETRY_AFTER_S = 30
TIMEOUT_S = (5.0, 20.0)  # to connect to Ray's dashboard, and for its answer
ENDED = frozenset({"STOPPED", "SUCCEEDED", "FAILED"})
COMPLETE = frozenset({ExitCode.DONE, ExitCode.TOO_MANY_BAD})
NAMESPACE, OWNER, CONTENT = "touchstone_endpoint", "touchstone_owner", "touchstone_content"
_ID = re.compile(r"touchstone-[0-9a-f]{32}")
_DECIDES = ("accept_licences", "precision", "resize", "waive_guarantee")  # keys that mean the same to an endpoint and a run
_WHY: Mapping[int | None, str] = {
    ExitCode.USAGE: "the run was refused: its settings, or its source",
    ExitCode.TOO_MANY_BAD: "more files without a score than the operator allows; all rows are there",
    ExitCode.DETECTOR: "its detectors could not score",
    ExitCode.CLUSTER: "the cluster, or storage, was out of reach",
    ExitCode.INTERRUPTED: "it was interrupted, or reached the operator's limit of hours or cost; what is done is kept",
}
_log = logging.getLogger(__name__)


class RayJobs:
    """Submits jobs, tells how far they are, stops them; each belongs to the owner who submitted it, and to endpoints of this directory.

    `address`: the cluster's, or http:// and that of its dashboard; None where there is no cluster that others may submit to.

    Every method raises Refusal: not_implemented where this endpoint takes no jobs, overloaded where Ray or storage is out of reach.
    Raises ConfigError for an ensemble that is not there, or a directory that cannot be opened.
    """

    def __init__(self, config: ServeConfig, address: str | None) -> None:
        self._limits, self._address, directory = config.jobs, address, config.jobs.directory
        self._refused = NO_CLUSTER if address is None else NO_DIRECTORY if directory is None else None
        self._directory = "" if directory is None else canonical(directory)
        self._hidden = dict.fromkeys((*SECRETS, config.access.tokens_variable), "")
        self._arguments = _operators_arguments(config)
        shipped = named_configs("ensembles")
        self._ensembles = {load_ensemble_card(one).name: one if one in shipped else abspath(one) for one in config.ensembles}
        self._fetcher = url_fetch.GuardedFetcher(config.urls, config.images.max_bytes) if config.urls.enabled else None
        self._client: JobSubmissionClient | None = None
        self._submitting = asyncio.Lock()

    async def submit(self, owner: str, wanted: schemas.JobRequest, key: str | None = None) -> schemas.Job:
        """Take a job. The same owner, key and content get the same job, whichever replica is asked.

        Raises Refusal also: malformed_request, forbidden, url_refused, too_many_files, conflict, too_many_jobs.
        """
        self._require()
        await asyncio.to_thread(self._check, wanted)
        tags = self._tags(owner) | {CONTENT: _digest(wanted.model_dump_json())}
        job = f"touchstone-{_digest(self._directory, owner, key)[:32] if key else secrets.token_hex(16)}"
        async with self._submitting:  # so that this replica counts what it has just submitted
            return await asyncio.to_thread(self._submitted, job, wanted, tags)

    async def status(self, owner: str, job: str) -> schemas.Job:
        """How far it is. Raises Refusal not_found, also for what is another owner's, and for any other job of the cluster."""
        return await asyncio.to_thread(lambda: self._answer(self._own(owner, job)))

    async def results(self, owner: str, job: str) -> bytes:
        """JSON lines, one per file as `touchstone results --json` gives them. Raises Refusal as `status`, and conflict where there are none
        yet, or more than `jobs.max_uris`.
        """
        return await asyncio.to_thread(self._rows, owner, job)

    async def stop(self, owner: str, job: str) -> schemas.Job:
        """Ask a job to end; one that has ended stays as it is. Raises Refusal as `status`."""
        return await asyncio.to_thread(self._stopped, owner, job)

    def _require(self) -> None:
        if self._refused is not None:
            raise Refusal("not_implemented", self._refused)

    def _check(self, wanted: schemas.JobRequest) -> None:
        """Raises Refusal for what this endpoint would never take."""
        if (wanted.uris is None) == (wanted.prefix is None):
            raise Refusal("malformed_request", "a job needs `uris` or a `prefix`")
        if wanted.ensemble is not None and wanted.ensemble not in self._ensembles:
            raise Refusal("malformed_request", f"no such ensemble; jobs may have: {', '.join(self._ensembles)}")
        if wanted.prefix is not None:
            check_prefix(wanted.prefix, self._limits.sources)
        uris = wanted.uris or ()
        if len(uris) > self._limits.max_uris:
            raise Refusal("too_many_files", "more uris than one job may have", limit=self._limits.max_uris, observed=len(uris))
        for number, uri in enumerate(uris):
            try:
                self._check_uri(uri)
            except Refusal as refused:
                raise Refusal(refused.code, f"uris.{number}: {refused.message}") from None

    def _check_uri(self, uri: str) -> None:
        if urls.scheme_of(uri) not in ("http", "https"):
            check_place(uri, self._limits.sources)
        elif self._fetcher is None:
            raise Refusal("forbidden", "fetching by URL is switched off")
        elif strip_secrets(uri) != uri:
            raise Refusal("url_refused", "it carries a credential, which would be stored")
        else:
            self._fetcher.check(uri)

    def _submitted(self, job: str, wanted: schemas.JobRequest, tags: Mapping[str, str]) -> schemas.Job:
        with self._reaching() as client:
            if known := self._found(client, job):
                return self._same(known, tags)
            ours = [one for one in client.list_jobs() if (one.metadata or {}).get(NAMESPACE) == tags[NAMESPACE]]
            unfinished = [one for one in ours if one.status not in ENDED]
            if len(unfinished) >= self._limits.at_once:
                later, most = {"Retry-After": str(RETRY_AFTER_S)}, self._limits.at_once
                raise Refusal("too_many_jobs", limit=most, observed=len(unfinished), headers=later)
            source = wanted.prefix or self._listed(job, wanted.uris or (), tags[CONTENT])
            command = shlex.join(self._command(job, source, wanted.ensemble))
            try:
                client.submit_job(entrypoint=command, submission_id=job, metadata=dict(tags), runtime_env={"env_vars": self._hidden})
            except RuntimeError:  # Ray takes an id once: of two that race with one key, the other was first
                if (known := self._found(client, job)) is None:
                    raise
                return self._same(known, tags)
            _log.info("job_submitted job=%s", job)
            submitted = self._found(client, job)
            assert submitted is not None
            return self._answer(submitted)

    def _listed(self, job: str, uris: Sequence[str], content: str) -> str:
        """The source that names them: a list beside the run, under a name that no other content has."""
        name = f"uris-{content[:16]}.txt"
        Store.open(f"{self._directory}/{job}").write(name, "".join(f"{uri}\n" for uri in uris).encode())
        return f"list::{self._directory}/{job}/{name}"

    def _command(self, job: str, source: str, ensemble: str | None) -> list[str]:
        chosen = next(iter(self._ensembles)) if ensemble is None else ensemble
        return ["touchstone", "score", source, "--out", self._run(job), "--ensemble", self._ensembles[chosen], *self._arguments]

    def _same(self, known: "JobDetails", tags: Mapping[str, str]) -> schemas.Job:
        """The job that a key stands for already."""
        if not _has(known, tags):
            raise Refusal("conflict", "this Idempotency-Key came with another request before")
        return self._answer(known)

    def _own(self, owner: str, job: str) -> "JobDetails":
        self._require()
        found = None
        if _ID.fullmatch(job):  # it becomes a part of an address
            with self._reaching() as client:
                found = self._found(client, job)
        if found is None or not _has(found, self._tags(owner)):
            raise Refusal("not_found", "no such job")
        return found

    def _stopped(self, owner: str, job: str) -> schemas.Job:
        if self._own(owner, job).status not in ENDED:
            with self._reaching() as client:
                client.stop_job(job)
        return self._answer(self._own(owner, job))

    def _rows(self, owner: str, job: str) -> bytes:
        found, most = self._own(owner, job), self._limits.max_uris
        if not _is_complete(found):
            raise Refusal("conflict", f"the job is {found.status}, and has no results")
        if self._counts(job) is None:
            raise Refusal("not_found", "its run is gone")
        run = self._run(job)
        with self._reaching():
            rows = list(islice(current_rows(RunDirectory.open(run)), most + 1))
        if len(rows) > most:
            raise Refusal("conflict", f"more rows than this answer may have: read the run, {run}", limit=most, observed=len(rows))
        return b"".join(_line(row) for row in rows)

    def _answer(self, found: "JobDetails") -> schemas.Job:
        job, code, complete = str(found.submission_id), found.driver_exit_code, _is_complete(found)
        why = f"{_WHY.get(code, 'it failed')}; its log says more: ray job logs {job}" if found.status == "FAILED" else None
        address, counts = f"/v1/jobs/{job}", self._counts(job) if complete else None
        return schemas.Job.model_validate(
            {
                "job": {"id": job, "address": address}, "run": self._run(job), "status": found.status.value, "exit_code": code,
                "detail": why, "counts": counts, "submitted_at": found.start_time or None, "ended_at": found.end_time or None,
                "results": f"{address}/results" if complete else None,
            }
        )  # fmt: skip

    def _counts(self, job: str) -> schemas.JobCounts | None:
        with self._reaching():
            try:
                summary = RunSummary.model_validate_json(Store.open(self._run(job)).read("summary.json"))
            except FileNotFoundError:  # whoever owns the storage has removed it
                return None
        return schemas.JobCounts(files=summary.rows, scored=summary.scored, verdicts=dict(summary.verdicts))

    def _run(self, job: str) -> str:
        return f"{self._directory}/{job}/run"

    def _tags(self, owner: str) -> dict[str, str]:
        return {NAMESPACE: _digest(self._directory), OWNER: _digest(self._directory, owner)}

    def _found(self, client: "JobSubmissionClient", job: str) -> "JobDetails | None":
        try:
            return client.get_job_info(job)
        except RuntimeError as error:
            if str(error).startswith("Request failed with status code 404"):
                return None
            raise

    @contextmanager
    def _reaching(self) -> Iterator["JobSubmissionClient"]:
        """The client of Ray's job API; to our own clients, one that is out of reach is the endpoint's trouble, and passes."""
        from ray.exceptions import RayError

        try:
            if self._client is None:
                self._client = _connected(self._address)
            yield self._client
        except (OSError, RuntimeError, RayError, TouchstoneError) as error:
            self._client = None  # a head that started anew has another address
            _log.exception("jobs_out_of_reach kind=%s", type(error).__name__)
            raise Refusal("overloaded", "jobs cannot be reached now", headers={"Retry-After": str(RETRY_AFTER_S)}) from None


def check_prefix(prefix: str, allowed: Iterable[str]) -> None:
    """Raises Refusal (`url_refused`) for what is no folder below an allowed one: also patterns, and names that would be read as lists."""
    if urls.has_magic(prefix):
        raise Refusal("url_refused", "a prefix cannot have a pattern in it")
    name = prefix.rstrip("/")
    if uri_lists.looks_like_list(name) or kind_of(name) == "parquet":  # its rows could name files anywhere
        raise Refusal("url_refused", "a prefix is a folder, not a list")
    check_place(prefix, allowed)


def check_place(uri: str, allowed: Iterable[str]) -> None:
    """Raises Refusal (`url_refused`) for what does not lie below an allowed prefix, part by part, however it is decoded.

    Symbolic links below a local prefix are followed wherever they lead: whoever may make them there may read what they lead to.
    """
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in uri) or "::" in uri:
        raise Refusal("url_refused", "it has characters that a place cannot have")
    decoded = uri
    while (again := unquote(decoded)) != decoded:
        decoded = again
    if {".", ".."} & set(decoded.replace("\\", "/").split("/")):
        raise Refusal("url_refused", ". and .. are not allowed in a place")
    roots = (canonical(root).rstrip("/") + "/" for root in allowed)
    if not any(f"{uri.rstrip('/')}/".startswith(root) for root in roots):
        raise Refusal("url_refused", "it is not below a prefix that the operator allows (jobs.sources)")


def _operators_arguments(config: ServeConfig) -> list[str]:
    """What every job is given, whoever submits it."""
    limits, default = config.jobs, ServeConfig.model_fields
    given = {"--config": limits.config, "--limit": limits.limit, "--max-hours": limits.max_hours, "--max-cost": limits.max_cost}
    found = [word for option, value in given.items() if value is not None for word in (option, str(value))]
    # Lists come from clients: web servers in them have to be on the public Internet, whatever the config of other runs says.
    settings: dict[str, Any] = {"allow_private": False}
    settings |= {key: getattr(config, key) for key in _DECIDES if getattr(config, key) != default[key].default}
    return found + [word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")]


def _connected(address: str | None) -> "JobSubmissionClient":
    from ray.job_submission import JobSubmissionClient

    class TimedClient(JobSubmissionClient):
        """Ray's own sets no limit of time to a request. In token mode both send the token by themselves."""

        def _do_request(self, method: str, endpoint: str, **request: Any) -> Any:
            return super()._do_request(method, endpoint, **{"timeout": TIMEOUT_S, **request})

    return TimedClient(address)


def _has(found: "JobDetails", tags: Mapping[str, str]) -> bool:
    return tags.items() <= (found.metadata or {}).items()


def _is_complete(found: "JobDetails") -> bool:
    """Whether all rows are there."""
    return found.status == "SUCCEEDED" or (found.status == "FAILED" and found.driver_exit_code in COMPLETE)


def _line(row: Mapping[str, Any]) -> bytes:
    """A row as `touchstone results --json` has it."""
    return json.dumps({**row, "provenance": json.loads(row.get("provenance") or "null")}, default=str, ensure_ascii=False).encode() + b"\n"


def _digest(*parts: str | None) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
