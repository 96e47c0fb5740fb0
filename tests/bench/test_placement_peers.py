"""Others' rules, each against an example of its own project, and the parts of the bench around them."""

from __future__ import annotations

import sys
from xml.etree import ElementTree

import pytest

from bench import placement, placement_accelerate, placement_speed
from bench.common import Report
from bench.placement_accelerate import Accelerate, plan_of
from bench.placement_cases import BRIDGED, LOADS, MIB, MIXES, MODELS, devices, eighty, model, named_cases, request
from bench.placement_judge import Verdict
from bench.placement_peers import (
    RULES,
    exo,
    exo_counts,
    exo_ring,
    filled,
    held,
    llamacpp,
    llamacpp_counts,
    llamacpp_fit,
    ring_partitions,
    ring_shards,
    vllm_counts,
)
from poolmgr.model.plan import DeviceProfile, LayerProfile, ModelProfile, Objective, SplitRequest, Stage


def asked(layers, *free, overhead=0):
    found = tuple(DeviceProfile(str(place), each, 1e9, overhead) for place, each in enumerate(free))
    return SplitRequest(ModelProfile(tuple(layers)), found, objective=Objective.MIN_BOTTLENECK)


def counts(plan):
    return {stage.device: stage.last_layer - stage.first_layer + 1 for stage in plan}


# llama.cpp


def test_llamacpp_gives_three_quarters_to_the_first_for_3_1():
    """docs/multi-gpu.md: "With 3,1 on two GPUs, GPU 0 gets 75 %, GPU 1 gets 25 %", and `-ts 75,25` is the same."""
    assert llamacpp_counts(100, [3, 1]) == llamacpp_counts(100, [75, 25]) == [75, 25]
    assert llamacpp_counts(33, [3, 1]) == [25, 8]


def test_llamacpp_splits_a_70b_over_two_rtx_3090_as_its_log_shows():
    """containers/ramalama issue 1354: 81 layers on two RTX 3090, 20038.81 and 19940.67 MiB of a Q4_K_M. 41 layers
    before 40, of which the last is the output head: the first has more of the repeating ones."""
    assert llamacpp_counts(81, [24576, 24576]) == [41, 40]


def test_llamacpp_counts_the_output_head_as_one_more_layer():
    plan = llamacpp(asked([LayerProfile(1, 1)] * 33, 300, 100))
    assert plan == (Stage(0, 0, 24), Stage(1, 25, 32))


def test_llamacpp_leaves_out_a_device_whose_share_is_less_than_a_layer():
    assert counts(llamacpp(asked([LayerProfile(1, 1)] * 4, 1, 1000))) == {0: 1, 1: 3}  # layer 0 is at share 0
    assert counts(llamacpp(asked([LayerProfile(1, 1)] * 4, 1000, 1))) == {0: 4}


def test_llamacpp_fit_puts_15_of_33_layers_on_an_rtx_2060_as_its_log_shows():
    """A log of common_params_fit_impl, Llama 3.1 8B Q4_0 at 32,768 tokens: 5141 MiB free, target 4117, 248 of
    compute; 15 layers take 4089 MiB and 16 take 4334."""
    layers = [LayerProfile(117 * MIB, 117 * MIB, 128 * MIB)] * 32 + [LayerProfile(411 * MIB, 411 * MIB)]
    question = asked(layers, 5141 * MIB, overhead=248 * MIB)
    assert held(question, 18, 33) == (4089 - 248) * MIB
    assert held(question, 17, 33) == (4334 - 248) * MIB
    assert filled(question, [(4117 - 248) * MIB], from_the_back=True) == [15]
    assert llamacpp_fit(question) == ()  # the other 18 stay with the host


def test_llamacpp_fit_fills_the_last_device_first_as_its_log_shows():
    """ollama pull request 16031, an RTX 5090 (30991 MiB free) before an RTX 3090 (23332), 36 layers and the head: it
    tries 16 layers on the second (17829 MiB with 1292 of compute), then 19 (21070), while the first has none."""
    layers = [LayerProfile(169 * MIB // 3, 0, 1024 * MIB)] * 36 + [LayerProfile(332 * MIB, 332 * MIB)]
    question = asked(layers, 30991 * MIB, 23332 * MIB)
    for number, logged in ((16, 17829), (19, 21070)):
        assert held(question, 37 - number, 37) / MIB + 1292 == pytest.approx(logged, abs=1)
    rooms = [(30991 - 4205 - 1024) * MIB, (23332 - 1292 - 1024) * MIB]
    assert filled(question, rooms, from_the_back=True) == [17, 20]


def test_llamacpp_fit_begins_at_the_front_for_experts_and_keeps_the_head_on_the_last_device():
    """ggml-org/llama.cpp issue 22319, an RTX PRO 6000 before an RTX 4090: 43 layers on the first are 153786 MiB, the
    head alone on the second 1010."""
    layers = [LayerProfile(146889 * MIB // 43, 0, 6897 * MIB // 43)] * 43 + [LayerProfile(1010 * MIB, 1010 * MIB)]
    question = asked(layers, 88448 * MIB, 47516 * MIB)
    assert held(question, 0, 43) / MIB == pytest.approx(153786, abs=1)
    assert filled(question, [153786 * MIB, 1010 * MIB], from_the_back=False) == [43, 1]
    assert llamacpp_fit(question) == ()  # experts of some layers stay with the host


def test_llamacpp_fit_changes_nothing_where_every_device_keeps_its_margin():
    question = asked([LayerProfile(MIB, MIB)] * 33, 4000 * MIB, 2000 * MIB)
    assert llamacpp_fit(question) == llamacpp(question)


# EXO


def test_exo_partitions_its_ring_by_memory_as_in_its_test():
    """exo/topology/test_ring_memory_weighted_partitioning_strategy.py"""
    assert ring_partitions([3000, 1000, 6000]) == [(2, 0.0, 0.6), (0, 0.6, 0.9), (1, 0.9, 1.0)]


@pytest.mark.parametrize(
    ("partitions", "shards"),
    [
        ([(0, 0.0, 0.42857), (1, 0.42857, 0.71428), (2, 0.71428, 0.99999)], [(0, 12), (13, 21), (22, 31)]),
        ([(0, 0.0, 0.1), (1, 0.1, 0.2), (2, 0.2, 1.0)], [(0, 2), (3, 5), (6, 31)]),
        ([(0, 0.0, 1.0)], [(0, 31)]),
        ([], []),
    ],
)
def test_exo_maps_partitions_to_shards_as_in_its_test(partitions, shards):
    """exo/topology/test_map_partitions.py"""
    assert [(s.first_layer, s.last_layer) for s in ring_shards(partitions, 32)] == shards


@pytest.mark.parametrize(
    ("layers", "fractions", "expected"),
    [
        (12, [0.25, 0.25, 0.25, 0.25], [3, 3, 3, 3]),
        (12, [0.25, 0.25, 0.50], [3, 3, 6]),
        (20, [0.975, 0.0125, 0.0125], [18, 1, 1]),
        (10, [1.0], [10]),
        (3, [0.33, 0.33, 0.34], [1, 1, 1]),
        (12, [312 / 1854, 518 / 1854, 1024 / 1854], [2, 3, 7]),
        (20, [0.9, 0.05, 0.05], [18, 1, 1]),
    ],
)
def test_exo_allocates_layers_proportionally_as_in_its_test(layers, fractions, expected):
    """src/exo/master/tests/test_placement_utils.py"""
    assert exo_counts(layers, fractions) == expected


def test_exo_takes_the_smallest_group_with_enough_memory_and_of_those_the_largest():
    """test_filter_cycles_by_memory and test_get_smallest_cycles there."""
    layers = [LayerProfile(10, 10)] * 12 + [LayerProfile(0, 0)]
    assert counts(exo(asked(layers, 100, 150, 200))) == {2: 13}
    assert counts(exo(asked(layers, 50, 60, 80))) == {1: 5, 2: 8}
    assert exo(asked(layers, 10, 20, 30)) == ()
    assert set(counts(exo_ring(asked(layers, 100, 150, 200)))) == {0, 1, 2}


# vLLM


@pytest.mark.parametrize(
    ("layers", "expected"),
    [(2, [1, 1]), (3, [2, 1]), (3, [1, 1, 1]), (4, [1, 2, 1]), (5, [2, 2, 1])],
)
def test_vllm_spreads_what_is_left_over_as_in_its_test(layers, expected):
    """tests/distributed/test_pipeline_partition.py, test_uneven_auto_partition"""
    assert vllm_counts(layers, len(expected)) == expected


@pytest.mark.parametrize("name", RULES)
def test_a_rule_answers_every_layer_once_or_not_at_all(name):
    for case in list(named_cases())[::23]:
        plan = RULES[name](case.request)
        covered = [layer for stage in plan for layer in range(stage.first_layer, stage.last_layer + 1)]
        assert covered in ([], list(range(len(case.request.model.layers))))


# accelerate


def test_what_accelerate_leaves_to_the_host_is_no_plan():
    assert plan_of([0, 0, 2, 2, 1]) == (Stage(0, 0, 1), Stage(2, 2, 3), Stage(1, 4, 4))
    assert plan_of([0, 0, -1]) == ()


def test_accelerate_is_asked_with_sizes_and_what_is_free(tmp_path, monkeypatch):
    helper = (
        "import json, sys\n"
        "for line in sys.stdin:\n"
        "    q = json.loads(line)\n"
        "    known = q == {'layers': [12, 13, 14], 'memory': [90, 0], 'rounds': 2}\n"
        "    if not known: sys.exit(3)\n"
        "    print(json.dumps({'seconds': [0.5, 0.25], 'devices': [0, 0, 1]}), flush=True)\n"
    )
    (tmp_path / "placement_helper.py").write_text(helper)
    monkeypatch.setattr(placement_accelerate, "SOURCES", tmp_path)
    question = asked([LayerProfile(10 + n, 1, 2) for n in range(3)], 100, 5, overhead=10)
    with Accelerate(sys.executable) as party:
        answer = party.ask(question, 2)
        assert answer.seconds == [0.5, 0.25]
        assert answer.plan == (Stage(0, 0, 1), Stage(1, 2, 2))
        with pytest.raises(RuntimeError, match="ended with 3"):
            party.ask(question, 1)


def test_an_environment_of_the_pinned_versions_is_used_again_and_another_one_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(placement_accelerate, "find_spec", lambda name: None)
    started = []

    class Failed:
        returncode, stderr = 1, "no network"

    monkeypatch.setattr(placement_accelerate.subprocess, "run", lambda argv, **_: started.append(argv) or Failed)
    place = tmp_path / "accelerate"
    place.mkdir()
    stamp = place / "installed"
    stamp.write_text("accelerate==0.1")
    assert placement_accelerate.interpreter(place) is None
    assert len(started) == 1
    stamp.write_text("accelerate==1.15.0\ntorch==2.13.0")
    assert placement_accelerate.interpreter(place) == place / "bin/python"
    assert len(started) == 1


def test_a_party_reports_how_many_fit_and_how_far_they_are():
    party, report = placement.Party("even"), Report("placement", ())
    for ratio, fits in ((1.0, True), (4.0, True), (float("inf"), False)):
        party.add(Objective.MIN_LATENCY, Verdict("x", "brute", ratio, fits))
    shown = party.report(report)
    assert report.figures == {"even_fits": 2}
    assert report.ratios == {"even_geomean_vs_optimum": 2.0, "even_worst_vs_optimum": 4.0}
    assert shown == ["even", "2", "nan, nan", "2.000, 4.000", "2.000, 4.000"]


# Cases


@pytest.mark.parametrize(
    ("name", "billions", "active"),
    [
        ("Llama-3-8B", 8.03, 7.5),
        ("Llama-3-70B", 70.55, 69.5),
        ("Qwen2.5-32B", 32.76, 32.0),
        ("Mixtral-8x7B", 46.7, 12.7),
        ("DeepSeek-V2-Lite", 15.7, 2.4),
        ("DeepSeek-V3", 671.0, 37.0),
        ("Gemma-2-27B", 27.2 + 1.18, 27.2),  # its output head is its embedding, which is counted twice here
    ],
)
def test_a_shape_has_as_many_weights_as_its_publisher_says(name, billions, active):
    layers = model(name, 8.0, 4096, 1).layers
    assert sum(layer.resident_bytes for layer in layers) / 1e9 == pytest.approx(billions, rel=0.02)
    assert sum(layer.active_bytes for layer in layers) / 1e9 == pytest.approx(active, rel=0.08)


def test_the_cache_of_llama_3_70b_is_what_llamacpp_reports():
    """320 KiB a token in f16: 80 layers, eight heads of 128, keys and values."""
    assert sum(layer.kv_bytes for layer in model("Llama-3-70B", 4.85, 8192, 1).layers) == 8192 * 320 * 1024


def test_a_window_ends_the_cache_of_every_second_layer():
    kept = [layer.kv_bytes for layer in model("Gemma-2-27B", 8.5, 8192, 1).layers[:2]]
    assert kept[1] == 2 * kept[0] > 0


def test_named_mixes_are_of_known_gpus_and_some_have_no_room():
    found = list(named_cases())
    assert len(found) == 2 * len(LOADS) * (len(MIXES) + len(BRIDGED))
    assert len({case.name for case in found}) == len(found)
    assert {load[0] for load in LOADS} == set(MODELS)
    bridged = request(BRIDGED[0], LOADS[0], Objective.MIN_LATENCY, links=True)
    assert [device.memory_bandwidth_bytes_per_second / 1e9 for device in bridged.devices] == [936, 936, 360, 346]
    assert bridged.links[0].device_a == bridged.devices[0].device_id
    assert devices("RTX3090")[0].vram_free_bytes == (24576 - 295) * MIB


def test_the_timed_model_has_eighty_layers_and_loses_none_of_its_bytes():
    whole = model("Llama-3-70B", 4.85, 8192, 1)
    timed = eighty(placement_speed.THREE, Objective.MIN_LATENCY).model
    assert len(timed.layers) == 80
    assert sum(layer.resident_bytes for layer in timed.layers) == sum(layer.resident_bytes for layer in whole.layers)


def test_the_chart_has_a_line_for_each_number_of_layers_and_objective(tmp_path):
    sizes = [(name, n, d) for name in placement_speed.OBJECTIVES for n in placement_speed.LAYERS for d in (1, 16)]
    figures = dict.fromkeys((f"us_{name}_{n}x{d}" for name, n, _ in sizes for d in placement_speed.DEVICES), 10.0)
    placement_speed.write_chart(tmp_path / "deep/chart.svg", figures)
    root = ElementTree.fromstring((tmp_path / "deep/chart.svg").read_text())
    assert len(list(root.iter("{http://www.w3.org/2000/svg}polyline"))) == 2 * len(placement_speed.LAYERS)
