"""Measurements that the documents quote; each prints one JSON document as the last line of stdout."""
