"""Configurations: plain functions that return a frozen Config; no inheritance, no files."""
