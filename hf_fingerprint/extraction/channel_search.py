"""Finds which of the base's channels are left in each layer of a narrower suspect, by weights alone.

Structured pruning removes channels, and what one layer writes the next one reads. So the layers are solved one after
the other: once a layer's input channels are known, its output channels are those whose rows are most similar, by
linear assignment, and they are candidates for the inputs of all layers of the same widths, as for the other layers
that write the same residual stream. The first layer starts it, since the channels of an image are all there. G. Fang
et al., "DepGraph: towards any structural pruning", CVPR 2023, describes which channels go together; the graph is not
needed, as the wrong candidates don't fit.

Nothing here sees a codeword, so a wrong match can lose evidence but can't create any.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import NamedTuple

import numpy as np

from hf_fingerprint.extraction.channel_similarity import (
    CLEAR_SIMILARITY,
    MAX_CHANCE,
    SCREENED_ROWS,
    KeptChannels,
    assign_channels,
    chance_cosine,
    compare_rows,
    is_decidable,
    least_assigned_similarity,
    least_known_similarity,
    sample_directions,
)


KNOWN_RATIO = 0.95  # of the similarity of the best assignment, which a known order has with less freedom
MAX_CANDIDATES = 64  # orders of two widths
MAX_WORK, LOADING_WORK = 1 << 42, 64  # multiplications, and how many loading a weight counts for
ASSIGNING_WORK = 64  # multiplications that a step of an assignment counts for; rows that are the same take most
MAX_PASSES, REVIEWS = 64, 2
MAX_REVIEWED = 0.99  # the similarity of a layer that is solved again
Widths = tuple[int, int]  # the suspect's channels and the base's


class LayerShapes(NamedTuple):
    """A layer's shapes, `(rows, channels in of a group, kernel)`, in the base and in the suspect."""

    ours: tuple[int, int, int]
    theirs: tuple[int, int, int]

    @property
    def rows(self) -> Widths:
        """The suspect's output channels and the base's."""
        return self.theirs[0], self.ours[0]

    @property
    def columns(self) -> Widths:
        """The suspect's input channels and the base's, of one group."""
        return self.theirs[1], self.ours[1]


class ChannelSearch:
    """Solves the layers of a suspect one after the other.

    Args:
        layers (mapping of `str` to a sequence of `(str, LayerShapes)`): by the base's layer, the suspect's layers
            that may be its counterpart.
        load (callable): `load(layer, counterpart)` gives the base's weights and the suspect's, `float32` in those
            shapes.

    Attributes:
        found (`dict[str, tuple[str, KeptChannels]]`): the counterparts and their channels.
        orders (`dict[Widths, list[np.ndarray]]`): the orders found, by the widths that they map.
        complete (`bool`): whether all candidates were compared.
    """

    def __init__(
        self,
        layers: Mapping[str, Sequence[tuple[str, LayerShapes]]],
        load: Callable[[str, str], tuple[np.ndarray, np.ndarray]],
    ):
        self.found: dict[str, tuple[str, KeptChannels]] = {}
        self.orders: dict[Widths, list[np.ndarray]] = defaultdict(list)
        self.complete = True
        self._layers, self._load = layers, load
        self._tried: dict[tuple[str, str], int] = {}
        self._work = 0

    def run(self) -> None:
        """Solves layers until no more are found; those of short rows last, when the orders they can have are known."""
        for names in (self._long_rows(), list(self._layers)):
            for _ in range(MAX_PASSES):
                before = len(self.found)
                for name in names:
                    if name not in self.found:
                        self._solve(name)
                if len(self.found) == before:
                    break
        for _ in range(REVIEWS):
            for name, (counterpart, kept) in list(self.found.items()):
                if kept.similarity < MAX_REVIEWED:
                    self._review(name, counterpart, kept)

    def suggest(self, widths: Widths, order: np.ndarray) -> None:
        """Adds an order that may be right, at least in part; [`run`] then tries it."""
        if len(self.orders[widths]) < MAX_CANDIDATES:
            self.orders[widths].append(order)

    def known_orders(self, widths: Widths) -> list[np.ndarray]:
        """The orders that map these widths: the base's own if they are equal, then those found."""
        theirs, ours = widths
        return [*([np.arange(ours)] if theirs == ours else []), *self.orders.get(widths, ())]

    def _long_rows(self) -> list[str]:
        return [name for name, parts in self._layers.items() if any(is_decidable(each.ours) for _, each in parts)]

    def _solve(self, name: str) -> None:
        taken = {counterpart for counterpart, _ in self.found.values()}
        best: tuple[str, KeptChannels] | None = None
        for counterpart, shapes in self._layers[name]:
            if counterpart in taken or not self._is_new(name, counterpart, shapes):
                continue
            if self._work > MAX_WORK:
                self.complete = False
                return
            found = self._load_and_compare(name, counterpart, shapes)
            if found is not None and (best is None or found.similarity > best[1].similarity):
                best = counterpart, found
        if best is not None:
            self.found[name] = best
            self._learn(best[1], dict(self._layers[name])[best[0]])

    def _review(self, name: str, counterpart: str, kept: KeptChannels) -> None:
        """Solves a layer again, since better orders may have been found after it."""
        shapes = dict(self._layers[name])[counterpart]
        if self._is_new(name, counterpart, shapes) and self._work <= MAX_WORK:
            found = self._load_and_compare(name, counterpart, shapes)
            if found is not None and found.similarity > kept.similarity:
                self.found[name] = counterpart, found
                self._learn(found, shapes)

    def _is_new(self, name: str, counterpart: str, shapes: LayerShapes) -> bool:
        """Whether an order is known that was not tried with this pair."""
        count = len(self.known_orders(shapes.rows)) + len(self.known_orders(shapes.columns))
        count += sum(1 for _ in self._group_orders(shapes))
        before = self._tried.get((name, counterpart), 0)
        self._tried[name, counterpart] = count
        return count > before

    def _load_and_compare(self, name: str, counterpart: str, shapes: LayerShapes) -> KeptChannels | None:
        self._work += LOADING_WORK * (prod(shapes.ours) + prod(shapes.theirs))
        return self._compare(shapes, *self._load(name, counterpart))

    def _learn(self, found: KeptChannels, shapes: LayerShapes) -> None:
        for widths, order in ((shapes.rows, found.rows), (shapes.columns, found.columns)):
            known = self.known_orders(widths)
            if order.ndim == 1 and not any(np.array_equal(order, each) for each in known):
                if len(known) < MAX_CANDIDATES:
                    self.orders[widths].append(order)
                else:
                    self.complete = False

    def _compare(self, shapes: LayerShapes, ours: np.ndarray, theirs: np.ndarray) -> KeptChannels | None:
        """The best of all ways in which known orders place this layer, if it is similar enough."""
        found = [*self._compare_grouped(shapes, ours, theirs)]
        row_orders, column_orders = self.known_orders(shapes.rows), self.known_orders(shapes.columns)
        for columns in column_orders:
            self._work += theirs.size * (1 + len(row_orders))
            found += [compare_rows(ours, theirs, rows, columns) for rows in row_orders]
        known = max(found, key=lambda each: each.similarity, default=None)
        if known is not None and known.similarity >= least_known_similarity(len(known.rows), True):
            return known
        free = self._assign_rows(ours, theirs, column_orders)
        swapped = self._assign_rows(ours.swapaxes(0, 1), theirs.swapaxes(0, 1), row_orders)
        if swapped is not None and (free is None or swapped.similarity > free.similarity):
            free = KeptChannels(swapped.columns, swapped.rows, swapped.similarity)
        if known is None or known.similarity < least_known_similarity(len(known.rows)):
            return free
        return known if free is None or known.similarity >= KNOWN_RATIO * free.similarity else free

    def _assign_rows(
        self, ours: np.ndarray, theirs: np.ndarray, column_orders: Sequence[np.ndarray]
    ) -> KeptChannels | None:
        """Rows by assignment, with the best of the known orders of columns; `None` if chance explains them."""
        length = theirs.shape[1] * theirs.shape[2]
        if chance_cosine(len(ours), length) > MAX_CHANCE or len(theirs) > len(ours):
            return None
        best: KeptChannels | None = None
        for columns in column_orders:
            if self._work > MAX_WORK:
                self.complete = False
                break
            one, two = sample_directions(ours, theirs, columns)
            least = least_assigned_similarity(one)
            some = two[:: 1 + (len(two) - 1) // SCREENED_ROWS]
            self._work += one.size * 2 * len(some)
            if float((some @ one.T).max(1).mean()) < least:
                continue
            self._work += one.size * len(two)
            similarity = two @ one.T
            rows = self._assign(similarity)
            mean = float(similarity[np.arange(len(rows)), rows].mean())
            if mean >= least and (best is None or mean > best.similarity):
                best = KeptChannels(rows, columns, mean)
        return None if best is None else self._correct_columns(ours, theirs, best)

    def _correct_columns(self, ours: np.ndarray, theirs: np.ndarray, found: KeptChannels) -> KeptChannels:
        """The same rows with the columns assigned to them, if these are clearly more similar: an order that vectors
        suggested is right only in part."""
        if found.similarity >= CLEAR_SIMILARITY or chance_cosine(ours.shape[1], theirs[:, 0].size) > MAX_CHANCE:
            return found
        one, two = sample_directions(ours.swapaxes(0, 1), theirs.swapaxes(0, 1), found.rows)
        self._work += one.size * len(two)
        other = compare_rows(ours, theirs, found.rows, self._assign(two @ one.T))
        return other if KNOWN_RATIO * other.similarity > found.similarity else found

    def _assign(self, similarity: np.ndarray) -> np.ndarray:
        channels, steps = assign_channels(similarity)
        self._work += ASSIGNING_WORK * steps
        return channels

    def _group_orders(self, shapes: LayerShapes) -> Iterator[tuple[np.ndarray, int, int]]:
        """The known orders of the input channels of a grouped convolution, and its groups in the suspect and here."""
        (their_rows, our_rows), (their_columns, our_columns) = shapes.rows, shapes.columns
        for (theirs, ours), orders in list(self.orders.items()):
            groups, mine = theirs // max(their_columns, 1), ours // max(our_columns, 1)
            divisible = groups * their_columns == theirs and mine * our_columns == ours
            if divisible and groups > 1 and not their_rows % groups and not our_rows % mine:
                yield from ((order, groups, mine) for order in orders)

    def _compare_grouped(self, shapes: LayerShapes, ours: np.ndarray, theirs: np.ndarray) -> Iterator[KeptChannels]:
        """The ways in which known orders of the input channels place a grouped or depthwise convolution."""
        for order, groups, mine in self._group_orders(shapes):
            group, column = np.divmod(order.reshape(groups, -1), shapes.ours[1])
            if (group != group[:, :1]).any():
                continue  # channels of one group came from several
            rows_each, ours_each = shapes.theirs[0] // groups, shapes.ours[0] // mine
            columns = np.repeat(column, rows_each, 0)
            own = np.repeat(group[:, 0], rows_each)
            for rows in self.known_orders(shapes.rows):
                if np.array_equal(rows // ours_each, own):
                    yield compare_rows(ours, theirs, rows, columns)
            if rows_each == ours_each == 1:
                yield compare_rows(ours, theirs, group[:, 0], columns)
            elif chance_cosine(ours_each, theirs.shape[1] * theirs.shape[2]) <= MAX_CHANCE:
                self._work += theirs.size * ours_each
                rows = np.empty(len(theirs), np.int64)
                for place in range(groups):
                    part, first = slice(place * rows_each, (place + 1) * rows_each), group[place, 0] * ours_each
                    one, two = sample_directions(ours[first : first + ours_each], theirs[part], column[place])
                    rows[part] = first + self._assign(two @ one.T)
                yield compare_rows(ours, theirs, rows, columns)
