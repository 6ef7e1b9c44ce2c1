"""A PostgreSQL as Debian makes it: pg_createcluster, its stock pg_hba.conf, its configuration outside of the data."""

import contextlib
import os
import pwd
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from psycopg.conninfo import make_conninfo

from dr_pipelines.engines.postgres.connection import Connection
from dr_pipelines.onboarding.administrator import administrator
from dr_pipelines.processes.identity import give_to, run, server_identity
from dr_pipelines.processes.leases import Lease, Leases
from dr_pipelines.processes.ports import free_port
from dr_pipelines.settings import Settings
from dr_pipelines.timing import wait_until

BINARIES = Path("/usr/lib/postgresql/15/bin")


@dataclass
class DebianCluster:
    """The cluster 15/main below a folder of its own."""

    folder: Path
    port: int
    settings: Settings
    _lease: Lease | None = None

    @property
    def owner(self) -> str:
        identity = server_identity(self.settings)
        return identity.name if identity else pwd.getpwuid(os.geteuid()).pw_name

    @property
    def configuration(self) -> Path:
        return self.folder / "etc" / "15" / "main"

    @property
    def access_file(self) -> Path:
        return self.configuration / "pg_hba.conf"

    @property
    def log(self) -> Path:
        return self.folder / "postgresql.log"

    @property
    def dsn(self) -> str:
        """How the cluster's owner gets in: by the socket, without a password."""
        return f"host={self.folder / 'run'} port={self.port} user={self.owner} dbname=postgres"

    def start(self) -> None:
        """As pg_ctlcluster does, under a lease."""
        self._lease = Leases(self.settings.state_dir).start(
            [
                str(BINARIES / "postgres"),
                *("-D", str(self.folder / "data")),
                *("-c", f"config_file={self.configuration / 'postgresql.conf'}"),
            ],
            kind="postgres",
            owner="tests",
            identity=server_identity(self.settings),
            log=self.log,
            ttl=timedelta(hours=1),
            stop_signal=signal.SIGINT,
        )
        assert wait_until(self._answers, timeout=30, interval=0.1), self.log.read_text()

    def _answers(self) -> bool:
        with contextlib.suppress(Exception), administrator(self.dsn):
            return True
        return False

    def restart(self) -> None:
        self.stop()
        self.start()

    def stop(self) -> None:
        if self._lease is not None:
            Leases(self.settings.state_dir).end(self._lease)
            self._lease = None

    def connect(self, database: str = "postgres") -> contextlib.AbstractContextManager[Connection]:
        """As its owner."""
        return administrator(make_conninfo(self.dsn, dbname=database))

    def do(self, *statements: str, database: str = "postgres") -> None:
        with self.connect(database) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def ask(self, query: str, database: str = "postgres") -> object:
        """The one value of the answer."""
        with self.connect(database) as connection:
            row = connection.execute(query.encode()).fetchone()
        assert row is not None
        return row[0]


@contextlib.contextmanager
def debian_cluster() -> Iterator[DebianCluster]:
    """A new cluster that runs, with another owner's data in the database "shop"; gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="dr-test-", dir="/tmp"))
    folder.chmod(0o755)
    settings = Settings(state_dir=folder / "state")
    identity = server_identity(settings)
    for name in ("etc", "run", "data"):
        (folder / name).mkdir()
        give_to(folder / name, identity)
    give_to(folder, identity)
    cluster = DebianCluster(folder, free_port(), settings)
    create = ["pg_createcluster", "15", "main", "--start-conf=manual", f"--port={cluster.port}"]
    create += [f"--datadir={folder / 'data'}", f"--socketdir={folder / 'run'}", f"--logfile={cluster.log}"]
    run(create, identity=identity, env={"PG_CLUSTER_CONF_ROOT": str(folder / "etc")}, timeout=60)
    (cluster.configuration / "conf.d" / "telling.conf").write_text("log_statement = 'all'\n")
    try:
        cluster.start()
        cluster.do("CREATE ROLE keeper LOGIN PASSWORD 'keeps'", "CREATE DATABASE shop OWNER keeper")
        cluster.do(
            "REVOKE CONNECT ON DATABASE shop FROM PUBLIC", "GRANT CREATE ON SCHEMA public TO keeper", database="shop"
        )
        run(
            [str(BINARIES / "pgbench"), "-i", "-q", "-h", "127.0.0.1", "-p", str(cluster.port), "-U", "keeper", "shop"],
            env={"PGPASSWORD": "keeps"},
            timeout=60,
        )
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder)
