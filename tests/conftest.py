"""Fixtures that all tests share."""

import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from tests.support import object_stores
from tests.support.databases import Database, open_database, sqlite_url
from tests.support.postgres import PostgresServer, postgres_server
from tests.support.recorded import NewPlace, Place, workloads_installed

from ledgerbeam.batch.registry.registry import Registry
from ledgerbeam.io.storage import stores

# A suite that a script has started in the background is deaf to Ctrl-C, and so would be all the
# programs that it starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine makes no test fail: nothing here is measured in time.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


@pytest.fixture(scope="session")
def gcs() -> Iterator[str]:
    """The URI of a bucket of Cloud Storage, found by this process and by those it starts."""
    with object_stores.google_cloud_storage() as store:
        yield from _in_use(store)


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The URI of a bucket of S3, found by this process and by those it starts."""
    with object_stores.amazon_s3() as store:
        yield from _in_use(store)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A running PostgreSQL; tests make databases of their own in it."""
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def new_schema(postgres: PostgresServer) -> Callable[[], str]:
    """Gives the URL of an empty schema, which takes a hundredth of the time of a database."""
    import psycopg

    def create() -> str:
        name = f"test_{uuid.uuid4().hex}"
        with psycopg.connect(postgres.url().replace("+psycopg", "")) as connection:
            connection.execute(f"CREATE SCHEMA {name}")
        return f"{postgres.url()}?options=-csearch_path%3D{name}"

    return create


@pytest.fixture(params=["sqlite", "postgresql"])
def registry_url(request: pytest.FixtureRequest) -> str:
    """The URL of a registry that isn't there yet, on each kind of database."""
    if request.param == "sqlite":
        return f"sqlite:///{request.getfixturevalue('tmp_path')}/registry.db"
    url: str = request.getfixturevalue("new_schema")()
    return url


@pytest.fixture
def registry(registry_url: str) -> Iterator[Registry]:
    with Registry.open(registry_url) as registry:
        yield registry


@pytest.fixture
def engine(registry: Registry, registry_url: str) -> Iterator[sa.Engine]:
    """Another way into the registry's database, by which anything can be tried."""
    engine = sa.create_engine(registry_url)
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", lambda c, _: c.execute("PRAGMA foreign_keys = ON"))
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def postgres_database(postgres: PostgresServer) -> Iterator[Database]:
    with open_database(postgres.create_database()) as database:
        yield database


@pytest.fixture(scope="session")
def sqlite_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    with open_database(sqlite_url(tmp_path_factory.mktemp("sqlite"))) as database:
        yield database


@pytest.fixture(
    scope="session", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)]
)
def database(request: pytest.FixtureRequest) -> Database:
    """A database of each kind, shared by all tests."""
    fixture = {"sqlite": "sqlite_database", "postgresql": "postgres_database"}[request.param]
    found: Database = request.getfixturevalue(fixture)
    return found


@pytest.fixture(scope="module")
def lease() -> float:
    """Seconds for which a launcher in `base` may be silent."""
    return 2.0


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, lease: float) -> Iterator[Path]:
    """A folder for recorded runs of the tests' workloads, which are there for a module's tests."""
    folder = tmp_path_factory.mktemp("base")
    with workloads_installed(folder / "state", lease):
        yield folder


@pytest.fixture
def new_place(tmp_path: Path, base: Path) -> Iterator[NewPlace]:
    """Makes places of recorded runs; what goes on there is brought to its end after the test."""
    places = []

    def make(process: str = "counting", url: str = "") -> Place:
        url = url or f"sqlite:///{tmp_path}/registry.db"
        places.append(Place(tmp_path / "place", url, process))
        return places[-1]

    yield make
    for place in places:
        place.let_go()


@pytest.fixture
def place(new_place: NewPlace) -> Place:
    """A place where nothing has run yet."""
    return new_place()


@pytest.fixture(
    params=[
        "local",
        pytest.param("gs", marks=pytest.mark.slow),
        pytest.param("s3", marks=pytest.mark.slow),
    ]
)
def root(request: pytest.FixtureRequest) -> str:
    """The URI of a place that holds nothing, on each kind of storage."""
    if request.param == "local":
        return str(request.getfixturevalue("tmp_path"))
    bucket = request.getfixturevalue({"gs": "gcs", "s3": "s3"}[request.param])
    return f"{bucket}/{uuid.uuid4().hex}"


def _in_use(store: object_stores.ObjectStore) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in store.env.items():
            patch.setenv(name, value)
        stores._store.cache_clear()
        yield store.bucket
    stores._store.cache_clear()
