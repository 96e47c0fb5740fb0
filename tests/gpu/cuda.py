"""Holds memory of the GPUs that CUDA shows this process, by its driver's own interface: no toolkit, no torch.

`python -I -S cuda.py` prints one line of JSON with what it sees, then does what its standard input says, a line each,
and answers each with a line of JSON:

    alloc MIB        on every visible GPU; `held` is what was allocated of each, without the context
    load SECONDS     writes what it holds over and over: utilisation, power and temperature rise
    free

It ends, and the driver takes everything back, at the end of its input. What CUDA refuses is {"error", "code"}, and
exit 3.
"""

import ctypes
import json
import sys
import time

LIBRARY = "libcuda.so.1"
CAPABILITY = (75, 76)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
MIB = 1 << 20
BURST = 16  # writes between two looks at the clock
REFUSED = 3


class CudaError(Exception):
    def __init__(self, code, name, call):
        super().__init__(f"{call}: {name} ({code})")
        self.code = code


class Cuda:
    """Raises OSError without the library, CudaError for what it refuses."""

    def __init__(self, library=LIBRARY):
        self.library = ctypes.CDLL(library)
        self.call("cuInit", 0)
        count = ctypes.c_int()
        self.call("cuDeviceGetCount", ctypes.byref(count))
        self.devices = [self._device(ordinal) for ordinal in range(count.value)]
        self.blocks = []  # (context, address, bytes)

    def call(self, name, *arguments):
        code = getattr(self.library, name)(*arguments)
        if code != 0:
            told = ctypes.c_char_p()
            self.library.cuGetErrorName(code, ctypes.byref(told))
            raise CudaError(code, (told.value or b"unknown").decode(), name)

    def _device(self, ordinal):
        device, context = ctypes.c_int(), ctypes.c_void_p()
        uuid, name, total = (ctypes.c_ubyte * 16)(), ctypes.create_string_buffer(256), ctypes.c_size_t()
        self.call("cuDeviceGet", ctypes.byref(device), ordinal)
        self.call("cuDeviceGetUuid_v2", uuid, device)
        self.call("cuDeviceGetName", name, len(name), device)
        self.call("cuDeviceTotalMem_v2", ctypes.byref(total), device)
        capability = []
        for attribute in CAPABILITY:
            value = ctypes.c_int()
            self.call("cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
            capability.append(value.value)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        told = {
            "uuid": dashed(bytes(uuid)),
            "name": name.value.decode(),
            "total": total.value,
            "capability": capability,
        }
        return {"context": context, "told": told}

    def version(self):
        version = ctypes.c_int()
        self.call("cuDriverGetVersion", ctypes.byref(version))
        return f"{version.value // 1000}.{version.value % 1000 // 10}"

    def alloc(self, bytes_each):
        for device in self.devices:
            address = ctypes.c_uint64()
            self.call("cuCtxSetCurrent", device["context"])
            self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(bytes_each))
            self.blocks.append((device["context"], address, bytes_each))
        self.write()  # touched once: what was only promised is no proof

    def write(self):
        for context, address, size in self.blocks:
            self.call("cuCtxSetCurrent", context)
            self.call("cuMemsetD8Async", address, ctypes.c_ubyte(1), ctypes.c_size_t(size), None)
        for device in self.devices:
            self.call("cuCtxSetCurrent", device["context"])
            self.call("cuCtxSynchronize")

    def load(self, seconds):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for _ in range(BURST):
                self.write()

    def free(self):
        for context, address, _ in self.blocks:
            self.call("cuCtxSetCurrent", context)
            self.call("cuMemFree_v2", address)
        self.blocks.clear()

    @property
    def held(self):
        """Bytes of each GPU."""
        return sum(size for _, _, size in self.blocks) // max(1, len(self.devices))


def dashed(raw):
    """As NVML writes it after `GPU-`."""
    text = raw.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def say(**what):
    print(json.dumps(what), flush=True)


def obey(cuda, line):
    word, *rest = line.split()
    if word == "alloc":
        cuda.alloc(int(rest[0]) * MIB)
    elif word == "load":
        cuda.load(float(rest[0]))
    elif word == "free":
        cuda.free()
    else:
        raise ValueError(f"{word!r} is none of alloc, load, free")
    say(did=word, held=cuda.held)


def main():
    try:
        cuda = Cuda()
        say(cuda=cuda.version(), devices=[device["told"] for device in cuda.devices])
        for line in sys.stdin:
            obey(cuda, line)
    except CudaError as error:
        say(error=str(error), code=error.code)
        sys.exit(REFUSED)
    except OSError as error:
        say(error=str(error), code=None)
        sys.exit(REFUSED)


if __name__ == "__main__":
    main()
