"""A clock that jumps changes nothing that matters: whoever waits or measures goes by one that nobody sets."""

import re

from tests.house import MODULES

WALL = re.compile(r"\btime\.time(_ns)?\b|datetime\.(now|today)\(|\butcnow\(|\bdate\.today\(")
READERS = {
    "af_pipelines.cluster_run": "the cluster's dates; a node that is off by hours is not promised",
    "af_pipelines.manifest": "a date in an annotation, which the cluster's are compared with",
    "af_pipelines.trainjob": "the cluster's dates; a node that is off by hours is not promised",
    "megatron_af.audio.feature_cache": "drafts of dead writers; one taken from a living writer is a failed write",
    "megatron_af.pipeline.executor": "when a step ended, for people",
    "megatron_af.pipeline.records": "when a step began, for people; no step took less than nothing",
    "megatron_af.release.aliases": "another machine's move; too old and too new are the same",
    "megatron_af.release.versions": "a date in a record",
    "megatron_af.retry_after": "a server's date; what it makes anybody wait has a limit",
    "megatron_af.runs.lock": "a volume's clock, and whoever seems dead by it is watched for a renewal",
    "megatron_af.serve.chat": "a date in a reply",
    "megatron_af.serve.counts": "a date in a page of figures",
    "megatron_af.tracking.sender": "how old a run was when this process began",
    "megatron_af.tracking.spool": "dates of records; they are read in the order in which they stand",
    "megatron_af.train.callbacks.trainer_status": "a date in a report",
}


def test_who_reads_the_wall_clock_says_why() -> None:
    reading = {name for name, path in MODULES.items() if WALL.search(path.read_text())}
    assert reading == READERS.keys(), "time.monotonic() is for waiting and measuring"
