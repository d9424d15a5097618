"""Counts in Prometheus' text form, as its own parser reads them."""

from prometheus_client.parser import text_string_to_metric_families

from megatron_af.serve.counts import Counts


def test_what_is_counted() -> None:
    held = [3]
    counts = Counts(held=lambda: held[0], waiting=lambda: 1)
    counts.answered(200)
    counts.answered(200)
    counts.answered(429)
    counts.new_tokens.inc(7)
    counts.batch.observe(5)
    held[0] = 4
    families = text_string_to_metric_families(counts.text().decode())
    found = {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}
    assert found["af_requests_total", "200"] == 2 and found["af_requests_total", "429"] == 1
    assert found["af_requests_held",] == 4 and found["af_requests_waiting",] == 1
    assert found["af_new_tokens_total",] == 7
    assert found["af_batch_requests_bucket", "4.0"] == 0 and found["af_batch_requests_bucket", "8.0"] == 1
    Counts(held=lambda: 0, waiting=lambda: 0)  # a second server of this process has its own
