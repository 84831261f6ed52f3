"""An account: its databases and their containers, by name and by `_rid`."""

import itertools
import time
from typing import Any

from tests.support.cosmos.containers import Container, new_etag, resource_id
from tests.support.cosmos.errors import OWNER_NOT_FOUND, ServiceError, bad_request, not_found
from tests.support.cosmos.items import check_id
from tests.support.cosmos.journal import Journal, SqliteJournal
from tests.support.cosmos.queries import Searcher

MIN_THROUGHPUT = 400


class Database:
    """A database: containers by name."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.number = number
        self.rid = resource_id(number)
        self.etag = new_etag()
        self.changed = int(time.time())
        self.containers: dict[str, Container] = {}
        self.numbers = itertools.count(0x8000_0001)

    def describe(self) -> dict[str, Any]:
        """The database as a client reads it."""
        return {
            "id": self.name,
            "_rid": self.rid,
            "_self": f"dbs/{self.rid}/",
            "_etag": self.etag,
            "_colls": "colls/",
            "_users": "users/",
            "_ts": self.changed,
        }


class Account:
    """All that one endpoint serves."""

    def __init__(self, *, physical_partitions: int = 4, journal: Journal | None = None) -> None:
        self.physical_partitions = physical_partitions
        self.journal = journal or Journal()
        self.databases: dict[str, Database] = {}
        self.searchers: dict[str, Searcher] = {}
        self._numbers = itertools.count(1)
        if isinstance(journal, SqliteJournal):
            self._restore(journal)

    # ------------------------------------------------------------ databases

    def database(self, name: str) -> Database:
        """A database by name or `_rid`.

        Raises:
            ServiceError: 404.
        """
        found = self.databases.get(name)
        if found is None:
            found = next((one for one in self.databases.values() if one.rid == name), None)
        if found is None:
            raise not_found()
        return found

    def create_database(self, definition: dict[str, Any]) -> Database:
        """A new database.

        Raises:
            ServiceError: 409 if the name is taken.
        """
        name = check_id(definition.get("id"))
        if name in self.databases:
            raise _exists()
        return self._add_database(name, next(self._numbers))

    def _add_database(self, name: str, number: int) -> Database:
        database = Database(name, number)
        self.databases[name] = database
        self.journal.put_database(name, number)
        self.journal.commit()
        return database

    def delete_database(self, name: str) -> None:
        """A database and all in it."""
        database = self.database(name)
        for container in list(database.containers):
            self.delete_container(database, container)
        del self.databases[database.name]
        self.journal.remove_database(database.name)
        self.journal.commit()

    # ------------------------------------------------------------ containers

    def container(self, database: str, name: str) -> Container:
        """A container by names or `_rid`s.

        Raises:
            ServiceError: 404; with sub-status 1003 where the database is missing.
        """
        try:
            owner = self.database(database)
        except ServiceError:
            raise not_found(OWNER_NOT_FOUND) from None
        found = owner.containers.get(name)
        if found is None:
            found = next((one for one in owner.containers.values() if one.rid == name), None)
        if found is None:
            raise not_found()
        return found

    def create_container(
        self,
        database: Database,
        definition: dict[str, Any],
        throughput: dict[str, Any] | None = None,
    ) -> Container:
        """A new container.

        Raises:
            ServiceError: 409 if the name is taken, whatever the definition says.
        """
        name = check_id(definition.get("id"))
        if name in database.containers:
            raise _exists()
        return self._add_container(database, next(database.numbers), definition, throughput)

    def _add_container(
        self,
        database: Database,
        number: int,
        definition: dict[str, Any],
        throughput: dict[str, Any] | None,
    ) -> Container:
        container = Container(
            definition,
            database_name=database.name,
            database_number=database.number,
            number=number,
            physical_partitions=self.physical_partitions,
            journal=self.journal,
        )
        container.throughput = throughput
        database.containers[container.name] = container
        self.searchers[container.rid] = Searcher(container)
        self._keep(container)
        return container

    def _keep(self, container: Container) -> None:
        self.journal.put_container(
            container.path, container.number, container.definition, container.throughput
        )
        self.journal.commit()

    def replace_container(self, container: Container, definition: dict[str, Any]) -> None:
        """Change what may be changed: the indexing policy and the default TTL.

        Raises:
            ServiceError: 400 for another partition key.
        """
        given = definition.get("partitionKey")
        if (
            given is not None
            and given.get("paths") != container.definition["partitionKey"]["paths"]
        ):
            raise bad_request("The partition key definition of a container cannot be changed.")
        container.redefine({**container.definition, **definition})
        self._keep(container)

    def delete_container(self, database: Database, name: str) -> None:
        """A container and all in it."""
        container = self.container(database.name, name)
        del database.containers[container.name]
        del self.searchers[container.rid]
        self.journal.remove_container(container.path)
        self.journal.commit()

    def all_containers(self) -> list[Container]:
        """Every container of every database."""
        return [one for owner in self.databases.values() for one in owner.containers.values()]

    def _restore(self, journal: SqliteJournal) -> None:
        for name, number in journal.databases():
            self._add_database(name, number)
            self._numbers = itertools.count(number + 1)
        for path, number, definition, throughput in journal.containers():
            database = self.databases[path.split("/")[0]]
            container = self._add_container(database, number, definition, throughput)
            database.numbers = itertools.count(number + 1)
            for key, item_number, body in journal.items(path):
                container.restore(key, item_number, body)


def _exists() -> ServiceError:
    return ServiceError(
        409,
        "Resource with specified id, name, or unique index already exists. "
        "Learn more: https://aka.ms/cosmosdb-tsg-conflict",
    )
