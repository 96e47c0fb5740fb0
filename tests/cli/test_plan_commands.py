"""`poolmgr plan`, with a daemon and without, and the client's calls of PlacementService."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import grpc
import pytest
from google.protobuf.json_format import Parse

from poolmgr.cli.show_plan import BAR_WIDTH, bar
from poolmgr.client import Client
from poolmgr.testing.gguf import write_tiny_llama
from poolmgr.v1 import placement_pb2 as pb
from poolmgr.v1 import pool_pb2
from tests.cli.scripted_daemon import READY, refusing

GIB = 1 << 30
PLAN = pb.SplitPlan(
    fits=True,
    objective=pb.MIN_BOTTLENECK,
    assignments=[
        {
            "device_id": "GPU-b",
            "first_layer": 0,
            "last_layer": 19,
            "weight_bytes": 10 * GIB,
            "kv_bytes": 4 * GIB,
            "overhead_bytes": GIB,
            "ratio": 0.625,
        },
        {
            "device_id": "GPU-a",
            "first_layer": 20,
            "last_layer": 31,
            "weight_bytes": 6 * GIB,
            "kv_bytes": 2 * GIB,
            "overhead_bytes": GIB,
            "ratio": 0.375,
        },
    ],
    ratios=[0.625, 0.375],
    bottleneck_seconds_per_token=0.0123,
    latency_seconds_per_token=0.0456,
    headroom_bytes={"GPU-b": 5 * GIB, "GPU-a": GIB},
    optimal=True,
    context_length=8192,
    explanation=["GPU-a limits it: \x1b[2J8 GiB more on it"],
    renderings={"ENGINE_LLAMACPP": {"args": ["--tensor-split", "20,12"], "env": {"A": "1"}}},
)
TOO_LARGE = pb.SplitPlan(
    objective=pb.MIN_LATENCY,
    refusal={"reason": pb.SplitPlan.Refusal.DOES_NOT_FIT, "missing_bytes": 3 * GIB, "message": "3 GiB more"},
    explanation=["context 4096 instead of 8192 fits"],
)
PLACED = pb.PlacementPlan(
    fits=True,
    device_ids=["GPU-b", "GPU-a"],
    reserve_bytes={"GPU-b": 15 * GIB, "GPU-a": 9 * GIB},
    split=PLAN,
    fates=[
        {"device_id": "GPU-b", "reason": "CHOSEN", "message": "the fastest"},
        {"device_id": "GPU-c", "reason": "QUARANTINED", "message": "XID 79"},
    ],
    evictions=["idle"],
)
ESTIMATE = pb.MemoryEstimate(
    model={
        "name": "m",
        "layers": [
            {"resident_bytes": GIB, "active_bytes": GIB, "kv_bytes": GIB},
            {"resident_bytes": 2 * GIB, "active_bytes": GIB, "kv_bytes": GIB},
            {"resident_bytes": 2 * GIB, "active_bytes": GIB, "kv_bytes": GIB},
        ],
        "context_length": 4096,
        "slots": 2,
    },
    weight_bytes=5 * GIB,
    kv_bytes=3 * GIB,
    overhead_bytes=GIB,
    one_device_bytes=9 * GIB,
    factor=1.25,
)
# Two devices, of which the slower one has the room: 8 layers of 1 GiB with 0.25 GiB of cache each.
REQUEST = {
    "model": {"layers": [{"resident_bytes": GIB, "active_bytes": GIB, "kv_bytes": GIB // 4}] * 8},
    "devices": [
        {"device_id": "fast", "vram_free_bytes": str(6 * GIB), "memory_bandwidth_bytes_per_second": 2e12},
        {"device_id": "slow", "vram_free_bytes": 9 * GIB, "memory_bandwidth_bytes_per_second": 5e11},
    ],
    "default_hop_seconds": 1e-5,
    "objective": "MIN_BOTTLENECK",
}


@pytest.fixture
def request_file(tmp_path):
    """Writes a request, given as a document or as text."""

    def write(document) -> str:
        file = tmp_path / "request.json"
        file.write_text(document if isinstance(document, str) else json.dumps(document))
        return str(file)

    return write


# Without a daemon.


@pytest.fixture
def alone(run, unused_address, monkeypatch):
    monkeypatch.setenv("POOL_MANAGERD_ADDR", unused_address)
    return run


@pytest.mark.behaviour("SPLIT-2", "SPLIT-4")
def test_a_request_is_planned_without_a_daemon_and_its_ratios_sum_to_1(alone, request_file):
    ran = alone("plan", "split", "--request", request_file(REQUEST), "--json")
    assert (ran.code, ran.err) == (0, "")
    shown = json.loads(ran.out)
    plan = Parse(ran.out, pb.SplitPlan())
    assert plan.fits and plan.optimal and shown["optimal"] is True and shown["gap"] == 0.0
    # 4 layers of 1.25 GiB are all that 6 GiB hold; the other 4 are the slowest stage then.
    assert [(one.device_id, one.first_layer, one.last_layer) for one in plan.assignments] == [
        ("fast", 0, 3),
        ("slow", 4, 7),
    ]
    assert plan.bottleneck_seconds_per_token == 5 * GIB / 5e11 + 1e-5
    assert sum(shown["ratios"]) == 1.0 and shown["ratios"] == [one["ratio"] for one in shown["assignments"]]
    assert shown["headroom_bytes"] == {"fast": str(GIB), "slow": str(4 * GIB)}
    assert shown["explanation"]
    assert "4,4" in shown["renderings"]["ENGINE_LLAMACPP"]["args"]


@pytest.mark.behaviour("SPLIT-2", "SPLIT-5")
@pytest.mark.parametrize(
    ("changes", "reason", "missing"),
    [({"devices": []}, "NO_DEVICES", None), ({"devices": REQUEST["devices"][:1]}, "DOES_NOT_FIT", 4 * GIB)],
)
def test_what_does_not_fit_is_an_answer_with_the_missing_bytes(alone, request_file, changes, reason, missing):
    ran = alone("plan", "split", "--json", "--request", request_file({**REQUEST, **changes}))
    shown = json.loads(ran.out)
    assert (ran.code, shown["fits"], shown["refusal"]["reason"]) == (0, False, reason)
    assert shown["refusal"]["message"] and shown["explanation"]
    assert missing is None or shown["refusal"]["missing_bytes"] == str(missing)


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({**REQUEST, "devises": []}, "devises"),
        ({**REQUEST, "objective": "FASTEST"}, "objective"),
        ({**REQUEST, "max_devices": -1}, "max_devices"),
        ({**REQUEST, "default_hop_seconds": "NaN"}, "default_hop_seconds"),
        ({**REQUEST, "default_hop_seconds": -1}, "default_hop_seconds"),
        (json.dumps({**REQUEST, "default_hop_seconds": float("nan")}), "default_hop_seconds"),
        ({**REQUEST, "activation_bytes": 1e300}, "activation_bytes"),
        ({**REQUEST, "devices": {"a": 1}}, "devices"),
        ({**REQUEST, "devices": [REQUEST["devices"][0], {"vram_free_bytes": -1}]}, "devices[1].vram_free_bytes"),
        ({**REQUEST, "devices": [REQUEST["devices"][0], 3]}, "devices[1]"),
        ({**REQUEST, "devices": [{"device_id": "a"}]}, "devices[0].memory_bandwidth_bytes_per_second"),
        (
            {**REQUEST, "devices": [{"device_id": "a", "memory_bandwidth_bytes_per_second": "Infinity"}]},
            "devices[0].memory_bandwidth_bytes_per_second",
        ),
        ({**REQUEST, "model": {"layers": [{}, {"kv_bytes": "many"}]}}, "model.layers[1].kv_bytes"),
        ({**REQUEST, "model": {"layers": [{}, {"kv_bytes": 0.5}]}}, "model.layers[1].kv_bytes"),
        ({**REQUEST, "model": {"layers": []}}, "model.layers"),
        ({**REQUEST, "model_path": "/m"}, "model and model_path"),
        ({}, "model"),
    ],
)
def test_a_wrong_request_is_refused_by_the_path_of_its_field(alone, request_file, document, field):
    ran = alone("plan", "split", "--json", "--request", request_file(document))
    assert (ran.code, ran.out) == (1, "")
    error, reason, *_ = ran.err.splitlines()
    assert field in error and reason == "reason: INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no JSON"),
        ("{", "no JSON"),
        ("[1]", "must be an object"),
        ('{"slots": 1, "slots": 2}', "duplicate key"),
        ("[" * 100_000, "no JSON"),
        ('{"slots": ' + "9" * 5000 + "}", "no JSON"),
        ("x" * (4 * 1024 * 1024 + 1), "larger than"),
    ],
)
def test_a_file_that_is_no_request_is_refused_by_name(alone, request_file, text, said):
    file = request_file(text)
    ran = alone("plan", "split", "--request", file)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith(f"error: {file}: ") and said in ran.err


def test_a_file_that_is_not_there_is_wrong_usage(alone, tmp_path):
    assert alone("plan", "split", "--request", str(tmp_path / "none")).code == 2


def test_a_request_that_is_beyond_all_sums_is_refused(alone, request_file):
    layers = [{"resident_bytes": 2**62, "kv_bytes": 2**62}] * 4
    ran = alone("plan", "split", "--request", request_file({**REQUEST, "model": {"layers": layers}}))
    assert ran.code == 1 and "reason: INVALID_ARGUMENT" in ran.err


def test_planning_without_a_daemon_imports_nothing_of_it(request_file):
    script = (
        "import sys\nfrom poolmgr.cli.main import main\n"
        f"try:\n    main(['plan', 'split', '--json', '--request', {request_file(REQUEST)!r}])\n"
        "except SystemExit as ended:\n    assert not ended.code\n"
        "assert not {'poolmgr.runtime', 'poolmgr.api', 'poolmgr.app'} & set(sys.modules), sorted(sys.modules)\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["fits"] is True


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A Llama of 2 layers and its head, of single precision."""
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    write_tiny_llama(path)
    return str(path)


@pytest.mark.behaviour("MEM-1")
def test_what_a_model_needs_is_read_from_its_file_without_a_daemon(alone, model):
    ran = alone("plan", "memory", model, "--context", "512", "--slots", "2", "--json")
    estimate = Parse(ran.out, pb.MemoryEstimate())
    assert (ran.code, ran.err) == (0, "")
    assert (estimate.model.context_length, estimate.model.slots, estimate.factor) == (512, 2, 1.0)
    # K and V of 2 layers, 64 wide, 2 bytes each, for 512 tokens of 2 slots.
    assert estimate.kv_bytes == 2 * 2 * 64 * 2 * 512 * 2
    size = os.path.getsize(model)
    assert 0.5 * size < estimate.weight_bytes + estimate.host_bytes <= 1.5 * size
    assert estimate.one_device_bytes == estimate.weight_bytes + estimate.kv_bytes + estimate.overhead_bytes
    assert estimate.weight_bytes == sum(layer.resident_bytes for layer in estimate.model.layers)
    shown = alone("plan", "memory", model, "--context", "512", "--slots", "2").out
    assert "512 tokens per slot, 2 slots" in shown and "▒ overhead" in shown


@pytest.mark.behaviour("MEM-1")
def test_a_smaller_cache_type_makes_a_smaller_cache(alone, model):
    def cache(kind: str) -> int:
        ran = alone("plan", "memory", model, "--context", "512", "--cache-type", kind, "--json")
        return int(json.loads(ran.out)["kv_bytes"])

    assert cache("f16") == 2 * cache("q8_0") * 32 // 34  # 34 bytes for 32 values


def test_a_model_file_is_planned_over_named_devices_and_each_pays_for_the_engine_itself(alone, model, request_file):
    document = {"model_path": model, "context_length": 512, "devices": REQUEST["devices"], "objective": "MIN_LATENCY"}
    plan = Parse(alone("plan", "split", "--json", "--request", request_file(document)).out, pb.SplitPlan())
    memory = Parse(alone("plan", "memory", model, "--context", "512", "--json").out, pb.MemoryEstimate())
    (only,) = plan.assignments
    assert (only.device_id, only.overhead_bytes) == ("fast", memory.overhead_bytes)
    assert (only.weight_bytes, only.kv_bytes) == (memory.weight_bytes, memory.kv_bytes)


@pytest.mark.behaviour("MEM-1")
@pytest.mark.parametrize("reason", ["MODEL_NOT_FOUND", "MODEL_INVALID"])
def test_a_model_file_that_is_none_is_refused_with_its_reason(alone, tmp_path, reason):
    file = tmp_path / "model.gguf"
    if reason == "MODEL_INVALID":
        file.write_bytes(b"GGUF" + b"\xff" * 64)
    ran = alone("plan", "memory", str(file))
    assert (ran.code, ran.out) == (1, "")
    assert f"reason: {reason}" in ran.err and "hint: " in ran.err


# With one.


@pytest.mark.behaviour("SPLIT-5", "SPLIT-6")
def test_a_split_is_drawn_with_each_device_s_share_and_its_reasons(daemon, run):
    daemon.script["PlanSplit"] = PLAN
    ran = run(
        *["plan", "split", "m.gguf", "--context", "8192", "--slots", "4", "--cache-type", "q8_0"],
        *["--objective", "min-bottleneck", "--max-devices", "2", "--engine", "vllm"],
    )
    assert daemon.requests("PlanSplit") == [
        pb.PlanSplitRequest(
            model_path=os.path.abspath("m.gguf"),
            context_length=8192,
            slots=4,
            cache_type="q8_0",
            objective=pb.MIN_BOTTLENECK,
            max_devices=2,
            engine=pool_pb2.ENGINE_VLLM,
        )
    ]
    assert "MIN_BOTTLENECK, proved optimal" in ran.out
    assert "12.3 ms per token" in ran.out and "45.6 ms per token" in ran.out
    row = next(line for line in ran.out.splitlines() if line.startswith("GPU-b"))
    assert row.split()[:3] == ["GPU-b", "0-19", "62.5%"]
    assert row.split()[3] == "█" * 20 + "▓" * 8 + "▒" * 2 + "░" * 10  # of 20 GiB
    assert "█ weights" in ran.out and "░ free" in ran.out
    assert "for llamacpp  A=1 --tensor-split 20,12" in ran.out
    assert "8 GiB more on it" in ran.out and "\x1b" not in ran.out


@pytest.mark.behaviour("SPLIT-2")
def test_a_split_that_does_not_fit_says_what_is_missing_and_what_would(daemon, run):
    daemon.script["PlanSplit"] = TOO_LARGE
    ran = run("plan", "split", "/m.gguf")
    assert ran.code == 0
    for text in ("DOES_NOT_FIT", "3 GiB more", "3,072.0 MiB", "context 4096 instead"):
        assert text in ran.out


def test_a_gap_is_told_where_the_best_is_not_proved(daemon, run):
    guess = pb.SplitPlan()
    guess.CopyFrom(PLAN)
    guess.optimal, guess.gap = False, 0.034
    daemon.script["PlanSplit"] = guess
    assert "at most 3.4% from the best" in run("plan", "split", "/m").out


@pytest.mark.behaviour("PLACE-1", "PLACE-5")
def test_a_placement_tells_where_why_not_elsewhere_and_what_would_stop(daemon, run):
    daemon.script["PlanPlacement"] = PLACED
    ran = run(
        *["plan", "place", "/m.gguf", "--devices", "0,1", "--split", "explicit:3,1", "--slots", "2", "--count", "2"],
        *["--spread", "--evict"],
    )
    assert daemon.requests("PlanPlacement") == [
        pb.PlanPlacementRequest(
            device_mask="0,1",
            split={"mode": pool_pb2.SPLIT_EXPLICIT, "ratios": [3, 1]},
            model_path="/m.gguf",
            slots=2,
            device_count=2,
            engine=pool_pb2.ENGINE_LLAMACPP,
            preference=pb.PlanPlacementRequest.SPREAD,
            evict=True,
        )
    ]
    lines = [line.split() for line in ran.out.splitlines()]
    assert ["device", "GPU-b", "15,360.0", "MiB"] in lines
    assert ["GPU-c", "QUARANTINED", "XID", "79"] in lines
    assert ["would", "stop", "idle"] in lines


@pytest.mark.parametrize(
    ("size", "count"), [("24GiB", 24 * GIB), ("1.5g", 3 * GIB // 2), ("512 MB", GIB // 2), ("7", 7)]
)
def test_a_placement_may_be_of_so_many_bytes(daemon, run, size, count):
    daemon.script["PlanPlacement"] = PLACED
    run("plan", "place", "--bytes", size, "--count", "2")
    (request,) = daemon.requests("PlanPlacement")
    assert (request.bytes_per_device, request.device_count, request.model_path) == (count, 2, "")


@pytest.mark.behaviour("PLACE-3")
def test_a_placement_on_an_imagined_host_is_a_request_of_its_own(daemon, run, request_file):
    daemon.script["PlanPlacement"] = PLACED
    host = {"devices": [{"device": {"device_id": "a", "vram_total_bytes": "9"}}]}
    ran = run("plan", "place", "--request", request_file({"bytes_per_device": 3, "host": host}), "--json")
    assert json.loads(ran.out)["device_ids"] == ["GPU-b", "GPU-a"]
    (request,) = daemon.requests("PlanPlacement")
    assert request.host.devices[0].device.vram_total_bytes == 9


@pytest.mark.behaviour("MEM-1", "MEM-3")
def test_what_the_daemon_has_learned_of_a_model_s_memory_is_asked_of_it(daemon, run):
    daemon.script["EstimateMemory"] = ESTIMATE
    out = run("plan", "memory", "m.gguf", "--learned", "--context", "4096", "--slots", "2").out
    (request,) = daemon.requests("EstimateMemory")
    assert (request.model_path, request.context_length, request.slots) == (os.path.abspath("m.gguf"), 4096, 2)
    lines = [line.split() for line in out.splitlines()]
    assert ["on", "one", "device", "9,216.0", "MiB"] in lines
    assert ["1-2", "2,048.0", "MiB", "1,024.0", "MiB", "1,024.0", "MiB"] in lines
    assert "1.250, as measured before" in out and "4,096 tokens per slot, 2 slots" in out


def test_a_pool_is_explained_as_it_was_split_and_as_it_would_be_placed_now(daemon, run):
    pool = pool_pb2.Pool()
    pool.CopyFrom(READY)
    pool.spec.CopyFrom(
        pool_pb2.PoolSpec(
            engine=pool_pb2.ENGINE_LLAMACPP,
            model={"path": "/m.gguf", "context_length": 512},
            device_mask="auto",
            split={"mode": pool_pb2.SPLIT_AUTO},
            slots=4,
        )
    )
    pool.split_plan.CopyFrom(PLAN)
    daemon.script.update(GetPool=pool, PlanPlacement=PLACED)
    out = run("plan", "explain", "chat").out
    (request,) = daemon.requests("PlanPlacement")
    assert (request.device_mask, request.model_path, request.context_length) == ("auto", "/m.gguf", 512)
    assert (request.split.mode, request.slots) == (pool_pb2.SPLIT_AUTO, 4)
    assert "chat was started with this split" in out and "placed now, chat would go to" in out
    assert run("pool", "show", "chat").out.count("layers 0-19 on GPU-b, 20-31 on GPU-a") == 1


@pytest.mark.parametrize(
    "argv",
    [
        ["split"],
        ["split", "/m", "--request", "/dev/null"],
        ["split", "--slots", "2", "--request", "/dev/null"],
        ["place", "--devices", "0", "--request", "/dev/null"],
        ["place"],
        ["place", "--bytes", "many"],
        ["place", "/m", "--split", "halves"],
        ["place", "/m", "--split", "explicit:"],
        ["memory"],
        ["split", "/m", "--slots", "0"],
        ["explain"],
    ],
)
def test_a_question_that_is_none_is_wrong_usage(daemon, run, argv):
    assert run("plan", *argv).code == 2
    assert daemon.calls == []


def test_what_the_daemon_cannot_answer_says_what_to_do(daemon, run):
    daemon.script["PlanPlacement"] = refusing(
        grpc.StatusCode.RESOURCE_EXHAUSTED, "INSUFFICIENT_MEMORY", "8 GiB are missing", missing_bytes="8"
    )
    ran = run("plan", "place", "/m")
    assert ran.code == 1 and "missing_bytes: 8" in ran.err and "hint: `poolmgr plan place" in ran.err


# Pools.


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("auto", {"mode": pool_pb2.SPLIT_AUTO}),
        ("none", {"mode": pool_pb2.SPLIT_NONE}),
        ("explicit:3,1.5", {"mode": pool_pb2.SPLIT_EXPLICIT, "ratios": [3, 1.5]}),
    ],
)
def test_a_pool_says_its_split_and_a_reload_replaces_it(daemon, run, text, split):
    before = pool_pb2.Pool()
    before.CopyFrom(READY)
    before.spec.CopyFrom(
        pool_pb2.PoolSpec(
            engine=pool_pb2.ENGINE_LLAMACPP,
            model={"path": "/m"},
            split={"mode": pool_pb2.SPLIT_EXPLICIT, "ratios": [7, 7]},
        )
    )
    daemon.script.update(CreatePool=READY, ReloadPool=READY, GetPool=before)
    assert run("pool", "create", "chat", "--model", "/m", "--split", text).code == 0
    assert run("pool", "reload", "chat", "--split", text).code == 0
    for request in (*daemon.requests("CreatePool"), *daemon.requests("ReloadPool")):
        assert request.spec.split == pool_pb2.Split(**split)


def test_a_split_that_is_none_is_wrong_usage(daemon, run):
    assert run("pool", "create", "chat", "--model", "/m", "--split", "explicit:x").code == 2
    assert daemon.calls == []


# The picture.


@pytest.mark.parametrize(
    ("parts", "whole", "drawn"),
    [
        ((20, 10, 5, 5), 40, "█" * 20 + "▓" * 10 + "▒" * 5 + "░" * 5),
        ((10, 5, 5, 0), 40, "█" * 10 + "▓" * 5 + "▒" * 5),
        ((1, 0, 0, 10**6), 10**6 + 1, "█" + "░" * 39),
        ((0, 0, 0, 0), 0, ""),
        ((3, 0, 0, 0), 3, "█" * 40),
    ],
)
def test_a_bar_is_as_long_as_the_device_is_large_and_shows_every_part(parts, whole, drawn):
    assert bar(parts, whole).plain == drawn


def test_a_bar_never_outgrows_its_width_by_rounding():
    for first in range(0, 200, 7):
        for second in range(0, 200, 11):
            parts = (first, second, 1, 200)
            assert len(bar(parts, sum(parts)).plain) == BAR_WIDTH


def test_every_call_of_the_service_goes_through_the_client(daemon):
    daemon.script.update(PlanSplit=PLAN, PlanPlacement=PLACED, EstimateMemory=ESTIMATE)
    with Client(daemon.address) as client:
        assert client.plan_split(pb.PlanSplitRequest(model_path="/m")) == PLAN
        assert client.plan_placement(pb.PlanPlacementRequest(model_path="/m")) == PLACED
        assert client.estimate_memory(pb.EstimateMemoryRequest(model_path="/m")) == ESTIMATE
