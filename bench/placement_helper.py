"""The real accelerate.infer_auto_device_map, in an environment of its own: a question a line, an answer a line.

A question is {"layers": [bytes, ...], "memory": [bytes, ...], "rounds": n}; the model is on the meta device, each layer
with the nine tensors that a Llama layer has. The answer is {"seconds": [...], "devices": [...]}: of every call, and the
device of each layer, -1 where it is left to the host or disk.
"""

import json
import os
import sys
import time

TENSORS = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")
NORMS = ("input_norm", "post_norm")


def main() -> None:
    answers = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)  # it warns of each device that is not there, with every call
    import torch
    from accelerate import infer_auto_device_map

    def leaf(size: int) -> "torch.nn.Module":
        module = torch.nn.Module()
        tensor = torch.empty(size, dtype=torch.uint8, device="meta")
        module.weight = torch.nn.Parameter(tensor, requires_grad=False)
        return module

    class Layer(torch.nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.self_attn, self.mlp = torch.nn.Module(), torch.nn.Module()
            names = TENSORS + NORMS
            for place, name in enumerate(names):
                owner, _, last = name.rpartition(".")
                share = size // len(names) + (size % len(names) if place == 0 else 0)
                (getattr(self, owner) if owner else self).add_module(last, leaf(share))

    def model(sizes: "list[int]") -> "torch.nn.Module":
        whole = torch.nn.Module()
        whole.layers = torch.nn.ModuleList([Layer(size) for size in sizes])
        return whole

    def device_of(found: "dict[str, object]", layer: int) -> int:
        for name in (f"layers.{layer}", "layers", ""):
            if name in found:
                return found[name] if isinstance(found[name], int) else -1
        return -1  # in parts on several

    for line in sys.stdin:
        question = json.loads(line)
        asked, memory, seconds = model(question["layers"]), dict(enumerate(question["memory"])), []
        for _ in range(question["rounds"]):
            start = time.perf_counter()
            found = infer_auto_device_map(asked, max_memory=dict(memory), no_split_module_classes=["Layer"])
            seconds.append(time.perf_counter() - start)
        devices = [device_of(found, layer) for layer in range(len(question["layers"]))]
        os.write(answers, (json.dumps({"seconds": seconds, "devices": devices}) + "\n").encode())


if __name__ == "__main__":
    main()
