"""The same allocator with `expandable_segments:True`: one segment for each pool, which memory is mapped into."""

from __future__ import annotations

from flexvae_cli.engine.memory.allocator import SMALLEST, Allocator, Chunk, FullError, Pool


class ExpandableAllocator(Allocator):
    """Segments grow and shrink by whole units, so that little is cached that fits nothing."""

    least_rest = SMALLEST

    def _new(self, pool: Pool, size: int) -> Chunk:
        """Memory mapped into the first hole of the segment that is wide enough, or at its end."""
        for hole in self._holes(pool):
            if self._width(hole) >= size:
                return self._filled(pool, hole, size)
        tail = pool.tail
        start = tail if tail is not None and tail.state == "free" else None
        missing = size - (start.size if start else 0)
        grown = -(-missing // pool.unit) * pool.unit
        self._reserve(grown)
        base = 0 if tail is None else tail.address + tail.size
        fresh = Chunk(base, grown, pool, before=tail)
        if tail is not None:
            tail.after = fresh
        pool.tail = fresh
        if start is None:
            return fresh
        pool.remove(start)
        return self._joined(start, fresh)

    def _holes(self, pool: Pool) -> list[Chunk]:
        """Where a chunk could begin that reaches into unmapped addresses, smallest first; the open end is none."""
        found = []
        chunk = pool.tail
        while chunk is not None:
            if chunk.state == "unmapped":
                before = chunk.before
                start = before if before is not None and before.state == "free" else chunk
                found.append((chunk.size, chunk.address, start))
            chunk = chunk.before
        return [start for _, _, start in sorted(found, key=lambda each: each[:2])]

    def _width(self, chunk: Chunk | None) -> int:
        width = 0
        while chunk is not None and chunk.state != "used":
            width += chunk.size
            chunk = chunk.after
        return width

    def _filled(self, pool: Pool, chunk: Chunk, size: int) -> Chunk:
        """A chunk made of free and unmapped ones from `chunk` on; memory is mapped in whole units."""
        if chunk.state == "unmapped":
            self._map(pool, chunk, size)
        else:
            pool.remove(chunk)
        chunk.state = "used"
        while chunk.size < size:
            following = chunk.after
            if following is None:
                raise FullError  # the width was looked up before
            if following.state == "free":
                pool.remove(following)
            else:
                try:
                    self._map(pool, following, size - chunk.size)
                except FullError:
                    self._put(chunk)
                    raise
            self._joined(chunk, following)
        return chunk

    def _map(self, pool: Pool, hole: Chunk, size: int) -> None:
        """Map the beginning of a hole; what is left of it stays one."""
        size = min(hole.size, -(-size // pool.unit) * pool.unit)
        self._reserve(size)
        if size < hole.size:
            self._cut(hole, size).state = "unmapped"
        hole.state = "used"

    def _release(self) -> None:
        """Give back whole units of what is free."""
        for pool in self._pools:
            for chunk in list(pool.chunks.values()):
                self._unmap(pool, chunk)

    def _unmap(self, pool: Pool, chunk: Chunk) -> None:
        start = -(-chunk.address // pool.unit) * pool.unit
        end = (chunk.address + chunk.size) // pool.unit * pool.unit
        if end <= start:
            return
        pool.remove(chunk)
        rest = self._cut(chunk, end - chunk.address) if end < chunk.address + chunk.size else None
        hole = self._cut(chunk, start - chunk.address) if start > chunk.address else chunk
        hole.state = "unmapped"
        self.reserved -= hole.size
        if rest is not None:
            pool.add(rest)
        if hole is not chunk:
            pool.add(chunk)
