"""A model folder at work over HTTP, in the dialects that clients speak already."""
