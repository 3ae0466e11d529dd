"""Serves model folders over HTTP, in the dialects that existing clients speak."""
