"""The demo's data set of drawn shapes, and the training of its CNN."""
