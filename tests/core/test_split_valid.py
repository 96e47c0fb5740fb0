"""Requests that mean nothing are errors by name; none makes the planner loop or answer with nonsense."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poolmgr.core.split import plan, validate
from poolmgr.core.split_search import search
from poolmgr.errors import ClientError, Reason
from poolmgr.model.names import EngineName
from poolmgr.model.plan import (
    MAX_DEVICES,
    MAX_LAYERS,
    DeviceProfile,
    LayerProfile,
    LinkProfile,
    ModelProfile,
    Objective,
    SplitRequest,
)

pytestmark = pytest.mark.behaviour("SPLIT-3")
LAYER = LayerProfile(10, 10, 2)
DEVICE = DeviceProfile("a", 100, 10.0, 1)
OTHER = DeviceProfile("b", 100, 10.0, 1)
LINK = LinkProfile("a", "b", 0.1, 10.0)
GOOD = SplitRequest(ModelProfile((LAYER, LAYER), context_length=8), (DEVICE, OTHER), (LINK,), 0.1, 1)
NAN, INF = float("nan"), float("inf")


def model(**changes):
    return {"model": replace(GOOD.model, **changes)}


def layer(**changes):
    return model(layers=(replace(LAYER, **changes),))


def device(**changes):
    return {"devices": (OTHER, replace(DEVICE, **changes)), "links": ()}


def link(**changes):
    return {"links": (replace(LINK, **changes),)}


BAD = [
    (model(layers=()), "no layers"),
    (model(layers=(LAYER,) * (MAX_LAYERS + 1)), "at most 2048"),
    (model(context_length=-1), "context_length"),
    (model(context_limit=1 << 50), "context_limit"),
    (model(slots=-1), "slots"),
    (model(heads=-8), "heads"),
    (model(kv_heads=-8), "kv_heads"),
    (layer(resident_bytes=-1, active_bytes=-1), "layer 0: resident_bytes"),
    (layer(active_bytes=-1), "layer 0: active_bytes"),
    (layer(active_bytes=11), "more than its 10 resident"),
    (layer(kv_bytes=-1), "layer 0: kv_bytes"),
    (layer(kv_window=-1), "layer 0: kv_window"),
    (layer(resident_bytes=1 << 62), "the sum of all layers"),
    (layer(resident_bytes=1 << 300), "layer 0: resident_bytes"),
    (device(vram_free_bytes=-1), "vram_free_bytes"),
    (device(vram_free_bytes=1 << 62), "the sum of all free memory"),
    (device(overhead_bytes=-1), "overhead_bytes"),
    (device(overhead_bytes=1 << 62), "the sum of all overhead"),
    (device(memory_bandwidth_bytes_per_second=0.0), "memory_bandwidth_bytes_per_second is 0.0"),
    (device(memory_bandwidth_bytes_per_second=-1.0), "memory_bandwidth_bytes_per_second"),
    (device(memory_bandwidth_bytes_per_second=1e-300), "memory_bandwidth_bytes_per_second"),
    (device(memory_bandwidth_bytes_per_second=NAN), "is nan"),
    (device(memory_bandwidth_bytes_per_second=INF), "is inf"),
    (device(device_id="b"), "'b' is there twice"),
    (device(device_id=""), "no device_id"),
    ({"devices": tuple(replace(DEVICE, device_id=f"d{i}") for i in range(MAX_DEVICES + 1)), "links": ()}, "at most 64"),
    (link(device_b="c"), "there is no device 'c'"),
    (link(device_b="a"), "goes nowhere"),
    (link(latency_seconds=-0.1), "latency_seconds"),
    (link(latency_seconds=NAN), "latency_seconds is nan"),
    (link(bandwidth_bytes_per_second=0.0), "bandwidth_bytes_per_second is 0.0"),
    ({"links": (LINK, LinkProfile("b", "a", 0.2, 5.0))}, "is there twice"),
    ({"links": (LINK,) * 5000}, "5000 links"),
    ({"default_hop_seconds": NAN}, "default_hop_seconds is nan"),
    ({"default_hop_seconds": -1.0}, "default_hop_seconds"),
    ({"default_hop_seconds": INF}, "default_hop_seconds is inf"),
    ({"activation_bytes": -1}, "activation_bytes"),
    ({"max_devices": -1}, "max_devices"),
    ({"objective": Objective.MAX_CONTEXT, **model(context_limit=1 << 40, layers=(replace(LAYER, kv_bytes=1 << 40),))},
     "at a context of"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "words"), BAD, ids=[words for _, words in BAD])
def test_what_means_nothing_is_an_error_that_names_it(changes, words):
    validate(GOOD)
    with pytest.raises(ClientError) as raised:
        plan(replace(GOOD, **changes), search)
    assert raised.value.reason is Reason.INVALID_ARGUMENT
    assert words in raised.value.message


whole = st.one_of(st.integers(-2, 40), st.sampled_from([0, 1 << 31, 1 << 53, (1 << 62) - 1, 1 << 62, 1 << 200]))
real = st.one_of(st.floats(), st.sampled_from([0.0, 1.0, 1e-5, 1e9, 1e24, 5e-324]), st.floats(0.0, 100.0))
names = st.sampled_from(["a", "b", "c", "d", ""])


@settings(max_examples=300, deadline=None)
@given(
    st.builds(
        SplitRequest,
        st.builds(
            ModelProfile,
            st.lists(st.builds(LayerProfile, whole, st.integers(0, 5), whole, whole), max_size=5).map(tuple),
            context_length=whole,
            context_limit=whole,
            slots=st.integers(0, 3),
            heads=st.sampled_from([0, 7, 8]),
            kv_heads=st.sampled_from([0, 1, 2, 8]),
        ),
        st.lists(st.builds(DeviceProfile, names, whole, real, whole), max_size=4).map(tuple),
        st.lists(st.builds(LinkProfile, names, names, real, real), max_size=2).map(tuple),
        default_hop_seconds=real,
        activation_bytes=whole,
        objective=st.sampled_from([None, *Objective]),
        max_devices=st.integers(-1, 5),
        engine=st.sampled_from([EngineName.LLAMACPP, EngineName.VLLM, EngineName.TGI]),
    )
)
def test_whatever_is_asked_the_answer_is_a_plan_that_fits_a_refusal_or_an_error_by_name(request):
    try:
        validate(request)
    except ClientError:
        with pytest.raises(ClientError, match=r".+"):
            plan(request, search)
        return
    told = plan(request, search)
    assert told.explanation
    assert told.fits == (told.refusal is None) == bool(told.assignments)
    if told.fits:
        assert min(told.headroom_bytes.values()) >= 0
        assert sum(told.ratios) == 1.0
