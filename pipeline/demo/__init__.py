"""The demo's data set of drawn shapes, and its CNN."""
