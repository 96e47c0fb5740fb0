"""What a device mask means: every form, every way to get it wrong, and what is made of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolmgr.core import masks
from poolmgr.errors import ClientError, InternalError, Reason
from poolmgr.model.mask import Mask, MaskKind
from poolmgr.testing.devices import a_gpu, an_instance

pytestmark = pytest.mark.behaviour("MASK-1")

GPUS = tuple(
    replace(a_gpu(number), device_id=f"GPU-{letter * 8}-0000-4000-8000-00000000000{number}")
    for number, letter in enumerate("abcd")
)
PARTITIONED = replace(a_gpu(4), mig_mode=True)
SLICES = tuple(an_instance(PARTITIONED, number) for number in range(3))
BARE = replace(a_gpu(5), mig_mode=True)
HOST = (*GPUS, PARTITIONED, *SLICES, BARE)


def ids(text: str, devices=HOST, **options) -> list[str]:
    mask = masks.parse(text, devices, **options)
    assert mask.kind is MaskKind.DEVICES
    return list(mask.device_ids)


def refusal(text: str, devices=HOST, **options) -> ClientError:
    with pytest.raises(ClientError) as refused:
        masks.parse(text, devices, **options)
    assert refused.value.reason is Reason.BAD_MASK
    return refused.value


def understood(text: str, **options) -> Mask | None:
    """None where it is refused, as a bad mask and as nothing else."""
    try:
        return masks.parse(text, HOST, **options)
    except ClientError as error:
        if error.reason is not Reason.BAD_MASK:
            raise
        return None


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0", [GPUS[0]]),
        ("0,1", GPUS[:2]),
        ("1,0", [GPUS[1], GPUS[0]]),
        (" 1 , 0 ", [GPUS[1], GPUS[0]]),
        ("GPU0,gpu1", GPUS[:2]),
        ("0-3", GPUS),
        ("GPU1-GPU2", GPUS[1:3]),
        ("3,0-1", [GPUS[3], *GPUS[:2]]),
        ("2-2", [GPUS[2]]),
        (GPUS[2].device_id, [GPUS[2]]),
        (GPUS[2].device_id.upper(), [GPUS[2]]),
        ("GPU-c", [GPUS[2]]),
        ("4.1", [SLICES[1]]),
        (SLICES[2].device_id, [SLICES[2]]),
        ("mig-00000001", [SLICES[1]]),
        ("0,4.0", [GPUS[0], SLICES[0]]),
        ("00000000:01:00.0", [GPUS[0]]),
        ("0000:02:00.0", [GPUS[1]]),
        ("3:00.0", [GPUS[2]]),
        ("all", [*GPUS, *SLICES]),
        ("ALL", [*GPUS, *SLICES]),
    ],
)
def test_a_mask_means_what_it_says_in_its_order(text, wanted):
    assert ids(text) == [device.device_id for device in wanted]


def test_a_pci_bus_id_may_be_written_in_either_case():
    gpu = replace(a_gpu(9), pci_bus_id="00000000:3B:00.0")
    for text in ("00000000:3B:00.0", "00000000:3b:00.0", "3B:00.0", "0000:3b:00.0"):
        assert ids(text, [*HOST, gpu]) == [gpu.device_id]


@pytest.mark.parametrize(
    ("text", "kind"), [("", MaskKind.NONE), ("  ", MaskKind.NONE), ("None", MaskKind.NONE), ("auto", MaskKind.AUTO)]
)
def test_none_and_auto_name_no_device(text, kind):
    assert masks.parse(text, HOST) == masks.parse(text, ()) == Mask(kind)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("0,,1", "'' is an empty part"),
        ("0,", "'' is an empty part"),
        (",", "'' is an empty part"),
        ("7", "'7' names no device;"),
        ("0-9", "'0-9' names no device 6;"),
        ("3-1", "ends before it begins: write 1-3"),
        ("0,0", f"names {GPUS[0].device_id} again, which '0' did"),
        ("0,GPU0", f"names {GPUS[0].device_id} again"),
        ("0-2,1", f"names {GPUS[1].device_id} again, which '0-2' did"),
        ("GPU-", "'GPU-' is none of"),
        ("GPU-zz", "'GPU-zz' names no device"),
        ("mig-0", "'mig-0' names 3 devices"),
        ("1.2", "'1.2' names no device"),
        ("05:05.0", "'05:05.0' names no device"),
        ("0,all", "'all' stands alone"),
        ("none,0", "'none' stands alone"),
        ("auto,0", "'auto' stands alone"),
        ("-1", "'-1' is none of"),
        ("0x1", "'0x1' is none of"),
        ("٣", "is none of"),
        ("99999999999999999999", "is none of"),
        ("0-9999", "names no device 6"),
    ],
)
def test_a_wrong_part_is_named_and_what_exists_is_listed(text, told):
    error = refusal(text)
    assert told in error.message
    assert f"there are 0 = {GPUS[0].device_id}" in error.message and f"4.2 = {SLICES[2].device_id}" in error.message
    assert error.numbers["devices"] == len(HOST)


def test_two_devices_that_begin_alike_are_not_told_apart_by_the_beginning():
    twins = [a_gpu(0), a_gpu(1)]
    assert "'GPU-0' names 2 devices" in refusal("GPU-0", twins).message
    assert ids("GPU-00000001", twins) == [twins[1].device_id]


def test_a_whole_uuid_wins_over_a_longer_one_that_begins_with_it():
    longer = replace(a_gpu(1), device_id=a_gpu(0).device_id + "-extra")
    assert ids(a_gpu(0).device_id, [a_gpu(0), longer]) == [a_gpu(0).device_id]


def test_a_bus_id_without_domain_must_be_of_one_device():
    other = replace(a_gpu(1), pci_bus_id="00000001:01:00.0")
    assert "names 2 devices" in refusal("01:00.0", [a_gpu(0), other]).message
    assert ids("00000001:01:00.0", [a_gpu(0), other]) == [other.device_id]


@pytest.mark.behaviour("DEV-3")
def test_a_gpu_in_mig_mode_is_no_device_for_work_unless_it_is_asked_for_as_a_whole():
    assert "name its instances (4.0, 4.1, 4.2)" in refusal("4").message
    assert ids("4", partitioned=True) == [PARTITIONED.device_id]


@pytest.mark.behaviour("DEV-3")
@pytest.mark.parametrize("partitioned", [False, True])
def test_a_gpu_in_mig_mode_without_instances_is_unusable_and_the_error_says_so(partitioned):
    assert "in MIG mode without instances" in refusal("5", partitioned=partitioned).message


@pytest.mark.parametrize("text", ["4,4.1", "4.1,4"])
def test_a_gpu_and_its_own_slice_are_not_both_in_one_mask(text):
    assert "is a slice of the GPU that '4' names" in refusal(text, partitioned=True).message


def test_all_of_nothing_is_refused_rather_than_run_without_a_gpu():
    assert "this host shows no devices" in refusal("all", ()).message
    assert "names nothing that can be used" in refusal("all", [BARE]).message


def test_a_host_of_64_devices_is_listed_in_part():
    message = refusal("77", [a_gpu(number) for number in range(64)]).message
    assert "and 52 more: `poolmgr devices list`" in message and len(message) < 1024


def test_a_mask_beyond_the_limit_is_refused_before_it_is_read():
    assert refusal("0," * 4096).numbers == {"characters": 8192, "limit": masks.MAX_CHARACTERS}


def test_two_devices_of_one_name_are_two_devices():
    assert GPUS[0].name == GPUS[1].name
    assert len(set(ids("0,1"))) == 2


@pytest.mark.behaviour("MASK-2")
def test_cuda_gets_uuids_in_the_order_of_the_mask_and_nothing_for_none():
    assert masks.cuda_visible_devices(masks.parse("1,0", HOST)) == f"{GPUS[1].device_id},{GPUS[0].device_id}"
    assert masks.cuda_visible_devices(masks.parse("none", HOST)) == ""
    assert masks.cuda_visible_devices(masks.parse("4.1", HOST)) == SLICES[1].device_id


@pytest.mark.behaviour("MASK-2")
@pytest.mark.parametrize("text", ["4.0,4.1", "0,4.0", "all"])
def test_one_cuda_process_gets_no_second_device_beside_a_mig_instance(text):
    mask = masks.parse(text, HOST)
    with pytest.raises(ClientError, match="one CUDA process sees one MIG instance") as refused:
        masks.cuda_visible_devices(mask)
    assert refused.value.reason is Reason.BAD_MASK
    view = masks.view(mask)
    assert view.cuda_visible_devices is None and "one MIG instance" in view.cuda_refusal
    assert len(view.cdi_names) == len(mask.device_ids)  # a container may have them all


@pytest.mark.behaviour("MASK-2")
def test_docker_and_cdi_get_the_same_devices():
    mask = masks.parse("0,4.2", HOST)
    (request,) = masks.docker_device_requests(mask)
    assert request.as_json() == {
        "Driver": "nvidia",
        "DeviceIDs": [GPUS[0].device_id, SLICES[2].device_id],
        "Capabilities": [["gpu"]],
    }
    assert masks.cdi_names(mask) == (f"nvidia.com/gpu={GPUS[0].device_id}", f"nvidia.com/gpu={SLICES[2].device_id}")
    assert masks.docker_device_requests(Mask()) == masks.cdi_names(Mask()) == ()


@pytest.mark.behaviour("MASK-2")
def test_auto_is_not_rendered_before_placement_has_chosen():
    auto = Mask(MaskKind.AUTO)
    for render in (masks.cuda_visible_devices, masks.docker_device_requests, masks.cdi_names):
        with pytest.raises(InternalError):
            render(auto)
    assert masks.view(auto).cuda_visible_devices is None


@given(st.text(max_size=60))
def test_no_text_does_more_than_be_refused(text):
    assert understood(text) is None or understood(text) == masks.parse(text, HOST)


FORMS = st.one_of(
    st.from_regex(r"(gpu|GPU)?[0-9]{1,5}(-[0-9]{1,5})?", fullmatch=True),
    st.from_regex(r"(GPU|MIG|mig)-[0-9a-d-]{0,12}", fullmatch=True),
    st.from_regex(r"([0-9a-fA-F]{0,8}:)?[0-9a-f]{0,2}:[0-9]{2}\.[0-9]", fullmatch=True),
    st.from_regex(r"[0-5]\.[0-4]", fullmatch=True),
    st.sampled_from(["", "all", "none", "auto", " 0 "]),
)


@given(st.lists(FORMS, max_size=5).map(",".join), st.booleans())
def test_what_is_understood_names_devices_once_and_nothing_with_its_own_slice(text, partitioned):
    mask = understood(text, partitioned=partitioned)
    if mask is None:
        return
    chosen = [device for device in HOST if device.device_id in mask.device_ids]
    assert len(chosen) == len(mask.device_ids) == len(set(mask.device_ids))
    assert not {device.parent_device_id for device in chosen} & set(mask.device_ids)
    assert all(device.usable for device in chosen) or partitioned


@given(st.lists(st.sampled_from([*GPUS, *SLICES]), unique=True))
def test_a_rendered_mask_is_read_back_the_same_whatever_the_numbers_are_then(chosen):
    names = ",".join(device.device_id for device in chosen)
    mask = masks.parse(names, HOST)
    renumbered = [replace(device, index=None, mig_slot=None) for device in reversed(HOST)]
    assert masks.parse(masks.text_of(mask), renumbered) == mask
    if len(mask.instances) == 0 or len(mask.device_ids) == 1:
        assert masks.parse(masks.cuda_visible_devices(mask), HOST) == mask


@pytest.mark.parametrize("text", ["0", "4.1", "GPU-c", "01:00.0"])
def test_one_device_is_found_by_whatever_a_mask_may_say_of_it(text):
    found = masks.find(text, HOST)
    assert found is not None and [found.device_id] == ids(text)


@pytest.mark.parametrize("text", ["0-1", "all", "none", "", "9", "GPU-"])
def test_what_names_no_device_or_several_finds_none(text):
    assert masks.find(text, HOST) is None
