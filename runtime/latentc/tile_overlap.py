"""How tiles overlap, for those that need no numpy to know it."""

SHARED = 4  # one part of so many of a tile is its neighbour's, too
