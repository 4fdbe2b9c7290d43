"""What graphs made of a prompt, for the next request with the same: least recently used goes first.

It knows no graph and no backend: arrays by the hash of what they were made from.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping

from latentc.backends.protocol import Array


class PromptCache:
    """Text encodings and prompt tensors that come again, such as the unconditional ones; kept for a process.

    Holds at most `max_bytes` of arrays; what was not asked for the longest goes first.
    """

    def __init__(self, max_bytes: int = 2**28) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.hits = 0
        self._outputs: OrderedDict[bytes, dict[str, Array]] = OrderedDict()

    def get(self, key: bytes) -> dict[str, Array] | None:
        """What was put there, if it is still kept."""
        outputs = self._outputs.get(key)
        if outputs is not None:
            self.hits += 1
            self._outputs.move_to_end(key)
        return outputs

    def put(self, key: bytes, outputs: Mapping[str, Array]) -> None:
        """Keeps copies, since a view would keep all that it was cut from; what is larger than the cache is not kept."""
        size = _num_bytes(outputs)
        if size > self.max_bytes:
            return
        self.num_bytes -= _num_bytes(self._outputs.pop(key, {}))
        while self.num_bytes + size > self.max_bytes:
            self.num_bytes -= _num_bytes(self._outputs.popitem(last=False)[1])
        self._outputs[key] = {name: values.copy() for name, values in outputs.items()}
        self.num_bytes += size


def _num_bytes(outputs: Mapping[str, Array]) -> int:
    return sum(values.nbytes for values in outputs.values())


def key_of(graph: str, inputs: Mapping[str, Array]) -> bytes:
    """What a graph is given, as a key of the cache: a hash, since the inputs may be megabytes."""
    digest = hashlib.sha256(graph.encode())
    for name, values in sorted(inputs.items()):
        digest.update(f"\0{name}\0{values.dtype.str}\0{values.shape}\0".encode())
        digest.update(values.tobytes())
    return digest.digest()
