"""showtell: image captioning on cached, frozen CNN features."""

__version__ = "0.1.0"
