"""Editing without a browser: people, records, a network, and what is kept of it all."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hkmap.editor.folder import WorkFolder
from hkmap.editor.work import CONFIRMED, EDITED, SKIPPED, UNTOUCHED, Work
from hkmap.errors import HkmapError, OutputError, RecordError
from hkmap.files.images import Pixels
from hkmap.files.maps import Drawn, open_writer, save_drawn
from hkmap.maps.certainty import Weighted, at_one_size, mean_weighted
from hkmap.maps.strokes import Frame, Painting, Stroke, blank
from hkmap.records import Record, attempt, label_of, reference_of, without_maps
from hkmap.stream.editing import EMPTY, HUMAN, PREDICTED, SIZE, base_of, no_start
from hkmap.stream.references import image_frame, load_certainty_of, load_map, read_image

if TYPE_CHECKING:       # a painter of maps needs no torch
    from hkmap.editor.live import Guess, LiveNetwork, Probabilities, Seen

STARTS = (HUMAN, PREDICTED, EMPTY)
MOST_IMAGES = 32        # whose features are kept, so that a lab of people can work at once
MOST_NUMBERS = 1 << 26  # of all paintings that are kept, 256 MB
MOST_EARLIER = 20       # paintings of a record that undo need not paint again, if they are small


@dataclass(frozen=True)
class Open:
    """A record as it lies before a person: their work, the map that it starts from, and the painting on it."""

    work: Work
    base: Weighted
    painting: Painting
    earlier: tuple[Painting, ...] = ()      # before the last strokes, for undo

    @property
    def edited(self) -> Weighted:
        return self.painting.of(self.base)

    @property
    def numbers(self) -> int:
        """How many numbers it holds: a stroke changes two of a painting's four layers."""
        return self.painting.scale.size * (4 + 2 * len(self.earlier))


class Person(NamedTuple):
    """How far a person is: records by state, the strokes on them, and when they last changed one."""

    user: str
    confirmed: int
    edited: int
    skipped: int
    strokes: int
    changed: str | None


class EditSession:
    """The edits of records by people, each change kept in ``out`` before it counts.

    Records are named by their number, from 0. With a ``network`` there are answers, and maps may start from its own;
    ``size`` (height, width) is that of a map of zeros, by default that of the record's own map, or else the network's,
    or 14 x 14. Strokes start from the map of ``begin`` where a record has it, else from the first of STARTS that it
    has. Threads may share a session; ``network`` serves one at a time. Raises RecordError for a damaged file in
    ``out`` or a ``begin`` that no record has, and OutputError where a finished map would take the place of one that it
    starts from.

        session = EditSession(records, Path("edited"), network=LiveNetwork(load_model("run/"), device))
        session.paint(0, "ana", Stroke("add", ((120, 80),), radius=20))
        session.guesses(0, session.open(0, "ana").edited)
    """

    def __init__(
        self, records: Sequence[Record], out: Path, *, network: LiveNetwork | None = None,
        size: tuple[int, int] | None = None, begin: str | None = None,
    ) -> None:
        twice = [identifier for identifier, times in Counter(record["id"] for record in records).items() if times > 1]
        if twice:
            raise RecordError(f'record "{twice[0]}": comes twice, and there is one map of each; make the ids unique')
        _refuse_maps_within(out, records)
        self.records = list(records)
        self.folder = WorkFolder(out)
        self._briefs = self.folder.briefs(record["id"] for record in records)
        self.network, self.begin = network, begin
        self.size, self._otherwise = size, network.model.map_size if network else SIZE
        self._changing, self._answering = threading.RLock(), threading.RLock()
        self._seen = lru_cache(MOST_IMAGES)(self._see)
        self._open: dict[tuple[int, str], Open] = {}
        if begin is not None and not any(begin in self.starts(number) for number in range(len(self.records))):
            remedy = "give --from RUN, or omit it" if begin == PREDICTED else "omit it"
            raise RecordError(f'--start {begin}: no record has a map under "{begin}"; {remedy}')

    # a record

    def starts(self, number: int) -> list[str]:
        """Return what the strokes of a record may start from, the usual one first."""
        record = self.records[number]
        there = {
            HUMAN: reference_of(record, HUMAN) is not None,
            PREDICTED: reference_of(record, PREDICTED) is not None or self.network is not None
            or self.folder.start_path(record["id"]).exists(),
        }
        possible = [start for start in STARTS if there.get(start, True)]
        return sorted(possible, key=lambda start: start != self.begin)

    def work(self, number: int, user: str) -> Work:
        """Return a person's work on a record; that of somebody who did nothing is untouched."""
        kept = self._open.get((number, user))
        if kept is not None:
            return kept.work
        return self.folder.read(user, self.records[number]["id"]) or Work(self.starts(number)[0])

    def open(self, number: int, user: str) -> Open:
        """Return a record as a person left it; raise HkmapError where a file of it cannot be read."""
        with self._changing:
            found = self._open.get((number, user)) or self._replayed(number, self.work(number, user))
            return self._keep(number, user, found)

    def image_reference(self, number: int) -> str:
        record = self.records[number]
        reference = reference_of(record, "image")
        if reference is None:
            raise RecordError(f'record "{record["id"]}": no key "image" with a path; the editor needs an image')
        return reference

    def image(self, number: int) -> Pixels:
        """Return a record's image (H, W, 3) RGB, as displayed."""
        return read_image(self.image_reference(number))

    def base(self, number: int, start: str) -> Weighted:
        """Return the map that strokes start from; the network's own is kept from then on."""
        record = self.records[number]
        if start not in self.starts(number):
            raise no_start(record, start)
        if start != PREDICTED or reference_of(record, PREDICTED) is not None:
            return base_of(record, start, self.size, self._otherwise)
        kept = self.folder.start_map(record["id"])
        return Weighted(self.seen(number).attention if kept is None else kept, None)

    # changes, each kept before it counts

    def paint(self, number: int, user: str, stroke: Stroke) -> Open:
        return self._change(number, user, lambda work: work.painted(stroke))

    def undo(self, number: int, user: str) -> Open:
        return self._change(number, user, Work.undo)

    def redo(self, number: int, user: str) -> Open:
        return self._change(number, user, Work.redo)

    def reset(self, number: int, user: str) -> Open:
        return self._change(number, user, Work.reset)

    def start(self, number: int, user: str, start: str) -> Open:
        """Let the strokes start from another map of `starts`."""
        return self._change(number, user, lambda work: work.started(start))

    def mark(self, number: int, user: str, state: str) -> Open:
        """Mark a record as confirmed, which saves its map, as skipped, or as edited, which takes either back."""
        with self._changing:
            work = self.open(number, user).work.marked(state)
            if state == CONFIRMED:
                self.save(number, {user: work})
            return self._change(number, user, lambda _: work)

    def _change(self, number: int, user: str, change: Callable[[Work], Work]) -> Open:
        with self._changing:
            before = self.open(number, user)
            work = change(before.work)
            if work.state == EDITED and not work.strokes and work.start == self.starts(number)[0]:
                work = replace(work, state=UNTOUCHED)       # all is taken back
            after = self._stepped(number, before, work)
            record = self.records[number]
            if work.start == PREDICTED and reference_of(record, PREDICTED) is None:
                self.folder.keep_start(record["id"], after.base.map)
            self.folder.write(user, record["id"], work)
            self._keep(number, user, after)
            self._briefs[user, record["id"]] = work.brief
            return after

    def _keep(self, number: int, user: str, found: Open) -> Open:
        self._open.pop((number, user), None)
        self._open[number, user] = found        # the last is the one used last
        while len(self._open) > 1 and sum(one.numbers for one in self._open.values()) > MOST_NUMBERS:
            self._open.pop(next(iter(self._open)))
        return found

    def _stepped(self, number: int, before: Open, work: Work) -> Open:
        if work.start != before.work.start:
            return self._replayed(number, work)
        if work.strokes == before.work.strokes:
            return replace(before, work=work)
        if work.strokes[:-1] == before.work.strokes:
            painting = before.painting.painted(work.strokes[-1])
            earlier = (*before.earlier, before.painting)[-_most_earlier(painting):]
            return replace(before, work=work, painting=painting, earlier=earlier)
        if work.strokes == before.work.strokes[:-1] and before.earlier:
            return replace(before, work=work, painting=before.earlier[-1], earlier=before.earlier[:-1])
        return self._replayed(number, work)

    def _replayed(self, number: int, work: Work) -> Open:
        base = self.base(number, work.start)
        painting = blank((base.map.shape[0], base.map.shape[1]), self.frame(number))
        earlier: deque[Painting] = deque(maxlen=_most_earlier(painting))
        for stroke in work.strokes:
            earlier.append(painting)
            painting = painting.painted(stroke)
        return Open(work, base, painting, tuple(earlier))

    def frame(self, number: int) -> Frame:
        """Return (width, height) of the image that a record's strokes are in the pixels of."""
        return image_frame(self.records[number])

    def two_sizes(self) -> tuple[tuple[int, int], tuple[int, int]] | None:
        """Return (height, width) of the first record's own map, and of the network's, where these are not the same.

        A map that cannot be read counts as none: who opens the record is told.
        """
        reference = next((record[HUMAN] for record in self.records if reference_of(record, HUMAN)), None)
        if self.network is None or reference is None:
            return None
        values, other = attempt(load_map, reference), self.network.model.map_size
        if isinstance(values, HkmapError) or values.shape == other:
            return None
        return (values.shape[0], values.shape[1]), other

    # people

    def table(self) -> list[Person]:
        """Return how far each person is who has worked in the folder, by name."""
        rows = []
        for user in self.folder.people():
            briefs = [brief for (person, _), brief in list(self._briefs.items()) if person == user]
            confirmed, edited, skipped = map([brief.state for brief in briefs].count, (CONFIRMED, EDITED, SKIPPED))
            changed = max((brief.at for brief in briefs if brief.at is not None), default=None)
            rows.append(Person(user, confirmed, edited, skipped, sum(brief.strokes for brief in briefs), changed))
        return rows

    def states(self, user: str) -> list[str]:
        """Return the states of a person's work on the records, in order."""
        found = (self._briefs.get((user, record["id"])) for record in self.records)
        return [UNTOUCHED if brief is None else brief.state for brief in found]

    def last(self, user: str) -> int | None:
        """Return the number of the record that a person changed last, if there is one."""
        found = (self._briefs.get((user, record["id"])) for record in self.records)
        times = {number: brief.at for number, brief in enumerate(found) if brief is not None and brief.at}
        return max(times, key=times.__getitem__, default=None)

    # answers

    def seen(self, number: int) -> Seen:
        """Return what the network makes of a record's image, computed once."""
        with self._answering:
            return self._seen(number)

    def guesses(self, number: int, edited: Weighted) -> list[Guess]:
        """Return the likeliest classes with an edited map, and the true one; none without a network."""
        if self.network is None:
            return []
        now = self.answer(number, edited)
        return self.network.guesses(self.seen(number), now, label_of(self.records[number]))

    def answer(self, number: int, edited: Weighted) -> Probabilities:
        """Return the probabilities (K,) that the network gives with an edited map."""
        assert self.network is not None, "without a network there are no answers"
        with self._answering:
            return self.network.answer(self._seen(number), edited)

    def outlook(self, number: int, user: str) -> dict[str, Any]:
        """Return what the network answers by itself, how surely, and what with a person's map as it lies; keep nothing.
        """
        assert self.network is not None, "without a network there are no answers"
        work, edited = self.work(number, user), None
        if work.start != PREDICTED or self.folder.start_path(self.records[number]["id"]).exists():
            edited = self._opened(number, user, work).edited
        with self._answering:
            seen = self._see(number)
            now = seen.before if edited is None else self.network.answer(seen, edited)
        label = int(seen.before.argmax())
        return {"prediction": label, "confidence": float(seen.before[label]), "now": int(now.argmax())}

    def _see(self, number: int) -> Seen:
        assert self.network is not None
        return self.network.see(self.image(number), f'record "{self.records[number]["id"]}"')

    # the end

    def save(self, number: int, sooner: Mapping[str, Work] | None = None) -> Record:
        """Save the finished maps of a record, and return the record with them; one that nobody finished, as it is.

        With several people in the folder the map is the mean of theirs, over what each of them knows. ``sooner`` is
        work that is about to be kept, by person.
        """
        record, coming = self.records[number], sooner or {}
        people = sorted({*self.folder.people(), *coming})
        found = {user: coming.get(user) or self.work(number, user) for user in people}
        works = {user: work for user, work in found.items() if work.finished}
        if not works:
            return record
        edited = at_one_size([self._opened(number, user, work).edited for user, work in works.items()])
        several = len(people) > 1
        joint = mean_weighted(edited)
        each = {user: own.map for user, own in zip(works, edited, strict=True)} if several else None
        with open_writer(self.folder.out, overwrite=True) as maps:
            saved = save_drawn(maps, Drawn(without_maps(record), joint.map, joint.certainty, each))
        about = {user: self._about(record, user, work) for user, work in works.items()}
        if any(work.start == PREDICTED for work in works.values()) and reference_of(record, PREDICTED) is None:
            saved[PREDICTED] = str(self.folder.start_path(record["id"]))
        if not several:
            return {**saved, **about[people[0]], "edited_by": people[0]}
        told = {key: {user: one[key] for user, one in about.items()} for key in ("edited_at", "edited_from", "strokes")}
        return {**saved, **told, "edited_by": list(works)}

    def _opened(self, number: int, user: str, work: Work) -> Open:
        kept = self._open.get((number, user))
        if kept is not None and (kept.work.start, kept.work.strokes) == (work.start, work.strokes):
            return kept
        return self._replayed(number, work)

    def records_out(self) -> Iterator[Record]:
        """Save all finished maps, and yield the records in order with them and what the network answers now.

        A record that nobody finished is yielded as it is.
        """
        for number, record in enumerate(self.records):
            saved = self.save(number)
            yield saved if saved is record or self.network is None else {**saved, **self._answers(number, saved)}

    def _about(self, record: Record, user: str, work: Work) -> dict[str, str | None]:
        start = reference_of(record, work.start) if work.start != EMPTY else EMPTY
        return {
            "edited_at": work.at, "edited_from": start or str(self.folder.start_path(record["id"])),
            "strokes": f"{self.folder.path(user, record['id'])}#0",
        }

    def _answers(self, number: int, saved: Record) -> Record:
        values = load_map(saved["map"])
        now = self.answer(number, Weighted(values, load_certainty_of(saved, values)))
        before, after = map(self._told, (self.seen(number).before, now))
        return {**before, **{f"edited_{key}": value for key, value in after.items()}}

    def _told(self, found: Probabilities) -> dict[str, Any]:
        assert self.network is not None
        label = int(found.argmax())
        name = self.network.model.class_names[label]
        return {"prediction": label, "confidence": float(found.max()), **({"predicted_class": name} if name else {})}


def _most_earlier(painting: Painting) -> int:
    return max(1, min(MOST_EARLIER, MOST_NUMBERS // 8 // painting.scale.size))


def _refuse_maps_within(out: Path, records: Sequence[Record]) -> None:
    """Raise OutputError where a finished map would take the place of one that strokes start from."""
    for key in (HUMAN, PREDICTED):
        folders = {Path(record[key]).parent: record for record in records if isinstance(record.get(key), str)}
        for folder, record in folders.items():
            if folder.resolve() == out.resolve():
                raise OutputError(
                    f'record "{record["id"]}": its {key} {record[key]} lies in {out}, where finished maps go; '
                    "choose another folder for them, or give the records as they were before they were edited"
                )
