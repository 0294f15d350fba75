"""Photographs and videos to upright, aligned faces."""
