"""The configuration: four layers, one schema, and errors that say where and what instead."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from poolmgr.config import load as load_module
from poolmgr.config.load import KEYS, LoadedConfig, ValueOrigin, default_state_dir, describe, load_config
from poolmgr.config.schema import SECTIONS, Address, Leases, Supervision, Telemetry
from poolmgr.errors import ClientError, Reason
from poolmgr.model.pool import (
    EngineName,
    ModelSpec,
    PoolSpec,
    RestartMode,
    SplitMode,
    SplitSpec,
    SupervisionOverrides,
)
from poolmgr.model.settings import OVERRIDES, LeaseSettings, SupervisionSettings, TelemetrySettings, override

EXAMPLE = Path(load_module.__file__).with_name("example.toml")
HOME = {"HOME": "/home/someone", "PATH": "/bin"}


@pytest.fixture
def load(tmp_path: Path):
    """Loads a file of this text under these variables and flags."""

    def loaded(text: str | None = None, flags: dict | None = None, **environ: str) -> LoadedConfig:
        path = None
        if text is not None:
            path = tmp_path / "poolmgr.toml"
            path.write_text(text)
        return load_config(path, HOME | environ, flags or {})

    return loaded


@pytest.fixture
def refused(load):
    def refusal(*args, **kwargs) -> ClientError:
        with pytest.raises(ClientError) as error:
            load(*args, **kwargs)
        assert error.value.reason is Reason.INVALID_CONFIG
        return error.value

    return refusal


def uncommented(text: str) -> str:
    """The example with its example lines in force: those that begin with # and no space."""
    return re.sub(r"^#(?=[\[a-z])", "", text, flags=re.MULTILINE)


# Defaults


@pytest.mark.behaviour("CFG-1")
def test_without_anything_the_daemon_listens_on_port_9200_of_loopback(load):
    loaded = load()
    assert loaded.config.server.addr == Address("127.0.0.1", 9200)
    assert loaded.file is None
    assert loaded.config.pools == {}
    assert set(loaded.origins.values()) == {ValueOrigin.DEFAULT}
    assert set(loaded.origins) == set(KEYS)


@pytest.mark.behaviour("CFG-2")
def test_the_supervision_keys_have_the_published_names_and_defaults():
    published = {
        "health_check_interval_ms": 5000, "health_check_timeout_ms": 3000, "readiness_interval_ms": 500,
        "start_timeout_secs": 120, "backoff_initial_ms": 1000, "backoff_max_ms": 60000,
        "circuit_breaker_threshold": 5, "circuit_breaker_timeout_secs": 300, "restart_rate_limit": 10,
        "restart_window_secs": 60,
    }  # fmt: skip
    defaults = Supervision().model_dump()
    assert {key: defaults[key] for key in published} == published
    overridable = {field.name for field in fields(SupervisionOverrides)}
    assert published.keys() <= overridable <= defaults.keys()


def test_the_defaults_of_the_file_are_those_of_the_core():
    assert Supervision().settings() == SupervisionSettings()
    assert Leases().settings() == LeaseSettings()
    assert Telemetry().settings() == TelemetrySettings()


def test_every_key_of_a_section_reaches_its_setting():
    supervision = Supervision()
    for key in Supervision.model_fields.keys() - {"drain_deadline_secs"}:  # read where a declared pool is
        changed = supervision.model_copy(update={key: (getattr(supervision, key) or 1) * 2})
        assert changed.settings() != supervision.settings(), key
    for key in Leases.model_fields:
        assert Leases().model_copy(update={key: 777}).settings() != LeaseSettings(), key
    for key in Telemetry.model_fields:
        assert Telemetry().model_copy(update={key: 777}).settings() != TelemetrySettings(), key


@pytest.mark.behaviour("CFG-2")
def test_a_pool_overrides_each_overridable_setting_in_its_own_unit_and_no_other():
    assert set(OVERRIDES) == {field.name for field in fields(SupervisionOverrides)}
    for key in OVERRIDES:
        value = 2 if key.endswith(("threshold", "limit", "failures")) else 7000
        changed = override(SupervisionSettings(), SupervisionOverrides(**{key: value}))
        assert changed == Supervision.model_validate({key: value}, strict=False).settings(), key
        assert changed != SupervisionSettings(), key
    assert override(SupervisionSettings(), SupervisionOverrides()) == SupervisionSettings()


def test_the_state_directory_is_roots_on_the_host_and_anyone_elses_at_home(monkeypatch):
    assert default_state_dir({"XDG_STATE_HOME": "/xdg", "HOME": "/h"}) == "/xdg/poolmgr"
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert default_state_dir({"HOME": "/root"}) == "/var/lib/poolmgr"
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert default_state_dir({"XDG_STATE_HOME": "relative", "HOME": "/h"}) == "/h/.local/state/poolmgr"
    with pytest.raises(ClientError, match=r"state\.dir: is required"):
        load_config(None, {}, {})


# Layers


@pytest.mark.behaviour("CFG-1")
def test_a_flag_wins_over_the_environment_the_environment_over_the_file_and_the_file_over_the_default(load):
    loaded = load(
        "[supervision]\nbackoff_max_ms = 1\nrestart_rate_limit = 1\nhealth_check_failures = 1\n",
        {"supervision.backoff_max_ms": 3},
        POOL_MANAGERD_SUPERVISION_BACKOFF_MAX_MS="2",
        POOL_MANAGERD_SUPERVISION_RESTART_RATE_LIMIT="2",
    )
    supervision = loaded.config.supervision
    keys = ("backoff_max_ms", "restart_rate_limit", "health_check_failures", "circuit_breaker_threshold")
    assert [getattr(supervision, key) for key in keys] == [3, 2, 1, 5]
    assert [loaded.origins[f"supervision.{key}"] for key in keys] == ["flag", "environment", "file", "default"]


@pytest.mark.behaviour("CFG-1")
def test_every_key_can_be_set_by_the_environment_under_its_section_and_name(load):
    values = {key: value for key, value, _ in describe(load())}
    environ = {
        f"POOL_MANAGERD_{key.replace('.', '_').upper()}": str(value).lower() if isinstance(value, bool) else str(value)
        for key, value in values.items()
    }
    loaded = load(**environ)
    assert {key: value for key, value, _ in describe(loaded)} == values
    assert set(loaded.origins.values()) == {ValueOrigin.ENVIRONMENT}


@pytest.mark.behaviour("CFG-1")
def test_the_address_has_a_short_name_in_the_environment(load, refused):
    loaded = load(POOL_MANAGERD_ADDR="localhost:0")
    assert loaded.config.server.addr == Address("localhost", 0)
    assert loaded.origins["server.addr"] == "environment"
    twice = refused(POOL_MANAGERD_ADDR="localhost:1", POOL_MANAGERD_SERVER_ADDR="localhost:2")
    assert "POOL_MANAGERD_SERVER_ADDR" in twice.message
    assert "POOL_MANAGERD_ADDR" in twice.message


def test_the_environment_names_the_file_unless_a_flag_does(tmp_path: Path):
    for name, level in (("environment.toml", "debug"), ("flag.toml", "error")):
        (tmp_path / name).write_text(f'[observability]\nlog_level = "{level}"\n')
    environ = HOME | {"POOL_MANAGERD_CONFIG": str(tmp_path / "environment.toml")}
    assert load_config(None, environ, {}).config.observability.log_level == "debug"
    loaded = load_config(tmp_path / "flag.toml", environ, {})
    assert loaded.config.observability.log_level == "error"
    assert loaded.file == tmp_path / "flag.toml"


def test_a_flag_that_was_not_given_changes_nothing(load):
    loaded = load(flags={"server.addr": None, "state.dir": Path("/srv/state")})
    assert loaded.config.server.addr.port == 9200
    assert loaded.config.state.dir == Path("/srv/state")
    assert (loaded.origins["server.addr"], loaded.origins["state.dir"]) == ("default", "flag")


# Addresses


@pytest.mark.behaviour("CFG-1", "SEC-1")
@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9200", Address("127.0.0.1", 9200)),
        ("127.8.8.8:65535", Address("127.8.8.8", 65535)),
        ("[::1]:0", Address("::1", 0)),
        ("localhost:80", Address("localhost", 80)),
    ],
)
def test_a_loopback_address_is_taken_apart_and_put_together_again(load, text: str, address: Address):
    loaded = load(POOL_MANAGERD_ADDR=text)
    assert loaded.config.server.addr == address
    assert ("server.addr", text, "environment") in describe(loaded)


@pytest.mark.behaviour("CFG-1", "SEC-1")
@pytest.mark.parametrize("text", ["0.0.0.0:9200", "[::]:9200", "192.168.1.4:1", "10.0.0.1:1", "example.org:443"])
def test_an_address_that_others_can_reach_is_refused_until_there_is_authentication(refused, text: str):
    message = refused(f'[server]\naddr = "{text}"\n').message
    assert text in message
    assert "TLS and authentication" in message


@pytest.mark.behaviour("CFG-1")
@pytest.mark.parametrize(
    "text", ["", "127.0.0.1", ":9200", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:http", "::1:9200",
             "127.0.0.1:9²", "localhost:1 "]
)  # fmt: skip
def test_a_bad_address_is_an_error_that_names_it(refused, text: str):
    error = refused(POOL_MANAGERD_ADDR=text)
    assert repr(text) in error.message
    assert "POOL_MANAGERD_ADDR: server.addr" in error.message


# Errors


@pytest.mark.behaviour("CFG-1")
@pytest.mark.parametrize(
    ("text", "line", "key", "nearest"),
    [
        ("[supervision]\n\nbackof_max_ms = 1\n", 3, "supervision.backof_max_ms", "backoff_max_ms"),
        ("[server]\n[leasse]\nttl = 1\n", 2, "leasse", "leases"),
        ("adr = 1\n", 1, "adr", "state"),
        ('[pools.chat]\nengine = "COMMAND"\nslotz = 1\n', 3, "pools.chat.slotz", "slots"),
        ('[pools.chat]\nengine = "COMMAND"\nmodel = { pth = "/m" }\n', 3, "pools.chat.model.pth", "path"),
    ],
)
def test_an_unknown_key_is_an_error_with_its_line_and_the_nearest_known_name(refused, text, line, key, nearest):
    error = refused(text)
    assert error.numbers["line"] == line
    assert error.numbers["key"] == key
    assert f"poolmgr.toml:{line}: {key}: unknown key" in error.message
    assert f"nearest known one is '{nearest}'" in error.message


@pytest.mark.behaviour("CFG-1")
@pytest.mark.parametrize("section", ["devices", "placement", "alerts", "jobs", "containers", "tuning", "security"])
def test_a_section_that_nothing_uses_yet_is_as_unknown_as_any(refused, section: str):
    assert f"{section}: unknown key {section!r}" in refused(f"[{section}]\nanything = 1\n").message


@pytest.mark.behaviour("CFG-1")
def test_an_unknown_variable_or_flag_is_an_error_with_the_nearest_known_name(refused):
    variable = refused(POOL_MANAGERD_SUPERVISION_BACKOF_MAX_MS="1").message
    assert "nearest known one is 'POOL_MANAGERD_SUPERVISION_BACKOFF_MAX_MS'" in variable
    assert "nearest known one is 'server.addr'" in refused(flags={"server.adr": "x"}).message


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ('[supervision]\nbackoff_max_ms = "60000"\n', 2, "supervision.backoff_max_ms"),
        ("[supervision]\nhealth_check_failures = true\n", 2, "supervision.health_check_failures"),
        ("[supervision]\nhealth_check_failures = 2.5\n", 2, "supervision.health_check_failures"),
        ("[supervision]\nstall_timeout_secs = nan\n", 2, "supervision.stall_timeout_secs"),
        ("[supervision]\nstall_timeout_secs = inf\n", 2, "supervision.stall_timeout_secs"),
        ("[supervision]\nstart_timeout_secs = 1979-05-27\n", 2, "supervision.start_timeout_secs"),
        ("# a\n[server]\n# b\nreflection = 1\n", 4, "server.reflection"),
        ("[server]\naddr = 9200\n", 2, "server.addr"),
        ('[observability]\nlog_level = "loud"\n', 2, "observability.log_level"),
        ('[state]\ndir = "relative"\n', 2, "state.dir"),
        ("leases = 3\n", 1, "leases"),
        ("[leases]\nmax_waiters = 0\n", 2, "leases.max_waiters"),
        ("[leases]\nttl_min_secs = 20\n", 1, "leases"),
        ("[supervision]\nbackoff_max_ms = 10\nbackoff_initial_ms = 20\n", 1, "supervision"),
        ('[pools.chat]\nengine = "llama"\n', 2, "pools.chat.engine"),
        ("[pools.chat]\nslots = 1\n", 1, "pools.chat.engine"),
        ('[pools.Chat]\nengine = "COMMAND"\n', 1, "pools.Chat"),
        ('[pools.c]\nengine = "COMMAND"\nargs = [\n "a",\n 2,\n]\n', 3, "pools.c.args.1"),
        ('[pools.c]\nengine = "COMMAND"\nargs = 1979-05-27\n', 3, "pools.c.args.0"),
        ('[pools.c]\nengine = "COMMAND"\n[pools.c.env]\nA = 1\n', 4, "pools.c.env.A"),
        ('[pools.c]\nengine = "COMMAND"\nslots = 5000\n', 1, "pools.c"),
        ('[pools.c]\nengine = "COMMAND"\n[pools.c.supervision]\nbackoff_max_ms = 0\n', 1, "pools.c"),
    ],
)
def test_a_wrong_value_is_an_error_with_its_file_line_and_key(refused, text: str, line: int, key: str):
    error = refused(text)
    assert error.numbers["key"] == key
    assert error.numbers["line"] == line
    assert f"poolmgr.toml:{line}: {key}: " in error.message


@pytest.mark.parametrize(
    "key",
    [key for key in KEYS if key.split(".")[0] in ("supervision", "leases")]
    + [
        f"telemetry.{key}"
        for key in ("rate_hz", "depth_secs", "max_bytes", "discovery_interval_secs", "stall_limit_secs")
    ],
)
@pytest.mark.parametrize("value", ["-1", "1e300", "many", ""])
def test_no_number_is_without_bounds(refused, key: str, value: str):
    variable = f"POOL_MANAGERD_{key.replace('.', '_').upper()}"
    assert f"{variable}: {key}" in refused(**{variable: value}).message


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ("slots = 0", "slots"),
        ("port = 65536", "port"),
        ("drain_deadline = -1", "drain_deadline"),
        ("priority = 3000000000", "priority"),
        ('args = ["\\u0000"]', "args"),
        ('env = { "A=B" = "" }', "env.A=B"),
        ('model = { path = "relative.gguf" }', "model.path"),
        ('model = { digest = "sha256:12" }', "model.digest"),
        ("model = { context_length = -1 }", "model.context_length"),
        ("liveness = { failure_threshold = -1 }", "liveness.failure_threshold"),
        ("readiness = { timeout = -0.5 }", "readiness.timeout"),
        ('readiness = { path = "health" }', "readiness.path"),
        ('engine = "LLAMACPP"\nreadiness = { kind = "NONE" }', "readiness.kind"),
        ("supervision = { start_timeout_secs = 86401 }", "supervision.start_timeout_secs"),
        ('split = { mode = "AUTO", ratios = [1, 1] }', "split.ratios"),
        ('split = { mode = "EXPLICIT", ratios = [1, -1] }', "split.ratios[1]"),
    ],
)
def test_a_declared_pool_that_can_never_run_is_refused_by_field(refused, changes: str, field: str):
    engine = "" if changes.startswith("engine") else 'engine = "COMMAND"\n'
    assert f"pools.c: {field} " in refused(f"[pools.c]\n{engine}{changes}\n").message


def test_every_problem_is_told_at_once(refused):
    message = refused("[server]\nadr = 1\n[leases]\nmax_waiters = 0\n", POOL_MANAGERD_NOPE="1").message
    assert len(message.splitlines()) == 3


@pytest.mark.parametrize(
    ("content", "line"),
    [(b"[server\naddr = 1\n", 1), (b"a = 1\nb = \n", 2), (b"a = 1\na = 2\n", 2), (b"\xff\xfe", None)],
)
def test_a_file_that_is_not_toml_is_an_error_with_its_line(tmp_path: Path, content: bytes, line: int | None):
    file = tmp_path / "bad.toml"
    file.write_bytes(content)
    with pytest.raises(ClientError) as error:
        load_config(file, HOME, {})
    assert error.value.reason is Reason.INVALID_CONFIG
    assert error.value.numbers["file"] == str(file)
    assert error.value.numbers.get("line") == line


def test_a_file_that_cannot_be_read_is_an_error_that_names_it(tmp_path: Path):
    for file in (tmp_path / "missing.toml", tmp_path):
        with pytest.raises(ClientError, match=re.escape(str(file))):
            load_config(file, HOME, {})


@pytest.mark.behaviour("CFG-3")
def test_a_file_with_one_bad_pool_gives_none_of_its_pools(load, refused):
    good = '[pools.good]\nengine = "COMMAND"\n'
    before = load(good)
    refused(good + '[pools.bad]\nengine = "NONE"\n')
    assert before.config.pools == {"good": PoolSpec(EngineName.COMMAND)}


# Declared pools


@pytest.mark.behaviour("SPLIT-2")
def test_a_declared_pool_may_say_how_it_is_split(load):
    loaded = load('[pools.c]\nengine = "COMMAND"\nsplit = { mode = "EXPLICIT", ratios = [3, 1.5] }\n')
    assert loaded.config.pools["c"].split == SplitSpec(SplitMode.EXPLICIT, (3.0, 1.5))


@pytest.mark.behaviour("CFG-3")
def test_a_declared_pool_is_the_spec_that_the_api_would_have_made(load):
    loaded = load(
        '[pools.chat]\nengine = "LLAMACPP"\nargs = ["-v", "{port}"]\nslots = 4\nrestart = "ALWAYS"\n'
        '[pools.chat.model]\npath = "/m.gguf"\n[pools.chat.supervision]\nstart_timeout_secs = 7\n'
    )
    assert loaded.config.pools["chat"] == PoolSpec(
        EngineName.LLAMACPP,
        model=ModelSpec(path="/m.gguf"),
        args=("-v", "{port}"),
        slots=4,
        restart=RestartMode.ALWAYS,
        supervision=SupervisionOverrides(start_timeout_secs=7),
    )
    assert loaded.origins["pools.chat"] == "file"
    assert ("pools.chat", "file") in [(key, origin) for key, _, origin in describe(loaded)]


def test_a_declared_pool_takes_the_drain_deadline_of_the_file_unless_it_names_one(load):
    pools = load(
        "[supervision]\ndrain_deadline_secs = 9\n"
        '[pools.a]\nengine = "COMMAND"\n[pools.b]\nengine = "COMMAND"\ndrain_deadline = 8\n'
    ).config.pools
    assert (pools["a"].drain_deadline, pools["b"].drain_deadline) == (9.0, 8.0)


# The example


def test_the_example_lists_every_key_with_its_default_and_no_other(load):
    text = EXAMPLE.read_text()
    listed = tomllib.loads(uncommented(text))
    assert listed.pop("pools")
    assert {f"{section}.{key}" for section, table in listed.items() for key in table} == set(KEYS)
    assert list(listed) == list(SECTIONS)
    example, defaults = load(text), load()
    assert example.config == defaults.config
    assert {key for key, origin in example.origins.items() if origin == "default"} == {"state.dir"}


def test_the_lines_that_the_example_leaves_out_are_valid_too(load):
    loaded = load(uncommented(EXAMPLE.read_text()))
    assert loaded.config.pools["chat"].slots == 4
    assert "default" not in loaded.origins.values()
