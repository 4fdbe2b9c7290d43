"""Engines that are not all in memory: one at a time, made when it is asked for.

A request asks for its stages one after the other (text encoders, prompt, schedule, the loop, decode), so that what is
held is the largest of them. It is a mapping like any other: who samples does not know which kind it was given.
"""

from collections.abc import Callable, Iterator, Mapping

from latentc.backends.protocol import Engine

# The two engines of one loop take turns; the weights of the second are among the first's, pages of the same file.
TOGETHER = frozenset({"denoise", "denoise_cached"})


class OneAtATime(Mapping[str, Engine]):
    """Engines by graph name. Asking for one closes the one that was asked for before: no two are open together, but
    for those of TOGETHER.
    """

    def __init__(self, names: tuple[str, ...], load: Callable[[str], Engine]) -> None:
        self._names = names
        self._load = load
        self._open: dict[str, Engine] = {}

    def __getitem__(self, name: str) -> Engine:
        if name not in self._open:
            if name not in self._names:
                raise KeyError(name)
            if not (name in TOGETHER and self._open.keys() <= TOGETHER):
                self.close()
            self._open[name] = self._load(name)
        return self._open[name]

    def close(self) -> None:
        """Closes all that are open."""
        opened, self._open = self._open, {}
        for engine in opened.values():
            engine.close()

    def __contains__(self, name: object) -> bool:
        return name in self._names  # Mapping's own would load it

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
