"""Groups of latents by index, such as 0-9,12,20-29."""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import overload

from odeddim.types import InputError

Span = tuple[int, int]


class Group(Sequence[int]):
    """Indices of latents in the order given, no index twice. They are stored as spans, so a group may be large.

    Args:
        spans: Pairs (start, stop) of the first index and the one after the last.

    Raises:
        InputError: If an index is given twice.
    """

    def __init__(self, spans: Iterable[Span]) -> None:
        self.spans: list[Span] = []
        for start, stop in spans:
            # Neighbouring spans make one, which is read at once.
            first = self.spans.pop()[0] if self.spans and self.spans[-1][1] == start else start
            self.spans.append((first, stop))
        for one, other in itertools.pairwise(sorted(self.spans)):
            if other[0] < one[1]:
                raise InputError(f"latent {other[0]} is given twice: give each index once")
        self._ends = list(itertools.accumulate(stop - start for start, stop in self.spans))

    @classmethod
    def of(cls, indices: Sequence[int]) -> Group:
        """The group of these indices."""
        if isinstance(indices, Group):
            return indices
        if isinstance(indices, range) and indices.step == 1:
            return cls([(indices.start, indices.stop)])
        return cls((index, index + 1) for index in indices)

    @classmethod
    def parse(cls, text: str) -> Group:
        """The group that a text describes.

        Args:
            text: Indices and ranges of indices, ends included, such as "0-9,12,20-29".

        Returns:
            The group.

        Raises:
            InputError: If the text is anything else.
        """
        spans: list[Span] = []
        for item in text.split(","):
            match = re.fullmatch(r"\s*([0-9]{1,18})\s*(?:-\s*([0-9]{1,18})\s*)?", item)
            if match is None:
                raise InputError(f"{item.strip()!r} is no index and no range: give a group such as 0-9,12,20-29")
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first:
                raise InputError(f"the range {first}-{last} falls: give {last}-{first}")
            spans.append((first, last + 1))
        return cls(spans)

    def __str__(self) -> str:
        return ",".join(f"{start}-{stop - 1}" if stop - start > 1 else f"{start}" for start, stop in self.spans)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, i: int) -> int: ...
    @overload
    def __getitem__(self, i: slice) -> list[int]: ...
    def __getitem__(self, i: int | slice) -> int | list[int]:
        if isinstance(i, slice):
            return [self[row] for row in range(len(self))[i]]
        row = range(len(self))[i]
        which = bisect.bisect_right(self._ends, row)
        return self.spans[which][1] - (self._ends[which] - row)

    @property
    def last(self) -> int:
        """The largest index."""
        return max(stop for _, stop in self.spans) - 1

    def check(self, count: int, where: object) -> None:
        """Raise an InputError if an index of the group is not below the number of latents.

        Args:
            count: The number of latents.
            where: What holds them, for the message.
        """
        if self.last >= count:
            raise InputError(f"{where} holds latents 0 to {count - 1}: there is no latent {self.last}")
