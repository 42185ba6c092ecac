"""The whole graph on a little world of coloured shapes, made here, offline."""
