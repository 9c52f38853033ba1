"""Tests of the calls to the backend."""
