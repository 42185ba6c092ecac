"""The trained model as users meet it: images in, captions out."""
