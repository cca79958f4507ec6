"""Alert rules and dashboard name what `/metrics` gives, and each alert is in the runbook."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client import Metric

from deliveries.monitoring import metrics
from deliveries.monitoring.counts import Sums
from deliveries.monitoring.tables import Tables
from deliveries.settling import settle
from deliveries.transport import errors
from deliveries.waking.queues import DELIVER, RECOVER

ROOT = Path(__file__).resolve().parent.parent
FILES = ROOT / "deploy" / "monitoring"
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
RULES = yaml.safe_load((FILES / "alerts.yml").read_text())
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((FILES / "dashboard.json").read_text())
# What Prometheus and Grafana add or replace.
ADDED = {"instance", "job"}


def page() -> list[Metric]:
    """Every metric there is, with each label's values."""
    tables = Tables({"active": 1, "paused": 1, "tripped": 1}, 0, 0, 0, 0, 0.0, False)
    queues = {DELIVER: 0, RECOVER: 0}
    found = {"tables": tables, "redis": Sums({}, queues, queues), "sweep": 0.0}
    return list(metrics._Page(found).collect())


def names_and_labels() -> dict[str, dict[str, set[str]]]:
    found: dict[str, dict[str, set[str]]] = {}
    for family in page():
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    codes = {code for _, code in errors._CODES} | {"other", "success", "http"}
    assert '"unwritable"' in inspect.getsource(settle)
    found["webhooks_attempts_total"]["outcome"] = codes | {"unwritable", "unsendable"}
    return found


METRICS = names_and_labels()


def queries() -> Iterator[tuple[str, str]]:
    for rule in ALERTS:
        yield rule["alert"], rule["expr"]
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield f"{panel['title']} {target['refId']}", target["expr"]


def parts(node: Any) -> Iterator[Any]:
    """The node of a parsed query and all below it."""
    yield node
    for name in ("lhs", "rhs", "expr", "vector_selector", "args", "param"):
        below = getattr(node, name, None)
        for one in below if isinstance(below, list) else [below]:
            if one is not None:
                yield from parts(one)


@pytest.mark.parametrize(("where", "query"), list(queries()))
def test_a_query_names_metrics_and_labels_that_exist(where: str, query: str) -> None:
    nodes = list(parts(promql_parser.parse(query.replace("$__rate_interval", "5m"))))
    selectors = [node for node in nodes if isinstance(node, promql_parser.VectorSelector)]
    # Each metric in the text was found in the tree.
    assert {one.name for one in selectors} == set(re.findall(r"webhooks_\w+", query))
    known: set[str] = set(ADDED)
    for selector in selectors:
        assert selector.name in METRICS, where
        labels = METRICS[selector.name]
        known |= set(labels)
        for matcher in selector.matchers.matchers:
            assert matcher.name in labels, where
            for value in matcher.value.split("|"):
                assert value in labels[matcher.name], where
    for node in nodes:
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            assert set(node.modifier.labels) <= known, where


def test_each_alert_has_a_section_of_the_runbook_and_each_section_an_alert() -> None:
    names = [rule["alert"] for rule in ALERTS]
    sections = re.findall(r"^## (Webhooks\w+)$", RUNBOOK, re.MULTILINE)
    assert sorted(sections) == sorted(names) == sorted(set(names))
    for rule in ALERTS:
        assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in {"critical", "warning"}
        section = RUNBOOK.partition(f"## {rule['alert']}\n")[2].partition("\n## ")[0]
        assert "- Look at: " in section and "- Do: " in section, rule["alert"]  # noqa: PT018


def test_an_alert_fires_for_no_web_process_by_itself() -> None:
    """All of them say the same: without this, each alert would fire once for each of them."""
    for rule in ALERTS:
        assert "without (instance)" in rule["expr"], rule["alert"]


def test_the_runbook_explains_each_metric_and_each_is_looked_at() -> None:
    explained = set(
        re.findall(r"`(webhooks_\w+?)(?:\{[\w,]+\})?`", RUNBOOK.partition("\n## Webhooks")[0])
    )
    bare = {re.sub(r"_(bucket|count|sum)$", "", name) for name in METRICS}
    assert explained == bare
    looked_at = {name for _, query in queries() for name in re.findall(r"webhooks_\w+", query)}
    assert {re.sub(r"_bucket$", "", name) for name in looked_at} == bare


def test_the_example_of_prometheus_reads_the_rules_with_a_token() -> None:
    example = yaml.safe_load((FILES / "prometheus.yml").read_text())
    assert [(FILES / name).is_file() for name in example["rule_files"]] == [True]
    (job,) = example["scrape_configs"]
    assert job["metrics_path"] == "/metrics"
    assert "credentials_file" in job["authorization"]
