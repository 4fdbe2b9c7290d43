"""Several requests at once, at most as many as there are lanes; the others wait.

lanes = Lanes(open_session(Path("build/emoji"), "tensorrt"), count=2)
with lanes.session() as session:                # in as many threads as there are requests
    picture = session.draw(request, seed=7)

Lanes share the weights. Each has a stream, scratch memory and recorded loops of its own: that is what one more costs.
"""

import queue
from collections.abc import Iterator
from contextlib import contextmanager

from latentc.errors import RequestError
from latentc.session import Session


class Lanes:
    """A bounded number of sessions over the same engines."""

    def __init__(self, session: Session, count: int) -> None:
        if count < 1:
            raise RequestError(f"{count} lanes are out of range; give 1 or more")
        self._free: queue.Queue[Session] = queue.Queue()
        self._free.put(session)
        for _ in range(count - 1):
            self._free.put(session.in_lane())

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A lane for one request; waits until one is free."""
        session = self._free.get()
        try:
            yield session
        finally:
            self._free.put(session)
