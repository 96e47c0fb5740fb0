"""What NVIDIA's driver means by an XID, as data: meaning, severity, whose doing it is, and what helps (TEL-4).

Codes and actions follow NVIDIA's catalogue (CATALOGUE: Ampere and newer; 162 and above have no action in it) or, for
codes that it calls unused, the older list with its table of failure causes (LISTING). The severity is ours and follows
from the action: what needs a reset or more is CRITICAL. One XID seldom has one possible cause; `origin` is the likely
one. A code that is in neither is UNKNOWN in everything, which is not the same as harmless.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

CATALOGUE: Final = "https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html"
LISTING: Final = "https://docs.nvidia.com/deploy/xid-errors/index.html"


class XidSeverity(StrEnum):
    INFO = "INFO"  # tells of something that is dealt with
    WARNING = "WARNING"  # the work is harmed, or the device wears out; it can take new work
    CRITICAL = "CRITICAL"  # the device can take no work as it is
    UNKNOWN = "UNKNOWN"


class XidOrigin(StrEnum):
    APPLICATION = "APPLICATION"  # the process asked for what cannot be, or was ended with others
    HARDWARE = "HARDWARE"  # the device, its memory, its links, its power
    DRIVER = "DRIVER"  # the driver or the device's firmware
    UNKNOWN = "UNKNOWN"


class XidAction(StrEnum):
    NONE = "NONE"
    FOLLOW_OTHER = "FOLLOW_OTHER"  # another XID tells what to do
    FOLLOW_DRIVER = "FOLLOW_DRIVER"  # the driver's own recovery action does (STATE-2)
    RESTART_APPLICATION = "RESTART_APPLICATION"
    RESET_GPU = "RESET_GPU"
    REBOOT = "REBOOT"
    CHECK_CONNECTIONS = "CHECK_CONNECTIONS"  # power and bus
    UPDATE_SOFTWARE = "UPDATE_SOFTWARE"
    CONTACT_SUPPORT = "CONTACT_SUPPORT"


@dataclass(frozen=True, slots=True)
class Xid:
    code: int
    meaning: str
    severity: XidSeverity
    origin: XidOrigin
    action: XidAction
    source: str

    @property
    def blames_application(self) -> bool:
        """Whether the device is out of it. False too where nobody knows."""
        return self.origin is XidOrigin.APPLICATION


def lookup(code: int) -> Xid:
    """What is known of a code; UNKNOWN for one that is in no list."""
    found = XIDS.get(code)
    if found is not None:
        return found
    meaning = f"XID {code} is in no list of NVIDIA's that this version knows"
    return Xid(code, meaning, XidSeverity.UNKNOWN, XidOrigin.UNKNOWN, XidAction.CONTACT_SUPPORT, "")


_INFO, _WARNING, _CRITICAL = XidSeverity.INFO, XidSeverity.WARNING, XidSeverity.CRITICAL
_APP, _HW, _DRV = XidOrigin.APPLICATION, XidOrigin.HARDWARE, XidOrigin.DRIVER
_NONE, _RESTART, _RESET = XidAction.NONE, XidAction.RESTART_APPLICATION, XidAction.RESET_GPU
_REBOOT, _SUPPORT = XidAction.REBOOT, XidAction.CONTACT_SUPPORT
_OTHER, _DRIVER, _CHECK = XidAction.FOLLOW_OTHER, XidAction.FOLLOW_DRIVER, XidAction.CHECK_CONNECTIONS

_Row = tuple[int, str, XidSeverity, XidOrigin, XidAction]

_IN_CATALOGUE: Final[tuple[_Row, ...]] = (
    (8, "the GPU stopped processing", _WARNING, _APP, _RESTART),
    (11, "an invalid or corrupted push buffer stream", _WARNING, _APP, _RESTART),
    (13, "an exception of the graphics engine: often an access out of bounds", _WARNING, _APP, _RESTART),
    (25, "an invalid or illegal push buffer stream", _WARNING, _APP, _RESTART),
    (31, "a page fault of GPU memory: an illegal address", _WARNING, _APP, _RESTART),
    (32, "an invalid or corrupted push buffer stream", _WARNING, _APP, _RESTART),
    (37, "a firmware error of the driver", _INFO, _DRV, _NONE),
    (38, "a firmware error of the driver", _INFO, _DRV, _NONE),
    (39, "an exception of copy engine 0", _WARNING, _APP, _RESTART),
    (40, "an exception of copy engine 1", _WARNING, _APP, _RESTART),
    (41, "an exception of copy engine 2", _WARNING, _APP, _RESTART),
    (43, "the GPU stopped processing for one application, which hit an error of its own", _WARNING, _APP, _RESTART),
    (44, "a fault of the graphics engine during a context switch", _INFO, _DRV, _NONE),
    (45, "a channel was cleaned up after an earlier error, or when its process ended", _INFO, _APP, _OTHER),
    (46, "the GPU stopped processing", _CRITICAL, _DRV, _RESET),
    (48, "a double-bit ECC error", _CRITICAL, _HW, _RESET),
    (54, "auxiliary power is not connected to the board", _CRITICAL, _HW, _CHECK),
    (60, "an exception of a video processor", _WARNING, _APP, _RESTART),
    (62, "the internal micro-controller halted", _CRITICAL, _HW, _RESET),
    (63, "a row of GPU memory is remapped, or a page retired; it takes effect at the next reset", _WARNING, _HW, _NONE),
    (64, "a row of GPU memory could not be remapped, or a page not retired", _CRITICAL, _HW, _RESET),
    (66, "an illegal access by the driver", _INFO, _DRV, _NONE),
    (67, "an illegal access by the driver", _INFO, _DRV, _NONE),
    (68, "an exception of video decoder 0", _WARNING, _APP, _RESTART),
    (69, "a class error of the graphics engine", _WARNING, _APP, _RESTART),
    (70, "an error of copy engine 3", _WARNING, _DRV, _RESTART),
    (71, "an error of copy engine 4", _WARNING, _DRV, _RESTART),
    (72, "an error of copy engine 5", _WARNING, _DRV, _RESTART),
    (74, "an NVLink error", _CRITICAL, _HW, _RESET),
    (75, "an error of copy engine 6", _WARNING, _DRV, _RESTART),
    (76, "an error of copy engine 7", _WARNING, _DRV, _RESTART),
    (77, "an error of copy engine 8", _WARNING, _DRV, _RESTART),
    (78, "a virtual GPU did not start", _WARNING, _DRV, XidAction.UPDATE_SOFTWARE),
    (79, "the GPU has fallen off the bus", _CRITICAL, _HW, _REBOOT),
    (80, "corrupted data was sent to the GPU", _WARNING, _APP, _RESTART),
    (82, "an error of JPEG engine 0", _WARNING, _DRV, _RESTART),
    (83, "an error of video decoder 1", _WARNING, _DRV, _RESTART),
    (84, "an error of video decoder 2", _WARNING, _DRV, _RESTART),
    (85, "an error of copy engine 9", _WARNING, _DRV, _RESTART),
    (86, "an exception of the optical flow engine", _WARNING, _DRV, _RESTART),
    (88, "an error of video decoder 3", _WARNING, _DRV, _RESTART),
    (89, "an error of video decoder 4", _WARNING, _DRV, _RESTART),
    (92, "a high rate of single-bit ECC errors", _WARNING, _HW, _NONE),
    (93, "the InfoROM was written more often than it is made for", _WARNING, _HW, _NONE),
    (94, "a memory error that was contained: it harmed one application", _WARNING, _HW, _RESTART),
    (95, "a memory error that was not contained: every application may be harmed", _CRITICAL, _HW, _RESET),
    (106, "a test message of the management bus", _INFO, _DRV, _NONE),
    (107, "a silent test message of the management bus", _INFO, _DRV, _NONE),
    (109, "a context switch timed out", _CRITICAL, _DRV, _RESET),
    (110, "a security fault", _CRITICAL, _HW, _RESET),
    (119, "the GPU's system processor did not answer a call in time", _CRITICAL, _DRV, _RESET),
    (120, "an error of the GPU's system processor", _CRITICAL, _DRV, _RESET),
    (121, "an error of the link from chip to chip that was corrected", _WARNING, _HW, _NONE),
    (136, "training of an NVLink failed", _CRITICAL, _HW, _RESET),
    (137, "an NVLink privilege error: often a fault of an application on a peer", _WARNING, _APP, _OTHER),
    (139, "an error of optical flow engine 1", _WARNING, _DRV, _RESTART),
    (140, "an ECC error that was not recovered", _CRITICAL, _HW, _RESET),
    (141, "an error of CUDA's fast path", _INFO, _DRV, _NONE),
    (142, "an error of video encoder 3", _WARNING, _DRV, _SUPPORT),
    (143, "the GPU did not initialise", _CRITICAL, _HW, _RESET),
    (144, "an NVLink error (SAW)", _WARNING, _HW, _DRIVER),
    (145, "an NVLink error (RLW)", _WARNING, _HW, _DRIVER),
    (146, "an NVLink error (TLW)", _WARNING, _HW, _DRIVER),
    (147, "an NVLink error (TREX)", _WARNING, _HW, _DRIVER),
    (148, "an NVLink error (NVLPW_CTRL)", _WARNING, _HW, _DRIVER),
    (149, "an NVLink error (NETIR)", _WARNING, _HW, _DRIVER),
    (150, "an NVLink error (MSE)", _WARNING, _HW, _DRIVER),
    (151, "an error in the rotation of keys", _CRITICAL, _DRV, _REBOOT),
    (152, "an SMMU error of the deep learning accelerator", _INFO, _DRV, _NONE),
    (153, "the deep learning accelerator timed out", _INFO, _DRV, _NONE),
    (154, "the driver's recovery action for the GPU has changed", _WARNING, _HW, _DRIVER),
    (155, "an NVLink error that software defines", _CRITICAL, _DRV, _RESET),
    (156, "a unit of the GPU is retired; it takes effect at a reset", _CRITICAL, _HW, _RESET),
    (157, "a unit of the GPU could not be retired", _WARNING, _HW, _SUPPORT),
    (158, "a timeout that the GPU does not recover from", _CRITICAL, _HW, _RESET),
    (159, "an error of the coherent link that is not of data", _WARNING, _HW, _SUPPORT),
    (160, "a channel of GPU memory is retired", _WARNING, _HW, _NONE),
    (161, "a channel of GPU memory could not be retired", _WARNING, _HW, _SUPPORT),
    (162, "the circuit that smooths power is engaged again", _INFO, _HW, _NONE),
    (163, "the circuit that smooths power is disengaged", _WARNING, _HW, _NONE),
    (164, "the circuit that smooths power nears the end of its life", _WARNING, _HW, _SUPPORT),
    (165, "the circuit that smooths power has reached the end of its life", _WARNING, _HW, _SUPPORT),
    (166, "traffic came before the link was set up for encryption", _WARNING, _DRV, _SUPPORT),
    (167, "a timeout of PCIe that is not recovered from", _CRITICAL, _HW, _SUPPORT),
    (168, "errors in protected memory: the GPU has less memory than it should", _WARNING, _HW, _SUPPORT),
    (169, "the internal micro-controller SEC2 halted", _CRITICAL, _HW, _SUPPORT),
    (170, "an interrupt in confidential computing that should not be", _WARNING, _DRV, _SUPPORT),
    (171, "an uncorrectable error of GPU memory: more on a double-bit ECC error", _CRITICAL, _HW, _OTHER),
    (172, "an uncorrectable error of on-chip memory: more on a double-bit ECC error", _CRITICAL, _HW, _OTHER),
    *((code, f"an error of video decoder {code - 91}", _WARNING, _DRV, _RESTART) for code in (96, 97, 98)),
    *((code, f"an error of JPEG engine {code - 98}", _WARNING, _DRV, _RESTART) for code in range(99, 106)),
    *((code, f"an error of copy engine {code - 116}", _WARNING, _DRV, _RESTART) for code in range(126, 136)),
)

# Of Volta and older; the catalogue calls these unused.
_IN_LISTING: Final[tuple[_Row, ...]] = (
    (12, "the driver could not handle an exception of the GPU", _WARNING, _DRV, _RESTART),
    (16, "the display engine hung", _WARNING, _DRV, _SUPPORT),
    (18, "bus mastering is disabled in the PCI configuration", _CRITICAL, _DRV, _CHECK),
    (24, "a semaphore of the GPU timed out", _WARNING, _APP, _RESTART),
    (26, "the frame buffer timed out", _WARNING, _DRV, _SUPPORT),
    (27, "an exception of a video processor", _WARNING, _DRV, _RESTART),
    (30, "an illegal access to a semaphore of the GPU", _WARNING, _DRV, _RESTART),
    (33, "an error of the internal micro-controller", _WARNING, _DRV, _SUPPORT),
    (42, "an exception of a video processor", _WARNING, _DRV, _RESTART),
    (47, "an exception of video encoder 0", _WARNING, _DRV, _RESTART),
    (56, "an error of the display engine", _WARNING, _HW, _SUPPORT),
    (57, "an error in programming the interface to GPU memory", _CRITICAL, _HW, _SUPPORT),
    (58, "the interface to GPU memory is unstable", _CRITICAL, _HW, _SUPPORT),
    (59, "an error of the internal micro-controller", _WARNING, _DRV, _SUPPORT),
    (61, "a breakpoint of the internal micro-controller", _CRITICAL, _DRV, _RESET),
    (65, "an exception of video encoder 1", _WARNING, _DRV, _RESTART),
    (73, "an error of video encoder 2", _WARNING, _DRV, _RESTART),
)

XIDS: Final[dict[int, Xid]] = {
    **{row[0]: Xid(*row, CATALOGUE) for row in _IN_CATALOGUE},
    **{row[0]: Xid(*row, LISTING) for row in _IN_LISTING},
}
