"""The views of an image: crop, colour and blur, for groups of views."""
