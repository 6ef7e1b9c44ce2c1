"""The code location: what it is made of, how it is loaded, and what it says where the plan cannot be accepted."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import dagster as dg

import definitions
from assets.backup import backup_definitions
from dr_pipelines.plan import parse_plan
from dr_pipelines.runbooks import catalogue
from dr_pipelines.runbooks.dagster_home import checkout, prepare_home
from dr_pipelines.settings import Settings

ROOT = Path(__file__).parents[1]
HEAVY = ("boto3", "psycopg", "jinja2", "rich", "typer", "zstandard")


def load(script: str, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DR_", "DAGSTER"))}
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env=kept | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def job(name: str) -> dg.JobDefinition:
    return definitions.defs.resolve_job_def(name)


def test_all_of_it_can_be_loaded() -> None:
    dg.Definitions.validate_loadable(definitions.defs)


def test_the_workspace_loads_it_from_any_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dagster", "definitions", "validate", "-w", str(ROOT / "workspace.yaml")]
    home = {"DAGSTER_HOME": str(tmp_path)}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DR_")}
    done = subprocess.run(command, cwd=tmp_path, env=kept | home, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_jobs() -> None:
    names = {found.name for found in definitions.defs.resolve_all_job_defs() if not found.name.startswith("__")}
    assert names == {
        "adherence",
        "database_backup",
        "answer_approval",
        "database_drill",
        "database_expire",
        "database_restore",
        "database_verify",
    }


def test_the_runbooks_steps_are_the_ops_of_the_restore_and_are_nested_in_the_drill() -> None:
    steps = [*(step.name for step in definitions.plan.runbook("database_restore").steps), "cutover"]
    restore = job("database_restore")
    assert sorted(node.name for node in restore.nodes) == sorted(steps)
    drill = {node.name: node for node in job("database_drill").nodes}
    assert sorted(drill) == ["lose_database", "measure", "runbook", "set_the_stage"]
    nested = drill["runbook"].definition
    assert isinstance(nested, dg.GraphDefinition)
    assert sorted(node.name for node in nested.nodes) == sorted(steps)


def test_every_run_takes_place_in_one_process() -> None:
    for found in definitions.defs.resolve_all_job_defs():
        assert found.executor_def is dg.in_process_executor, found.name


def test_no_restore_is_retried_and_none_waits_for_a_backup() -> None:
    restore, backup = job("database_restore"), job("database_backup")
    assert restore.tags["dagster/max_retries"] == "0"
    assert restore.tags["dr/service"] == backup.tags["dr/service"] == "database"
    assert restore.tags["dr/turn"] != backup.tags["dr/turn"]


def test_backups_are_made_as_the_plan_says_and_go_daily_in_utc_and_both_schedules_run() -> None:
    schedules = definitions.defs.get_repository_def().schedule_defs
    assert {schedule.name: schedule.cron_schedule for schedule in schedules} == {
        "database_backup_schedule": "0 3 * * *",
        "database_expire_schedule": "0 6 * * *",
    }
    for schedule in schedules:
        assert schedule.execution_timezone == "UTC"
        assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING


def test_expiry_waits_for_a_backup_and_is_tried_again() -> None:
    expire = job("database_expire")
    assert expire.tags == job("database_backup").tags
    (node,) = expire.nodes
    assert node.definition.retry_policy.max_retries >= 1  # type: ignore[attr-defined] # it is an op


def test_without_a_retention_nothing_expires() -> None:
    text = (ROOT / "recovery-plan.yaml").read_text()
    plan = parse_plan(text.replace("      retention:\n        keep: 7\n        keep_for: 30d\n", ""), name="plan")
    repository = backup_definitions(plan).get_repository_def()
    assert [schedule.name for schedule in repository.schedule_defs] == ["database_backup_schedule"]


def test_a_backup_is_tried_again() -> None:
    (node,) = [node for node in job("database_backup").nodes if node.name == "database_full_backup"]
    policy = node.definition.retry_policy  # type: ignore[attr-defined] # it is an op
    assert policy.max_retries >= 1


def test_the_sensor_runs() -> None:
    (sensor,) = definitions.defs.get_repository_def().sensor_defs
    assert sensor.default_status is dg.DefaultSensorStatus.RUNNING


def test_the_archive_is_fresh_while_the_rpo_is_kept() -> None:
    graph = definitions.defs.resolve_asset_graph()
    policy = graph.get(dg.AssetKey("database_wal_archive")).freshness_policy
    assert policy == dg.FreshnessPolicy.time_window(
        fail_window=timedelta(minutes=15), warn_window=timedelta(minutes=10)
    )


def test_the_checks() -> None:
    found = {
        (key.asset_key.to_user_string(), key.name) for key in definitions.defs.resolve_asset_graph().asset_check_keys
    }
    assert found == {
        ("database_full_backup", catalogue.VERIFIED),
        ("database_wal_archive", catalogue.NO_GAP),
        *(("database_recovery", name) for name in (catalogue.RTO_MET, catalogue.RPO_MET, catalogue.INTEGRITY)),
    }


def test_names_come_from_the_plans_services() -> None:
    text = (ROOT / "recovery-plan.yaml").read_text()
    plan = parse_plan(
        text.replace("name: database\n", "name: orders-db\n").replace("service: database", "service: orders-db"),
        name="plan",
    )
    repository = backup_definitions(plan).get_repository_def()
    assert {schedule.name for schedule in repository.schedule_defs} == {
        "orders_db_backup_schedule",
        "orders_db_expire_schedule",
    }
    keys = {key.to_user_string() for key in repository.asset_graph.get_all_asset_keys()}
    assert keys == {"orders_db_full_backup", "orders_db_wal_archive"}


def test_incremental_backups_are_scheduled_where_the_plan_has_them() -> None:
    text = (ROOT / "recovery-plan.yaml").read_text()
    plan = parse_plan(
        text.replace("      log: continuous\n", '      log: continuous\n      incremental: "0 9 * * *"\n')
    )
    repository = backup_definitions(plan).get_repository_def()
    assert {schedule.name: schedule.cron_schedule for schedule in repository.schedule_defs} == {
        "database_backup_schedule": "0 3 * * *",
        "database_expire_schedule": "0 6 * * *",
        "database_incremental_schedule": "0 9 * * *",
    }
    # It waits for a full backup that is under way, and is waited for.
    full, incremental = (repository.get_job(f"database_{kind}") for kind in ("backup", "incremental"))
    assert full.tags["dr/turn"] == incremental.tags["dr/turn"]


def test_what_takes_long_to_import_is_not_imported_to_load_it() -> None:
    done = load(f"import sys, definitions; print([name for name in {HEAVY!r} if name in sys.modules])")
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


def test_it_loads_where_nothing_is_configured(tmp_path: Path) -> None:
    done = load("import definitions", tmp_path, DR_STATE_DIR=str(tmp_path / "state"))
    assert done.returncode == 0, done.stderr


def test_a_plan_that_cannot_be_accepted_is_refused_with_file_and_line(tmp_path: Path) -> None:
    text = (ROOT / "recovery-plan.yaml").read_text()
    plan = tmp_path / "plan.yaml"
    plan.write_text(text.replace("    rto: 1h\n", "    rto: 1 hour\n", 1))
    line = 1 + plan.read_text().splitlines().index("    rto: 1 hour")
    done = load("import definitions", DR_PLAN=str(plan))
    assert done.returncode != 0
    assert "PlanError" in done.stderr and f"{plan}:{line}" in done.stderr


def test_dagster_accepts_its_configuration_and_means_it_this_way(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path / "state")
    with dg.DagsterInstance.from_config(str(prepare_home(settings))) as instance:
        assert instance.telemetry_enabled is False
        assert instance.nux_enabled is False
        assert instance.run_retries_max_retries == 0
        assert instance.run_monitoring_enabled is True
        assert instance.run_monitoring_max_resume_run_attempts == 0
        limits = instance.get_concurrency_config().run_queue_config
        assert limits is not None and limits.max_concurrent_runs == 4
        assert [limit["key"] for limit in limits.tag_concurrency_limits] == [catalogue.TURN_TAG]


def test_every_setting_of_dagsters_says_why() -> None:
    lines = (checkout() / "deploy" / "dagster.yaml").read_text().splitlines()
    for number, line in enumerate(lines):
        if line[:1].isalpha():
            around = [lines[number - 1], *lines[number + 1 : number + 2]]
            assert any(text.lstrip().startswith("#") for text in around), line
