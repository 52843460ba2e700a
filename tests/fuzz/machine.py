"""State: connections, cursors, registering, threads and engines in any order; each answer has Python's bytes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import duckdb
import pyarrow as pa
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from robustness.harness import same
from support.engines import BY_NAME, RESULTS, normalised, sql_literal
from support.samples import bell, column

import aq2_pipeline
import aq2_pipeline.duckdb
from aq2_pipeline import EngineError, schemes
from fuzz.values import Figures

#: Rows that every scheme can hold: whole super-blocks.
WEIGHTS = column(bell(512, 1), None, bell(256, 2), [], bell(768, 3))
SCHEMES = ["int4_g32", "int3_channel_asym", "int8_tensor:mse", "nf4_g64", "fp8_e4m3_g32:search", "q4_0", "q4_k", "q6_k"]
SCHEMES += ["mxfp4", "nvfp4_tensor", "int4_g64_rot64", "tq2_0", "iq4_nl", "bf16", "f16"]
SCHEME = st.sampled_from(SCHEMES)
_EXPECTED: dict[tuple[str, str], pa.Array] = {}


def expected(function, scheme):
    """Return what Python gives on one thread, the first time that it is asked."""
    key = function, scheme
    if key not in _EXPECTED:
        if function == "dequantize":
            _EXPECTED[key] = aq2_pipeline.dequantize(expected("quantize", scheme), threads=1)
        else:
            _EXPECTED[key] = getattr(aq2_pipeline, function)(WEIGHTS, scheme, threads=1)
    return _EXPECTED[key]


@dataclass
class Database:
    """A database, the connection that registers, what is open on it, and whether it has the functions, and how."""

    first: duckdb.DuckDBPyConnection
    path: str | None
    cursors: list[duckdb.DuckDBPyConnection] = field(default_factory=list)


class Engines(RuleBasedStateMachine):
    """What a session may do. `steps` counts all of them."""

    steps = 0

    def __init__(self):
        super().__init__()
        self.databases: list[Database] = []

    @initialize()
    def begin(self):
        """Start with no family of another example, and with all threads."""
        aq2_pipeline.set_threads(None)

    def _database(self, k):
        type(self).steps += 1
        return self.databases[k % len(self.databases)]

    def _check(self, con, function, scheme, *, through_table):
        """Ask a connection, and hold the answer against Python's."""
        given, arguments = (
            (expected("quantize", scheme), "x") if function == "dequantize" else (WEIGHTS, f"x, {sql_literal(scheme)}")
        )
        source = pa.table({"k": pa.array(range(len(given))), "x": given})
        con.register("given", source)
        if through_table:
            con.execute("CREATE OR REPLACE TEMP TABLE held AS FROM given")
        name = "held" if through_table else "given"
        query = f"SELECT aq2_{function}({arguments}) AS y FROM {name} ORDER BY k"  # noqa: S608 - our own words
        found = normalised(con.sql(query).to_arrow_table()["y"], RESULTS[function])
        con.unregister("given")
        assert same(found, expected(function, scheme)), (function, scheme)

    @rule(native=st.booleans(), threads=st.sampled_from([1, 2, 4]))
    @precondition(lambda self: len(self.databases) < 4)
    def open(self, native, threads):
        """Open a database, with native functions or none."""
        type(self).steps += 1
        config = {"threads": threads}
        con = aq2_pipeline.duckdb.connect(config=config) if native else duckdb.connect(config=config)
        self.databases.append(Database(con, "native" if native else None))

    @rule(k=st.integers(0, 3))
    @precondition(lambda self: self.databases)
    def register(self, k):
        """Register, once more too."""
        database = self._database(k)
        aq2_pipeline.register(database.first)
        database.path = database.path or "arrow"

    @rule(k=st.integers(0, 3))
    @precondition(lambda self: self.databases)
    def unregister(self, k):
        """Take the functions back; native ones stay, and that is told."""
        database = self._database(k)
        if database.path == "native":
            try:
                aq2_pipeline.unregister(database.first)
            except EngineError:
                return
            message = "native functions are not taken back"
            raise AssertionError(message)
        aq2_pipeline.unregister(database.first)
        database.path = None

    @rule(k=st.integers(0, 3))
    @precondition(lambda self: self.databases)
    def cursor(self, k):
        """Open a cursor."""
        database = self._database(k)
        database.cursors.append(database.first.cursor())

    @rule(k=st.integers(0, 3))
    @precondition(lambda self: any(database.cursors for database in self.databases))
    def close_cursor(self, k):
        """Close the newest cursor of a database."""
        database = self._database(k)
        if database.cursors:
            database.cursors.pop().close()

    @rule(k=st.integers(0, 3))
    @precondition(lambda self: self.databases)
    def close(self, k):
        """Close a database and all of its cursors."""
        database = self._database(k)
        for con in [*database.cursors, database.first]:
            con.close()
        self.databases.remove(database)

    @rule(n=st.sampled_from([1, 2, 3, 8, None]))
    def set_threads(self, n):
        """Use other threads from now on."""
        type(self).steps += 1
        aq2_pipeline.set_threads(n)

    @rule(
        k=st.integers(0, 3),
        c=st.integers(0, 3),
        scheme=SCHEME,
        function=st.sampled_from(list(RESULTS)[:3]),
        held=st.booleans(),
    )
    @precondition(lambda self: self.databases)
    def ask(self, k, c, scheme, function, held):
        """Ask a connection or a cursor."""
        database = self._database(k)
        con = [database.first, *database.cursors][c % (1 + len(database.cursors))]
        assert aq2_pipeline.duckdb.path(con) == database.path
        if database.path is None:
            try:
                con.sql("SELECT aq2_quantize([1.0], 4)")
            except duckdb.CatalogException:
                return
            message = "functions that were taken back are there"
            raise AssertionError(message)
        self._check(con, function, scheme, through_table=held)

    @rule(k=st.integers(0, 3), scheme=st.sampled_from(["int9_g32", "q4_0:nope", "nf4", "int4_g32@bf16"]))
    @precondition(lambda self: self.databases)
    def fail(self, k, scheme):
        """Ask for what cannot be; the connection goes on."""
        database = self._database(k)
        if database.path is None:
            return
        try:
            database.first.sql(f"SELECT aq2_quantize([1.0, 'NaN'::FLOAT], '{scheme}')").fetchall()
        except duckdb.Error as error:
            assert "aq2_quantize: " in str(error)  # noqa: PT017 - what follows is asked of the same connection
            return
        message = "taken"
        raise AssertionError(message)

    @rule(
        engine=st.sampled_from([name for name in BY_NAME if not name.startswith("duckdb")]),
        scheme=SCHEME,
        function=st.sampled_from(list(RESULTS)[:3]),
    )
    def elsewhere(self, engine, scheme, function):
        """Ask another engine in between."""
        type(self).steps += 1
        arguments = (expected("quantize", scheme),) if function == "dequantize" else (WEIGHTS, scheme)
        if BY_NAME[engine].supports(function, *arguments):
            assert same(BY_NAME[engine].run(function, *arguments), expected(function, scheme)), (engine, scheme)

    @rule(take_back=st.booleans())
    def forget_schemes(self, take_back):
        """Add a family and take it back, so that every adapter forgets what it has parsed."""
        type(self).steps += 1
        family = schemes.Family("fuzzed_{group}", schemes.FAMILIES[0].codec, schemes.FAMILIES[0].params, 2)
        schemes.add_family(family)
        found = aq2_pipeline.quantize(WEIGHTS, "fuzzed_g32")
        schemes.remove_family(family)
        held = expected("quantize", "int4_g32")
        assert len(found) == len(held)
        if take_back:
            try:
                aq2_pipeline.dequantize(found)
            except aq2_pipeline.SchemeError:
                return
            message = "a family that is gone is still read"
            raise AssertionError(message)

    def teardown(self):
        """Close everything."""
        for database in self.databases:
            for con in [*database.cursors, database.first]:
                con.close()
        aq2_pipeline.set_threads(None)


def run(n, number=None, steps=30):
    """Try n sequences of so many steps; `number` is a seed, or None for the same everywhere."""

    class Seeded(Engines):
        _hypothesis_internal_use_seed = number

    chosen = settings(
        max_examples=n,
        stateful_step_count=steps,
        derandomize=number is None,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
        report_multiple_bugs=False,
    )
    run_state_machine_as_test(Seeded, settings=chosen)
    return Seeded.steps


def fuzz(budget, first=0, *, at_once=5):
    """Try sequences for as long as a budget allows; a failure is noted with its seed, and the next seed tried."""
    figures = Figures()
    for number in itertools.count(first):
        if not budget(number):
            return {"sequences": figures}
        try:
            figures.inputs += run(at_once, number)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            told = [repr(error), *getattr(error, "__notes__", [])]
            figures.crashes.append({"input": f"state-{number}", "kind": "defect", "text": "\n".join(told)[:6000]})
    return {"sequences": figures}
