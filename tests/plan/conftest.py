"""A small plan that is accepted without a finding, for tests to spoil one thing in."""

import pytest

SMALL = """\
plan_version: 1
tiers:
  - name: critical
    title: Critical
    rto: 2h
    rpo: 15m
services:
  - name: database
    title: Database
    tier: critical
    engine: postgres
    rpo: 10m
    backup:
      full: "0 3 * * *"
      log: continuous
      archive_timeout: 60s
    validation:
      smoke_queries:
        - name: guests_exist
          sql: SELECT count(*) FROM guests
          expect: "> 0"
      application_query: SELECT 1
runbooks:
  - name: database_restore
    title: Database loss
    service: database
    rto: 1h
    rpo: 10m
    steps:
      - name: restore_latest_backup
        title: Restore
        budget: 20m
      - name: validate
        title: Validate
        budget: 7m
      - {name: assess, title: Assess, budget: 1m}
      - {name: prepare, title: Prepare, budget: 1m}
      - {name: apply_wal, title: Apply, budget: 1m}
"""


@pytest.fixture
def small() -> str:
    """The text of a plan in which nothing is wrong or too tight."""
    return SMALL
