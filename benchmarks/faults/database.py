"""The database is killed, locked, read-only, full or damaged."""

from __future__ import annotations

import os
import random
import resource
import sqlite3
import time
from contextlib import closing
from typing import Any, ClassVar

from benchmarks.faults.cluster import Cluster
from benchmarks.faults.fault import Fault, Trial, check_latencies
from benchmarks.faults.ledger import Account
from benchmarks.faults.load import Publisher
from benchmarks.faults.plan import Plan
from benchmarks.faults.state import check_learned
from benchmarks.faults.stores import PostgresDatabase, SqliteDatabase

NOTICED_SECONDS = 20.0
HOLD_SECONDS = 2.0
FILE_BYTES = 4_096


class DatabaseFault(Fault):
    """Something is wrong with the database until health has said so, and two seconds more."""

    must = (
        "publishing takes as long as before, every task runs; health says what is wrong; the "
        "learner catches up from the stream"
    )
    recovery = "from the end of the fault until health says that the database works"
    plan = Plan(controllers=2, database="sqlite on a disk")
    limit_seconds = 15.0
    # Many short ones: the 99th percentile is to be of some hundreds.
    tasks = 2_400
    over_seconds = 60.0
    least_seconds = 0.005
    most_seconds = 0.03
    until_mended = True
    says: ClassVar[tuple[str, ...]] = ()
    """Of what health says, one of these must be a part."""

    def hurt(self, cluster: Cluster, draw: random.Random) -> Any:
        """Do it; what is returned is given to ``heal``."""
        raise NotImplementedError

    def heal(self, cluster: Cluster, how: Any) -> None:
        """Undo it."""

    def strike(self, cluster: Cluster, trial: Trial, draw: random.Random) -> None:
        self._since = time.monotonic()
        said_before = len(cluster.log())
        how = self.hurt(cluster, draw)
        try:
            said = self._said(cluster, said_before)
            time.sleep(HOLD_SECONDS)
        finally:
            self.heal(cluster, how)
        self._until = time.monotonic()
        trial.check(
            "what is wrong is said", said or "nothing", any(part in said for part in self.says)
        )
        took = cluster.wait(
            lambda: bool(cluster.health().controller) and "store" not in cluster.health().troubles,
            "health without a complaint about the database",
            3 * self.limit_seconds,
        )
        trial.recovery_seconds = round(took, 2)

    def _said(self, cluster: Cluster, before: int) -> str:
        """What is said of the database, once it is."""
        deadline = time.monotonic() + NOTICED_SECONDS
        while time.monotonic() < deadline:
            if said := self.said(cluster, cluster.log()[before:]):
                return said
            time.sleep(0.1)
        return ""

    def said(self, cluster: Cluster, log: str) -> str:
        """What health says of the database; or has said since, which is in the log, too."""
        logged = log.partition("owl controller: store: ")[2].splitlines()
        return cluster.health().troubles.get("store", "") or (logged[0] if logged else "")

    def judge(self, cluster: Cluster, trial: Trial, publisher: Publisher, account: Account) -> None:
        check_latencies(trial, publisher, self._since, self._until)
        check_learned(cluster, trial, account)


def sqlite_of(cluster: Cluster) -> SqliteDatabase:
    """The database of a cluster that has one in a file."""
    assert isinstance(cluster.database, SqliteDatabase)
    return cluster.database


class DatabaseLocked(DatabaseFault):
    name = "database locked"
    strikes = "another process holds an exclusive lock on the SQLite file"
    says = ("locked",)

    def hurt(self, cluster: Cluster, draw: random.Random) -> sqlite3.Connection:
        other = sqlite3.connect(
            sqlite_of(cluster).path, isolation_level=None, check_same_thread=False, timeout=30.0
        )
        other.execute("BEGIN EXCLUSIVE")
        return other

    def heal(self, cluster: Cluster, how: sqlite3.Connection) -> None:
        with closing(how):
            how.execute("ROLLBACK")


class DiskFull(DatabaseFault):
    name = "disk full"
    strikes = (
        "the disk with the SQLite file is filled to the last byte (without the right to mount "
        "one: no file of the controllers may grow beyond 4 kB)"
    )
    says = ("full", "disk I/O error")

    def hurt(self, cluster: Cluster, draw: random.Random) -> Any:
        database = sqlite_of(cluster)
        if not database.is_disk:
            limit_files(cluster, FILE_BYTES)
            return None
        ballast = database.folder / "ballast"
        with ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1_024))
            except OSError:
                return ballast

    def heal(self, cluster: Cluster, how: Any) -> None:
        if how is None:
            limit_files(cluster, resource.RLIM_INFINITY)
        else:
            how.unlink()


def limit_files(cluster: Cluster, size: int) -> None:
    """Let no file of the controllers grow beyond this size."""
    for controller in cluster.controllers:
        if controller.is_running:
            _, hard = resource.prlimit(controller.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(controller.pid, resource.RLIMIT_FSIZE, (size, hard))


class DatabaseReadOnly(DatabaseFault):
    name = "database read-only"
    strikes = (
        "the controller that leads is killed, and the disk is read-only when the other one takes "
        "over (without the right to mount one: its files and folder are)"
    )
    says = ("cannot write",)

    def hurt(self, cluster: Cluster, draw: random.Random) -> None:
        leader = cluster.leader()
        assert leader is not None
        leader.kill_group()
        cluster.controllers.remove(leader)
        self._set(cluster, "ro")

    def heal(self, cluster: Cluster, how: Any) -> None:
        self._set(cluster, "rw")
        cluster.controllers.append(cluster.start_controller())

    def _set(self, cluster: Cluster, how: str) -> None:
        database = sqlite_of(cluster)
        if database.is_disk:
            database.remount(how)
            return
        for file in database.folder.iterdir():
            file.chmod(0o400 if how == "ro" else 0o600)
        database.folder.chmod(0o500 if how == "ro" else 0o700)


class DatabaseDamaged(DatabaseFault):
    name = "database file damaged"
    strikes = (
        "all of the SQLite file and its journal is overwritten with noise, and the controller that "
        "used it is killed"
    )
    must = (
        "publishing takes as long as before, every task runs; the log says what is wrong; the "
        "damaged file is moved aside, not deleted; all that the stream still has is learned again"
    )
    says = ("damaged",)

    def hurt(self, cluster: Cluster, draw: random.Random) -> None:
        path = sqlite_of(cluster).path
        for file in (path, path.with_name(path.name + "-wal")):
            if file.exists():
                with file.open("r+b") as opened:
                    opened.write(draw.randbytes(file.stat().st_size))
                    os.fsync(opened.fileno())
        leader = cluster.leader()
        assert leader is not None
        leader.kill_group()
        cluster.controllers.remove(leader)

    def heal(self, cluster: Cluster, how: Any) -> None:
        cluster.controllers.append(cluster.start_controller())

    def said(self, cluster: Cluster, log: str) -> str:
        lines = [line for line in log.splitlines() if "is damaged" in line]
        # A controller that is only starting says it without a date.
        return lines[0][lines[0].find("The database") :] if lines else ""

    def judge(self, cluster: Cluster, trial: Trial, publisher: Publisher, account: Account) -> None:
        super().judge(cluster, trial, publisher, account)
        aside = list(sqlite_of(cluster).folder.glob("owl.sqlite3.corrupt-*"))
        trial.check("the damaged file is there, moved aside", len(aside), bool(aside))


class PostgresKilled(DatabaseFault):
    name = "database killed"
    strikes = "SIGKILL of the Postgres server, which is started again after health has said so"
    plan = Plan(database="postgres")
    says = ("cannot reach",)

    def hurt(self, cluster: Cluster, draw: random.Random) -> None:
        assert isinstance(cluster.database, PostgresDatabase)
        cluster.database.server.kill()

    def heal(self, cluster: Cluster, how: Any) -> None:
        assert isinstance(cluster.database, PostgresDatabase)
        cluster.database.server.start_again()
