"""Estimates the time of each part of a run on this machine, before it runs."""
