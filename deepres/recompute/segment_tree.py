"""Segments as a tree: each holds the outermost segments inside it."""

from collections.abc import Iterator


class Segment:
    """Units [start, stop), and the segments among them. The root of a tree is the whole chain.

    Args:
        start: the first unit.
        stop: the unit after the last.
    """

    __slots__ = ("inner", "start", "stop")

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop
        self.inner: list[Segment] = []

    def items(self) -> Iterator["Segment | int"]:
        """The outermost segments and the units outside them, in order."""
        unit = self.start
        for segment in self.inner:
            yield from range(unit, segment.start)
            yield segment
            unit = segment.stop
        yield from range(unit, self.stop)


def segment_tree(num_units: int, segments: tuple[tuple[int, int], ...]) -> list[Segment]:
    """The root and all segments, each before those that it holds.

    Args:
        num_units: the units of the chain.
        segments: disjoint or nested ranges in order of (start, −stop), as in a `Plan`.
    """
    nodes = [Segment(0, num_units)]
    path = [nodes[0]]
    for start, stop in segments:
        while len(path) > 1 and path[-1].stop <= start:
            path.pop()
        node = Segment(start, stop)
        path[-1].inner.append(node)
        path.append(node)
        nodes.append(node)
    return nodes
